"""Quantities derived from attention: rollout, words, shares, active heads, structure.

`rollout` and `rollout_map` compose the layers; `words`, `word_maps` and `word_shares` take the tokens of an
instruction together. ``attnstore attention`` is their command.
"""

from __future__ import annotations

from .rollout import rollout, rollout_map
from .words import Word, word_maps, word_shares, words

__all__ = ["Word", "rollout", "rollout_map", "word_maps", "word_shares", "words"]

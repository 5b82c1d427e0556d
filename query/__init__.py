"""Answers from a store: slices by name, maps, statistics, SQL. Never imports torch or OpenCV."""

from __future__ import annotations

from . import accessor as _accessor  # noqa: F401  registers .attn
from .episode import Episode
from .store import Store, open

__all__ = ["Episode", "Store", "open"]

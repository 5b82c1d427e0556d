"""Reading an episode back: attention, maps, statistics and frames by name, lazily.

`Episode` is the one reader, below `ingest`, which probes what is stored, and `query`, which hands it
on. Which step, head and object masks stand for the others says `attnstore.store.rules`.
"""

from __future__ import annotations

from . import accessor as _accessor  # noqa: F401  registers .attn
from .episode import Episode

__all__ = ["Episode"]

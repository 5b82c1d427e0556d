"""Answers from a store: slices by name, maps, statistics, SQL. Never imports torch or OpenCV."""

from __future__ import annotations

from attnstore.store.reader import Episode

from .sql.store import Store, open

__all__ = ["Episode", "Store", "open"]

"""Answers from a store: slices by name, maps, statistics, SQL. Never imports torch or OpenCV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .sql.store import Store, open

if TYPE_CHECKING:
    from attnstore.store.reader import Episode

__all__ = ["Episode", "Store", "open"]


def __getattr__(name: str) -> object:
    # xarray and pandas, which a question in SQL or a comparison of groups does without
    if name != "Episode":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from attnstore.store.reader import Episode

    return Episode

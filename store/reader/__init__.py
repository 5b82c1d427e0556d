"""Reading an episode back: attention, maps, statistics and frames by name, lazily.

`Episode` is the one reader, below `ingest`, which probes what is stored, and `query`, which hands it
on. Which step, head and object masks stand for the others says `attnstore.store.rules`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .episode import Episode

__all__ = ["Episode"]


def __getattr__(name: str) -> object:
    # xarray and pandas take half a second, which rooms such as `selection` do without
    if name != "Episode":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .episode import Episode

    return Episode

"""The store: formats, commits, catalog; knows nothing of models or pictures.

A store is a directory that any Zarr v3, Parquet and DuckDB reader opens. `create_store` makes one,
`EpisodeWriter` writes an episode, `Part` reads it back, `connect` asks its catalog.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arrays.groups import PolicyShapes
    from .catalog import Generation, connect, rebuild, refresh
    from .commits import Attempt, Commit, StorePaths, all_commits, latest_commit
    from .commits.part import Part
    from .commits.run import RunConfig, load_run, run_ids, save_run
    from .commits.verify import Problem
    from .commits.writer import EpisodeWriter
    from .errors import (
        AttnstoreError,
        ConflictError,
        EpisodeError,
        HealthError,
        IntegrityError,
        MissingExtraError,
        NotFoundError,
        PartialError,
        SelectionError,
        UnsupportedFormatError,
        UsageError,
    )
    from .format.episode import EpisodeSpec, PhaseSpec
    from .format.geometry import Geometry
    from .format.tokens import AlignedAxis, Axis, Span, Token, TokenLayout
    from .garbage import Collected, collect
    from .opening import create_store, open_store

__all__ = [
    "AlignedAxis",
    "Attempt",
    "AttnstoreError",
    "Axis",
    "Collected",
    "Commit",
    "ConflictError",
    "EpisodeError",
    "EpisodeSpec",
    "EpisodeWriter",
    "Generation",
    "Geometry",
    "HealthError",
    "IntegrityError",
    "MissingExtraError",
    "NotFoundError",
    "Part",
    "PartialError",
    "PhaseSpec",
    "PolicyShapes",
    "Problem",
    "RunConfig",
    "SelectionError",
    "Span",
    "StorePaths",
    "Token",
    "TokenLayout",
    "UnsupportedFormatError",
    "UsageError",
    "all_commits",
    "collect",
    "connect",
    "create_store",
    "latest_commit",
    "load_run",
    "open_store",
    "rebuild",
    "refresh",
    "run_ids",
    "save_run",
]

_HOMES = {
    "arrays.groups": ("PolicyShapes",),
    "catalog": ("Generation", "connect", "rebuild", "refresh"),
    "commits": ("Attempt", "Commit", "StorePaths", "all_commits", "latest_commit"),
    "garbage": ("Collected", "collect"),
    "commits.verify": ("Problem",),
    "format.episode": ("EpisodeSpec", "PhaseSpec"),
    "errors": (
        "AttnstoreError",
        "ConflictError",
        "EpisodeError",
        "HealthError",
        "IntegrityError",
        "MissingExtraError",
        "NotFoundError",
        "PartialError",
        "SelectionError",
        "UnsupportedFormatError",
        "UsageError",
    ),
    "format.geometry": ("Geometry",),
    "commits.part": ("Part",),
    "opening": ("create_store", "open_store"),
    "commits.run": ("RunConfig", "load_run", "run_ids", "save_run"),
    "format.tokens": ("AlignedAxis", "Axis", "Span", "Token", "TokenLayout"),
    "commits.writer": ("EpisodeWriter",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # On first use, and not above: zarr, pyarrow and duckdb take half a second to import, which
    # every `attnstore --help` would pay for the errors alone.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

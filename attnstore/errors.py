"""Every error that attnstore raises on purpose, to be caught by name; `attnstore.store.errors`."""

from __future__ import annotations

from attnstore.store import errors as _tree
from attnstore.store.errors import (
    AttnstoreError,
    ConflictError,
    DeniedError,
    EpisodeError,
    HealthError,
    IntegrityError,
    MissingExtraError,
    NotFoundError,
    NotPulledError,
    PartialError,
    ReplayError,
    SelectionError,
    UnknownEpisodeError,
    UnsupportedFormatError,
    UsageError,
)

__all__ = [
    "AttnstoreError",
    "ConflictError",
    "DeniedError",
    "EpisodeError",
    "HealthError",
    "IntegrityError",
    "MissingExtraError",
    "NotFoundError",
    "NotPulledError",
    "PartialError",
    "ReplayError",
    "SelectionError",
    "UnknownEpisodeError",
    "UnsupportedFormatError",
    "UsageError",
]

__doc__ = _tree.__doc__

"""Every error that attnstore raises on purpose, with the exit code it maps to.

::

    AttnstoreError                  1  failed
    ├── UsageError                  2  also ValueError: an argument breaks a rule
    │   ├── SelectionError          2  a selection matches nothing, or too much
    │   └── MissingExtraError       2  also ImportError: an optional dependency is not installed
    ├── NotFoundError               3  also LookupError: no such store, run, episode, file
    │   ├── UnknownEpisodeError     3  also KeyError: no episode of that name
    │   └── NotPulledError          3  committed, but not in this copy of the store
    ├── IntegrityError              4  stored bytes are not what was committed
    │   └── UnsupportedFormatError  4  written by a newer major format
    ├── DeniedError                 1  a server does not give a file, nor say whether there is one
    ├── ConflictError               1  another writer committed the same revision first
    ├── EpisodeError                5  one episode of a dataset is broken
    ├── HealthError                 5  captured attention fails a check of the health gate
    │   └── ReplayError             5  a policy acts otherwise than it did when it was recorded
    └── PartialError                5  some of the work was done, some was not

Examples
--------
>>> issubclass(NotFoundError, LookupError), NotFoundError.exit_code
(True, 3)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class AttnstoreError(Exception):
    """Root of the tree; its message is one line that a user can act on."""

    exit_code: ClassVar[int] = 1


class UsageError(AttnstoreError, ValueError):
    """An argument breaks a rule."""

    exit_code = 2


class SelectionError(UsageError):
    """A selection matches nothing, or would load more than was allowed."""


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is not installed; the message names the command that installs it."""


class NotFoundError(AttnstoreError, LookupError):
    """There is no such store, run, episode, table or file."""

    exit_code = 3


class UnknownEpisodeError(NotFoundError, KeyError):
    """No committed episode has this name."""

    __str__ = Exception.__str__  # KeyError's would quote the message


class NotPulledError(NotFoundError):
    """What is asked for was committed, but only a cheaper tier of it was pulled."""


class IntegrityError(AttnstoreError):
    """Stored bytes are not what was committed."""

    exit_code = 4


class UnsupportedFormatError(IntegrityError):
    """The store was written by a newer major format version."""


class DeniedError(AttnstoreError):
    """A server does not give a file, and does not say whether there is one."""


class ConflictError(AttnstoreError):
    """Another writer committed the same revision first; nothing was lost."""


class EpisodeError(AttnstoreError):
    """One episode of a dataset is broken; the others are not affected."""

    exit_code = 5

    def __init__(self, episode: str, reason: str) -> None:
        super().__init__(f"episode {episode}: {reason}")
        self.episode = episode
        self.reason = reason


class HealthError(AttnstoreError):
    """Captured attention fails a check of the health gate and must not be committed."""

    exit_code = 5


class ReplayError(HealthError):
    """A policy acts otherwise than it did when it was recorded; `evidence` has both action chunks."""

    def __init__(self, reason: str, evidence: Mapping[str, Any]) -> None:
        super().__init__(reason)
        self.evidence = evidence


class PartialError(AttnstoreError):
    """Some of the work was done and some was not; the message lists what was not."""

    exit_code = 5

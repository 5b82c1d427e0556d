"""Where things are in a store, and which names are safe there; nothing is opened here."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import IntegrityError

MARKER = "attnstore.json"
PULLED = "pulled"
"""Directory that only a pulled copy of a store has."""
ARRAYS = "attention.zarr"
"""Directory of a part's arrays."""
ATTEMPT_FILE = "attempt.json"
"""File of an attempt that says who writes it; no commit lists it."""
ROOT_ENTRIES = frozenset({MARKER, "runs", "commits", "data", "catalog", "quarantine", "recordings"})
"""What lies at the root of a store."""
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Ids: single directory names that are portable and cannot leave the store."""
ENTRY = re.compile(r"(\d{10})\.json")
"""Names of the log's entries: as text they sort as their numbers do."""

Key = tuple[str, str, str]
"""(run, episode, part)."""


def slug(name: str) -> str:
    """Safe directory name for a name of any shape: its last parts, then a short digest.

    Examples
    --------
    >>> slug("success/2025-12-10/2025-12-10_09-00-39")
    '2025-12-10_09-00-39-e63dbc45'
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    last = PurePosixPath(name).name or "x"
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:80] or "x"
    return f"{readable}-{digest}"


def check_id(value: str, what: str) -> str:
    """Return `value` if it is a safe single directory name.

    Raises
    ------
    IntegrityError
        If it could leave the store or is not portable.
    """
    if not isinstance(value, str) or not SAFE.fullmatch(value):
        raise IntegrityError(f"{what} must match {SAFE.pattern}; got {str(value)[:200]!r}")
    return value


_NAMES = frozenset({"", ".", ".."})
"""What no part of a stored path is called."""


def check_relative(path: str) -> str:
    """Return a relative path that stays below its base.

    Raises
    ------
    IntegrityError
        If the path is absolute, or contains ``..``, ``.``, ``//`` or a backslash.
    """
    # Strings and no PurePosixPath: a catalog reads hundreds of these from every commit.
    if "\\" in path or "\0" in path or not _NAMES.isdisjoint(path.split("/")):
        raise IntegrityError(
            f"a stored path must be relative and stay below its part; got {path!r}"
        )
    return path


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of one store's directories and files."""

    root: Path

    @property
    def marker(self) -> Path:
        """File that makes a directory a store, and names its format."""
        return self.root / MARKER

    @property
    def runs(self) -> Path:
        """Run configurations."""
        return self.root / "runs"

    @property
    def log(self) -> Path:
        """The commit log: ``commits/log/<number>.json``, from 0000000001.json on."""
        return self.root / "commits" / "log"

    @property
    def data(self) -> Path:
        """Attempts: ``data/<run>/<episode>/<part>.<attempt>/``."""
        return self.root / "data"

    @property
    def quarantine(self) -> Path:
        """Reasons why an episode was not committed."""
        return self.root / "quarantine"

    @property
    def recordings(self) -> Path:
        """What policies saw while they drove: ``recordings/<recording>/<episode>.journal``."""
        return self.root / "recordings"

    @property
    def catalog(self) -> Path:
        """Catalog generations."""
        return self.root / "catalog"

    def entry(self, number: int) -> Path:
        """File of an entry of the log."""
        # One path and no four: 10,000 entries are read at a time.
        return Path(f"{self.root}/commits/log/{number:010d}.json")

    def run_file(self, run: str) -> Path:
        """File of a run's configuration."""
        return self.runs / f"{check_id(run, 'run id')}.json"

    def attempt(self, run: str, episode: str, part: str, attempt: str) -> Path:
        """Directory of one attempt's data."""
        leaf = f"{check_id(part, 'part')}.{check_id(attempt, 'attempt id')}"
        return Path(
            f"{self.root}/data/{check_id(run, 'run id')}/{check_id(episode, 'episode id')}/{leaf}"
        )

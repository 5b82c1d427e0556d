"""Where things are in a store, and which names are safe there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import IntegrityError, NotFoundError, UnsupportedFormatError, UsageError

if TYPE_CHECKING:
    from .commit import Commit, StoredFile

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
MARKER = "attnstore.json"
PULLED = "pulled"
"""Directory that only a pulled copy of a store has."""
MAX_JSON = 64 << 20
"""Largest JSON file that is read, in bytes: a store is untrusted data."""
MAX_DEPTH = 64
"""Deepest nesting of JSON: what parses at a library's limit cannot be written again."""
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Ids: single directory names that are portable and cannot leave the store."""


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
    if not SAFE.fullmatch(value):
        raise IntegrityError(f"{what} must match {SAFE.pattern}; got {value!r}")
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
    # Strings and no PurePosixPath: a catalog reads 650 of these from every commit.
    if "\\" in path or "\0" in path or not _NAMES.isdisjoint(path.split("/")):
        raise IntegrityError(
            f"a stored path must be relative and stay below its part; got {path!r}"
        )
    return path


@dataclass(frozen=True, slots=True)
class StorePaths:
    """The directories of one store on a file system."""

    root: Path

    @property
    def runs(self) -> Path:
        """Run configurations."""
        return self.root / "runs"

    @property
    def commits(self) -> Path:
        """Commit files: ``commits/<run>/<episode>/<part>/<revision>.json``."""
        return self.root / "commits"

    @property
    def data(self) -> Path:
        """Attempts: ``data/<run>/<episode>/<part>.<attempt>/``."""
        return self.root / "data"

    @property
    def quarantine(self) -> Path:
        """Reasons why an episode was not committed."""
        return self.root / "quarantine"

    @property
    def catalog(self) -> Path:
        """Catalog generations."""
        return self.root / "catalog"

    def part_commits(self, run: str, episode: str, part: str) -> Path:
        """Directory of a part's revisions."""
        return (
            self.commits
            / check_id(run, "run id")
            / check_id(episode, "episode id")
            / check_id(part, "part")
        )

    def attempt(self, run: str, episode: str, part: str, attempt: str) -> Path:
        """Directory of one attempt's data."""
        leaf = f"{check_id(part, 'part')}.{check_id(attempt, 'attempt id')}"
        return self.data / check_id(run, "run id") / check_id(episode, "episode id") / leaf

    # What follows is where a copy of a store that does not hold everything differs from a whole one.

    @property
    def name(self) -> str:
        """The store for messages: its path, or its URL."""
        return str(self.root)

    @property
    def partial(self) -> bool:
        """Whether committed files may be missing here without being lost."""
        return False

    @property
    def remote(self) -> bool:
        """Whether this is a cache, whose directories do not tell what was committed."""
        return False

    def check_writable(self) -> None:
        """Raise `UsageError` if nothing may be committed here."""

    def cached(self) -> StorePaths:
        """Return what is on this machine."""
        return self

    def need(self, commit: Commit, files: Iterable[StoredFile]) -> None:
        """Have these files of a commit here, whole, before they are read.

        A whole store does nothing: its readers check what they open.
        """

    def need_commits(self, run: str | None = None, episode: str | None = None) -> None:
        """Have the latest commit files of a run or an episode here before they are listed."""

    def expects(self, commit: Commit, file: StoredFile) -> bool:
        """Whether a file that is not here is lost."""
        return True

    def entries(self, *below: str) -> list[str]:
        """Names of directories in ``commits/``, ``commits/<run>/`` or ``commits/<run>/<episode>/``."""
        try:
            with os.scandir("/".join((str(self.commits), *below))) as found:
                return sorted(e.name for e in found if not e.name.startswith(".") and e.is_dir())
        except FileNotFoundError:
            return []

    def how_to_get(self) -> str:
        """Say how files that are not here, and that `need` does not get, can be had."""
        return "its file is missing"

    def listings(self) -> Iterator[tuple[tuple[str, str, str], str]] | None:
        """Every part's latest commit as a catalog lists it; None: as the files here are."""
        return None

    def prepare_catalog(self) -> None:
        """Have the newest catalog generation here before it is brought up to date."""


def create_store(root: Path) -> StorePaths:
    """Make an empty store, or open the one that is there.

    Raises
    ------
    UsageError
        If the directory has other content, which is never overwritten.
    """
    if (root / MARKER).exists():
        return open_store(root)
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file; a store is a directory")
    # A kill while the marker was made leaves its temporary name behind; that is no foreign content.
    if root.exists() and any(
        p.name not in _STORE_ENTRIES and not p.name.startswith(".tmp-") for p in root.iterdir()
    ):
        raise UsageError(
            f"{root} exists, is not empty and has no {MARKER}; name a new or empty directory"
        )
    paths = StorePaths(root)
    for directory in (paths.runs, paths.commits, paths.data, paths.catalog):
        directory.mkdir(parents=True, exist_ok=True)
    marker = {
        "format": {"major": FORMAT_MAJOR, "minor": FORMAT_MINOR},
        "store_id": uuid.uuid4().hex,
        "created": now(),
    }
    create_exclusive(root / MARKER, marker)
    return open_store(root)


_STORE_ENTRIES = {MARKER, "runs", "commits", "data", "catalog", "quarantine", "changed"}


def open_store(root: Path) -> StorePaths:
    """Open a store and check its format version.

    Raises
    ------
    NotFoundError
        If there is no store at `root`.
    UnsupportedFormatError
        If a newer major format version wrote it.
    IntegrityError
        If the marker file cannot be read.
    """
    marker = root / MARKER
    if not marker.is_file():
        what = "no such directory" if not root.exists() else f"it has no {MARKER}"
        raise NotFoundError(f"{root} is not an attnstore store: {what}")
    found = read_json(marker)
    try:
        major = int(found["format"]["major"])
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(f"{marker}: no format version in it") from None
    if major > FORMAT_MAJOR:
        raise UnsupportedFormatError(
            f"{root} has format version {major}; this attnstore reads up to {FORMAT_MAJOR}: "
            "pip install --upgrade attnstore"
        )
    if (root / PULLED).is_dir():
        from .pulled import PulledPaths

        return PulledPaths(root)
    return StorePaths(root)


def now() -> str:
    """Return the current time, ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    IntegrityError
        If the file is not what `parse_json` reads, or larger than `MAX_JSON`.
    """
    with path.open("rb") as stream:
        data = stream.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise IntegrityError(f"{path}: larger than {MAX_JSON} bytes, which no file of a store is")
    return parse_json(data, str(path))


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Read the text of a JSON object from somebody else.

    Raises
    ------
    IntegrityError
        If it is not a JSON object, is nested deeper than `MAX_DEPTH`, or holds half a character.
    """
    try:
        value = json.loads(data.decode())
        # Half a surrogate pair, spelled \ud800: text that nothing can write again.
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{name}: a JSON object is expected")
    if _deeper(data, value):
        raise IntegrityError(f"{name}: nested deeper than {MAX_DEPTH} levels")
    return value


def _deeper(data: bytes, value: Any) -> bool:
    """Whether JSON is nested deeper than `MAX_DEPTH`."""
    # Each round takes the innermost brackets away; a commit of 650 files takes two.
    brackets = data.translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return False
    # Brackets in strings look alike.
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            each
            for node in level
            for each in (node.values() if isinstance(node, dict) else node)
            if isinstance(each, dict | list)
        ]
        if not level:
            return False
    return True


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def create_exclusive(path: Path, value: dict[str, Any]) -> bool:
    """Create a JSON file whole and durable, unless it exists; say whether this call created it.

    The content is written and synced under a temporary name, then hard-linked to `path`: the link
    either creates the complete file or fails, whoever else tries at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    data = (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            # A file system without hard links: exclusive creation. A crash in between leaves a
            # torn file, which readers ignore; the next writer takes the next revision.
            try:
                with path.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
            except FileExistsError:
                return False
        sync_directory(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)

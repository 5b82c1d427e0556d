"""A store in a bucket, written through a spool on this machine.

It is the mirror of the bucket's store (`attnstore.store.remote.mirror`) into which attempts are written
as into any store. To commit, an attempt's files are put below a prefix of its own; then the log's entry
is put on the condition that nobody has put it. The name of the entry decides who wins; whatever lies in
the bucket and in no entry is garbage. docs/decisions/027-stores-on-s3.md
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..catalog import NEWEST, seed_log
from ..commits import (
    ATTEMPT_FILE,
    MARKER,
    MAX_JSON,
    StoredFile,
    create_exclusive,
    hash_file,
    now,
    parse_json,
)
from ..commits.files import to_json
from ..commits.layout import ENTRY, ROOT_ENTRIES
from ..errors import AttnstoreError, IntegrityError, UsageError
from ..format.version import written
from .bucket import Bucket
from .fetching import place_file
from .mirror import Arrivals, MirrorPaths, open_mirror
from .tiers import tier_of
from .transport import shown

FRESH = 1.0
"""Seconds for which what the log said last is taken for what it says."""


@dataclass(slots=True)
class _Known:
    """What this process knows of a bucket's log."""

    head: int = 0
    looked: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class SpooledPaths(MirrorPaths):
    """A store in a bucket that is written; `open_spooled` makes it."""

    def __reduce__(self) -> Any:
        # Another machine has a cache of its own.
        return open_spooled, (self.url,)

    @property
    def head(self) -> int:
        """Last entry of the log that this process knows of."""
        return _known(self.url, os.getpid()).head

    @property
    def bucket(self) -> Bucket:
        """The bucket, for writing."""
        return bucket_at(self.url)

    def check_writable(self) -> None:
        """Do nothing: that it can be written was found out when it was opened."""

    def look(self, *, anew: bool = False) -> None:
        """Fetch entries of the log that came since."""
        known = _known(self.url, os.getpid())
        with known.lock:
            if anew or time.monotonic() - known.looked > FRESH:
                known.head = Arrivals(self.transport, self.root).beyond(known.head)
                known.looked = time.monotonic()

    def create(self, file: Path, data: bytes | Mapping[str, Any]) -> bool:
        """Put a file of the store whole unless its name is taken; say whether this call did.

        What is there afterwards is in the cache as well.
        """
        body = data if isinstance(data, bytes) else to_json(data)
        path = self._relative(file)
        won = self.bucket.create(path, body)
        if won:
            create_exclusive(file, body)
        elif not file.is_file():
            place_file(self.transport, path, file, self.scratch, MAX_JSON)
        entry = ENTRY.fullmatch(file.name) if file.parent == self.log else None
        if won and entry is not None:
            known = _known(self.url, os.getpid())
            with known.lock:
                known.head = max(known.head, int(entry[1]))
        return won

    def deliver(self, directory: Path, files: Sequence[StoredFile]) -> None:
        """Put an attempt's files, before the entry that lists them.

        Raises
        ------
        AttnstoreError
            If one cannot be put, or is not there afterwards with its size.
        """
        below = self._relative(directory)
        # First who writes it: gc asks.
        self.bucket.replace(f"{below}/{ATTEMPT_FILE}", (directory / ATTEMPT_FILE).read_bytes())
        self.bucket.upload_all([(f"{below}/{f.path}", directory / f.path, f) for f in files])
        check_arrived(self.bucket, below, files)

    def delivered(self, directory: Path, files: Sequence[StoredFile]) -> None:
        """Free the spool of a committed attempt's weights; what is small stays in the cache."""
        for file in files:
            if tier_of(file.path) == "full":
                (directory / file.path).unlink(missing_ok=True)
        (directory / ATTEMPT_FILE).unlink(missing_ok=True)

    def shelve(self, generation: Path, head: int, tip: str, *, anew: bool = False) -> None:
        """Put a catalog, and then name it as the newest, unless one there knows as much."""
        there = self.bucket.read(f"catalog/{NEWEST}")
        try:
            known = int(parse_json(there or b"{}", NEWEST).get("head", 0))
        except (IntegrityError, TypeError, ValueError):
            known = 0
        if known > head or (known == head and not anew):
            return
        # Numbered by the time: whoever makes another one needs no listing, and has another number.
        name = f"catalog/catalog-{time.time_ns() // 1000}.duckdb"
        file = StoredFile(name, generation.stat().st_size, hash_file(generation))
        self.bucket.upload(name, generation, file)
        newest = {"path": name, "head": head, "tip": tip}
        self.bucket.replace(f"catalog/{NEWEST}", to_json(newest))

    def _relative(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()


def check_arrived(bucket: Bucket, below: str, files: Sequence[StoredFile]) -> None:
    """Check that every file of a part lies in the bucket with its size: one listing.

    Raises
    ------
    AttnstoreError
        If one does not.
    """
    there = {each.path: each.size for each in bucket.lying(below)}
    for file in files:
        size = there.get(f"{below}/{file.path}")
        if size != file.size:
            raise AttnstoreError(
                f"{bucket.url}/{below}/{file.path}: {'nothing' if size is None else f'{size} bytes'} "
                f"there after {file.size} bytes were put; the same command tries again"
            )


@lru_cache(maxsize=32)
def _bucket(url: str, process: int) -> Bucket:
    # Per process: connections do not survive a fork.
    return Bucket(url)


def bucket_at(url: str) -> Bucket:
    """Return this process's access to a bucket."""
    return _bucket(url.rstrip("/"), os.getpid())


@lru_cache(maxsize=256)
def _known(url: str, process: int) -> _Known:
    return _Known()


@lru_cache(maxsize=256)
def _check(url: str, process: int) -> None:
    """Check a bucket once a process."""
    bucket_at(url).check()


def forget_buckets() -> None:
    """Reach every bucket anew: what says how has changed."""
    for cached in (_bucket, _check, _known):
        cached.cache_clear()


def open_spooled(url: str) -> SpooledPaths:
    """Open a store in a bucket for writing.

    Raises
    ------
    NotFoundError
        If there is no store, or no bucket.
    UsageError
        If the URL names no bucket, or its server does not put on a condition.
    DeniedError
        If it may not be written.
    AttnstoreError
        If it cannot be reached.
    """
    url = url.rstrip("/")
    _check(url, os.getpid())
    mirror = open_mirror(url)
    paths = SpooledPaths(mirror.root, url, 0)
    known = _known(url, os.getpid())
    with known.lock:
        known.head, known.looked = mirror.last, time.monotonic()
    seed_log(paths)
    return paths


def create_spooled(url: str, marker: Mapping[str, Any] | bytes | None = None) -> SpooledPaths:
    """Make an empty store in a bucket, or open the one that is there; errors as `open_spooled`.

    Parameters
    ----------
    marker
        Its marker, of a store that is to be copied there; by default a new one.

    Raises
    ------
    UsageError
        If other things lie below the URL.
    """
    url = url.rstrip("/")
    bucket = bucket_at(url)
    _check(url, os.getpid())
    if bucket.read(MARKER) is None:
        for path in bucket.first(100):
            top = path.partition("/")[0]
            if top not in ROOT_ENTRIES and not top.startswith(".tmp-"):
                raise UsageError(
                    f"{shown(url)} is not empty and has no {MARKER}: {path} lies there; "
                    "name a path of the bucket where nothing is"
                )
        if marker is None:
            marker = {"format": written(), "store_id": uuid.uuid4().hex, "created": now()}
        bucket.create(MARKER, marker if isinstance(marker, bytes) else to_json(marker))
    return open_spooled(url)

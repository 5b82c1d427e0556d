"""Bringing committed files here: whole, verified, and only then under their names."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from ..commits import StoredFile, sync_directory
from ..errors import AttnstoreError, IntegrityError, NotFoundError
from .transport import Transport

T = TypeVar("T")
R = TypeVar("R")
CONNECTIONS = 16
"""Files that are fetched at a time."""
ABANDONED = 3600.0
"""Age in seconds from which a temporary file is of a process that was killed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A committed file, where it is at the source and where it shall be."""

    path: str
    """Relative to the source's store."""
    target: Path
    file: StoredFile

    def is_here(self) -> bool:
        """Whether it is there, as long as it was committed; its bytes were checked when it came."""
        try:
            return self.target.stat().st_size == self.file.size
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of a file."""

    wanted: Wanted
    error: AttnstoreError | None


def fetch_all(
    transport: Transport, wanted: Sequence[Wanted], scratch: Path, *, durable: bool = False
) -> Generator[Fetched, None, None]:
    """Fetch files, several at a time; yield each as it is finished, or as it failed.

    Parameters
    ----------
    scratch
        Directory of unfinished files, on the file system of the targets.
    durable
        Sync each file, so that it is whole after a power failure as well.
    """
    if not wanted:
        return
    _check_space(scratch, sum(w.file.size for w in wanted))
    with ThreadPoolExecutor(min(CONNECTIONS, len(wanted))) as threads:
        futures = {threads.submit(_fetch, transport, w, scratch, durable): w for w in wanted}
        try:
            for future in as_completed(futures):
                yield Fetched(futures[future], future.result())
        finally:
            threads.shutdown(cancel_futures=True)


def at_once(function: Callable[[T], R], arguments: Sequence[T]) -> list[R]:
    """Call a function with each argument, several at a time; results in their order."""
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        try:
            return list(threads.map(function, arguments))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _fetch(
    transport: Transport, wanted: Wanted, scratch: Path, durable: bool
) -> AttnstoreError | None:
    with one_at_a_time(str(wanted.target)):
        if wanted.is_here():
            return None
        try:
            try:
                _fetch_once(transport, wanted, scratch, durable)
            except NotFoundError:
                raise
            except AttnstoreError:
                # Once more: what broke on the way is whole the second time.
                _fetch_once(transport, wanted, scratch, durable)
        except AttnstoreError as error:
            return error
        except OSError as error:
            return AttnstoreError(f"{wanted.target} cannot be written: {error.strerror or error}")
    return None


def _fetch_once(transport: Transport, wanted: Wanted, scratch: Path, durable: bool) -> None:
    file = wanted.file

    def check(size: int, digest: str) -> None:
        if size != file.size:
            raise IntegrityError(
                f"{transport.url}/{wanted.path}: {size} bytes, {file.size} were committed"
            )
        if digest != file.sha256:
            raise IntegrityError(
                f"{transport.url}/{wanted.path}: its bytes differ from what was committed (SHA-256)"
            )

    place_file(transport, wanted.path, wanted.target, scratch, file.size, check, durable=durable)


def place_file(
    transport: Transport,
    path: str,
    target: Path,
    scratch: Path,
    limit: int,
    check: Callable[[int, str], None] | None = None,
    *,
    durable: bool = False,
) -> None:
    """Fetch a file and give it its name once it is whole, and `check` did not raise.

    Parameters
    ----------
    check
        Is given size and SHA-256 of what arrived.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    temporary = scratch / uuid.uuid4().hex
    try:
        transport.fetch(path, temporary, limit)
        with temporary.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest() if check else ""
            if check is not None:
                check(os.fstat(stream.fileno()).st_size, digest)
            if durable:
                os.fsync(stream.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
        if durable:
            sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(scratch: Path) -> None:
    """Remove what killed processes left unfinished."""
    before = time.time() - ABANDONED
    for file in scratch.iterdir() if scratch.is_dir() else ():
        try:
            if file.stat().st_mtime >= before:
                continue
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink()
        except FileNotFoundError:
            continue


def _check_space(place: Path, size: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if size > free:
        raise AttnstoreError(
            f"{size / 1e9:.2f} GB are to be downloaded, {place.parent} has {free / 1e9:.2f} GB free"
        )


class _Lock:
    """A lock that may be referred to weakly."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_locks: WeakValueDictionary[str, _Lock] = WeakValueDictionary()
_registry = threading.Lock()


def one_at_a_time(name: str) -> _Lock:
    """Lock of a name: two threads that read one shard download it once."""
    with _registry:
        lock = _locks.get(name)
        if lock is None:
            lock = _locks[name] = _Lock()
        return lock

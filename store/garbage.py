"""Removing what no commit refers to any more, while others write."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from .catalog.generations import superseded
from .catalog.tables import NAME
from .commits.entry import draft
from .commits.files import now, parse_json, read_document
from .commits.holding import StorePaths
from .commits.layout import ATTEMPT_FILE, ENTRY, SAFE, Key
from .commits.log import History, log_of
from .errors import IntegrityError
from .format.documents import check
from .remote.bucket import Lying
from .remote.spool import SpooledPaths

LEASE = timedelta(hours=24)
"""How long an attempt may lie untouched before it counts as abandoned."""
TEMPORARY_LEASE = timedelta(minutes=1)
"""Shortest lease of temporary files: they live for moments, but belong to living writers."""
KEPT_GENERATIONS = 2


@dataclass(frozen=True, slots=True)
class Collected:
    """What `collect` removed, or would remove; paths are relative to the store."""

    attempts: tuple[str, ...]
    """Files of attempts that were never committed."""
    revisions: tuple[str, ...]
    """Files of commits that a later revision replaced, or whose part was removed."""
    generations: tuple[str, ...]
    """Files of the catalog."""
    temporary: tuple[str, ...]
    bytes: int
    uploads: tuple[str, ...] = ()
    """Objects of a bucket of which parts were sent, and no more came; what they take is not known."""


def collect(
    paths: StorePaths,
    lease: timedelta = LEASE,
    *,
    dry_run: bool = False,
    progress: Callable[[float, str], None] = lambda share, now: None,
) -> Collected:
    """Remove abandoned attempts, files of replaced revisions, old catalogs and temporary files.

    The latest revision of a part is never touched, nor is anything of a part whose commits cannot
    be read. An attempt that was not committed is kept while it is younger than the lease, or its
    process lives on this host. Entries of the log stay for ever. Of a store in a bucket, objects are
    as old as its server says, and uploads that were broken off are given up as well.

    Parameters
    ----------
    paths
        The store.
    lease
        Age from which something is abandoned: of an attempt, since its newest file was written;
        of a replaced revision, since the latest was committed.
    dry_run
        Only say what would be removed.
    progress
        Called with the share that is done, 0 to 1, and what is at its turn.
    """
    progress(0.0, "reading the log")
    paths.check_writable()
    if isinstance(paths, SpooledPaths):
        return _collect_objects(paths, lease, dry_run)
    before = time.time() - lease.total_seconds()
    history = log_of(paths).update(thorough=True)
    abandoned, replaced = [], []

    def settled(number: int) -> bool:
        try:
            return paths.entry(number).stat().st_mtime <= before
        except OSError:
            return False

    for place, key, id in _attempts(paths, lambda share, now: progress(share / 2, now)):
        attempt = Path(place)
        fact = history.attempts.get(id)
        if fact is not None and fact.key == key:
            if _is_replaced(history, id, settled):
                replaced.append(attempt)
        elif not history.concealed() and _is_abandoned(attempt, before):
            abandoned.append(attempt)
    if not dry_run:
        kept = _give_up(paths, abandoned)
        abandoned = [attempt for attempt in abandoned if attempt in kept]
    size = sum(s.st_size for attempt in (*abandoned, *replaced) for s in _stats(attempt))
    catalogs = [g.path for g in superseded(paths, KEPT_GENERATIONS)]
    temporary = _temporary(paths, min(before, time.time() - TEMPORARY_LEASE.total_seconds()))
    size += sum(file.stat().st_size for file in (*catalogs, *temporary))
    if not dry_run:
        gone = (*abandoned, *replaced)
        for number, attempt in enumerate(gone):
            progress(0.5 + number / len(gone) / 2, attempt.name)
            shutil.rmtree(attempt, ignore_errors=True)
        for file in (*catalogs, *temporary):
            file.unlink(missing_ok=True)

    def relative(group: Sequence[Path]) -> tuple[str, ...]:
        return tuple(p.relative_to(paths.root).as_posix() for p in group)

    return Collected(
        relative(abandoned), relative(replaced), relative(catalogs), relative(temporary), size
    )


def _collect_objects(paths: SpooledPaths, lease: timedelta, dry_run: bool) -> Collected:
    """Collect in a bucket: one listing, the log, and then what is to go."""
    bucket = paths.bucket
    # By this machine's clock: a lease is hours, and clocks of servers are minutes wrong at most.
    before = datetime.now(UTC) - lease
    brief = min(before, datetime.now(UTC) - TEMPORARY_LEASE)
    uploads = [each for each in bucket.unfinished() if each.began <= before]
    attempts: dict[PurePath, list[Lying]] = defaultdict(list)
    entries: dict[int, datetime] = {}
    catalogs, temporary = [], []
    for each in bucket.lying(""):
        place = PurePosixPath(each.path)
        entry = ENTRY.fullmatch(place.name)
        if place.parts[0] == "data" and len(place.parts) > 4:
            attempts[PurePosixPath(*place.parts[:4])].append(each)
        elif place.parts[0] == "commits" and entry is not None:
            entries[int(entry[1])] = each.modified
        elif place.parts[0] == "catalog" and (made := NAME.fullmatch(place.name)) is not None:
            catalogs.append((int(made[1]), each))
        elif place.name.startswith(".tmp-") and each.modified <= brief:
            temporary.append(each)
    history = log_of(paths).update(thorough=True)

    def settled(number: int) -> bool:
        return number in entries and entries[number] <= before

    abandoned, replaced = [], []
    for attempt, lying in sorted(attempts.items()):
        named = _named(attempt)
        if named is None:
            continue
        key, id = named
        fact = history.attempts.get(id)
        if fact is not None and fact.key == key:
            if _is_replaced(history, id, settled):
                replaced.append(attempt)
        elif not history.concealed() and all(each.modified <= before for each in lying):
            owner = bucket.read(f"{attempt}/{ATTEMPT_FILE}")
            if owner is None or not _is_owned(owner, str(attempt)):
                abandoned.append(attempt)
    if not dry_run:
        kept = _give_up(paths, abandoned)
        abandoned = [attempt for attempt in abandoned if attempt in kept]
    old = [each for _, each in sorted(catalogs, key=lambda c: c[0])[:-KEPT_GENERATIONS]]
    gone = [each for attempt in (*abandoned, *replaced) for each in attempts[attempt]]
    gone += [*old, *temporary]
    if not dry_run:
        bucket.delete(each.path for each in gone)
        for upload in uploads:
            bucket.abort(upload)
        _clear_spool(paths, history, before.timestamp())
    return Collected(
        tuple(map(str, abandoned)),
        tuple(map(str, replaced)),
        tuple(each.path for each in old),
        tuple(each.path for each in temporary),
        sum(each.size for each in gone),
        tuple(each.path for each in uploads),
    )


def _clear_spool(paths: SpooledPaths, history: History, before: float) -> None:
    """Delete what writers on this machine left in the spool when they died."""
    for place, _, id in _attempts(paths):
        attempt = Path(place)
        if id in history.attempts:
            continue
        if (attempt / ATTEMPT_FILE).is_file() and _is_abandoned(attempt, before):
            shutil.rmtree(attempt, ignore_errors=True)


def _attempts(
    paths: StorePaths, progress: Callable[[float, str], None] = lambda share, now: None
) -> Iterator[tuple[str, Key, str]]:
    """Yield every attempt's directory, what it is of, and its id, in order: a listing a folder."""
    runs = _folders(str(paths.data))
    for number, run in enumerate(runs):
        episodes = _folders(run.path)
        for at, episode in enumerate(episodes):
            progress((number + at / len(episodes)) / len(runs), episode.name)
            for attempt in _folders(episode.path):
                part, _, id = attempt.name.rpartition(".")
                key = run.name, episode.name, part
                if all(SAFE.fullmatch(name) for name in (*key, id)):
                    yield attempt.path, key, id


def _folders(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return sorted((each for each in found if each.is_dir()), key=lambda each: each.name)
    except (FileNotFoundError, PermissionError):
        return []


def _named(attempt: PurePath) -> tuple[Key, str] | None:
    """Return what an attempt's directory is of, and its id; None if it is no attempt's."""
    part, _, id = attempt.name.rpartition(".")
    key = attempt.parts[-3], attempt.parts[-2], part
    return (key, id) if all(SAFE.fullmatch(name) for name in (*key, id)) else None


def _is_replaced(history: History, attempt: str, settled: Callable[[int], bool]) -> bool:
    """Whether a later revision has been there for the lease; `settled` says so of its entry."""
    revisions = history.revisions(*history.attempts[attempt].key)
    latest = revisions[max(revisions)]
    if latest.attempt == attempt or latest.reason is not None:
        return False
    return settled(latest.number)


def _is_abandoned(attempt: Path, before: float) -> bool:
    if any(s.st_mtime > before for s in _stats(attempt)):
        return False
    try:
        return not _lives(read_document(attempt / ATTEMPT_FILE, "attempt"))
    except (OSError, IntegrityError):
        return True


def _is_owned(owner: bytes, name: str) -> bool:
    """Whether the process that writes an attempt lives on this host, by the text of its file."""
    try:
        value = parse_json(owner, name)
        check(value, "attempt", name)
        return _lives(value)
    except IntegrityError:
        return False


def _lives(owner: dict[str, Any]) -> bool:
    try:
        host, pid = str(owner["host"]), int(owner["pid"])
    except (KeyError, TypeError, ValueError):
        return False
    return host == socket.gethostname() and _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _give_up(paths: StorePaths, attempts: Sequence[PurePath]) -> set[PurePath]:
    """Say in the log that these attempts will never be committed; return those that were not.

    Where a writer commits, it reads this first; and here it is seen what it committed. One of the
    two is first in the log, so that no commit is ever without its files.
    """
    by_id = {attempt.name.rpartition(".")[2]: attempt for attempt in attempts}

    def entry(history: History) -> dict[str, Any] | None:
        for id in [id for id in by_id if id in history.attempts]:
            del by_id[id]
        new = sorted(id for id in by_id if id not in history.discarded)
        return draft("discard", now(), attempts=new, entries=[]) if new else None

    if by_id:
        log_of(paths).append(entry)
    return set(by_id.values())


def _stats(attempt: Path) -> list[os.stat_result]:
    """Status of the attempt's directory and of everything below it."""
    found = []
    for file in (attempt, *attempt.rglob("*")):
        try:
            found.append(file.stat(follow_symlinks=False))
        except FileNotFoundError:
            continue
    return found


def _temporary(paths: StorePaths, before: float) -> list[Path]:
    folders = (paths.runs, paths.log, paths.quarantine, paths.catalog)
    found = [*paths.root.glob(".tmp-*"), *(f for d in folders for f in d.rglob(".tmp-*"))]
    return sorted(f for f in found if f.is_file() and f.stat().st_mtime <= before)

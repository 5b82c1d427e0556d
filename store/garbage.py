"""Removing what no commit refers to any more, while others write."""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from .catalog import generations
from .catalog_stamp import stamp_path
from .commit import ATTEMPT_FILE, Key, commit_keys, latest_commit, read_commit, revision_files
from .errors import IntegrityError
from .paths import SAFE, StorePaths, read_json
from .pending import PREFIX, renew

LEASE = timedelta(hours=24)
"""How long an attempt may lie untouched before it counts as abandoned."""
TEMPORARY_LEASE = timedelta(minutes=1)
"""Shortest lease of temporary files: they live for moments, but belong to living writers."""
KEPT_GENERATIONS = 2


@dataclass(frozen=True, slots=True)
class Collected:
    """What `collect` removed, or would remove; paths are relative to the store."""

    attempts: tuple[str, ...]
    revisions: tuple[str, ...]
    """Commit files that a later revision superseded."""
    generations: tuple[str, ...]
    """Files of the catalog."""
    temporary: tuple[str, ...]
    bytes: int


def collect(paths: StorePaths, lease: timedelta = LEASE, *, dry_run: bool = False) -> Collected:
    """Remove abandoned attempts, superseded revisions, old catalogs and temporary files.

    The latest revision of a part is never touched, nor is anything of a part whose commits cannot
    be read. An attempt that was not committed is kept while it is younger than the lease, or its
    process lives on this host.

    Parameters
    ----------
    paths
        The store.
    lease
        Age from which something is abandoned: of an attempt, since its newest file was written;
        of a superseded revision, since the latest was committed.
    dry_run
        Only say what would be removed.
    """
    paths.check_writable()
    before = time.time() - lease.total_seconds()
    revisions: list[Path] = []
    attempts: list[Path] = []
    size = 0
    for key, found in sorted(_parts(paths).items()):
        try:
            old, kept, superseded = _revisions(paths, key, before)
        except IntegrityError:
            continue
        size += sum(f.stat().st_size for f in old)
        revisions += old
        if not dry_run:
            for file in old:
                file.unlink(missing_ok=True)
        for attempt in found:
            if _id(attempt) in kept:
                continue
            if _id(attempt) in superseded or _is_abandoned(attempt, before):
                held = sum(s.st_size for s in _stats(attempt))
                if dry_run or _remove(paths, key, attempt):
                    size += held
                    attempts.append(attempt)
    catalogs = _catalogs(paths)
    before = min(before, time.time() - TEMPORARY_LEASE.total_seconds())
    marks = _marks(paths, before)
    if marks and not dry_run:
        renew(paths.commits)  # in place of the writers, which were killed perhaps after the commit
    temporary = [*_temporary(paths, before), *marks]
    for file in (*catalogs, *temporary):
        size += file.stat().st_size
        if not dry_run:
            file.unlink(missing_ok=True)

    def relative(group: list[Path]) -> tuple[str, ...]:
        return tuple(p.relative_to(paths.root).as_posix() for p in group)

    return Collected(
        relative(attempts), relative(revisions), relative(catalogs), relative(temporary), size
    )


def _parts(paths: StorePaths) -> dict[Key, list[Path]]:
    """Every part that is committed or has attempts, with its attempts."""
    found: dict[Key, list[Path]] = {key[:3]: [] for key in commit_keys(paths)}
    for directory in sorted(paths.data.glob("*/*/*.*")):
        key = directory.parts[-3], directory.parts[-2], directory.name.rpartition(".")[0]
        if directory.is_dir() and all(SAFE.fullmatch(name) for name in key):
            found.setdefault(key, []).append(directory)
    return found


def _id(attempt: Path) -> str:
    return attempt.name.rpartition(".")[2]


def _revisions(paths: StorePaths, key: Key, before: float) -> tuple[list[Path], set[str], set[str]]:
    """Commit files to remove, attempts that others name, attempts that only those name.

    Raises
    ------
    IntegrityError
        If a commit that stays cannot be read: then nobody knows what it names.
    """
    latest = latest_commit(paths, *key)
    if latest is None:
        return [], set(), set()
    files = revision_files(paths, *key)
    head = next(f for f in files if f.name == f"{latest.revision:06d}.json")
    lower = files[: files.index(head)]
    old = lower if head.stat().st_mtime <= before else []
    kept = {latest.attempt} | {read_commit(f).attempt for f in lower if f not in old}
    superseded = set()
    for file in old:
        try:
            superseded.add(read_commit(file).attempt)
        except IntegrityError:
            continue  # its attempt has no commit then, and waits for its own lease
    return old, kept, superseded - kept


def _is_abandoned(attempt: Path, before: float) -> bool:
    if any(s.st_mtime > before for s in _stats(attempt)):
        return False
    try:
        owner = read_json(attempt / ATTEMPT_FILE)
        host, pid = str(owner["host"]), int(owner["pid"])
    except (OSError, IntegrityError, KeyError, TypeError, ValueError):
        return True
    return host != socket.gethostname() or not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(paths: StorePaths, key: Key, attempt: Path) -> bool:
    """Remove an attempt, unless it is committed at this moment."""
    # In this order: a writer commits, then looks for this file, and takes its commit back if it is
    # gone. So an attempt that is committed from here on is either seen below or taken back.
    (attempt / ATTEMPT_FILE).unlink(missing_ok=True)
    try:
        if any(read_commit(f).attempt == _id(attempt) for f in revision_files(paths, *key)):
            return False
    except IntegrityError:
        return False
    except FileNotFoundError:
        return _remove(paths, key, attempt)  # another gc took a superseded commit: look again
    shutil.rmtree(attempt, ignore_errors=True)
    return not attempt.exists()


def _stats(attempt: Path) -> list[os.stat_result]:
    """Status of the attempt's directory and of everything below it."""
    found = []
    for file in (attempt, *attempt.rglob("*")):
        try:
            found.append(file.stat(follow_symlinks=False))
        except FileNotFoundError:
            continue
    return found


def _catalogs(paths: StorePaths) -> list[Path]:
    """Old generations, and stamps that are older than those that stay."""
    every = generations(paths)
    old = [g.path for g in every[:-KEPT_GENERATIONS]]
    kept = {stamp_path(g.path).name for g in every if g.path not in old}
    stamps = [s for s in paths.catalog.glob("catalog-*.stamp") if kept and s.name < min(kept)]
    return [*old, *sorted(stamps)]


def _marks(paths: StorePaths, before: float) -> list[Path]:
    """Marks of commits that nobody makes any more; while they lie there, catalogs always scan."""
    found = []
    for mark in sorted(paths.commits.glob(f"{PREFIX}*")):
        try:
            if mark.stat().st_mtime > before:
                continue
        except FileNotFoundError:
            continue
        attempts = paths.data.glob(f"*/*/*.{mark.name.removeprefix(PREFIX)}")
        if all(_is_abandoned(attempt, before) for attempt in attempts):
            found.append(mark)
    return found


def _temporary(paths: StorePaths, before: float) -> list[Path]:
    folders = (paths.runs, paths.commits, paths.quarantine, paths.catalog)
    found = [*paths.root.glob(".tmp-*"), *(f for d in folders for f in d.rglob(".tmp-*"))]
    return sorted(f for f in found if f.is_file() and f.stat().st_mtime <= before)

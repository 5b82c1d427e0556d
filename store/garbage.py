"""Removing what no commit refers to any more, while others write."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from .catalog.generations import generations
from .commits.entry import draft
from .commits.files import now, read_document
from .commits.holding import StorePaths
from .commits.layout import ATTEMPT_FILE, SAFE
from .commits.log import History, log_of
from .errors import IntegrityError

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


def collect(paths: StorePaths, lease: timedelta = LEASE, *, dry_run: bool = False) -> Collected:
    """Remove abandoned attempts, files of replaced revisions, old catalogs and temporary files.

    The latest revision of a part is never touched, nor is anything of a part whose commits cannot
    be read. An attempt that was not committed is kept while it is younger than the lease, or its
    process lives on this host. Entries of the log stay for ever.

    Parameters
    ----------
    paths
        The store.
    lease
        Age from which something is abandoned: of an attempt, since its newest file was written;
        of a replaced revision, since the latest was committed.
    dry_run
        Only say what would be removed.
    """
    paths.check_writable()
    before = time.time() - lease.total_seconds()
    history = log_of(paths).update(thorough=True)
    abandoned, replaced = [], []
    for attempt in sorted(paths.data.glob("*/*/*.*")):
        part, _, id = attempt.name.rpartition(".")
        key = attempt.parts[-3], attempt.parts[-2], part
        if not attempt.is_dir() or not all(SAFE.fullmatch(name) for name in (*key, id)):
            continue
        fact = history.attempts.get(id)
        if fact is not None and fact.key == key:
            if _is_replaced(paths, history, id, before):
                replaced.append(attempt)
        elif not history.concealed() and _is_abandoned(attempt, before):
            abandoned.append(attempt)
    if not dry_run:
        abandoned = _give_up(paths, abandoned)
    size = sum(s.st_size for attempt in (*abandoned, *replaced) for s in _stats(attempt))
    catalogs = [g.path for g in generations(paths)[:-KEPT_GENERATIONS]]
    temporary = _temporary(paths, min(before, time.time() - TEMPORARY_LEASE.total_seconds()))
    size += sum(file.stat().st_size for file in (*catalogs, *temporary))
    if not dry_run:
        for attempt in (*abandoned, *replaced):
            shutil.rmtree(attempt, ignore_errors=True)
        for file in (*catalogs, *temporary):
            file.unlink(missing_ok=True)

    def relative(group: Sequence[Path]) -> tuple[str, ...]:
        return tuple(p.relative_to(paths.root).as_posix() for p in group)

    return Collected(
        relative(abandoned), relative(replaced), relative(catalogs), relative(temporary), size
    )


def _is_replaced(paths: StorePaths, history: History, attempt: str, before: float) -> bool:
    revisions = history.revisions(*history.attempts[attempt].key)
    latest = revisions[max(revisions)]
    if latest.attempt == attempt or latest.reason is not None:
        return False
    try:
        return paths.entry(latest.number).stat().st_mtime <= before
    except OSError:
        return False


def _is_abandoned(attempt: Path, before: float) -> bool:
    if any(s.st_mtime > before for s in _stats(attempt)):
        return False
    try:
        owner = read_document(attempt / ATTEMPT_FILE, "attempt")
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


def _give_up(paths: StorePaths, attempts: Sequence[Path]) -> list[Path]:
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
    return list(by_id.values())


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

"""Attempts: how a part of an episode becomes visible, whole or not at all; and how it goes again.

Everything of a part is written under a directory that carries the attempt's id. Then one entry of
the log lists every file with its size and SHA-256, and that is the commit. Nothing is renamed and
nothing is locked; the second writer of a revision loses cleanly, and its attempt is garbage.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConflictError, NotFoundError, UsageError
from .entry import Commit, StoredFile, commit_draft, draft
from .files import hash_and_sync, now, sync_directory
from .holding import StorePaths
from .layout import ATTEMPT_FILE, Key
from .log import History, log_of


class Attempt:
    """A part being written; invisible to readers until `publish`.

    Parameters
    ----------
    paths
        The store.
    run, episode, part
        Ids of what is written.
    """

    def __init__(self, paths: StorePaths, run: str, episode: str, part: str) -> None:
        paths.check_writable()
        self.paths, self.run, self.episode, self.part = paths, run, episode, part
        self.id = uuid.uuid4().hex[:12]
        self.path = paths.attempt(run, episode, part, self.id)
        self.path.mkdir(parents=True)
        self._digests: dict[str, tuple[int, str]] = {}
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "created": now()}
        (self.path / ATTEMPT_FILE).write_text(json.dumps(owner))

    def finished(self, file: Path, size: int, sha256: str) -> None:
        """Take over what a file's writer knows of it: it is durable and will not change any more."""
        self._digests[file.relative_to(self.path).as_posix()] = size, sha256

    def discard(self) -> None:
        """Delete what was written; for a writer that gives up."""
        shutil.rmtree(self.path, ignore_errors=True)

    def publish(self, summary: Mapping[str, Any], *, after: int | None = None) -> Commit:
        """Commit everything below the attempt's directory as the next revision.

        Parameters
        ----------
        summary
            JSON values for lists and catalogs.
        after
            The revision that this one replaces, as the writer knew it (0: none). If another
            revision came since, the commit is refused; None takes whatever is next.

        Raises
        ------
        ConflictError
            If another writer committed that revision first, or gc took the attempt for abandoned.
        """
        files = []
        directories = {self.path}
        for file in sorted(self.path.rglob("*")):
            if file.is_dir():
                directories.add(file)
                continue
            relative = file.relative_to(self.path).as_posix()
            if relative == ATTEMPT_FILE:
                continue
            size, digest = self._digests.get(relative) or hash_and_sync(file)
            files.append(StoredFile(relative, size, digest))
        # Up to the store: a new directory's own name is durable once its parent is synced.
        directories.update(list(self.path.parents)[:4])
        for directory in directories:
            sync_directory(directory)
        if not (self.path / ATTEMPT_FILE).is_file():
            raise self._taken()
        history = log_of(self.paths).update()
        latest = history.latest(self.run, self.episode, self.part)
        known = 0 if latest is None else latest.revision
        if after is not None and known != after:
            raise self._lost(known)
        revisions = history.revisions(self.run, self.episode, self.part)
        self.paths.deliver(self.path, files)
        commit = Commit(
            self.run,
            self.episode,
            self.part,
            max(revisions, default=0) + 1,
            self.id,
            now(),
            dict(summary),
            tuple(files),
        )

        def entry(history: History) -> dict[str, Any]:
            # In the log, gc and the writer meet: what gc gave up is committed by nobody.
            if self.id in history.discarded:
                raise self._taken()
            revisions = history.revisions(self.run, self.episode, self.part)
            if max(revisions, default=0) >= commit.revision:
                raise self._lost(max(revisions))
            return commit_draft(commit)

        log = log_of(self.paths)
        number = log.append(entry)
        kept = log.update().revisions(*commit.key).get(commit.revision)
        if kept is not None and kept.number != number:
            # On a file system without hard links, where this writer stood still for seconds between
            # claiming its number and filling it, another may have gone past and committed the same.
            raise self._lost(commit.revision)
        self.paths.delivered(self.path, files)
        return commit

    def _lost(self, revision: int) -> ConflictError:
        return ConflictError(
            f"{self.episode} {self.part}: revision {revision} was committed by another writer"
        )

    def _taken(self) -> ConflictError:
        return ConflictError(
            f"{self.episode} {self.part}: attempt {self.id} was removed while it was written "
            "(gc takes attempts that are older than its lease)"
        )


def register_run(paths: StorePaths, run: str) -> None:
    """Say in the log that a run was recorded, unless it says so."""

    def entry(history: History) -> dict[str, Any] | None:
        return None if run in history.runs else draft("run", now(), run=run)

    log_of(paths).append(entry)


def remove_part(paths: StorePaths, key: Key) -> int:
    """Take a part of an episode out of the store; `collect` deletes its files later.

    Returns
    -------
    The revision that says so; the part may be committed again, as the one after.

    Raises
    ------
    NotFoundError
        If there is no such part.
    """
    run, episode, part = key
    removed = 0

    def entry(history: History) -> dict[str, Any]:
        nonlocal removed
        latest = history.latest(*key)
        if latest is None:
            raise NotFoundError(f"{paths.name}: there is no {part} of {episode} in run {run}")
        removed = latest.revision + 1
        return draft("removal", now(), run=run, episode=episode, part=part, revision=removed)

    log_of(paths).append(entry)
    return removed


def give_up_entry(paths: StorePaths, number: int) -> None:
    """Say that an entry of the log that cannot be read never will be: what it said is lost.

    Raises
    ------
    UsageError
        If it can be read.
    """

    def entry(history: History) -> dict[str, Any]:
        bad = history.unreadable.get(number)
        if bad is None:
            bad = next(
                (u for u in history.unreadable.values() if u.number < number <= u.last), None
            )
        if bad is None:
            raise UsageError(
                f"{paths.entry(number)}: not one of the entries that cannot be read, which are "
                f"{', '.join(map(str, sorted(history.unreadable))) or 'none'}"
            )
        return draft("discard", now(), attempts=[], entries=[bad.number])

    log_of(paths).update(thorough=True)
    log_of(paths).append(entry)

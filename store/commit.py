"""Attempts and commits: how a part of an episode becomes visible, whole or not at all.

Everything of a part is written under a directory that carries the attempt's id. Then one file,
``commits/<run>/<episode>/<part>/<revision>.json``, is created if absent. It lists every file with
its size and SHA-256, and it is the commit. Nothing is renamed and nothing is locked; the second
writer of a revision loses cleanly, and its attempt is garbage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConflictError, IntegrityError
from .paths import (
    FORMAT_MAJOR,
    FORMAT_MINOR,
    StorePaths,
    check_id,
    check_relative,
    create_exclusive,
    now,
    read_json,
    sync_directory,
)
from .pending import pending

ATTEMPT_FILE = "attempt.json"

Key = tuple[str, str, str]
"""(run, episode, part)."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a committed part."""

    path: str
    """Relative to the attempt's directory, with ``/``."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Commit:
    """One revision of a part of an episode."""

    run: str
    episode: str
    """Id (a slug); the dataset's own name is in ``summary["name"]``."""
    part: str
    revision: int
    attempt: str
    created: str
    summary: Mapping[str, Any]
    """What lists and catalogs need without opening the data: name, outcome, instruction, counts."""
    files: tuple[StoredFile, ...] = field(repr=False)

    @property
    def key(self) -> Key:
        """(run, episode, part)."""
        return self.run, self.episode, self.part

    def directory(self, paths: StorePaths) -> Path:
        """Where this revision's files are."""
        return paths.attempt(self.run, self.episode, self.part, self.attempt)


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

    def finished(self, file: Path) -> None:
        """Hash a file that will not change any more, and make it durable, ahead of `publish`."""
        relative = file.relative_to(self.path).as_posix()
        self._digests[relative] = _hash_and_sync(file)

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
            size, digest = self._digests.get(relative) or _hash_and_sync(file)
            files.append(StoredFile(relative, size, digest))
        # Up to the store: a new directory's own name is durable once its parent is synced.
        directories.update(list(self.path.parents)[:4])
        for directory in directories:
            sync_directory(directory)
        self._check_owned()
        folder = self.paths.part_commits(self.run, self.episode, self.part)
        latest = max(_revisions(folder), default=0)
        if after is not None and latest != after:
            raise ConflictError(
                f"{self.episode} {self.part}: revision {latest} was committed by another writer"
            )
        commit = Commit(
            self.run,
            self.episode,
            self.part,
            latest + 1,
            self.id,
            now(),
            dict(summary),
            tuple(files),
        )
        file = folder / f"{commit.revision:06d}.json"
        with pending(self.paths.commits, self.id):
            if not create_exclusive(file, _to_json(commit)):
                raise ConflictError(
                    f"{self.episode} {self.part}: revision {commit.revision} "
                    "was committed by another writer"
                )
            for directory in list(folder.parents)[:3]:
                sync_directory(directory)
            try:
                self._check_owned()
            except ConflictError:
                file.unlink()
                raise
        return commit

    def _check_owned(self) -> None:
        # gc deletes this file before it looks for the attempt among the commits, and deletes the
        # rest only if it is not there; a writer looks for the file after it has committed. So at
        # least one of the two sees the other, in every order.
        if not (self.path / ATTEMPT_FILE).is_file():
            raise ConflictError(
                f"{self.episode} {self.part}: attempt {self.id} was removed while it was written "
                "(gc takes attempts that are older than its lease)"
            )


def _hash_and_sync(file: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
        os.fsync(stream.fileno())
    return size, digest.hexdigest()


def hash_file(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _to_json(commit: Commit) -> dict[str, Any]:
    return {
        "format": {"major": FORMAT_MAJOR, "minor": FORMAT_MINOR},
        "run": commit.run,
        "episode": commit.episode,
        "part": commit.part,
        "revision": commit.revision,
        "attempt": commit.attempt,
        "created": commit.created,
        "summary": dict(commit.summary),
        "files": [[f.path, f.size, f.sha256] for f in commit.files],
    }


def read_commit(path: Path) -> Commit:
    """Read one commit file; its ids must be those of the path it lies at.

    Raises
    ------
    IntegrityError
        If it is torn, or names ids or paths that would leave the store.
    """
    raw = read_json(path)
    try:
        commit = Commit(
            run=check_id(raw["run"], "run id"),
            episode=check_id(raw["episode"], "episode id"),
            part=check_id(raw["part"], "part"),
            revision=int(raw["revision"]),
            attempt=check_id(raw["attempt"], "attempt id"),
            created=str(raw["created"]),
            summary=dict(raw["summary"]),
            files=tuple(
                StoredFile(check_relative(p), int(size), str(digest))
                for p, size, digest in raw["files"]
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path}: not a commit ({error!r})") from None
    place = (*path.parts[-4:-1], path.stem)
    if (*commit.key, f"{commit.revision:06d}") != place:
        raise IntegrityError(f"{path}: names {commit.key} revision {commit.revision}")
    return commit


def _revisions(folder: Path | str) -> list[int]:
    try:
        # Names alone: Path.iterdir makes an object of each, and catalogs list 10,000 of these.
        names = os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []
    return [int(n[:-5]) for n in names if n.endswith(".json") and n[:-5].isdigit()]


def revision_files(paths: StorePaths, run: str, episode: str, part: str) -> list[Path]:
    """Commit files of a part, oldest first."""
    folder = paths.part_commits(run, episode, part)
    return [folder / f"{revision:06d}.json" for revision in sorted(_revisions(folder))]


def latest_commit(paths: StorePaths, run: str, episode: str, part: str = "base") -> Commit | None:
    """Highest readable revision of a part, or None."""
    paths.need_commits(run, episode)
    folder = paths.part_commits(run, episode, part)
    for revision in sorted(_revisions(folder), reverse=True):
        try:
            return read_commit(folder / f"{revision:06d}.json")
        except IntegrityError:
            # Torn by a crash on a file system without hard links: never was a commit.
            if (folder / f"{revision:06d}.json").stat().st_size == 0:
                continue
            raise
    return None


def commit_keys(paths: StorePaths) -> Iterator[tuple[str, str, str, int]]:
    """Yield (run, episode, part, highest revision) of everything committed, without reading it."""
    # Strings and no paths: a catalog walks 10,000 episodes.
    paths.need_commits()
    top = str(paths.commits)
    for run in paths.entries():
        for episode in paths.entries(run):
            for part in paths.entries(run, episode):
                revisions = _revisions(f"{top}/{run}/{episode}/{part}")
                if revisions:
                    yield run, episode, part, max(revisions)


def all_commits(paths: StorePaths) -> Iterator[Commit]:
    """Latest commit of every part of every episode, in order of run, episode and part."""
    for run, episode, part, _ in commit_keys(paths):
        commit = latest_commit(paths, run, episode, part)
        if commit is not None:
            yield commit

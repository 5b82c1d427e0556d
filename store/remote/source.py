"""Checking that a store elsewhere holds exactly what was committed: all of it is downloaded."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator

from ..commits import MAX_JSON, Commit, read_bounded, read_commits
from ..commits.verify import Problem
from ..errors import AttnstoreError
from .fetching import CONNECTIONS, Wanted, fetch_all, place_file
from .mirror import MirrorPaths


def verify_source(
    paths: MirrorPaths,
    chosen: Iterable[tuple[str, str]] | None = None,
    progress: Callable[[float, str], None] = lambda share, name: None,
) -> Iterator[Problem]:
    """Compare every committed file at the source with its size and SHA-256, and the log with the cache.

    What is downloaded is not kept.

    Parameters
    ----------
    chosen
        (run, episode id); None is all.
    progress
        Called before each part with the share of parts that were looked at, and its episode.
    """
    wanted = None if chosen is None else set(chosen)
    if wanted is None:
        yield from _entries(paths)
    commits = list(read_commits(paths))
    for number, (key, commit) in enumerate(commits):
        progress(number / len(commits), key[1])
        if wanted is not None and key[:2] not in wanted:
            continue
        if isinstance(commit, Commit):
            yield from _part(paths, commit)
        else:
            yield Problem(*key, "commits/log", str(commit))


def _entries(paths: MirrorPaths) -> Iterator[Problem]:
    for number in range(1, paths.head + 1):
        file = paths.entry(number)
        name = file.relative_to(paths.root).as_posix()
        temporary = paths.scratch / uuid.uuid4().hex
        try:
            place_file(paths.transport, name, temporary, paths.scratch, MAX_JSON)
            paths.need_entry(number)
            here, there = (hashlib.sha256(read_bounded(f)).digest() for f in (file, temporary))
            if here != there:
                yield Problem(None, None, None, name, "its bytes differ from those read before")
        except AttnstoreError as error:
            yield Problem(None, None, None, name, str(error))
        finally:
            temporary.unlink(missing_ok=True)


def _part(paths: MirrorPaths, commit: Commit) -> Iterator[Problem]:
    name = str(commit.summary.get("name", commit.episode))
    below = commit.directory(paths).relative_to(paths.root).as_posix()
    # A few at a time: what is here of an episode is a few files.
    for start in range(0, len(commit.files), CONNECTIONS):
        some = [
            Wanted(f"{below}/{f.path}", paths.scratch / uuid.uuid4().hex, f)
            for f in commit.files[start : start + CONNECTIONS]
        ]
        try:
            for fetched in fetch_all(paths.transport, some, paths.scratch):
                if fetched.error is not None:
                    reason = str(fetched.error).removeprefix(f"{paths.transport.url}/")
                    reason = reason.removeprefix(fetched.wanted.path).lstrip(": ")
                    yield Problem(commit.run, name, commit.part, fetched.wanted.path, reason)
        finally:
            for each in some:
                each.target.unlink(missing_ok=True)

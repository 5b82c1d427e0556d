"""Copying a store, or some episodes of it, from this machine to a bucket: the other half of `pull`.

Files come first, verified; then the commit that makes the part visible. A push that is killed leaves
whole objects, which the next one finds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..catalog import refresh
from ..commits import (
    MARKER,
    Commit,
    StoredFile,
    StorePaths,
    check_marker,
    log_of,
    read_bounded,
)
from ..errors import AttnstoreError, DeniedError, NotFoundError, UsageError
from ..tables.columns import ACROSS
from .fetching import at_once
from .mirror import MirrorPaths, open_mirror
from .pull import chosen_parts, said, say_again
from .spool import SpooledPaths, bucket_at, check_arrived, create_spooled
from .tiers import tier_of


@dataclass(frozen=True, slots=True)
class PushedPart:
    """What a push does about one part."""

    commit: Commit
    files: tuple[StoredFile, ...]
    """Those that are not there yet."""
    is_new: bool
    """The commit is not recorded there yet."""


@dataclass(frozen=True, slots=True)
class PushPlan:
    """A push's forecast, which `push` carries out."""

    source: StorePaths
    url: str
    parts: tuple[PushedPart, ...]
    conflicts: tuple[str, ...]
    """Parts that were committed in the bucket as well, by somebody else."""
    unreadable: tuple[str, ...] = ()
    """Parts whose commit cannot be read here."""
    left_out: tuple[str, ...] = ()
    """Parts over several episodes, of which not all are chosen."""

    @property
    def bytes(self) -> int:
        """What is copied."""
        return sum(f.size for p in self.parts for f in p.files)

    @property
    def files(self) -> int:
        """How many files are copied."""
        return sum(len(p.files) for p in self.parts)

    @property
    def total(self) -> int:
        """Bytes of all that was asked for, what is there already included."""
        return sum(f.size for p in self.parts for f in p.commit.files)

    @property
    def episodes(self) -> int:
        """How many episodes are asked for."""
        return len({p.commit.key[:2] for p in self.parts if p.commit.episode != ACROSS})


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did."""

    parts: int
    """Parts that are new there."""
    bytes: int
    failed: tuple[str, ...]
    """A line for each part that could not be had, or put, whole; it is not visible there."""


def plan_push(
    source: StorePaths, url: str, episodes: Iterable[tuple[str, str]] | None = None
) -> PushPlan:
    """Compare what is asked for with what is there; nothing is written.

    Parameters
    ----------
    source
        A store on this machine.
    url
        ``s3://bucket/path``: of nothing, or of a copy of the same store.
    episodes
        (run, episode id); None is all.

    Raises
    ------
    UsageError
        If another store is there, or the source is at a URL itself.
    AttnstoreError
        If the bucket cannot be reached.
    """
    if source.remote:
        raise UsageError(f"{source.name}: push takes a store on this machine; pull it first")
    try:
        target: MirrorPaths | None = open_mirror(url)
    except NotFoundError:
        target = None
    if target is not None:
        _check_same(source, target)
    there = {} if target is None else _there(url)
    taken, left_out = chosen_parts(source, episodes)
    parts, conflicts, unreadable = [], [], []
    for key, commit in taken:
        if not isinstance(commit, Commit):
            unreadable.append(f"{key[1]} ({key[0]}, {key[2]}): {commit}")
        elif target is not None and _differs(target, commit):
            conflicts.append(said(commit))
        else:
            below = commit.directory(source).relative_to(source.root).as_posix()
            absent = [f for f in commit.files if there.get(f"{below}/{f.path}") != f.size]
            known = () if target is None else log_of(target).update().attempts
            is_new = commit.attempt not in known
            parts.append(PushedPart(commit, tuple(absent), is_new))
    return PushPlan(source, url, tuple(parts), tuple(conflicts), tuple(unreadable), left_out)


def _check_same(source: StorePaths, target: StorePaths) -> None:
    ours, theirs = (check_marker(p.root)["store_id"] for p in (source, target))
    if ours != theirs:
        raise UsageError(
            f"{target.name} is another store than {source.name} and no copy of it; name another path"
        )


def _there(url: str) -> Mapping[str, int]:
    return {each.path: each.size for each in bucket_at(url).lying("data")}


def _differs(target: StorePaths, commit: Commit) -> bool:
    history = log_of(target).update()
    if commit.attempt in history.attempts:
        return False
    return max(history.revisions(*commit.key), default=0) >= commit.revision


def push(
    plan: PushPlan, progress: Callable[[int, Commit], None] = lambda size, commit: None
) -> Pushed:
    """Carry out a plan.

    Parameters
    ----------
    progress
        Is given the size of each file that was put, and its commit; from several threads.

    Returns
    -------
    What was done. A part with a file that is damaged here, or cannot be put, is not made visible; the
    others are not affected.

    Raises
    ------
    UsageError, DeniedError, NotFoundError, AttnstoreError
        If the bucket cannot be written; see `attnstore.store.remote.spool.create_spooled`.
    """
    marker = read_bounded(plan.source.root / MARKER)
    target = create_spooled(plan.url, marker)
    _check_same(plan.source, target)
    size = done = 0
    failed = []
    for part in plan.parts:
        try:
            _send(plan.source, target, part, progress)
            size += sum(f.size for f in part.files)
            if part.is_new:
                say_again(plan.source, target, part.commit)
                done += 1
        except DeniedError:
            raise
        except AttnstoreError as error:
            failed.append(f"{said(part.commit)}: {error}")
    refresh(target)
    return Pushed(done, size, tuple(failed))


def _send(
    source: StorePaths,
    target: SpooledPaths,
    part: PushedPart,
    progress: Callable[[int, Commit], None],
) -> None:
    commit = part.commit
    here, cached = commit.directory(source), commit.directory(target)
    below = cached.relative_to(target.root).as_posix()
    source.need(commit, part.files)

    def send(file: StoredFile) -> None:
        place = here / file.path
        try:
            target.bucket.upload(f"{below}/{file.path}", place, file)
            # What the bucket's catalog is made from need not come back.
            if tier_of(file.path) == "catalog" and not (cached / file.path).exists():
                (cached / file.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, cached / file.path)
        except FileNotFoundError:
            raise NotFoundError(f"{place} is missing") from None
        except OSError as error:
            raise AttnstoreError(f"{place}: {error.strerror or error}") from None
        progress(file.size, commit)

    at_once(send, part.files)
    if part.files:
        check_arrived(target.bucket, below, commit.files)

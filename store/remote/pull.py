"""Copying a tier of some episodes of a store to this machine, so that it opens without the source.

Files come first, verified; then the record of the tier, then the commit that makes the part
visible. A pull that is killed leaves whole files, which the next one finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..commits import (
    MARKER,
    PULLED,
    Commit,
    History,
    Key,
    StorePaths,
    check_marker,
    create_exclusive,
    log_of,
    now,
    read_commits,
    register_run,
    replace_file,
)
from ..commits.run import copy_run
from ..errors import AttnstoreError, IntegrityError, NotFoundError, UsageError
from ..tables.columns import ACROSS
from .fetching import Wanted, fetch_all, remove_abandoned
from .pulled import SOURCE, PulledPaths
from .tiers import TIERS, Tier, includes
from .transport import Transport


@dataclass(frozen=True, slots=True)
class PulledPart:
    """What a pull does about one part."""

    commit: Commit
    tier: Tier
    """Up to which it is here afterwards."""
    files: tuple[Wanted, ...]
    """Those that are not here yet."""
    size: int
    """Bytes of the tier, here already or not."""
    is_new: bool
    """The commit or the tier is not recorded here yet."""


@dataclass(frozen=True, slots=True)
class PullPlan:
    """A pull's forecast, which `pull` carries out."""

    source: StorePaths
    target: Path
    tier: Tier
    parts: tuple[PulledPart, ...]
    conflicts: tuple[str, ...]
    """Parts that were committed in the copy itself, and differ from the source's."""
    unreadable: tuple[str, ...] = ()
    """Parts whose commit cannot be read at the source."""
    left_out: tuple[str, ...] = ()
    """Parts over several episodes, of which not all are chosen."""

    @property
    def bytes(self) -> int:
        """What is copied."""
        return sum(w.file.size for p in self.parts for w in p.files)

    @property
    def files(self) -> int:
        """How many files are copied."""
        return sum(len(p.files) for p in self.parts)

    @property
    def total(self) -> int:
        """Bytes of the whole tier, what is here already included."""
        return sum(p.size for p in self.parts)

    @property
    def episodes(self) -> int:
        """How many episodes are asked for."""
        return len({p.commit.key[:2] for p in self.parts if p.commit.episode != ACROSS})


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull did."""

    parts: int
    """Parts that are new here, or have a higher tier now."""
    bytes: int
    failed: tuple[str, ...]
    """A line for each part that could not be had whole; what it had before is kept."""


def plan_pull(
    source: StorePaths, target: Path, tier: Tier, episodes: Iterable[tuple[str, str]] | None = None
) -> PullPlan:
    """Compare what is asked for with what is here; nothing is written.

    Parameters
    ----------
    source
        Where it comes from: a store on this machine, or elsewhere.
    target
        Directory of the copy: new, empty, or what a pull of the same store made.
    tier
        ``catalog``, ``maps`` or ``full``.
    episodes
        (run, episode id); None is all.

    Raises
    ------
    UsageError
        If the target is something else.
    """
    if tier not in TIERS:
        raise UsageError(f"a tier is {', '.join(TIERS)}; got {tier!r}")
    copy = _copy_at(target, source)
    taken, left_out = chosen_parts(source, episodes)
    parts, conflicts, unreadable = [], [], []
    for key, commit in taken:
        if not isinstance(commit, Commit):
            unreadable.append(f"{key[1]} ({key[0]}, {key[2]}): {commit}")
        elif _differs(copy, commit):
            conflicts.append(f"{commit.summary.get('name', key[1])} ({key[0]}, {key[2]})")
        else:
            parts.append(_part(source, copy, commit, tier))
    return PullPlan(
        source, target, tier, tuple(parts), tuple(conflicts), tuple(unreadable), left_out
    )


def chosen_parts(
    source: StorePaths, episodes: Iterable[tuple[str, str]] | None
) -> tuple[list[tuple[Key, Commit | IntegrityError]], tuple[str, ...]]:
    """Parts of chosen episodes, and a line for each part that is of no episode and stays.

    Linear probes and predictions of failure are of many episodes: they come along with all episodes of
    their run, and stay where some are left.

    Parameters
    ----------
    episodes
        (run, episode id); None is all, and every part.
    """
    found = list(read_commits(source))
    if episodes is None:
        return found, ()
    wanted = set(episodes)
    own = {key[:2] for key, _ in found if key[2] == "base"}
    asked, kept = {run for run, _ in wanted}, Counter(run for run, _ in own - wanted)
    taken, left_out = [], []
    for key, commit in found:
        across = key[1] == ACROSS and key[0] in asked
        if key[:2] in wanted or (across and not kept[key[0]]):
            taken.append((key, commit))
        elif across:
            left_out.append(
                f"{key[2]} ({key[0]}): it is of all episodes of its run, of which {kept[key[0]]} are not chosen"
            )
        elif key[:2] not in own and key[1] != ACROSS:
            left_out.append(f"{key[2]} ({key[0]}): it is of no episode")
    return taken, tuple(left_out)


def _copy_at(target: Path, source: StorePaths) -> PulledPaths:
    if target.exists() and target.resolve() == source.root.resolve():
        raise UsageError(f"{target} is the source itself")
    if (target / MARKER).exists():
        found = PulledPaths(target)
        check_marker(target)
        if not found.pulled.is_dir():
            raise UsageError(
                f"{target} is a store of its own and no pulled copy; name a new or empty directory"
            )
        ours, theirs = (check_marker(p.root)["store_id"] for p in (found, source))
        if ours != theirs:
            raise UsageError(
                f"{target} is a copy of another store ({found.source()}); name another directory"
            )
        return found
    if target.exists() and (not target.is_dir() or not _is_ours(target)):
        raise UsageError(f"{target} is there and not empty; name a new or empty directory")
    return PulledPaths(target)


def _is_ours(target: Path) -> bool:
    # A pull that was killed before it wrote the marker leaves this directory at most.
    return {entry.name for entry in target.iterdir()} <= {PULLED}


def _differs(copy: PulledPaths, commit: Commit) -> bool:
    here = _history(copy).revisions(*commit.key).get(commit.revision)
    return here is not None and here.attempt != commit.attempt


def _history(copy: PulledPaths) -> History:
    return log_of(copy).update()


def _part(source: StorePaths, copy: PulledPaths, commit: Commit, tier: Tier) -> PulledPart:
    before = copy.tier(commit)
    reached = max((tier, before or tier), key=TIERS.index)
    directory = commit.directory(copy)
    below = directory.relative_to(copy.root).as_posix()
    # Of a higher tier that is here, too: what was lost since comes back.
    files = [f for f in commit.files if includes(reached, f.path)]
    wanted = [Wanted(f"{below}/{f.path}", directory / f.path, f) for f in files]
    return PulledPart(
        commit,
        reached,
        tuple(w for w in wanted if not w.is_here()),
        sum(f.size for f in files),
        reached != before or commit.attempt not in _history(copy).attempts,
    )


def pull(
    plan: PullPlan,
    transport: Transport,
    name: str,
    progress: Callable[[int, Commit], None] = lambda size, commit: None,
) -> Pulled:
    """Carry out a plan.

    Parameters
    ----------
    transport
        Access to the source's files.
    name
        Path or URL of the source, as later messages name it.
    progress
        Is given the size of each file that came, and its commit.

    Returns
    -------
    What was done. A part with a file that cannot be had, or is not what was committed, is left as it
    was; the others are not affected.

    Raises
    ------
    AttnstoreError
        If the target has no room, or cannot be written.
    """
    copy = _begin(plan, name)
    scratch = copy.pulled / "unfinished"
    remove_abandoned(scratch)
    size = done = 0
    failed = []
    for part in plan.parts:
        errors: list[AttnstoreError] = []
        with closing(fetch_all(transport, part.files, scratch, durable=True)) as results:
            for fetched in results:
                if fetched.error is not None:
                    errors.append(fetched.error)
                else:
                    size += fetched.wanted.file.size
                    progress(fetched.wanted.file.size, part.commit)
        if errors:
            more = f" (and {len(errors) - 1} more files)" if len(errors) > 1 else ""
            failed.append(f"{said(part.commit)}: {errors[0]}{more}")
        elif part.is_new:
            try:
                _commit(plan, copy, part)
            except AttnstoreError as error:
                failed.append(f"{said(part.commit)}: {error}")
                continue
            done += 1
    return Pulled(done, size, tuple(failed))


def said(commit: Commit) -> str:
    """Name a part in a line for people."""
    return f"{commit.summary.get('name', commit.episode)} ({commit.run}, {commit.part})"


def _begin(plan: PullPlan, name: str) -> PulledPaths:
    """Make the copy a store that opens: before its first file, so that a kill leaves one."""
    try:
        copy = PulledPaths(plan.target)
        for folder in (copy.pulled, copy.runs, copy.log, copy.data, copy.catalog):
            folder.mkdir(parents=True, exist_ok=True)
        replace_file(copy.pulled / SOURCE, {"source": name, "pulled": now()})
        create_exclusive(copy.marker, check_marker(plan.source.root))
    except OSError as error:
        raise AttnstoreError(
            f"{plan.target} cannot be written: {error.strerror or error}"
        ) from None
    return copy


def _commit(plan: PullPlan, copy: PulledPaths, part: PulledPart) -> None:
    # Before the commit: without it, a part is taken for one that was committed here, whole.
    copy.set_tier(part.commit, part.tier)
    say_again(plan.source, copy, part.commit)


def say_again(source: StorePaths, copy: StorePaths, commit: Commit) -> None:
    """Record a commit of a store, and its run, in a copy that has the files.

    Raises
    ------
    NotFoundError
        If the source has not the run's file.
    """
    try:
        copy_run(source, copy, commit.run)
    except NotFoundError:
        raise NotFoundError(f"the source has no runs/{commit.run}.json") from None
    theirs = log_of(source)
    history = theirs.update()
    if (number := history.runs.get(commit.run)) is None:
        register_run(copy, commit.run)
    else:
        _repeat(theirs.content(number), copy, lambda ours: commit.run in ours.runs)
    number = history.attempts[commit.attempt].number
    _repeat(theirs.content(number), copy, lambda ours: commit.attempt in ours.attempts)


def _repeat(content: dict[str, Any], copy: StorePaths, is_said: Callable[[History], bool]) -> None:
    """Say in the copy what an entry of the source says, in that entry's words and version."""
    log_of(copy).append(lambda history: None if is_said(history) else content)


def absent(paths: StorePaths, commits: Iterable[Commit]) -> tuple[int, int]:
    """Count the files, and their bytes, that a copy does not have and is not expected to."""
    sizes = []
    for commit in commits:
        directory = commit.directory(paths)
        for file in commit.files:
            if not paths.expects(commit, file) and not (directory / file.path).is_file():
                sizes.append(file.size)
    return len(sizes), sum(sizes)

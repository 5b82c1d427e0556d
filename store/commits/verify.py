"""Checking that a store holds exactly what was committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import AttnstoreError, IntegrityError, NotFoundError
from .entry import Commit
from .files import check_marker
from .holding import StorePaths
from .layout import MARKER, Key
from .log import Log, Revision, check_known
from .part import Part
from .run import load_run

KEPT_FILES = 1_000_000
"""Files of commits that are remembered from reading the log: 300 MB; entries of others are read again."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing in a store that is not as it was committed."""

    run: str | None
    """None for what belongs to no run."""
    episode: str | None
    """The dataset's own name if the commit can be read, else the id; None for a run's file."""
    part: str | None
    file: str
    """Relative to the store."""
    reason: str

    def __str__(self) -> str:
        of = ", ".join(s for s in (self.episode, self.part, self.run) if s is not None)
        return f"{self.file}: {self.reason}" + (f" ({of})" if of else "")


def verify(
    paths: StorePaths,
    run: str | None = None,
    episode: str | None = None,
    *,
    quick: bool = False,
    progress: Callable[[float, str], None] = lambda share, name: None,
    looked_at: Callable[[Commit], None] = lambda commit: None,
) -> Iterator[Problem]:
    """Check the log, the latest commit of every part, file by file, and the runs.

    Parameters
    ----------
    paths
        The store.
    run
        Only this run.
    episode
        Only this episode: its id, or the dataset's own name.
    quick
        Read the log and no data: of files, whether they are there, of the committed size. Changed bytes
        are not seen.
    progress
        Called before each part with the share of parts that were looked at, and its episode.
    looked_at
        Called with the commit of each part that could be read and is looked at.

    Raises
    ------
    NotFoundError
        If `run` or `episode` is given and nothing is committed for it.
    """
    try:
        check_marker(paths.root)
    except (IntegrityError, NotFoundError) as error:
        yield Problem(None, None, None, MARKER, str(error))
    log = Log(paths, keep=KEPT_FILES)  # its own, so that every entry is read anew
    history = log.update(thorough=True)
    every = run is None and episode is None
    if every:
        for number, bad in sorted(history.unreadable.items()):
            if bad.key is None:
                yield Problem(None, None, None, _file(paths, number), bad.reason)
    runs: set[str] = set(history.runs) if every else set()
    found = False
    parts = list(history.parts())
    for number, (key, revision) in enumerate(parts):
        progress(number / len(parts), key[1])
        if run not in (None, key[0]):
            continue
        try:
            commit = log.commit(revision)
            check_known(paths, history, key)
        except AttnstoreError as error:
            if episode in (None, key[1]):
                found = True
                runs.add(key[0])
                yield _unreadable(paths, key, revision, str(error))
            continue
        if episode not in (None, key[1], commit.summary.get("name")):
            continue
        found = True
        runs.add(key[0])
        looked_at(commit)
        yield from _part(paths, commit, quick)
    if not found and not every:
        wanted = " ".join(f"{k} {v!r}" for k, v in (("run", run), ("episode", episode)) if v)
        raise NotFoundError(f"{paths.root}: nothing is committed for {wanted}")
    for each in sorted(runs):
        yield from _run(paths, each)


def _file(paths: StorePaths, number: int) -> str:
    return paths.entry(number).relative_to(paths.root).as_posix()


def _unreadable(paths: StorePaths, key: Key, revision: Revision, reason: str) -> Problem:
    reason = reason.removeprefix(f"{paths.entry(revision.number)}: ")
    return Problem(*key, _file(paths, revision.number), reason)


def _part(paths: StorePaths, commit: Commit, quick: bool) -> Iterator[Problem]:
    name = str(commit.summary.get("name", commit.episode))
    part = Part(paths, commit)
    for file, reason in part.problems(quick=quick):
        directory = part.path.relative_to(paths.root).as_posix()
        yield Problem(commit.run, name, commit.part, f"{directory}/{file}", reason)


def _run(paths: StorePaths, run: str) -> Iterator[Problem]:
    file = f"runs/{run}.json"
    try:
        load_run(paths, run)
    except NotFoundError:
        yield Problem(run, None, None, file, "missing")
    except AttnstoreError as error:
        yield Problem(run, None, None, file, str(error))

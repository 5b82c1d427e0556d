"""Checking that a store holds exactly what was committed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .commit import Commit, commit_keys, latest_commit
from .errors import AttnstoreError, IntegrityError, NotFoundError
from .part import Part
from .paths import MARKER, StorePaths, open_store
from .run import load_run, run_ids


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
    paths: StorePaths, run: str | None = None, episode: str | None = None
) -> Iterator[Problem]:
    """Check the latest commit of every part, file by file, and the runs that they belong to.

    Parameters
    ----------
    paths
        The store.
    run
        Only this run.
    episode
        Only this episode: its id, or the dataset's own name.

    Raises
    ------
    NotFoundError
        If `run` or `episode` is given and nothing is committed for it.
    """
    try:
        open_store(paths.root)
    except (IntegrityError, NotFoundError) as error:
        yield Problem(None, None, None, MARKER, str(error))
    runs: set[str] = set() if run is not None or episode is not None else set(run_ids(paths))
    found = False
    for key in commit_keys(paths):
        if run not in (None, key[0]):
            continue
        try:
            commit = latest_commit(paths, *key[:3])
        except AttnstoreError as error:
            if episode in (None, key[1]):
                found = True
                runs.add(key[0])
                yield _unreadable(key, str(error))
            continue
        name = None if commit is None else commit.summary.get("name")
        if episode not in (None, key[1], name):
            continue
        found = True
        runs.add(key[0])
        if commit is None:
            yield _unreadable(key, "empty: a crash tore it before it was a commit")
        else:
            yield from _part(paths, commit)
    if not found and (run is not None or episode is not None):
        wanted = " ".join(f"{k} {v!r}" for k, v in (("run", run), ("episode", episode)) if v)
        raise NotFoundError(f"{paths.root}: nothing is committed for {wanted}")
    for each in sorted(runs):
        yield from _run(paths, each)


def _unreadable(key: tuple[str, str, str, int], reason: str) -> Problem:
    run, episode, part, revision = key
    file = f"commits/{run}/{episode}/{part}/{revision:06d}.json"
    return Problem(run, episode, part, file, reason)


def _part(paths: StorePaths, commit: Commit) -> Iterator[Problem]:
    name = str(commit.summary.get("name", commit.episode))
    part = Part(paths, commit)
    directory = part.path.relative_to(paths.root).as_posix()
    for file, reason in part.problems():
        yield Problem(commit.run, name, commit.part, f"{directory}/{file}", reason)


def _run(paths: StorePaths, run: str) -> Iterator[Problem]:
    file = f"runs/{run}.json"
    try:
        config, _ = load_run(paths, run)
    except NotFoundError:
        yield Problem(run, None, None, file, "missing")
    except AttnstoreError as error:
        yield Problem(run, None, None, file, str(error))
    else:
        if config.id != run:
            yield Problem(run, None, None, file, f"its configuration is that of run {config.id}")

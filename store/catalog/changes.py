"""What the commit log says beyond a catalog generation, and how that is brought up to date."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from ..commits import SAFE, Commit, Fact, Key, StorePaths, Unreadable, log_of
from ..commits.log import MOST_RECHECKED, check_known, version
from ..errors import AttnstoreError
from .rows import (
    CatalogPart,
    append,
    catalog_part,
    create_tables,
    delete_parts,
    insert_parts,
    run_row,
)
from .tables import CATALOG, DATABASE

Progress = Callable[[float, str], None]
"""Is given the share that is done, 0 to 1, and what is at its turn."""
BATCH = 500
"""Parts whose files one statement reads."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a generation was made from."""

    head: int
    """Last entry of the log."""
    tip: str
    """SHA-256 of that entry."""
    unreadable: tuple[Unreadable, ...]
    """Entries up to there that could not be read."""

    @property
    def version(self) -> str:
        """As `History.version`."""
        return version(self.head, self.tip, self.unreadable)


@dataclass(slots=True)
class Changes:
    """The difference between the log and a generation."""

    since: int
    """Entry that the generation was made up to; 0 if it is to be made from nothing."""
    head: int
    tip: str
    facts: list[Fact] = field(default_factory=list)
    gone: list[Key] = field(default_factory=list)
    """Removed, or about to be replaced."""
    parts: list[CatalogPart] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[dict[str, Any]] = field(default_factory=list)


def read_known(connection: duckdb.DuckDBPyConnection) -> Known:
    """Read what the attached generation was made from."""
    ((_, head, tip),) = connection.execute(f"FROM {DATABASE}.main.generation").fetchall()
    rows = connection.execute(
        f"SELECT number, last, reason, digest, run, episode, part FROM {DATABASE}.main.unreadable "
        "WHERE digest IS NOT NULL ORDER BY number"
    ).fetchall()
    bad = (
        Unreadable(number, last, reason, digest, None if part is None else (run, episode, part))
        for number, last, reason, digest, run, episode, part in rows
    )
    return Known(head, tip, tuple(bad))


def read_facts(connection: duckdb.DuckDBPyConnection) -> list[Fact]:
    """Read what the log says, as far as the attached generation has it."""
    names = ", ".join(c.name for c in CATALOG["log"].columns)
    rows = connection.execute(f"SELECT {names} FROM {DATABASE}.main.log ORDER BY number").fetchall()
    return [Fact(*row) for row in rows]


def is_current(paths: StorePaths, known: Known) -> bool:
    """Whether a generation shows everything that is committed."""
    return log_of(paths).shows(known.head, known.tip, known.unreadable)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part, or a run's file, that a generation has not, though the log names it."""

    run: str
    episode: str | None
    part: str | None
    attempt: str | None

    def state(self, paths: StorePaths) -> Hashable:
        """What it is made from, as far as a look at the directory says."""
        names = [n for n in (self.run, self.episode, self.part, self.attempt) if n is not None]
        if not all(SAFE.fullmatch(name) for name in names):
            return None
        if self.episode is None:
            files = [paths.run_file(self.run)]
        else:
            folder = paths.data / self.run / self.episode / f"{self.part}.{self.attempt}"
            files = sorted(folder.glob("*.parquet"))
        return tuple((file.name, _stat(file)) for file in files)

    @property
    def key(self) -> Key:
        """(run, episode, part)."""
        return self.run, str(self.episode), str(self.part)


def read_left_out(connection: duckdb.DuckDBPyConnection) -> list[LeftOut]:
    """Read what the attached generation left out."""
    rows = connection.execute(
        f"SELECT DISTINCT u.run, u.episode, u.part, l.attempt FROM {DATABASE}.main.unreadable u "
        f"LEFT JOIN {DATABASE}.main.log l ON l.number = u.number AND l.kind = 'commit' "
        f"WHERE u.digest IS NULL AND u.run IS NOT NULL ORDER BY ALL LIMIT {MOST_RECHECKED}"
    ).fetchall()
    return [LeftOut(*row) for row in rows]


def readable_again(
    paths: StorePaths, known: Known, facts: Callable[[], list[Fact]], left: Iterable[LeftOut]
) -> list[LeftOut]:
    """Try again to read what a generation left out; return what can be read now."""
    found = []
    log = log_of(paths)
    if log.head < known.head:
        log.seed(known.head, known.tip, facts(), known.unreadable)
    history = log.update(thorough=True)
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH ':memory:' AS {DATABASE}")
        create_tables(connection)
        for each in left:
            try:
                if each.episode is None:
                    run_row(paths, each.run)
                    found.append(each)
                    continue
                revision = history.latest(*each.key)
                if revision is None:
                    continue
                check_known(paths, history, each.key)
                commit = log.commit(revision)
                insert_parts(connection, paths.root, [catalog_part(paths, commit, 0)])
            except (AttnstoreError, OSError):
                continue
            sql = f"FROM {DATABASE}.main.commits WHERE (run, episode, part) = (?, ?, ?)"
            if connection.execute(sql, list(each.key)).fetchall():
                found.append(each)
    return found


def _stat(file: Path) -> Hashable:
    try:
        status = file.stat()
    except OSError as error:
        return error.errno
    return status.st_ino, status.st_size, status.st_mtime_ns


def changes_since(
    paths: StorePaths,
    known: Known | None,
    facts: Callable[[], list[Fact]] = list,
    again: Sequence[LeftOut] = (),
    progress: Progress = lambda share, now: None,
) -> Changes:
    """Compare the log with what a generation includes; only new entries are read.

    Parameters
    ----------
    known
        What the generation was made from; None for one to be made from nothing.
    facts
        Returns what the generation has of the log, if this process has not read it itself.
    again
        What the generation left out, and has to be read now.
    progress
        Called with the share of the commits that are read, and the episode at its turn.
    """
    log = log_of(paths)
    if known is not None and not log.holds(known.head, known.tip):
        known = None
    if known is not None and log.head < known.head:
        log.seed(known.head, known.tip, facts(), known.unreadable)
    history = log.update(thorough=True)
    since = 0
    if known is not None:
        bad = {(u.number, u.digest) for u in history.unreadable.values()}
        new = [f for f in history.facts if f.number > known.head]
        # What could not be read may have been anything: then nothing of before is relied on.
        if bad == {(u.number, u.digest) for u in known.unreadable} and not any(
            f.target is not None for f in new
        ):
            since = known.head
    changes = Changes(since, history.head, history.tip)
    changes.facts = [f for f in history.facts if f.number > since]
    bad_keys = {u.key for u in history.unreadable.values() if u.key is not None and not since}
    touched = {f.key for f in changes.facts if f.kind in ("commit", "removal")} | bad_keys
    touched |= {each.key for each in again if each.episode is not None}
    latest = {key: r for key in sorted(touched) if (r := history.latest(*key)) is not None}
    changes.gone = sorted(touched) if since else []
    read = zip(latest.items(), log.commits(list(latest.values())), strict=True)
    for number, ((key, revision), commit) in enumerate(read):
        progress(number / len(latest), key[1])
        ids = dict(zip(("run", "episode", "part"), key, strict=True))
        try:
            if not isinstance(commit, Commit):
                raise commit
            check_known(paths, history, key)
            changes.parts.append(catalog_part(paths, commit, revision.number))
        except AttnstoreError as error:
            if revision.number not in history.unreadable:
                row = {**ids, "number": revision.number, "reason": str(error)}
                changes.unreadable.append(row)
    runs = {str(f.run) for f in changes.facts if f.kind == "run"}
    for run in sorted(runs | {each.run for each in again if each.episode is None}):
        try:
            changes.runs.append(run_row(paths, run))
        except AttnstoreError as error:
            changes.unreadable.append({"run": run, "reason": str(error)})
    if not since:
        for bad_entry in history.unreadable.values():
            of_run, of_episode, of_part = bad_entry.key or (None, None, None)
            changes.unreadable.append(
                {
                    "run": of_run, "episode": of_episode, "part": of_part,
                    "number": bad_entry.number,
                    "last": bad_entry.last, "digest": bad_entry.digest,
                    "reason": f"{paths.entry(bad_entry.number)}: {bad_entry.reason}",
                }
            )  # fmt: skip
    return changes


def apply(
    connection: duckdb.DuckDBPyConnection,
    root: Path,
    changes: Changes,
    progress: Progress = lambda share, now: None,
) -> None:
    """Bring the attached generation up to date."""
    delete_parts(connection, changes.gone)
    for start in range(0, len(changes.parts), BATCH):
        progress(start / len(changes.parts), changes.parts[start].key[1])
        insert_parts(connection, root, changes.parts[start : start + BATCH])
    for row in changes.runs:
        connection.execute(
            f"DELETE FROM {DATABASE}.main.unreadable WHERE run = ? AND part IS NULL "
            "AND digest IS NULL", [row["run"]]
        )  # fmt: skip
    append(connection, "runs", changes.runs)
    append(connection, "unreadable", changes.unreadable)
    names = [c.name for c in CATALOG["log"].columns]
    append(connection, "log", [dict(zip(names, astuple(f), strict=True)) for f in changes.facts])
    connection.execute(
        f"UPDATE {DATABASE}.main.generation SET head = ?, tip = ?", [changes.head, changes.tip]
    )

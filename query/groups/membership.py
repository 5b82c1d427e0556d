"""Two groups of episodes to compare: who is in them, and whether they may be compared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from attnstore.store.catalog.rows import quoted
from attnstore.store.errors import SelectionError, UsageError

from ..resampling import Bool, Int
from ..sql.run import sql_errors

COLUMNS = ("run", "episode", "name", "outcome", "task", "date", "instruction", "keyframes")
BY = ("outcome", "task", "date", "instruction", "run")
"""Columns of ``episodes`` whose two values make two groups."""
STRATA = ("task", "date", "instruction", "name", "run", "outcome")
"""Columns of ``episodes`` that compared episodes can be asked to share."""
PAIRED = ("name",)
"""Strata of recordings that are compared with themselves."""
CONFIGURATION = (
    "policy",
    "checkpoint_digest",
    "dtype",
    "cameras",
    "stride",
    "options",
    "semantics",
)
"""Columns of ``runs`` in which episodes of one group may not differ."""


@dataclass(frozen=True, slots=True)
class Member:
    """An episode of a group: its row of ``episodes``, as far as a comparison needs it."""

    run: str
    episode: str
    name: str
    outcome: str
    task: str | None
    date: str | None
    instruction: str | None
    keyframes: int


@dataclass(frozen=True, slots=True)
class Groups:
    """Two disjoint groups of episodes."""

    a: str
    """Name of group a: a value such as ``success``, or the SQL condition."""
    b: str
    members: tuple[Member, ...]
    """Of both groups, in order of run and episode."""
    in_a: Bool
    """(episode,)"""
    mentions: frozenset[str]
    """Columns that the groups are defined by."""
    notes: tuple[str, ...] = ()
    """What a reader must know: episodes left out."""

    def of(self, a: bool) -> list[Member]:
        """Return one group's episodes."""
        return [m for m, inside in zip(self.members, self.in_a, strict=True) if inside == a]

    @property
    def sizes(self) -> tuple[str, str]:
        """Both groups with their number of episodes: ``2 success``."""
        return f"{self.in_a.sum()} {self.a}", f"{(~self.in_a).sum()} {self.b}"

    @property
    def unit(self) -> Int:
        """(episode,) number of each episode's recording, the same in every run."""
        return _numbered(m.name for m in self.members)

    def default_strata(self) -> tuple[str, ...]:
        """Return what compared episodes should share.

        The recording itself, where most of the smaller group's recordings are in the other too
        (two runs); else task and date, without what the groups are defined by.
        """
        a, b = ({m.name for m in self.of(a)} for a in (True, False))
        if 2 * len(a & b) > min(len(a), len(b)):
            return PAIRED
        return tuple(c for c in ("task", "date") if c not in self.mentions)

    def strata(self, columns: Sequence[str]) -> Int:
        """Number the strata of episodes that share the columns, (episode,).

        Raises
        ------
        UsageError
            If a column is none to stratify by.
        """
        for column in columns:
            if column not in STRATA:
                raise UsageError(f"strata are of {', '.join(STRATA)}; got {column!r}")
        return _numbered(tuple(getattr(m, c) for c in columns) for m in self.members)


def _numbered(keys: Iterable[object]) -> Int:
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], np.intp)


def groups_by(
    connection: duckdb.DuckDBPyConnection, column: str, where: str | None = None
) -> Groups:
    """Make the groups of the two values of a column of ``episodes``.

    ``outcome`` gives success against failure, and leaves out unknown ones.

    Raises
    ------
    SelectionError
        If the column has not two values; the message lists them.
    """
    if column not in BY:
        raise UsageError(f"groups are by {', '.join(BY)}; got {column!r}")
    members = _members(connection, where)
    counts = Counter(getattr(m, column) for m in members)
    wanted = ["success", "failure"] if column == "outcome" else sorted(counts.keys() - {None})
    if len(wanted) != 2 or not all(counts[w] for w in wanted):
        found = ", ".join(f"{n} {value}" for value, n in counts.most_common(8)) or "none"
        raise SelectionError(
            f"two groups by {column} need episodes of two values"
            + (" (success and failure)" if column == "outcome" else "")
            + _having(where)
            + f"; there are: {found}"
        )
    left_out = sum(n for value, n in counts.items() if value not in wanted)
    kept = tuple(m for m in members if getattr(m, column) in wanted)
    in_a = np.array([getattr(m, column) == wanted[0] for m in kept])
    notes = (f"{left_out} episodes of another {column} are left out",) if left_out else ()
    groups = Groups(wanted[0], wanted[1], kept, in_a, frozenset({column}), notes)
    _check(connection, groups, together=column != "run")
    return groups


def groups_where(
    connection: duckdb.DuckDBPyConnection, a: str, b: str, where: str | None = None
) -> Groups:
    """Make two groups from SQL conditions on ``episodes``.

    Raises
    ------
    SelectionError
        If a group is empty, or an episode is in both.
    UsageError
        If a condition is wrong, or a group mixes what cannot be averaged.
    """
    found = {}
    for group, sql in (("a", a), ("b", b)):
        found[group] = _members(connection, where, sql)
        if not found[group]:
            raise SelectionError(f"group {group} is empty: no episode has {sql}" + _having(where))
    both = set(found["a"]) & set(found["b"])
    if both:
        names = ", ".join(sorted(m.name for m in both)[:3])
        raise SelectionError(
            f"{len(both)} episodes are in both groups ({names}{', ...' if len(both) > 3 else ''}): "
            f"a is {a}, b is {b}"
        )
    members = sorted((*found["a"], *found["b"]), key=lambda m: (m.run, m.episode))
    in_a = np.array([m in set(found["a"]) for m in members])
    words = frozenset(re.findall(r"\w+", f"{a} {b}".lower()))
    groups = Groups(a, b, tuple(members), in_a, words & set(COLUMNS))
    _check(connection, groups, together=False)
    return groups


def _having(where: str | None) -> str:
    return f" where {where}" if where else ""


def _members(
    connection: duckdb.DuckDBPyConnection, where: str | None, condition: str | None = None
) -> list[Member]:
    """Episodes for which both conditions hold."""
    clauses = []
    for sql in (where, condition):
        if sql is not None:
            with sql_errors():
                # without the parentheses below, so that one of its own cannot close them
                connection.execute(f"SELECT run FROM episodes WHERE\n{sql}\nLIMIT 0")
            clauses.append(f"(\n{sql}\n)")
    with sql_errors():
        rows = connection.execute(
            f"SELECT {', '.join(COLUMNS)} FROM episodes "
            f"WHERE {' AND '.join(clauses) or 'true'} ORDER BY run, episode"
        ).fetchall()
    return [Member(*row) for row in rows]


def _check(connection: duckdb.DuckDBPyConnection, groups: Groups, *, together: bool) -> None:
    """Refuse groups that count a recording twice or average over different configurations."""
    sets = {groups.a: groups.of(True), groups.b: groups.of(False)}
    for label, members in sets.items():
        name, count = Counter(m.name for m in members).most_common(1)[0]
        if count > 1:
            runs = ", ".join(sorted({m.run for m in members if m.name == name}))
            raise UsageError(
                f"group {label} has {name} {count} times (runs {runs}), which would count one "
                "recording as several; choose one run"
            )
    if together:
        sets = {f"{groups.a} and {groups.b}": list(groups.members)}
    for label, members in sets.items():
        _one_configuration(connection, label, members, CONFIGURATION)
    _one_configuration(connection, f"{groups.a} and {groups.b}", groups.members, ("semantics",))


def _one_configuration(
    connection: duckdb.DuckDBPyConnection,
    label: str,
    members: Sequence[Member],
    columns: Sequence[str],
) -> None:
    runs = sorted({m.run for m in members})
    rows = connection.execute(
        f"SELECT {', '.join(columns)} FROM runs WHERE run IN ({', '.join(map(quoted, runs))})"
    ).fetchall()
    differing = [
        name for name, values in zip(columns, zip(*rows, strict=True), strict=True)
        if len({str(v) for v in values}) > 1
    ]  # fmt: skip
    if differing:
        raise UsageError(
            f"{label}: the runs {', '.join(runs)} differ in {', '.join(differing)}; choose one run"
        )

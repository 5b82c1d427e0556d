"""Which episodes an answer is about: those of one run that a condition holds for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from attnstore.store.catalog.rows import quoted
from attnstore.store.episode_names import names_episode
from attnstore.store.errors import NotFoundError, PartialError, UsageError

from .run import sql_errors

if TYPE_CHECKING:
    from .store import Store


@dataclass(frozen=True, slots=True)
class Chosen:
    """Episodes of one run: what runs share can be averaged, different runs cannot."""

    run: str
    episodes: tuple[str, ...]
    """Their ids, in the order of their names."""
    names: tuple[str, ...]
    """The dataset's own names."""
    outcomes: tuple[str, ...]
    instructions: tuple[str, ...]

    @property
    def condition(self) -> str:
        """SQL condition on any table with columns ``run`` and ``episode``."""
        return self.of("")

    def of(self, prefix: str) -> str:
        """Spell the condition for a table's alias: ``m.``."""
        listed = ", ".join(map(quoted, self.episodes))
        return f"{prefix}run = {quoted(self.run)} AND {prefix}episode IN ({listed})"


def choose(
    store: Store,
    run: str | None = None,
    where: str | None = None,
    names: Sequence[str] = (),
    limit: int | None = None,
) -> list[Chosen]:
    """Choose committed episodes, run by run.

    Parameters
    ----------
    run
        Only this run.
    where
        SQL condition on ``episodes``.
    names
        Names or globs, as `attnstore.store.episode_names` matches them; all if there are none.
    limit
        At most so many, of all runs together.

    Raises
    ------
    NotFoundError
        If there is no such run, a name names nothing, or no episode is left.
    PartialError
        If so, while there are episodes that cannot be read: it might be one of them.
    UsageError
        If the condition is wrong.
    """
    if run is not None and run not in store.runs:
        raise NotFoundError(
            f"{store.paths.name} has no run {run!r}; it has: {', '.join(store.runs)}"
        )
    clauses = ["true"] if run is None else [f"run = {quoted(run)}"]
    if where is not None:
        if not where.strip():
            raise UsageError("a condition on episodes is empty")
        # Alone first, so that a parenthesis of its own cannot close the one below.
        with sql_errors():
            store.sql(f"SELECT run FROM episodes WHERE\n{where}\nLIMIT 0").fetchall()
        clauses.append(f"(\n{where}\n)")
    rows = store.sql(
        "SELECT run, episode, name, outcome, instruction FROM episodes "
        f"WHERE {' AND '.join(clauses)} ORDER BY run, name, episode"
    ).fetchall()
    of = (f" of run {run}" if run else "") + (f" where {where}" if where else "")
    for name in names:
        if not any(names_episode(name, row[2], row[1]) for row in rows):
            known = [row[2] for row in rows]
            shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
            there = f"; there are {len(known)}: {shown}" if known else ""
            _refuse(store, run, f"no episode {name!r}{of}{there}")
    rows = [r for r in rows if not names or any(names_episode(n, r[2], r[1]) for n in names)]
    rows = rows[:limit]
    if not rows:
        _refuse(store, run, f"{store.paths.name} has no episodes{of}")
    found = []
    for each in dict.fromkeys(row[0] for row in rows):
        mine = [row[1:] for row in rows if row[0] == each]
        ids, names, outcomes, instructions = zip(*mine, strict=True)
        found.append(Chosen(each, ids, names, outcomes, instructions))
    return found


def unreadable_parts(store: Store, run: str | None = None, part: str | None = None) -> list[str]:
    """What the catalog had to leave out, a line each.

    Parameters
    ----------
    run, part
        Only of this run; only parts of this name: ``base`` for the episodes themselves.
    """
    clauses = [
        f"{name} = {quoted(v)}" for name, v in (("run", run), ("part", part)) if v is not None
    ]
    found = store.sql(
        f"SELECT DISTINCT reason FROM unreadable WHERE {' AND '.join(clauses) or 'true'} ORDER BY reason"
    ).fetchall()
    return [str(reason).replace(f"{store.paths.root}/", "") for (reason,) in found]


def _refuse(store: Store, run: str | None, said: str) -> NoReturn:
    """Say that there is no such episode, or that it may be one that cannot be read."""
    bad = unreadable_parts(store, run, "base")
    if not bad:
        raise NotFoundError(said)
    more = f", and {len(bad) - 1} more: attnstore verify {store.paths.name}" if bad[1:] else ""
    raise PartialError(
        f"{said}; {len(bad)} {'are' if bad[1:] else 'is'} left out, since it cannot be read: {bad[0]}{more}"
    )

"""Which episodes an answer is about: those of one run that a condition holds for."""

from __future__ import annotations

from dataclasses import dataclass

from attnstore.store.catalog.rows import quoted
from attnstore.store.errors import NotFoundError, UsageError

from .sql import sql_errors
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


def choose(store: Store, run: str | None = None, where: str | None = None) -> list[Chosen]:
    """Choose committed episodes, run by run.

    Parameters
    ----------
    run
        Only this run.
    where
        SQL condition on ``episodes``.

    Raises
    ------
    NotFoundError
        If there is no such run, or no episode is left.
    UsageError
        If the condition is wrong.
    """
    if run is not None:
        store.run(run)
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
    if not rows:
        raise NotFoundError(
            f"{store.paths.name} has no episodes"
            + (f" of run {run}" if run else "")
            + (f" where {where}" if where else "")
        )
    found = []
    for each in dict.fromkeys(row[0] for row in rows):
        mine = [row[1:] for row in rows if row[0] == each]
        ids, names, outcomes, instructions = zip(*mine, strict=True)
        found.append(Chosen(each, ids, names, outcomes, instructions))
    return found

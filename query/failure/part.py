"""Failure predictions of a store: computed from committed episodes, and committed beside them.

One part ``failure-<digest>`` of the options: in every episode its ``failure_scores``, and in
`ACROSS`, which stands for an episode, ``failure_results`` and ``failure_alarms``. It is committed
last, and remembers a digest of the episodes that it was computed from: with the same ones it is not
computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import pyarrow as pa

from attnstore.store.catalog.rows import quoted
from attnstore.store.commits import Attempt, Commit, latest_commit
from attnstore.store.format.weighting import Weighting
from attnstore.store.tables.columns import ACROSS
from attnstore.store.tables.failure import FAILURE_TABLES
from attnstore.store.tables.parquet import write_table

from ..sql.chosen import Chosen
from ..sql.store import Store
from .evidence import read_evidence
from .prediction import (
    FailureOptions,
    alarm_rows,
    predict,
    result_rows,
    score_rows,
)

SCORES, RESULTS, ALARMS = "failure_scores", "failure_results", "failure_alarms"
FAILURE_SEMANTICS = 1
"""Raised when a definition of what is computed changes."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What `predict_failures` did."""

    commit: Commit
    computed: bool
    """False if it was there of the same episodes."""


def part_name(options: FailureOptions) -> str:
    """Name of the part: the same options are the same part."""
    text = json.dumps([FAILURE_SEMANTICS, asdict(options)], sort_keys=True)
    return f"failure-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def predict_failures(
    store: Store,
    chosen: Chosen,
    options: FailureOptions,
    *,
    redo: bool = False,
    progress: Callable[[float, str], None] = lambda share, now: None,
) -> Predicted:
    """Predict the failures of one run's episodes, and commit scores and results.

    Parameters
    ----------
    redo
        Compute although the episodes and options are the same.
    progress
        Called with the share that is done, 0 to 1, and what is at its turn.

    Raises
    ------
    UsageError
        If there are too few episodes, or one outcome alone; or the store is read-only.
    NotFoundError
        If the features are not in the store.
    MissingExtraError
        If scikit-learn is not installed.
    """
    store.paths.check_writable()
    part = part_name(options)
    bases = {e: c for e in chosen.episodes if (c := latest_commit(store.paths, chosen.run, e))}
    text = json.dumps(
        sorted((e, c.attempt, str(c.summary.get("outcome"))) for e, c in bases.items())
    )
    inputs = hashlib.sha256(text.encode()).hexdigest()
    before = latest_commit(store.paths, chosen.run, ACROSS, part)
    if before is not None and before.summary.get("inputs") == inputs and not redo:
        return Predicted(before, False)
    progress(0.0, "reading")
    evidence = read_evidence(
        store, chosen, features=options.features, strata=options.strata,
        weighting=cast("Weighting", options.weighting),
    )  # fmt: skip
    predictions = predict(evidence, options, progress)
    progress(1.0, "writing")
    frames = {
        (e, k): f
        for e, k, f in store.sql(
            f"SELECT episode, keyframe, frame FROM keyframes WHERE {chosen.condition} "
            "AND variant = 'base'"
        ).fetchall()
    }
    for number, (episode, name) in enumerate(zip(evidence.episodes, evidence.names, strict=True)):
        rows = [
            row | {"frame": frames[episode, row["keyframe"]]}
            for row in score_rows(evidence, predictions, options, number)
        ]
        _commit(store, chosen.run, episode, part, {SCORES: rows}, {"name": name})
    summary = {
        "name": ACROSS,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()},
        "episodes": len(evidence.names),
        "failures": int(evidence.failed.sum()),
        "inputs": inputs,
    }
    tables = {
        RESULTS: result_rows(evidence, predictions, options),
        ALARMS: alarm_rows(evidence, predictions, options),
    }
    return Predicted(_commit(store, chosen.run, ACROSS, part, tables, summary), True)


def _commit(
    store: Store, run: str, episode: str, part: str,
    tables: dict[str, list[dict[str, Any]]], summary: dict[str, Any],
) -> Commit:  # fmt: skip
    attempt = Attempt(store.paths, run, episode, part)
    try:
        for name, rows in tables.items():
            full = [{"run": run, "episode": episode, "part": part, **row} for row in rows]
            table = pa.Table.from_pylist(full, FAILURE_TABLES[name].schema)
            write_table(attempt.path / f"{name}.parquet", table)
    except BaseException:
        attempt.discard()
        raise
    return attempt.publish(summary)


def newest_part(run: str) -> str:
    """Return the SQL that selects the part of a run's newest results, of whichever options."""
    return (
        f"SELECT part FROM commits WHERE run = {quoted(run)} AND episode = {quoted(ACROSS)} "
        "AND starts_with(part, 'failure-') ORDER BY committed DESC, part DESC LIMIT 1"
    )


def latest_failure(store: Store, chosen: Chosen) -> Commit | None:
    """Return the newest results of a run; None if there are none."""
    found = store.sql(newest_part(chosen.run)).fetchall()
    return latest_commit(store.paths, chosen.run, ACROSS, found[0][0]) if found else None


def rows_of(store: Store, commit: Commit, table: str, condition: str = "true") -> Sequence[Any]:
    """Rows of a table that belong to the part of some results, as dictionaries."""
    found = store.sql(
        f"SELECT * FROM {table} WHERE run = '{commit.run}' AND part = '{commit.part}' AND ({condition})"
    )
    return cast("Sequence[Any]", found.to_arrow_table().to_pylist())

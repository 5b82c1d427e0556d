"""One number per episode and head: a metric, reduced over keyframes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import duckdb
import numpy as np
from numpy.typing import NDArray

from attnstore.store.catalog.rows import quoted
from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.naming import default_group
from attnstore.store.format.weighting import Weighting, check_weighting
from attnstore.store.reader.selection import check_index
from attnstore.store.rules import standing_step
from attnstore.store.tables.base import METRICS

from ..resampling import Float, Int
from ..sql.run import sql_errors
from .membership import Groups, Member

NAN = "'nan'::DOUBLE"
"""In SQL: a number that is not there, which NumPy's arrays have no NULL for."""
Rows = dict[str, NDArray[Any]]
"""Columns of rows, by name."""
Reduction = Literal["mean", "max"]
Align = Literal["none", "time", "progress"]
WRIST = "hand_camera"
"""Camera that is compared unless another one is asked for, as in object overlap."""


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeValues:
    """A metric, (episode, test), and which head each test is."""

    values: Float
    """(episode, test); NaN where an episode has no value."""
    step: Int
    """(test,) denoising step; -1 in a one-pass phase."""
    layer: Int
    head: Int
    """(test,); -1 for the mean over heads."""
    selection: str
    """What the numbers are, in words."""
    metric: str
    phase: str
    camera: str
    chosen: str
    """The rows of ``head_stats`` behind them, as an SQL condition."""
    over_all: bool
    """Whether they are means over all keyframes, of which longer episodes have more."""

    def count(self) -> str:
        """Say how many tests there are.

        ``18 layers × 8 heads = 144 tests``
        """
        total = len(self.layer)
        sizes = {
            "steps": len(np.unique(self.step)),
            "layers": len(np.unique(self.layer)),
            "heads": len(np.unique(self.head[self.head >= 0])),
        }
        if sizes["steps"] == 1:
            del sizes["steps"]
        if not sizes["heads"]:
            del sizes["heads"]
        said = " × ".join(f"{n} {name if n > 1 else name[:-1]}" for name, n in sizes.items())
        tests = f"{total} test{'' if total == 1 else 's'}"
        if np.prod(list(sizes.values())) != total:
            return tests
        return f"{said} = {tests}"

    def over_heads(self) -> EpisodeValues:
        """Take the mean over each layer's heads; NaN where a head has no value.

        A head without a value in any episode, since it never looks at the camera, takes no part.
        """
        keys = np.stack([self.step, self.layer])
        layers, at = np.unique(keys, axis=1, return_inverse=True)
        at = at.reshape(-1)
        means = []
        for i in range(layers.shape[1]):
            heads = self.values[:, at == i]
            looking = ~np.isnan(heads).all(0)
            means.append(heads[:, looking].mean(1) if looking.any() else heads[:, 0])
        return EpisodeValues(
            np.stack(means, 1), layers[0], layers[1], np.full(layers.shape[1], -1, np.intp),
            f"{self.selection}, mean over heads", self.metric, self.phase, self.camera,
            self.chosen, self.over_all,
        )  # fmt: skip


def episode_values(
    connection: duckdb.DuckDBPyConnection,
    groups: Groups,
    metric: str,
    *,
    phase: str | None = None,
    camera: str | None = None,
    query_group: str | None = None,
    step: int | Literal["last", "all"] = "last",
    reduce: Reduction = "mean",
    window: int | None = None,
    align: Align = "none",
    weighting: Weighting = "raw",
) -> EpisodeValues:
    """Read the numbers: from ``episode_stats`` if over all keyframes, else from ``head_stats``.

    See `attnstore.query.groups.comparison.compare` for the parameters.

    Raises
    ------
    SelectionError
        If a name matches nothing, or an episode is shorter than the window.
    """
    if metric not in METRICS:
        raise SelectionError(f"a metric is one of {', '.join(METRICS)}; got {metric!r}")
    if reduce not in get_args(Reduction):
        raise UsageError(f"reduce is 'mean' or 'max'; got {reduce!r}")
    if align not in get_args(Align):
        raise UsageError(f"align is 'none', 'time' or 'progress'; got {align!r}")
    if align == "progress" and (reduce == "max" or window is not None):
        raise UsageError(
            "progress aligns means over whole episodes: it takes no window and no maximum, which are "
            "of the first keyframes; align by time instead"
        )
    if align == "time" and window is None:
        window = min(m.keyframes for m in groups.members)
    window = _window(connection, groups, reduce, window)
    runs = sorted({m.run for m in groups.members})
    check_weighting(weighting)
    chosen = f"variant = 'base' AND weighting = '{weighting}' AND run IN ({', '.join(map(quoted, runs))})"
    there = _there(connection, chosen)
    if weighting == "value" and not there:
        raise SelectionError(
            "these runs have no value norms, so nothing is weighted by them: ingest them again, by a "
            "policy that shows them and without --no-values"
        )
    said: dict[str, str] = {}
    for column, wanted in (("phase", phase), ("camera", camera), ("query_group", query_group)):
        value = _value(there, column, wanted)
        there = [each for each in there if getattr(each, column) == value]
        chosen += f" AND {column} = {quoted(value)}"
        said[column] = value
    selection = " × ".join([said["phase"], said["camera"], said["query_group"], metric])
    if weighting == "value":
        selection += ", value-weighted"
    number = _step(there, step, said["phase"])
    if number is not None:
        chosen += f" AND step = {number}"
        selection += f" × step {number}"
    if window is not None:
        kind = "maximum" if reduce == "max" else "mean"
        selection += f", {kind} over the first {window} keyframes"
    if align == "progress":
        points = min(m.keyframes for m in groups.members)
        selection += f", mean over {points} points of equal progress"
        rows = _rows_at_progress(connection, groups.members, metric, chosen, points)
    else:
        rows = _rows(connection, groups.members, metric, chosen, reduce, window)
    tests, at = tests_of(rows)
    values = np.full((len(groups.members), tests.shape[1]), np.nan)
    values[rows["member"], at] = rows["value"]
    return EpisodeValues(
        values, tests[0], tests[1], tests[2], selection, metric, said["phase"], said["camera"],
        chosen, window is None and align == "none",
    )  # fmt: skip


def _window(
    connection: duckdb.DuckDBPyConnection, groups: Groups, reduce: str, window: int | None
) -> int | None:
    """Return how many keyframes count; None for all, which a maximum is never over."""
    shortest = min(groups.members, key=lambda m: m.keyframes)
    if window is None:
        if reduce == "mean":
            return None
        window = shortest.keyframes
    if window < 1:
        raise UsageError(f"a window has at least 1 keyframe; got {window}")
    if window > shortest.keyframes:
        short = sum(m.keyframes < window for m in groups.members)
        raise SelectionError(
            f"{short} episodes have fewer than {window} keyframes ({shortest.name} has "
            f"{shortest.keyframes}): the window must fit all, or leave them out with the "
            f"condition keyframes >= {window}"
        )
    runs = ", ".join(sorted({quoted(m.run) for m in groups.members}))
    strides = connection.execute(
        f"SELECT DISTINCT stride FROM runs WHERE run IN ({runs})"
    ).fetchall()
    if len(strides) > 1:
        raise UsageError(
            "the first keyframes of runs with different strides are not the same time: "
            + ", ".join(str(s) for (s,) in sorted(strides))
        )
    return window


@dataclass(frozen=True, slots=True)
class _There:
    """What the runs have statistics of, as one look at all of them finds."""

    run: str
    phase: str
    camera: str
    query_group: str
    last: int | None
    """Last step; None in a one-pass phase."""


def _there(connection: duckdb.DuckDBPyConnection, chosen: str) -> list[_There]:
    rows = connection.execute(
        "SELECT run, phase, camera, query_group, max(step) FROM episode_stats "
        # a row for every layer and head: the first of them speaks for all
        f"WHERE {chosen} AND layer = 0 AND head = 0 GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    return [_There(*row) for row in rows]


def _value(there: list[_There], column: str, wanted: str | None) -> str:
    """Return the value of a column that is asked for, or its default."""
    known = sorted({str(getattr(each, column)) for each in there})
    default = {"phase": "prefix", "camera": WRIST, "query_group": default_group(known)}[column]
    if wanted is None:
        wanted = known[0] if len(known) == 1 else default
    if wanted is None:
        raise SelectionError(f"which {column} is to be compared? There are: {', '.join(known)}")
    if wanted not in known:
        raise SelectionError(f"no {column} {wanted!r}; there are: {', '.join(known) or 'none'}")
    return wanted


def _step(there: list[_There], step: int | Literal["last", "all"], phase: str) -> int | None:
    """Return the step that is asked for; None for all, and in a one-pass phase."""
    last: dict[str, list[int | None]] = {}
    for each in there:
        last.setdefault(each.run, []).append(each.last)
    counts = sorted({max((n + 1 for n in of if n is not None), default=0) for of in last.values()})
    if counts == [0]:
        if step not in ("last", "all"):
            raise SelectionError(f"phase {phase} has no steps; got step {step}")
        return None
    if len(counts) > 1:
        raise UsageError(
            f"the runs have different numbers of steps: {', '.join(map(str, counts))}; a step of "
            "one is not the same noise as that step of the other"
        )
    if step == "all":
        return None
    if step == "last":
        step = standing_step(phase, counts[0]) or 0
    return check_index(step, counts[0], f"{phase} step")


def _rows(
    connection: duckdb.DuckDBPyConnection,
    members: tuple[Member, ...],
    metric: str,
    chosen: str,
    reduce: str,
    window: int | None,
) -> Rows:
    """Rows (member, step, layer, head, value) of the episodes; `member` is an index of `members`."""
    keys = "run, episode, coalesce(step, -1) AS step, layer, head"
    if window is None:
        query = f"SELECT {keys}, {metric}_mean AS value FROM episode_stats WHERE {chosen}"
    else:
        function = "max" if reduce == "max" else "avg"
        # DuckDB orders NaN above every number
        value = f'{function}("{metric}") FILTER (NOT isnan("{metric}"))'
        query = (
            f"SELECT {keys}, {value} AS value FROM head_stats WHERE {chosen} "
            f"AND {of_members(members)} AND keyframe < {window} GROUP BY ALL"
        )
    return member_rows(
        connection, members,
        f"SELECT m.member, r.step, r.layer, r.head, coalesce(r.value, {NAN}) AS value "
        f"FROM ({query}) r "
        "JOIN members m USING (run, episode)",
    )  # fmt: skip


def of_members(members: Sequence[Member]) -> str:
    """Spell that a row is of one of these episodes, so that the view skips the files of others."""
    return f"episode IN ({', '.join(sorted({quoted(m.episode) for m in members}))})"


def member_rows(
    connection: duckdb.DuckDBPyConnection, members: Sequence[Member], query: str
) -> Rows:
    """Ask a query that may join ``members``: member (its index), run, episode, keyframes; without NULL."""
    # NumPy's arrays, not Arrow's: making one of those imports pandas, a third of a second
    connection.register(
        "members",
        {
            "member": np.arange(len(members)),
            "run": np.array([m.run for m in members], object),
            "episode": np.array([m.episode for m in members], object),
            "keyframes": np.array([m.keyframes for m in members], np.int64),
        },
    )
    try:
        with sql_errors():
            return connection.sql(query).fetchnumpy()
    finally:
        connection.unregister("members")


def tests_of(rows: Rows) -> tuple[Int, Int]:
    """Number the tests of rows that have a step, a layer and a head.

    Returns
    -------
    Step, layer and head of each test in their order, (3, test), and the test of each row, (row,).
    """
    keys = [rows[name].astype(np.int32) for name in ("step", "layer", "head")]
    # one number instead of three, looked up in a table: of a million rows sorting takes long
    span = tuple(int(key.max(initial=0)) + 2 for key in keys)
    code = ((keys[0] + 1) * span[1] + keys[1] + 1) * span[2] + keys[2] + 1
    there = np.zeros(math.prod(span), bool)
    there[code] = True
    found = np.flatnonzero(there)
    number = np.cumsum(there) - 1
    return np.stack(np.unravel_index(found, span)) - 1, number[code]


def progress_weights(keyframes: int, points: int) -> Float:
    """Weight of each keyframe in the mean over equally spaced points of progress, (keyframe,).

    Values between two keyframes are interpolated linearly; a single point is the middle.

    Examples
    --------
    >>> progress_weights(4, 2).tolist(), progress_weights(3, 3).round(2).tolist()
    ([0.5, 0.0, 0.0, 0.5], [0.33, 0.33, 0.33])
    """
    at = np.linspace(0, keyframes - 1, points) if points > 1 else np.array([(keyframes - 1) / 2])
    hat = np.maximum(1 - np.abs(at[:, None] - np.arange(keyframes)), 0.0)
    weights: Float = hat.mean(0)
    return weights


def _rows_at_progress(
    connection: duckdb.DuckDBPyConnection,
    members: tuple[Member, ...],
    metric: str,
    chosen: str,
    points: int,
) -> Rows:
    """Rows as of `_rows`, of means over points of progress; of the keyframes that have a value."""
    lengths = sorted({m.keyframes for m in members})
    weights = ", ".join(
        f"({n}, {i}, {w!r}::DOUBLE)"
        for n in lengths
        for i, w in enumerate(progress_weights(n, points).tolist())
        if w > 0
    )
    has = f'FILTER (NOT isnan(h."{metric}") AND h."{metric}" IS NOT NULL)'
    return member_rows(
        connection, members,
        "SELECT m.member, coalesce(h.step, -1) AS step, h.layer, h.head, "
        f'coalesce(sum(h."{metric}" * w.weight) {has} / sum(w.weight) {has}, {NAN}) AS value '
        f"FROM (SELECT * FROM head_stats WHERE {chosen} AND {of_members(members)}) h "
        "JOIN members m ON (h.run, h.episode) = (m.run, m.episode) "
        f"JOIN (VALUES {weights}) w(keyframes, keyframe, weight) "
        "ON (m.keyframes, h.keyframe) = (w.keyframes, w.keyframe) GROUP BY ALL",
    )  # fmt: skip

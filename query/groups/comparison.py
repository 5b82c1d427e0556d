"""Success against failure, or any two groups of episodes: which heads differ, and how surely.

One number per episode, metric and head: keyframes of an episode are alike, so that episodes and
not keyframes are what is counted. It is the mean over keyframes (all, the first that *all* episodes
have, or at equal progress), or the maximum over the first: a maximum over all keyframes grows with
their number, and failures are longer, so that heads would differ by it where nothing does. A trend
within episodes does the same to the mean, which is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from attnstore.store.catalog import connect
from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.weighting import Weighting

from ..assignments import Assignments
from ..resampling import (
    EXACT,
    FEWEST,
    Bool,
    Float,
    Int,
    benjamini_hochberg,
    bootstrap_interval,
    bootstrap_weights,
    cliffs_delta,
    difference,
    group_test,
)
from .attainable import Attainable, fewest_together, smallest_p
from .episode_values import Align, EpisodeValues, Reduction, episode_values
from .membership import PAIRED, Groups, groups_by, groups_where
from .trends import Trends, episode_trends

if TYPE_CHECKING:
    from ..sql.store import Store

Family = Literal["heads", "layers"]
READING = 0.2
"""Share of a comparison's time, about, before anything is tested."""
BEHIND = {"difference": 0.35, "within": 0.7}
"""Share of the time of some tests, about, that is over with each interval; then come the p."""
INTERVAL = 0.95
"""Level of the bootstrap intervals."""
FEW = 10
"""Episodes in a group below which a percentile interval covers clearly less than its level."""
_RESULTS = (
    "episodes_a", "episodes_b", "mean_a", "mean_b", "difference", "difference_low",
    "difference_high", "cliffs_delta", "within", "within_low", "within_high", "statistic", "p",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two groups of episodes, compared head by head; made by `compare`."""

    groups: Groups
    """Who is compared."""
    values: EpisodeValues
    """The numbers, (episode, test), and which head each test is."""
    family: str
    """The tests that the false discovery rate is over, in words."""
    strata: tuple[str, ...]
    """What compared episodes share."""
    stratum: Int
    """(episode,) number of its stratum."""
    results: dict[str, Float]
    """Column to (test,): see `table`."""
    attainable: Attainable
    """What the design could show at best."""
    notes: tuple[str, ...]
    """What a reader must know, one line each."""

    @cached_property
    def q(self) -> Float:
        """(test,) Benjamini-Hochberg's adjusted p over the family; NaN where there is no test."""
        return benjamini_hochberg(self.results["p"])

    @property
    def significant(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(test,) whether q is at most alpha, where the design can show anything at all."""
        return np.asarray(self.attainable.conclusive & (self.q <= self.attainable.alpha))

    @cached_property
    def ranked(self) -> Int:
        """Tests from the smallest p on; equal ones by the size of their statistic, then of δ."""
        size = [-np.abs(self.results[name]) for name in ("cliffs_delta", "statistic")]
        return np.lexsort((*size, self.results["p"])).astype(np.intp)

    def table(self) -> pa.Table:
        """Return the ranked list as Arrow's table, a row per test; its columns are those of `rows`."""
        return pa.table(
            {
                name: pa.array(values, mask=absent)
                for name, (values, absent) in self._columns().items()
            }
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return the ranked list: a dictionary per test, None where it has no value.

        Keys: ``family``, ``group_a``, ``group_b``; ``rank``; ``step``, ``layer``, ``head``;
        ``episodes_a``, ``episodes_b`` with a value; ``mean_a``, ``mean_b`` over episodes;
        ``difference`` of these means with its bootstrap interval ``_low``, ``_high``;
        ``cliffs_delta`` over episodes; ``within``, the difference of means within strata, with
        its interval; its ``statistic`` and ``p`` (see `group_test`); ``q``; ``significant``.
        """
        columns = {
            name: [None if no else value for value, no in zip(values.tolist(), absent, strict=True)]
            for name, (values, absent) in self._columns().items()
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _columns(self) -> dict[str, tuple[np.ndarray[Any, Any], Bool]]:
        """Values, and where there is none, by name."""
        order, keys = self.ranked, self.values
        columns: dict[str, np.ndarray[Any, Any]] = {
            name: np.full(len(order), said, object)
            for name, said in (
                ("family", self.family), ("group_a", self.groups.a), ("group_b", self.groups.b),
            )
        }  # fmt: skip
        columns["rank"] = np.arange(1, len(order) + 1)
        for name, index in (("step", keys.step), ("layer", keys.layer), ("head", keys.head)):
            columns[name] = index[order]
        for name in _RESULTS:
            columns[name] = self.results[name][order]
            if name.startswith("episodes"):
                columns[name] = columns[name].astype(np.int64)
        columns["q"], columns["significant"] = self.q[order], self.significant[order]
        nowhere = np.zeros(len(order), bool)
        absent = {
            name: np.isnan(values) if values.dtype.kind == "f" else nowhere
            for name, values in columns.items()
        } | {name: columns[name] < 0 for name in ("step", "head")}
        return {name: (values, absent[name]) for name, values in columns.items()}


def compare(
    store: Store,
    metric: str,
    *,
    by: str | None = None,
    a: str | None = None,
    b: str | None = None,
    where: str | None = None,
    phase: str | None = None,
    camera: str | None = None,
    query: str | None = None,
    step: int | Literal["last", "all"] = "last",
    reduce: Reduction = "mean",
    window: int | None = None,
    align: Align = "none",
    weighting: Weighting = "raw",
    family: Family = "heads",
    strata: tuple[str, ...] | None = None,
    permutations: int = 9999,
    bootstraps: int = 2000,
    alpha: float = 0.05,
    seed: int = 0,
    progress: Callable[[float, str], None] = lambda share, now: None,
) -> Comparison:
    """Compare a metric of every head between two groups of episodes.

    Parameters
    ----------
    store
        The open store.
    metric
        A metric of ``head_stats``: entropy, variance, ...
    by
        Column of ``episodes`` with two values. ``outcome``, success against failure, if neither this
        nor `a` and `b` are given.
    a, b
        Instead of `by`: SQL conditions on ``episodes``.
    where
        SQL condition on ``episodes`` for both groups.
    phase, camera, query
        By default the prefix, the wrist camera, and the phase's first query
        group.
    step
        Denoising step of a stepped phase, negative ones from the end, or ``all``.
    reduce, window
        One number an episode: the mean over all keyframes or over the first `window`, or the
        maximum over the first `window` (by default as many as the shortest episode has).
    align
        What the keyframes of episodes of different lengths have in common: ``time``, the first
        ones, as many as the shortest episode has; ``progress``, equally many equally spaced points
        from first to last keyframe; ``none``, the mean over all. Without alignment the result has
        a note where the metric has a trend within episodes and the groups differ in length.
    weighting
        ``raw``, or ``value``: of what is carried; see `attnstore.store.format.weighting`.
    family
        ``heads``: a test for every head; ``layers``: one for every layer, of the mean over heads.
    strata
        Columns that exchanged episodes share; by default task and date (without those that the
        groups are defined by), or the recording where both groups hold the same ones.
    permutations, bootstraps, seed
        See `attnstore.query.resampling`.
    alpha
        False discovery rate.
    progress
        Called with the share that is done, 0 to 1, and what is at its turn.

    Returns
    -------
    The comparison: `Comparison.table` is an Arrow table with a row per test, `Comparison.notes` is
    what a reader must know.

    Raises
    ------
    SelectionError
        If a group is empty, an episode is in both, or a name matches nothing.
    UsageError
        If options contradict each other.
    """
    if family not in ("heads", "layers"):
        raise UsageError(f"a family of tests is 'heads' or 'layers'; got {family!r}")
    if permutations < 1 or bootstraps < 0 or not 0 < alpha < 1:
        raise UsageError(
            "permutations are at least 1, bootstraps 0, and alpha is between 0 and 1; got "
            f"{permutations}, {bootstraps} and {alpha}"
        )
    progress(0.0, "reading")
    with connect(store.paths) as connection:
        if a is None and b is None:
            groups = groups_by(connection, by or "outcome", where)
        elif by is None and a is not None and b is not None:
            groups = groups_where(connection, a, b, where)
        else:
            raise UsageError("name two groups: by a column, or by two SQL conditions a and b")
        values = episode_values(
            connection, groups, metric, phase=phase, camera=camera, query_group=query,
            step=step, reduce=reduce, window=window, align=align, weighting=weighting,
        )  # fmt: skip
        lengths = np.array([m.keyframes for m in groups.members])
        means = lengths[groups.in_a].mean(), lengths[~groups.in_a].mean()
        trends = None
        if values.over_all and means[0] != means[1]:
            progress(READING / 2, "trends within episodes")
            trends = episode_trends(connection, groups.members, values, lengths)
    if family == "layers":
        values = values.over_heads()
    columns = groups.default_strata() if strata is None else tuple(strata)
    stratum = groups.strata(columns)
    results, attainable = _tested(
        values.values, groups, stratum, permutations=permutations, bootstraps=bootstraps,
        alpha=alpha, seed=seed, paired=tuple(columns) == PAIRED,
        progress=lambda share, now: progress(READING + (1 - READING) * share, now),
    )  # fmt: skip
    if np.isnan(results["p"]).all():
        raise SelectionError(
            f"{values.selection}: no head has values in both groups; a head has none where it gives "
            "the camera no attention, and no drift at a first keyframe or step"
        )
    notes = _notes(groups, columns, stratum, attainable, results["p"])
    if trends is not None:
        notes = (*_trend_note(trends, groups, (float(means[0]), float(means[1]))), *notes)
    return Comparison(
        groups, values, f"{values.selection}: {values.count()}", columns, stratum, results,
        attainable, notes,
    )  # fmt: skip


def _tested(
    values: Float,
    groups: Groups,
    stratum: Int,
    *,
    permutations: int,
    bootstraps: int,
    alpha: float,
    seed: int,
    paired: bool,
    progress: Callable[[float, str], None],
) -> tuple[dict[str, Float], Attainable]:
    """Test every column; those without a value for the same episodes are tested together."""
    tests = values.shape[1]
    results = {name: np.full(tests, np.nan) for name in _RESULTS}
    smallest = np.full(tests, np.nan)
    ways = 1
    missing = np.isnan(values)
    # eight episodes a byte: of 10,000 rows sorting took longer than a test
    _, firsts, at = np.unique(
        np.packbits(missing, axis=0), axis=1, return_index=True, return_inverse=True
    )
    before = 0
    for i, first in enumerate(firsts):
        chosen, kept = np.flatnonzero(at.reshape(-1) == i), ~missing[:, first]
        done, share = before / tests, len(chosen) / tests
        before += len(chosen)
        in_a, strata, unit = groups.in_a[kept], stratum[kept], groups.unit[kept]
        found, x = results, values[np.ix_(kept, chosen)]
        found["episodes_a"][chosen], found["episodes_b"][chosen] = in_a.sum(), (~in_a).sum()
        if in_a.all() or not in_a.any():
            continue
        found["mean_a"][chosen], found["mean_b"][chosen] = x[in_a].mean(0), x[~in_a].mean(0)
        found["cliffs_delta"][chosen] = cliffs_delta(x[in_a], x[~in_a])
        progress(done, "intervals")
        weights = bootstrap_weights(in_a, unit, bootstraps=bootstraps, seed=seed)
        for name, by in (("difference", np.zeros_like(strata)), ("within", strata)):
            found[name][chosen] = difference(x, in_a, by)
            low, high = bootstrap_interval(x, in_a, by, unit, level=INTERVAL, weights=weights)
            found[f"{name}_low"][chosen], found[f"{name}_high"][chosen] = low, high
            progress(done + share * BEHIND[name], "intervals" if name == "difference" else "tests")
        tested = group_test(x, in_a, strata, permutations=permutations, seed=seed)
        found["statistic"][chosen], found["p"][chosen] = tested
        smallest[chosen] = smallest_p(in_a, strata, permutations)
        ways = max(ways, Assignments(in_a, strata).ways)
    within = smallest[~np.isnan(smallest)]
    return results, Attainable(
        alpha=alpha,
        tests=len(within),
        assignments=ways,
        smallest_p=float(within.min(initial=1.0)),
        permutations=0 if ways <= max(EXACT, permutations) else permutations,
        together=fewest_together(within, alpha),
        paired=paired,
    )


def _trend_note(trends: Trends, groups: Groups, means: tuple[float, float]) -> tuple[str, ...]:
    """Say that means of episodes of different lengths differ by a trend alone."""
    found = int(trends.significant.sum())
    if not found:
        return ()
    return (
        f"{found} of {len(trends.significant)} heads have a trend within episodes, steadier by "
        f"{trends.by}, and the groups differ in length ({groups.a} {means[0]:.1f} keyframes on "
        f"average, {groups.b} {means[1]:.1f}): their means may differ by that alone; compare at equal "
        f"{trends.by} with align {trends.by}",
    )


def _notes(
    groups: Groups, columns: tuple[str, ...], stratum: Int, attainable: Attainable, p: Float
) -> tuple[str, ...]:
    notes = list(groups.notes)
    strata = " and ".join("recording" if c == "name" else c for c in columns)
    left_out = {"task", "date"} & groups.mentions if columns != PAIRED else set()
    if left_out:
        notes.append(f"not within {' and '.join(sorted(left_out))}, which defines the groups")
    a, b = (np.unique(stratum[inside]) for inside in (groups.in_a, ~groups.in_a))
    alone = int((~np.isin(stratum, np.intersect1d(a, b))).sum())
    if alone and attainable.assignments > 1:
        notes.append(
            f"{alone} of {len(stratum)} episodes have no episode of the other group with the same "
            f"{strata}: they do not enter p"
        )
    untested = int(np.isnan(p).sum())
    if untested:
        notes.append(f"{untested} tests have no values in both groups and do not count")
    smallest = min(groups.in_a.sum(), (~groups.in_a).sum())
    if smallest < FEWEST:
        notes.append(f"a group of {smallest} episodes is too small for bootstrap intervals")
    elif smallest < FEW:
        notes.append(
            f"a group of {smallest} episodes: bootstrap intervals are too narrow below {FEW}"
        )
    said = attainable.text(*groups.sizes, strata)
    return (*notes, said) if said else tuple(notes)

"""Tests and intervals for two groups of episodes, for every head at once.

Values are ``(episode, test)``, one number an episode and test; ``in_a`` says which episodes are in
group a; ``stratum`` numbers what an episode must share with those it is compared to (its task and
date). Both compare a minus b. Nothing here knows a store.
"""

from __future__ import annotations

from math import lgamma
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .assignments import BLOCK, Assignments, try_every, try_some
from .threads import in_threads

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Int = NDArray[np.intp]
Single = NDArray[np.float32]

EXACT = 50_000
"""Up to so many assignments of episodes to groups, all of them are tried instead of a sample."""
AT_ONCE = 1024
"""Replicates that are drawn together, at most: each such block has a seed of its own."""
FEWEST = 4
"""Episodes in a group below which there is no interval: it would be one in name only."""
ROUNDING = 1e-9
"""Relative difference below which two statistics are equal: the same sum in another order."""

CAUTION = 0.25
"""Weight of the smaller group's degrees of freedom (Hsu's test) beside Satterthwaite's, harmonically.

Satterthwaite's rule uses estimated variances, and is too bold far out in the tail: with it alone 5
against 20 episodes give a false star in 6.5 % of families. Hsu's holds for every ratio of variances
and gives 0.3 %, at a third of the power. A quarter was chosen by simulation.
"""


class Tested(NamedTuple):
    """Outcome of `permutation_test`, one element a test."""

    statistic: Float
    """Studentised difference within strata; its sign is that of a minus b."""
    p: Float
    """Two-sided p-value."""


class Interval(NamedTuple):
    """Ends of a bootstrap interval, one element a test; NaN where there is none."""

    low: Float
    high: Float


def cliffs_delta(a: Float, b: Float) -> Float:
    """Cliff's δ: how often a value of group a is larger than one of b, minus how often smaller.

    ``(#{a_i > b_j} - #{a_i < b_j}) / (n_a n_b)`` over all pairs of episodes, -1..1; Cliff 1993,
    "Dominance statistics: Ordinal analyses to answer ordinal questions", Psychological Bulletin
    114(3).

    Parameters
    ----------
    a, b
        (episode, test), without NaN.

    Examples
    --------
    >>> cliffs_delta(np.array([[3.0], [4]]), np.array([[1.0], [3]])).tolist()
    [0.75]
    """
    delta = np.empty(a.shape[1])
    for test in range(a.shape[1]):
        # sorted keys are found several times faster than those in no order
        one, other = np.sort(a[:, test]), np.sort(b[:, test])
        smaller = np.searchsorted(other, one, "left")
        larger = len(other) - np.searchsorted(other, one, "right")
        delta[test] = (smaller - larger).sum() / (len(a) * len(other))
    return delta


def benjamini_hochberg(p: Float) -> Float:
    """Adjusted p-values q: rejecting where q ≤ α keeps the false discovery rate at α.

    ``q_(i) = min over j ≥ i of m p_(j) / j``, capped at 1, with the p-values in ascending order and
    m their number; Benjamini & Hochberg 1995, "Controlling the false discovery rate", J. R.
    Statist. Soc. B 57(1). NaN is no test: it stays NaN and does not count in m.

    Examples
    --------
    >>> benjamini_hochberg(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
    [0.03, 0.04, nan, 0.04]
    """
    q = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def stratum_sizes(in_a: Bool, stratum: Int) -> tuple[Int, Int]:
    """Count the episodes of group a, and of b, in each stratum."""
    count = int(stratum.max(initial=-1)) + 1
    return (
        np.bincount(stratum[in_a], minlength=count).astype(np.intp),
        np.bincount(stratum[~in_a], minlength=count).astype(np.intp),
    )


def permutation_test(
    values: Float, in_a: Bool, stratum: Int, *, permutations: int = 9999, seed: int = 0
) -> Tested:
    """Test for a difference by exchanging episodes between the groups within each stratum.

    The statistic is ``D / sqrt(V)`` with, over episodes i of stratum s, ``c_i = x_i - mean_s(x)``,
    ``u_i = [i in a] - n_as / n_s``, ``D = Σ u_i c_i`` (the difference of means within strata, up
    to a factor) and ``V = Σ u_i² c_i²``. Dividing by its own standard error keeps the test's level
    when the groups differ in size *and* in spread, as failures, which are longer and so have
    steadier means, do: with 10 successes against 30 failures of twice the length the plain
    difference gives p < 0.05 in 10 % of the cases without any difference, this one in 5 to 6 %
    (Janssen 1997, Statistics & Probability Letters 36; Chung & Romano 2013, Annals of Statistics
    41(2)). In strata of equal halves both are the same test.

    Two-sided, p = (b + 1) / (B + 1) where b of the B sampled permutations are at least as extreme
    as the observed assignment: a p of zero would be wrong (Phipson & Smyth 2010, Statist. Appl.
    Genet. Mol. Biol. 9(1), art. 39). With at most `EXACT` (or B, if larger) assignments, each is
    tried once and p is exact.

    Parameters
    ----------
    values
        (episode, test), without NaN.
    in_a, stratum
        (episode,). Strata with one group only say nothing.

    Returns
    -------
    Tested, (test,) each; p = 1 where all values are equal.
    """
    centred, share, used = _centred(values, in_a, stratum)
    # powers of two: the same digits, and squares that a number can hold
    scaled = centred * np.exp2(-np.frexp(np.abs(centred).max(0, initial=0.0))[1])
    c, share, labels, strata = scaled[used], share[used], in_a[used], stratum[used]
    ways = Assignments(labels, strata).ways
    exact = ways <= max(EXACT, permutations)
    total = ways if exact else permutations + 1
    tried = try_every(labels, strata) if exact else try_some(labels, strata, total, seed)
    slope = (1 - 2 * share)[:, None]
    balanced = not slope.any()

    def tested(first: int) -> tuple[Float, Float]:
        some = c[:, first : first + width]
        tests, square = some.shape[1], some**2
        # V is linear in the assignment: Σ share² c² over all episodes, plus Σ slope c² over group a's
        base = share**2 @ square
        terms = some if balanced else np.concatenate([some, slope * square], axis=1)

        def split(sums: Float) -> tuple[Float, Float]:
            return sums[..., :tests], base if balanced else base + sums[..., tests:]

        numerator, spread = split(labels.astype(np.float64) @ terms)
        root = np.sqrt(spread)
        statistic = np.divide(numerator, root, out=np.zeros_like(root), where=root > 0)
        # compared as squares, without a root or a division for each permutation and test
        extreme = np.maximum(np.abs(statistic) * (1 - ROUNDING) - ROUNDING, 0.0) ** 2
        numerator, spread = split(tried.sums(terms))
        # the observed assignment is one of all assignments, and the first of a sample
        return statistic, (numerator * numerator >= extreme * spread).mean(0)

    width = max(1, BLOCK // (4 * total))
    found = in_threads(tested, range(0, c.shape[1], width))
    return Tested(*(np.concatenate(each) for each in zip(*found, strict=True)))


def student_p(t: Float, degrees: Float) -> Float:
    """Two-sided p of Student's t, for degrees of freedom that need not be whole.

    ``I_x(ν/2, 1/2)`` at ``x = ν / (ν + t²)``: the regularised incomplete beta function by its
    continued fraction (NIST DLMF 8.17.22), without a dependency of 100 MB for one function.

    Parameters
    ----------
    t, degrees
        (test,) each; NaN gives NaN.

    Examples
    --------
    >>> student_p(np.array([12.706]), np.array([1.0])).round(4).tolist()
    [0.05]
    """
    a, b = np.asarray(degrees, np.float64) / 2, np.full(np.shape(degrees), 0.5)
    x = a / (a + np.asarray(t, np.float64) ** 2 / 2)
    turned = x > (a + 1) / (a + b + 2)
    first, second = np.where(turned, b, a), np.where(turned, a, b)
    at = np.where(turned, 1 - x, x)
    log_gamma = np.vectorize(lambda v: lgamma(v) if v > 0 else np.nan, otypes=[float])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_beta = log_gamma(first) + log_gamma(second) - log_gamma(first + second)
        front = np.exp(first * np.log(at) + second * np.log1p(-at) - log_beta) / first
        tail = np.ones_like(at)
        for m in range(60, 0, -1):
            even = m * (second - m) * at / ((first + 2 * m - 1) * (first + 2 * m))
            k = m - 1
            odd = (first + k) * (first + second + k) * at
            odd = -odd / ((first + 2 * k) * (first + 2 * k + 1))
            tail = 1 + odd / (1 + even / tail)
        found: Float = front / tail
    return np.asarray(np.where(turned, 1 - found, found))


def welch_test(values: Float, in_a: Bool, stratum: Int) -> Float:
    """Two-sided p of the difference within strata by Welch's t, (test,).

    The regression on group and stratum with variances of its own for every episode (HC2: MacKinnon
    & White 1985, J. Econometrics 29(3)), its degrees of freedom by Satterthwaite's rule for the two
    groups' variances (Bell & McCaffrey 2002, Survey Methodology 28(2)), a `CAUTION` of the way to the
    degrees of the smaller group alone. With one stratum the statistic is Welch's t, with pairs the
    test is the paired t-test.

    Parameters
    ----------
    values
        (episode, test), without NaN.
    in_a, stratum
        (episode,). Strata with one group only say nothing.

    Returns
    -------
    (test,) p; NaN where a group's variance cannot be told (one episode in it), 1 where all values
    are equal.
    """
    centred, share, used = _centred(values, in_a, stratum)
    x, a, strata = centred[used], in_a[used], stratum[used]
    nothing = np.full(values.shape[1], np.nan)
    if not used.any():
        return nothing
    u = a - share[used]
    square = float((u * u).sum())
    _, strata, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    size = sizes[strata]
    free = 1 - 1 / size - u * u / square  # 1 - leverage
    if free.min() < 1e-9:
        return nothing
    slope = u @ x / square
    left = x - u[:, None] * slope
    weight = u * u / free
    variance = weight @ left**2
    spread = np.stack([(left[g] ** 2).sum(0) / free[g].sum() for g in (a, ~a)])  # (group, test)
    trace, cross = _squared_residuals(u, weight, a, strata, size)
    bottom = np.einsum("gt,gh,ht->t", spread, cross, spread)
    with np.errstate(divide="ignore", invalid="ignore"):
        fewest = (trace**2 / np.diag(cross)).min()
        degrees = 1 / ((1 - CAUTION) * bottom / (trace @ spread) ** 2 + CAUTION / fewest)
        t = slope * square / np.sqrt(variance)
    p = student_p(np.minimum(np.abs(t), 1e150), degrees)
    constant = (variance == 0) | (bottom == 0)
    return np.asarray(np.where(constant, np.where(slope == 0, 1.0, 0.0), p))


def _squared_residuals(
    u: Float, weight: Float, in_a: Bool, stratum: Int, size: Int
) -> tuple[Float, Float]:
    """Sums over groups of ``F = R W R``, with R the residual maker of the regression and W the weights.

    ``R = I - P - u u' / q`` takes the strata's means (P) and the group (u, ``q = Σ u²``) out. P keeps
    to a stratum and ``P u = 0``, so that ``F_ij = [i = j] w_i + [same stratum] (b_i + b_j) -
    (t_i u_j + u_i t_j) / q`` with ``b = -w / n + Σ_s w / 2n²``, and every sum over pairs of episodes
    is one of products of sums over strata: without a matrix of 10,000 × 10,000.

    Parameters
    ----------
    u, weight, in_a, stratum, size
        (episode,): the group's share taken out, the diagonal of W, number and size of the stratum.

    Returns
    -------
    Sums of ``F_ii``, (group,), and of ``F_ij²``, (group of i, group of j); group a is the first.
    """
    q = float((u * u).sum())
    count = int(stratum.max()) + 1

    def of_strata(values: Float) -> Float:
        return np.bincount(stratum, values, count).astype(np.float64)

    w, v = weight, weight * u
    b = -w / size + (of_strata(w) / 2)[stratum] / size**2
    t = v - (of_strata(v)[stratum] / size) - u * float(u @ v) / (2 * q)
    diagonal = w + 2 * b - 2 * t * u / q
    groups = (in_a, ~in_a)
    trace = np.array([diagonal[g].sum() for g in groups])
    per = [
        {
            name: of_strata(values * g)
            for name, values in {
                "1": np.ones_like(u), "b": b, "bb": b * b, "u": u, "t": t, "bu": b * u, "bt": b * t,
            }.items()
        }
        for g in groups
    ]  # fmt: skip
    whole = [{name: float((x * y)[g].sum()) for name, (x, y) in
              {"uu": (u, u), "tt": (t, t), "tu": (t, u)}.items()} for g in groups]  # fmt: skip
    cross = np.empty((2, 2))
    for i, (g, wide) in enumerate(zip(per, whole, strict=True)):
        for j, (h, high) in enumerate(zip(per, whole, strict=True)):
            inside = g["bb"] @ h["1"] + 2 * g["b"] @ h["b"] + g["1"] @ h["bb"]
            mixed = g["bt"] @ h["u"] + g["bu"] @ h["t"] + g["t"] @ h["bu"] + g["u"] @ h["bt"]
            far = wide["tt"] * high["uu"] + 2 * wide["tu"] * high["tu"] + wide["uu"] * high["tt"]
            cross[i, j] = inside - 2 * mixed / q + far / q**2
            if i == j:
                at = groups[i]
                cross[i, j] += (w * (w + 4 * b - 4 * t * u / q))[at].sum()
    return trace, cross


def group_test(
    values: Float, in_a: Bool, stratum: Int, *, permutations: int = 9999, seed: int = 0
) -> Tested:
    """Test for a difference: the larger p of `permutation_test` and `welch_test`.

    A permutation test is exact where episodes are exchangeable, whatever their distribution, but
    few short episodes against many long ones are not, and its tail is then too light: of families
    of 32 equal heads 7 to 11 % had a false star. Welch's t holds for unequal variances, but asks for
    means that are nearly normal. Each guards the other; ``python -m benchmarks compare`` gives what
    it costs.

    Returns
    -------
    Tested, (test,) each; p of the permutation alone where a group has a single episode.
    """
    tested = permutation_test(values, in_a, stratum, permutations=permutations, seed=seed)
    return Tested(tested.statistic, np.fmax(tested.p, welch_test(values, in_a, stratum)))


def _centred(values: Float, in_a: Bool, stratum: Int) -> tuple[Float, Float, Bool]:
    """Values minus their stratum's mean, group a's share of the stratum, and where both are."""
    a, b = stratum_sizes(in_a, stratum)
    order = np.argsort(stratum, kind="stable")
    _, strata, sizes = np.unique(stratum, return_inverse=True, return_counts=True)
    sums = np.add.reduceat(values[order], np.cumsum(sizes) - sizes, dtype=np.float64)
    centred = values - (sums / sizes[:, None])[strata]
    # what is left of equal values is the mean's rounding, and would be studentised to anything
    centred[np.abs(centred) <= 1e-13 * np.abs(values).max(0, initial=0.0)] = 0.0
    used: Bool = ((a > 0) & (b > 0))[stratum]
    share: Float = (a / np.maximum(a + b, 1))[stratum]
    return centred, share, used


def difference(values: Float, in_a: Bool, stratum: Int) -> Float:
    """Difference of means within strata, (test,).

    ``Σ_s w_s (mean_as - mean_bs) / Σ_s w_s`` with ``w_s = n_as n_bs / n_s``, which is the
    coefficient of the group in a regression on group and stratum. With one stratum it is the
    difference of means; NaN if no stratum has both groups.
    """
    found: Float = _differences(np.ones((1, len(in_a))), values, in_a, stratum)[0]
    return found


def _differences(weights: NDArray[Any], values: NDArray[Any], in_a: Bool, stratum: Int) -> Float:
    """`difference` with episodes repeated ``weights`` (replicate, episode) times, as precise as `values`."""
    _, stratum, sizes = np.unique(stratum, return_inverse=True, return_counts=True)
    if len(sizes) == 1:
        a, b = (weights[:, group].astype(values.dtype) for group in (in_a, ~in_a))
        with np.errstate(invalid="ignore", divide="ignore"):
            means = [w @ values[g] / w.sum(1, keepdims=True) for w, g in ((a, in_a), (b, ~in_a))]
            return np.asarray(means[0] - means[1], np.float64)
    # by stratum, group a last in each: counts are sums of neighbours
    order = np.lexsort((in_a, stratum))
    weights, values = weights[:, order].astype(values.dtype), values[order]
    group, stratum = in_a[order].astype(values.dtype), stratum[order]
    starts = np.cumsum(sizes) - sizes
    every = np.add.reduceat(weights, starts, axis=1)
    weighted = weights * group
    a = np.add.reduceat(weighted, starts, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(every > 0, a / every, np.zeros_like(a))
        # in place: a new array of this size for each step took longer than the sums
        coefficients = np.take(share, stratum, axis=1)
        coefficients *= weights
        np.subtract(weighted, coefficients, out=coefficients)
        found = coefficients @ values
        found /= (a * (1 - share)).sum(1, keepdims=True)
    return np.asarray(found, np.float64)


def bootstrap_weights(
    in_a: Bool, unit: Int, *, bootstraps: int = 2000, seed: int = 0
) -> NDArray[np.unsignedinteger]:
    """Draw how often each episode is in each replicate, (replicate, episode).

    Episodes are drawn within their group; where the groups hold the same recordings (``unit``),
    recordings are drawn, so that a pair stays a pair.

    Parameters
    ----------
    unit
        (episode,) number of the recording that an episode comes from.

    Returns
    -------
    No replicates where a group has fewer than `FEWEST` episodes.
    """
    kind = np.min_scalar_type(len(in_a))
    if min(in_a.sum(), (~in_a).sum()) < FEWEST or not bootstraps:
        return np.zeros((0, len(in_a)), kind)
    weights = np.empty((bootstraps, len(in_a)), kind)
    if np.intersect1d(unit[in_a], unit[~in_a]).size:
        units, at = np.unique(unit, return_inverse=True)
        drawn_from = [(np.arange(len(in_a)), len(units), at)]
    else:
        drawn_from = [
            (g := np.flatnonzero(group), len(g), np.arange(len(g))) for group in (in_a, ~in_a)
        ]
    rows = max(1, min(AT_ONCE, BLOCK // len(in_a)))

    def draw(start: int) -> None:
        rng = np.random.default_rng([seed, start // rows])
        block = weights[start : start + rows]
        for places, n, at in drawn_from:
            draws = rng.integers(0, n, (len(block), n))
            draws += n * np.arange(len(block))[:, None]
            times = np.bincount(draws.reshape(-1), minlength=n * len(block))
            block[:, places] = times.reshape(len(block), n)[:, at]

    in_threads(draw, range(0, bootstraps, rows))
    return weights


def bootstrap_interval(
    values: Float,
    in_a: Bool,
    stratum: Int,
    unit: Int,
    *,
    bootstraps: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    weights: NDArray[np.unsignedinteger] | None = None,
) -> Interval:
    """Percentile interval of `difference`, from resampling episodes with replacement.

    Percentile method of Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 13: simple,
    and too narrow for small groups. Of normal values, 95 % intervals of two groups of 2, 3, 4, 10, 40
    cover the truth in 67, 80, 86, 92, 94 % of the cases.

    Parameters
    ----------
    values
        (episode, test), without NaN.
    unit, bootstraps, seed
        See `bootstrap_weights`.
    weights
        What that gives, if it is at hand.

    Returns
    -------
    Interval, NaN where a group has fewer than `FEWEST` episodes.
    """
    nothing = np.full(values.shape[1], np.nan)
    if weights is None:
        weights = bootstrap_weights(in_a, unit, bootstraps=bootstraps, seed=seed)
    bootstraps = len(weights)
    if not bootstraps:
        return Interval(nothing, nothing.copy())
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = nothing.copy(), nothing.copy()
    width, rows = max(1, BLOCK // bootstraps), max(1, BLOCK // len(in_a))
    for start in range(0, values.shape[1], width):
        at_once = slice(start, start + width)
        # Of a replicate seven digits are enough, once what all values have in common is taken out.
        some = (values[:, at_once] - values[:, at_once].mean(0)).astype(np.float32)

        def differences(first: int, some: Single = some) -> Float:
            return _differences(weights[first : first + rows], some, in_a, stratum)

        replicates = np.concatenate(in_threads(differences, range(0, bootstraps, rows)))
        # a draw may miss one group in every stratum
        replicates = replicates[~np.isnan(replicates).any(1)]
        if len(replicates):
            low[at_once], high[at_once] = np.quantile(replicates, tails, axis=0)
    return Interval(low, high)

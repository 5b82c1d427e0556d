from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from attnstore.query import assignments, resampling, threads
from attnstore.query.assignments import Assignments, try_every, try_some
from attnstore.query.groups.attainable import (
    Attainable,
    episodes_needed,
    fewest_together,
    pairs_needed,
    smallest_p,
)
from attnstore.query.groups.episode_values import progress_weights
from attnstore.query.groups.trends import find_trends
from attnstore.query.resampling import (
    benjamini_hochberg,
    bootstrap_interval,
    cliffs_delta,
    difference,
    group_test,
    permutation_test,
    student_p,
    welch_test,
)

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Int = NDArray[np.intp]

# Few different values, so that ties are common.
values_of_a_group = st.lists(st.integers(-3, 3), min_size=1, max_size=8)


def design(*sizes: tuple[int, int]) -> tuple[Bool, Int]:
    """Episodes of strata with (n_a, n_b) each, shuffled."""
    labels = [(s, i < a) for s, (a, b) in enumerate(sizes) for i in range(a + b)]
    np.random.default_rng(len(labels)).shuffle(labels)
    return np.array([bool(g) for _, g in labels]), np.array([int(s) for s, _ in labels], np.intp)


DESIGNS = {
    "balanced": design((4, 4)),
    "unbalanced": design((2, 6)),
    "one against many": design((1, 7)),
    "strata": design((2, 2), (1, 3), (3, 2)),
    "pairs": design(*[(1, 1)] * 7),
    "some strata with one group only": design((3, 3), (2, 0), (0, 4)),
}


# ---------------------------------------------------------------------------- slow oracles


def slow_delta(a: list[float], b: list[float]) -> float:
    more = sum(x > y for x in a for y in b)
    less = sum(x < y for x in a for y in b)
    return (more - less) / (len(a) * len(b))


def slow_statistic(x: list[float], in_a: tuple[bool, ...], stratum: list[int]) -> float:
    numerator = spread = 0.0
    for s in set(stratum):
        at = [i for i in range(len(x)) if stratum[i] == s]
        mean = math.fsum(x[i] for i in at) / len(at)
        share = sum(in_a[i] for i in at) / len(at)
        for i in at:
            weight = in_a[i] - share
            numerator += weight * (x[i] - mean)
            spread += (weight * (x[i] - mean)) ** 2
    return numerator / math.sqrt(spread) if spread > 1e-20 else 0.0


def slow_assignments(in_a: Bool, stratum: Int) -> Iterator[tuple[bool, ...]]:
    """Try every labelling of all episodes and keep those with the observed sizes."""
    wanted = [int(in_a[stratum == s].sum()) for s in range(int(stratum.max()) + 1)]
    for labels in itertools.product([False, True], repeat=len(in_a)):
        chosen = np.array(labels)
        if [int(chosen[stratum == s].sum()) for s in range(len(wanted))] == wanted:
            yield labels


def slow_p(x: list[float], in_a: Bool, stratum: Int) -> float:
    strata = stratum.tolist()
    observed = abs(slow_statistic(x, tuple(in_a.tolist()), strata))
    found = [
        abs(slow_statistic(x, labels, strata)) >= observed - 1e-7
        for labels in slow_assignments(in_a, stratum)
    ]
    return sum(found) / len(found)


def rejected(p: list[float], alpha: float) -> set[int]:
    """Benjamini and Hochberg's procedure as the paper states it."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    largest = max(
        (k for k in range(1, len(p) + 1) if p[order[k - 1]] <= k * alpha / len(p)), default=0
    )
    return set(order[:largest])


# ---------------------------------------------------------------------------- effect, q


@given(values_of_a_group, values_of_a_group)
def test_cliffs_delta_is_the_double_loop(a: list[int], b: list[int]) -> None:
    found = cliffs_delta(np.array(a, float)[:, None], np.array(b, float)[:, None])
    assert_allclose(found, [slow_delta([*map(float, a)], [*map(float, b)])])


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12), st.sampled_from([0.01, 0.05, 0.2]))
def test_benjamini_hochberg_rejects_what_the_procedure_rejects(
    p: list[float], alpha: float
) -> None:
    q = benjamini_hochberg(np.array(p))
    # away from rounding at equality
    if np.abs(q - alpha).min() > 1e-9:
        assert set(np.flatnonzero(q <= alpha).tolist()) == rejected(p, alpha)


def test_nan_is_no_test() -> None:
    p = np.array([0.01, np.nan, 0.02, np.nan])
    assert_allclose(benjamini_hochberg(p), [0.02, np.nan, 0.02, np.nan])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


# ---------------------------------------------------------------------------- permutation test


@pytest.mark.parametrize("name", DESIGNS)
def test_exact_p_is_that_of_all_assignments(name: str) -> None:
    in_a, stratum = DESIGNS[name]
    rng = np.random.default_rng(3)
    values = rng.normal(size=(len(in_a), 5)).astype(np.float32).astype(np.float64)
    values[:, 2] = rng.integers(0, 3, len(in_a))  # ties
    values[:, 3] = 0.1  # no difference at all, and a mean that rounds
    values[:, 4] += 10.0 * stratum
    assert Assignments(in_a, stratum).ways == len(list(slow_assignments(in_a, stratum)))
    found = permutation_test(values, in_a, stratum)
    assert_allclose(found.p, [slow_p(values[:, i].tolist(), in_a, stratum) for i in range(5)])
    assert found.p[3] == 1.0
    statistic = [
        slow_statistic(values[:, i].tolist(), tuple(in_a.tolist()), stratum.tolist())
        for i in range(5)
    ]
    assert_allclose(found.statistic, statistic, atol=1e-9)


@pytest.mark.parametrize("name", DESIGNS)
def test_a_sample_of_permutations_comes_near_the_exact_p(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a, stratum = DESIGNS[name]
    values = np.random.default_rng(5).normal(size=(len(in_a), 6))
    exact = permutation_test(values, in_a, stratum).p
    monkeypatch.setattr(resampling, "EXACT", 0)
    monkeypatch.setattr(resampling, "BLOCK", 100)  # several blocks, the last one short
    count = min(15, Assignments(in_a, stratum).ways - 1)
    few = np.array(
        [permutation_test(values, in_a, stratum, permutations=count, seed=s).p for s in range(400)]
    )
    # p = (b + 1) / (B + 1): never zero, on this grid, with b of B binomial around the exact p
    assert few.min() >= 1 / (count + 1)
    assert_allclose(few * (count + 1), np.rint(few * (count + 1)), atol=1e-9)
    expected = (count * exact + 1) / (count + 1)
    error = np.sqrt(exact * (1 - exact) / count / 400)
    assert (np.abs(few.mean(0) - expected) <= 4.5 * error + 1e-9).all()


# eighty strata, most of them small; one that is not listed; some with one group only
MANY = design(*np.random.default_rng(8).integers(0, 7, (80, 2)).tolist(), (30, 50))


@pytest.fixture
def reused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are used several times even of few episodes."""
    monkeypatch.setattr(assignments, "DIRECT", 1000)


@pytest.mark.usefixtures("reused")
@pytest.mark.parametrize("kind", ["every", "some", "one stratum"])
def test_permutations_stay_within_strata(kind: str) -> None:
    in_a, stratum = {"every": DESIGNS["strata"], "some": MANY, "one stratum": design((30, 50))}[
        kind
    ]
    tried = try_every(in_a, stratum) if kind == "every" else try_some(in_a, stratum, 1000, 4)
    assert tried.turns.shape[1] == (5 if kind == "some" else 1)
    assigned = tried.sums(np.eye(len(in_a)))
    assert set(np.unique(assigned)) == {0.0, 1.0}
    rows = {row.tobytes() for row in assigned.astype(bool)}
    if kind == "every":
        assert rows == {np.array(one).tobytes() for one in slow_assignments(in_a, stratum)}
    else:
        assert_array_equal(assigned[0], in_a)
        assert len(rows) == 1000
    for s in np.unique(stratum):
        assert (assigned[:, stratum == s].sum(1) == in_a[stratum == s].sum()).all()
        # each episode of a stratum as often as any other
        share = in_a[stratum == s].mean()
        error = np.sqrt(share * (1 - share) / len(tried.pools[0])) * (kind != "every")
        assert (np.abs(assigned[:, stratum == s].mean(0) - share) <= 5 * error + 1e-9).all()


@pytest.mark.usefixtures("reused")
@pytest.mark.parametrize("cores", [1, 3])
def test_p_is_that_of_the_assignments_one_by_one(
    cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws that are used again, blocks, threads and ties: the counts are those of the definition."""
    monkeypatch.setattr(threads, "cores", lambda: cores)
    rng = np.random.default_rng(8)
    in_a, stratum = MANY
    # only five strata count, and most assignments of them are those of another one turned round
    values = (0.1 * rng.integers(0, 2, (len(in_a), 8)) * (stratum < 5)[:, None]).astype(np.float64)
    values[:, 3:6] = rng.normal(1e6, 1e-3, (len(in_a), 3))
    values[:, 6:] = np.float32(1e-30) * (in_a[:, None] + rng.normal(0, 20, (len(in_a), 2)))
    found = permutation_test(values, in_a, stratum, permutations=4999, seed=4)
    assert_array_equal(
        found.p, permutation_test(values, in_a, stratum, permutations=4999, seed=4).p
    )
    used = np.isin(stratum, np.intersect1d(stratum[in_a], stratum[~in_a]))
    assigned = try_some(in_a[used], stratum[used], 5000, 4).sums(np.eye(used.sum()))
    weight = (
        assigned - (np.bincount(stratum, in_a) / np.maximum(np.bincount(stratum), 1))[stratum[used]]
    )
    scaled = values / np.abs(values).max(0)
    centred = scaled[used] - np.array([scaled[stratum == s].mean(0) for s in stratum[used]])
    t = np.abs(weight @ centred) / np.sqrt(weight**2 @ centred**2)
    assert_array_equal(found.p, (t >= t[0] * (1 - 1e-9) - 1e-9).mean(0))


@pytest.mark.usefixtures("reused")
def test_draws_that_are_used_again_keep_the_level() -> None:
    """Without any difference p ≤ α in a share of α, for every α; a single observed assignment is one of all."""
    in_a, stratum = design(*[(2, 3)] * 30, *[(1, 2)] * 30)
    values = np.random.default_rng(1).exponential(size=(len(in_a), 40 * 60)).reshape(60, -1, 40)
    p = np.concatenate(
        [
            permutation_test(v, in_a, stratum, permutations=999, seed=s).p
            for s, v in enumerate(values)
        ]
    )
    for alpha in (0.005, 0.02, 0.05, 0.2, 0.5, 0.8):
        assert (p <= alpha).mean() == pytest.approx(
            alpha, abs=4 * np.sqrt(alpha * (1 - alpha) / len(p))
        )


def test_a_difference_between_strata_is_not_one_between_groups() -> None:
    """Failures are mostly of the second task, whose values are larger for both groups."""
    in_a, stratum = design((9, 3), (3, 9))
    values = np.random.default_rng(2).normal(size=(len(in_a), 300)) + 4.0 * stratum[:, None]
    confounded = permutation_test(values, in_a, np.zeros_like(stratum), permutations=999)
    within = permutation_test(values, in_a, stratum, permutations=999)
    assert (confounded.p <= 0.05).mean() > 0.5
    assert 0.01 < (within.p <= 0.05).mean() < 0.1


@pytest.mark.parametrize("name", [*DESIGNS, "two against two"])
def test_smallest_p_is_reached_and_never_passed(name: str) -> None:
    in_a, stratum = design((2, 2)) if name == "two against two" else DESIGNS[name]
    least = smallest_p(in_a, stratum, 9999)
    rng = np.random.default_rng(0)
    apart = 100.0 * in_a[:, None] + rng.normal(size=(len(in_a), 20))
    assert permutation_test(apart, in_a, stratum).p.min() == pytest.approx(least)
    mixed = rng.normal(size=(len(in_a), 500)) + rng.normal(size=500) * in_a[:, None]
    assert permutation_test(mixed, in_a, stratum).p.min() >= least - 1e-12


def test_smallest_p_by_hand() -> None:
    one_stratum = np.zeros(4, np.intp)
    assert smallest_p(np.array([True, True, False, False]), one_stratum, 9999) == pytest.approx(
        1 / 3
    )
    assert smallest_p(np.array([True, False, False, False]), one_stratum, 9999) == 1 / 4
    assert smallest_p(*design((2, 2), (1, 1)), 9999) == pytest.approx(2 / 12)
    assert smallest_p(*design((2, 0), (0, 5)), 9999) == 1.0
    assert smallest_p(*design((30, 30)), 9999) == 1 / 10_000


# ---------------------------------------------------------------------------- what could pass


@given(
    st.lists(st.sampled_from([0.001, 0.004, 0.02, 0.03, 0.06, 0.3, 1.0]), min_size=1, max_size=12)
)
def test_fewest_together_is_what_the_procedure_needs(smallest: list[float]) -> None:
    """Put the k tests that can go lowest at their smallest p and the others at 1."""
    order = sorted(smallest)
    enough = [
        k for k in range(1, len(order) + 1)
        if rejected(order[:k] + [1.0] * (len(order) - k), 0.05 * (1 + 1e-12))
    ]  # fmt: skip
    assert fewest_together(np.array(smallest), 0.05) == (enough[0] if enough else None)


@pytest.mark.parametrize("p", [0.05, 0.05 / 18, 0.05 / 144, 1e-6])
def test_episodes_needed_are_enough_and_one_fewer_is_not(p: float) -> None:
    many = 10**9
    n, pairs = episodes_needed(p), pairs_needed(p)
    assert smallest_p(*design((n, n)), many) <= p < smallest_p(*design((n - 1, n - 1)), many)
    assert smallest_p(*design(*[(1, 1)] * pairs), many) <= p
    assert p < smallest_p(*design(*[(1, 1)] * (pairs - 1)), many)


def test_too_few_permutations_are_not_blamed_on_the_episodes() -> None:
    told = Attainable(0.05, 1440, 10**30, 1e-4, 9999, 3).text("40 success", "40 failure", "task")
    assert told is not None
    assert "at least 28799 permutations" in told
    assert "episodes per group" not in told


# ---------------------------------------------------------------------------- no difference


SHORT, TESTS = 8, 4000
REDUCTIONS: dict[str, Callable[[Float], Float]] = {
    "mean": lambda x: np.asarray(x.mean(0)),
    "early max": lambda x: np.asarray(x[:SHORT].max(0)),
    "max": lambda x: np.asarray(x.max(0)),
}


def simulated(lengths: tuple[int, ...], reduction: str, level: float, tests: int = TESTS) -> Float:
    """One number per episode and test: correlated keyframes around an episode's own level."""
    rng = np.random.default_rng(0)
    rows = []
    for length in lengths:
        noise = rng.normal(size=(length + 10, tests))
        for t in range(1, len(noise)):
            noise[t] += 0.5 * noise[t - 1]
        rows.append(REDUCTIONS[reduction](noise[10:] + level * rng.normal(size=tests)))
    return np.array(rows)


def false_positives(reduction: str, successes: int, failures: int, level: float = 0.5) -> float:
    """Share of tests with p ≤ 0.05 where failures are twice as long and nothing else differs."""
    lengths = (SHORT,) * successes + (2 * SHORT,) * failures
    in_a = np.arange(len(lengths)) < successes
    values = simulated(lengths, reduction, level)
    p = permutation_test(values, in_a, np.zeros(len(lengths), np.intp), permutations=1999).p
    return float((p <= 0.05).mean())


@pytest.mark.parametrize("sizes", [(15, 15), (10, 30), (30, 10)])
def test_early_max_of_longer_failures_keeps_the_level(sizes: tuple[int, int]) -> None:
    """Both groups have one distribution: the test is exact, and 4.4 standard errors are allowed."""
    assert false_positives("early max", *sizes) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("level", [0.0, 0.5])
@pytest.mark.parametrize("sizes", [(15, 15), (10, 30), (30, 10)])
def test_mean_of_longer_failures_keeps_the_level(sizes: tuple[int, int], level: float) -> None:
    """Longer episodes have steadier means, the more so where episodes have no level of their own.

    The studentised test is exact only for large groups: 4 to 6 % are its true levels here, and 3
    standard errors are 1 %.
    """
    assert 0.03 < false_positives("mean", *sizes, level) < 0.07


def slow_student_p(t: float, degrees: float) -> float:
    """Integrate the density over the angle whose tangent is t / sqrt(degrees)."""
    angle = np.linspace(0, np.pi / 2, 400_001)
    density = np.cos(angle) ** (degrees - 1)
    sums = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    inside = np.interp(math.atan(abs(t) / math.sqrt(degrees)), angle, sums)
    return float(1 - inside / sums[-1])


@pytest.mark.parametrize("degrees", [1.0, 3.7, 23.0, 180.5])
@pytest.mark.parametrize("t", [0.0, 0.4, -2.5, 5.0])
def test_student_p_is_the_integral(t: float, degrees: float) -> None:
    found = student_p(np.array([t]), np.array([degrees]))
    assert found[0] == pytest.approx(slow_student_p(t, degrees), abs=1e-7)


def test_welch_p_by_hand() -> None:
    """Of pairs the paired t-test; of two groups Welch's t, with degrees below Satterthwaite's."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(24, 1))
    pair = x[:12, 0] - x[12:, 0]
    t = pair.mean() / (pair.std(ddof=1) / math.sqrt(12))
    recording = np.arange(24, dtype=np.intp) % 12
    paired = welch_test(x, np.arange(24) < 12, recording)
    assert paired[0] == pytest.approx(slow_student_p(t, 11), abs=1e-7)

    in_a, one = np.arange(24) < 6, np.zeros(24, np.intp)
    x[in_a] = 3 * x[in_a] + 2
    a, b = x[in_a, 0], x[~in_a, 0]
    var_a, var_b = a.var(ddof=1) / 6, b.var(ddof=1) / 18
    t = (a.mean() - b.mean()) / math.sqrt(var_a + var_b)
    degrees = (var_a + var_b) ** 2 / (var_a**2 / 5 + var_b**2 / 17)
    cautious = 1 / (0.75 / degrees + 0.25 / 5)
    assert welch_test(x, in_a, one)[0] == pytest.approx(slow_student_p(t, cautious), abs=1e-7)
    # one episode has no variance: the permutation is all there is
    assert np.isnan(welch_test(x, np.arange(24) < 1, one)).all()
    alone = group_test(x, np.arange(24) < 1, one).p
    assert alone == permutation_test(x, np.arange(24) < 1, one).p
    assert welch_test(np.ones((24, 1)), in_a, one)[0] == 1.0


@pytest.mark.parametrize("name", ["strata", "pairs", "some strata with one group only", "many"])
def test_squared_residuals_are_those_of_the_regressions_matrices(name: str) -> None:
    """Sums over strata are those of ``R W R`` with every pair of episodes spelled out."""
    in_a, stratum = DESIGNS.get(name) or design(*[(1 + n % 4, 1 + n % 3) for n in range(12)])
    a, b = resampling.stratum_sizes(in_a, stratum)
    kept = ((a > 0) & (b > 0))[stratum]
    _, stratum, sizes = np.unique(stratum[kept], return_inverse=True, return_counts=True)
    in_a, size = in_a[kept], sizes[stratum]
    u = in_a - np.bincount(stratum, in_a)[stratum] / size
    weight = np.random.default_rng(6).uniform(0.1, 2, len(u))
    same = stratum[:, None] == stratum[None]
    residual = np.eye(len(u)) - same / same.sum(1) - np.outer(u, u) / (u @ u)
    form = residual @ np.diag(weight) @ residual
    trace, cross = resampling._squared_residuals(u, weight, in_a, stratum, size)
    assert_allclose(trace, [np.diag(form)[g].sum() for g in (in_a, ~in_a)], rtol=1e-12)
    expected = [[(form[np.ix_(g, h)] ** 2).sum() for h in (in_a, ~in_a)] for g in (in_a, ~in_a)]
    assert_allclose(cross, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", [0.0, 0.5])
@pytest.mark.parametrize("sizes", [(12, 12), (10, 30), (6, 18), (5, 20)])
def test_families_of_equal_heads_have_no_star(sizes: tuple[int, int], level: float) -> None:
    """Of 600 families of 32 heads at most 5 % have one, and two standard errors."""
    in_a = np.arange(sum(sizes)) < sizes[0]
    lengths = (SHORT,) * sizes[0] + (2 * SHORT,) * sizes[1]
    values = simulated(lengths, "mean", level, tests=600 * 32)
    one = np.zeros(len(in_a), np.intp)
    p = group_test(values, in_a, one, permutations=4999, seed=1).p.reshape(600, 32)
    starred = np.mean([(benjamini_hochberg(row) <= 0.05).any() for row in p])
    assert starred <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize("by", ["time", "progress"])
def test_a_trend_is_found_and_alignment_is_immune_to_it(by: str) -> None:
    """Episodes of 8 and 16 keyframes with one trend, and no other difference."""
    rng = np.random.default_rng(0)
    lengths = np.array([8] * 12 + [16] * 12, np.intp)
    in_a, one, heads = lengths == 8, np.zeros(24, np.intp), 1600
    means = {name: np.empty((24, heads)) for name in ("none", "time", "progress")}
    slopes, quiet = np.empty((24, heads)), np.empty((24, heads))
    for i, n in enumerate(lengths):
        noise = rng.normal(size=(n, heads)) + 0.5 * rng.normal(size=heads)
        at = np.arange(n) if by == "time" else 15 * np.arange(n) / (n - 1)
        x = noise + 0.4 * at[:, None]
        means["none"][i], means["time"][i] = x.mean(0), x[:8].mean(0)
        means["progress"][i] = progress_weights(int(n), 8) @ x
        slopes[i], quiet[i] = (np.polyfit(np.arange(n), v, 1)[0] for v in (x, noise))
    false = {
        name: np.mean([
            (benjamini_hochberg(row) <= 0.05).any()
            for row in group_test(v, in_a, one, permutations=4999).p.reshape(50, 32)
        ])
        for name, v in means.items()
    }  # fmt: skip
    assert false[by] <= 0.12  # 50 families: 5 % and 2.3 standard errors
    assert false["none" if by == "time" else "time"] > 0.9
    found = find_trends(slopes[:, :32], lengths)
    assert found.significant.mean() > 0.9
    assert found.by == by
    said = [
        find_trends(quiet[:, i : i + 32], lengths).significant.any() for i in range(0, heads, 32)
    ]
    assert np.mean(said) <= 0.12


def test_a_difference_that_is_not_studentised_would_be_biased() -> None:
    values = simulated((SHORT,) * 10 + (2 * SHORT,) * 30, "mean", level=0.0)
    in_a = np.arange(40) < 10
    rng = np.random.default_rng(0)
    observed = np.abs(values[in_a].mean(0) - values[~in_a].mean(0))
    count = np.ones(TESTS)
    for _ in range(499):
        drawn = rng.permutation(in_a)
        count += np.abs(values[drawn].mean(0) - values[~drawn].mean(0)) >= observed
    assert (count / 500 <= 0.05).mean() > 0.08


def test_max_over_all_keyframes_would_be_biased() -> None:
    assert false_positives("max", 15, 15) > 0.2


# ---------------------------------------------------------------------------- intervals


def test_difference_is_the_coefficient_of_a_regression_on_group_and_stratum() -> None:
    in_a, stratum = DESIGNS["strata"]
    values = np.random.default_rng(1).normal(size=(len(in_a), 4)) + stratum[:, None]
    columns = np.column_stack([in_a, *(stratum == s for s in range(3))]).astype(float)
    expected = np.linalg.lstsq(columns, values, rcond=None)[0][0]
    assert_allclose(difference(values, in_a, stratum), expected)
    plain = values[in_a].mean(0) - values[~in_a].mean(0)
    assert_allclose(difference(values, in_a, np.zeros_like(stratum)), plain)
    assert np.isnan(difference(values, in_a, in_a.astype(np.intp))).all()


def test_weights_are_repetitions() -> None:
    in_a, stratum = DESIGNS["strata"]
    rng = np.random.default_rng(1)
    values = rng.normal(size=(len(in_a), 3))
    for _ in range(20):
        times = rng.integers(0, 3, len(in_a))
        found = resampling._differences(times[None].astype(float), values, in_a, stratum)[0]
        again = np.repeat(np.arange(len(in_a)), times)
        assert_allclose(found, difference(values[again], in_a[again], stratum[again]))


@pytest.mark.parametrize("strata", [1, 3])
def test_interval_covers_the_true_difference(strata: int) -> None:
    n, tests = 60, 1000
    rng = np.random.default_rng(0)
    in_a, stratum = np.arange(n) % 2 == 0, np.arange(n, dtype=np.intp) // 2 % strata
    values = rng.exponential(size=(n, tests)) + 2.0 * in_a[:, None] + stratum[:, None]
    low, high = bootstrap_interval(
        values, in_a, stratum, np.arange(n), bootstraps=500, level=0.9, seed=1
    )
    covered = ((low <= 2.0) & (high >= 2.0)).mean()
    assert 0.85 < covered < 0.92


def test_pairs_are_drawn_as_pairs() -> None:
    """The recordings differ much, the two runs of a recording hardly."""
    rng = np.random.default_rng(0)
    n = 30
    level = rng.normal(0, 10, (n, 1))
    values = np.concatenate([level + 1.0, level]) + rng.normal(0, 0.1, (2 * n, 1))
    in_a, recording = np.arange(2 * n) < n, np.arange(2 * n, dtype=np.intp) % n
    one = np.zeros(2 * n, np.intp)
    paired = bootstrap_interval(values, in_a, one, recording)
    unpaired = bootstrap_interval(values, in_a, one, np.arange(2 * n))
    assert paired.low[0] == pytest.approx(1.0, abs=0.1)
    assert paired.high[0] == pytest.approx(1.0, abs=0.1)
    assert unpaired.high[0] - unpaired.low[0] > 5


@pytest.mark.parametrize(("size", "has_one"), [(1, False), (3, False), (4, True)])
def test_a_group_that_is_too_small_has_no_interval(size: int, has_one: bool) -> None:
    in_a = np.arange(size + 6) < size
    values = np.random.default_rng(0).normal(size=(len(in_a), 1))
    found = bootstrap_interval(values, in_a, np.zeros(len(in_a), np.intp), np.arange(len(in_a)))
    assert np.isfinite([found.low[0], found.high[0]]).all() == has_one


def test_a_seed_repeats_everything() -> None:
    in_a, stratum = np.arange(40) < 20, np.zeros(40, np.intp)
    values = np.random.default_rng(0).normal(size=(40, 3))
    p = [permutation_test(values, in_a, stratum, permutations=99, seed=s).p for s in (0, 0, 1)]
    assert_array_equal(p[0], p[1])
    assert (p[0] != p[2]).any()
    # and a head's result does not depend on which heads are tested beside it
    alone = permutation_test(values[:, :1], in_a, stratum, permutations=99, seed=0).p
    assert alone[0] == p[0][0]

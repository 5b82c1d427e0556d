from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from attnstore.store.format.statistics import (
    entropy,
    gini,
    grid_variance,
    image_distribution,
    image_mass,
    image_variance,
    jensen_shannon,
    largest,
    top_mass,
)

Float = NDArray[np.float64]
Case = tuple[Float, Float]

share = st.just(0.0) | st.floats(1e-6, 1)
covers = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Maps (head, row, col) and a coverage (row, col) that shows at least one patch."""
    heads, rows, cols = draw(st.tuples(*[st.integers(1, 4)] * 3))
    size = heads * rows * cols
    maps = np.array(draw(st.lists(share, min_size=size, max_size=size)))
    cover = np.array(draw(st.lists(covers, min_size=rows * cols, max_size=rows * cols)))
    cover[draw(st.integers(0, rows * cols - 1))] = 1.0
    return maps.reshape(heads, rows, cols), cover.reshape(rows, cols)


@st.composite
def distributions(draw: st.DrawFn) -> Float:
    """Two distributions over the same patches, (2, patch)."""
    n = draw(st.integers(1, 12))
    pair = np.array(draw(st.lists(share, min_size=2 * n, max_size=2 * n))).reshape(2, n)
    pair[:, draw(st.integers(0, n - 1))] += 0.5
    return np.asarray(pair / pair.sum(1, keepdims=True))


def slow_distribution(one_map: Float, cover: Float) -> list[float]:
    weighted = []
    for row in range(cover.shape[0]):
        for col in range(cover.shape[1]):
            if cover[row, col] > 0:
                weighted.append(float(one_map[row, col] * cover[row, col]))
    total = math.fsum(weighted)
    return [v / total if total > 0 else math.nan for v in weighted]


def slow_entropy(p: list[float], area: float) -> float:
    if math.isnan(p[0]):
        return math.nan
    if area <= 1:
        return 0.0
    bits = -math.fsum(v * math.log(v) for v in p if v > 0) / math.log(area)
    return min(max(bits, 0.0), 1.0)


@given(cases())
def test_image_distribution(case: Case) -> None:
    maps, cover = case
    p = image_distribution(maps, cover)
    assert_allclose(p, [slow_distribution(one, cover) for one in maps], atol=1e-12)
    seen = (maps * cover).sum((-2, -1)) > 0
    assert_allclose(p[seen].sum(-1), 1)
    assert np.isnan(p[~seen]).all()


@given(cases())
def test_entropy(case: Case) -> None:
    maps, cover = case
    area = float(cover.sum())
    expected = [slow_entropy(slow_distribution(one, cover), area) for one in maps]
    assert_allclose(entropy(image_distribution(maps, cover), area), expected, atol=1e-9)


@given(cases())
def test_uniform_attention_has_entropy_1(case: Case) -> None:
    maps, cover = case
    whole = (cover == 1).astype(float)
    if whole.sum() > 1:
        p = image_distribution(np.full_like(maps, 0.01), whole)
        assert_allclose(entropy(p, float(whole.sum())), 1)


def test_entropy_ignores_letterbox() -> None:
    """All weight of the letterbox is no image: half of the image lit evenly is log 2 less."""
    cover = np.outer([0, 1, 1, 0], np.ones(8))
    lit = np.zeros((4, 8))
    lit[1] = 0.02
    lit[[0, 3]] = 0.9
    assert entropy(image_distribution(lit, cover), 16).item() == pytest.approx(
        math.log(8) / math.log(16)
    )


@given(distributions(), st.sampled_from([0.01, 0.1, 0.25, 0.5, 1.0]))
def test_top_mass_against_sorting(p: Float, fraction: float) -> None:
    n = p.shape[1]
    count = next(k for k in range(1, n + 1) if k >= fraction * n - 1e-9)
    expected = [math.fsum(sorted(row, reverse=True)[:count]) for row in p.tolist()]
    assert_allclose(top_mass(p, fraction), expected)


def test_top_mass_counts_patches_upwards() -> None:
    p = np.arange(20.0) / 190
    assert top_mass(p).item() == pytest.approx((19 + 18) / 190)
    assert top_mass(p[:11] / p[:11].sum()).item() == pytest.approx((10 + 9) / 55)
    assert top_mass(np.full(3, 1 / 3)).item() == pytest.approx(1 / 3)


@given(distributions())
def test_gini_against_pairwise_differences(p: Float) -> None:
    n = p.shape[1]
    for row, value in zip(p.tolist(), gini(p), strict=True):
        pairs = math.fsum(abs(a - b) for a in row for b in row)
        assert value == pytest.approx(pairs / (2 * n * n * (sum(row) / n)), abs=1e-12)


@given(distributions())
def test_jensen_shannon(p: Float) -> None:
    total = 0.0
    for a, b in zip(*p.tolist(), strict=True):
        m = (a + b) / 2
        total += (a * math.log2(a / m) if a else 0.0) / 2
        total += (b * math.log2(b / m) if b else 0.0) / 2
    value = jensen_shannon(p[0], p[1]).item()
    assert value == pytest.approx(total, abs=1e-9)
    assert 0 <= value <= 1
    assert value == pytest.approx(jensen_shannon(p[1], p[0]).item())
    assert jensen_shannon(p[0], p[0]).item() == pytest.approx(0, abs=1e-12)


def test_jensen_shannon_keeps_leading_axes_and_broadcasts() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), (2, 3))
    expected = [[jensen_shannon(p[i, j], p[0, 0]).item() for j in range(3)] for i in range(2)]
    assert_allclose(jensen_shannon(p, p[0, 0]), expected)


@given(cases())
def test_image_mass_and_letterbox_add_up_to_the_camera(case: Case) -> None:
    maps, cover = case
    image, letterbox = image_mass(maps, cover)
    for h, one in enumerate(maps):
        cells = [(float(a), float(c)) for a, c in zip(one.flat, cover.flat, strict=True)]
        assert image[h] == pytest.approx(math.fsum(a * c for a, c in cells))
        assert letterbox[h] == pytest.approx(math.fsum(a * (1 - c) for a, c in cells), abs=1e-12)
    assert_allclose(image + letterbox, maps.sum((-2, -1)))


def test_half_precision_input_is_summed_in_double() -> None:
    maps = np.full((1, 64, 64), 2**-12, np.float16)
    image, letterbox = image_mass(maps, np.ones((64, 64)))
    assert (image.item(), letterbox.item()) == (1.0, 0.0)
    p = image_distribution(maps, np.ones((64, 64), np.float32))
    assert p.dtype == np.float64
    assert entropy(p, 4096).item() == pytest.approx(1)


def test_a_camera_without_any_attention() -> None:
    """It looks nowhere, which is another thing than everywhere alike."""
    cover = np.array([[1, 0.5], [0.5, 0]])
    on_letterbox = np.array([[0, 0], [0, 0.4]])
    p = image_distribution(np.stack([np.zeros((2, 2)), on_letterbox]), cover)
    for values in (p, entropy(p, 2), entropy(p, 1), top_mass(p), gini(p), jensen_shannon(p, p)):
        assert np.isnan(values).all()


@given(cases())
def test_variance_and_largest_patch_of_the_image(case: Case) -> None:
    maps, cover = case
    cells = [(r, c) for r in range(cover.shape[0]) for c in range(cover.shape[1])]
    area = math.fsum(cover.flat)
    for h, one in enumerate(maps):
        mean = math.fsum(float(cover[at] * one[at]) for at in cells) / area
        spread = math.fsum(float(cover[at]) * (float(one[at]) - mean) ** 2 for at in cells) / area
        assert image_variance(maps, cover)[h] == pytest.approx(spread, rel=1e-9, abs=1e-15)
        for weight in (cover, 1 - cover):
            best = max(cells, key=lambda at: float(weight[at] * one[at]))
            value, row, col = (each[h] for each in largest(maps, weight))
            assert (value, row, col) == (weight[best] * one[best], *best)


@given(cases())
def test_what_lies_on_letterbox_moves_the_grids_variance_only(case: Case) -> None:
    maps, cover = case
    whole = np.round(cover)
    brighter = np.where(whole == 0, 7.0, maps)
    assert_allclose(image_variance(brighter, whole), image_variance(maps, whole))
    assert_allclose(grid_variance(brighter), [np.var(one) for one in brighter])


def test_what_is_absent_stays_absent() -> None:
    """A missing keyframe must not read as a uniform one."""
    maps = np.stack([np.full((2, 2), np.nan), np.full((2, 2), 0.1)])
    p = image_distribution(maps, np.ones((2, 2)))
    for values in (entropy(p, 4), top_mass(p), gini(p), jensen_shannon(p, p[1])):
        assert np.isnan(values[0])
        assert np.isfinite(values[1])
    whole = np.ones((2, 2))
    for values in (
        image_mass(maps, whole)[0],
        image_variance(maps, whole),
        largest(maps, whole)[0],
    ):
        assert np.isnan(values[0])
        assert np.isfinite(values[1])


def test_one_patch_and_one_token_cameras() -> None:
    p = image_distribution(np.full((3, 1, 1), 0.2), np.ones((1, 1)))
    assert_allclose(entropy(p, 1), np.zeros(3))
    assert_allclose(gini(p), np.zeros(3))
    assert_allclose(top_mass(p), np.ones(3))

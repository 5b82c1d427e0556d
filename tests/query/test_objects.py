"""Object metrics against an oracle that walks over the pixels, and under every geometry."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from attnstore.query.objects.overlap import (
    cover_patches,
    metric_errors,
    object_metrics,
)
from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.precision import Error
from attnstore.store.tables.objects import OBJECT_ERRORS, OBJECT_METRICS

Mask = NDArray[np.bool_]
SUB = 6
"""Parts of a pixel's side that the oracle walks over; every edge below falls between two."""


def patch_of(geometry: Geometry, y: float, x: float) -> tuple[int, int] | None:
    """Patch that shows a point of the source; written from the words, not from `Geometry`."""
    top, left, height, width = geometry.crop or (0, 0, *geometry.source)
    if not (top <= y < top + height and left <= x < left + width):
        return None
    down, right = y - top, x - left
    if geometry.flip_vertical:
        down = height - down
    if geometry.flip_horizontal:
        right = width - right
    down = down * geometry.resized[0] / height + geometry.offset[0] - geometry.patch_origin[0]
    right = right * geometry.resized[1] / width + geometry.offset[1] - geometry.patch_origin[1]
    row, col = math.floor(down / geometry.patch[0]), math.floor(right / geometry.patch[1])
    if not (0 <= row < geometry.grid[0] and 0 <= col < geometry.grid[1]):
        return None
    return row, col


def oracle(
    geometry: Geometry, values: NDArray[Any], mask: Mask, threshold: float, sub: int = SUB
) -> dict[str, float]:
    """Every metric from a list of small squares of the image."""
    squares = []
    for y in range(geometry.source[0] * sub):
        for x in range(geometry.source[1] * sub):
            patch = patch_of(geometry, (y + 0.5) / sub, (x + 0.5) / sub)
            if patch is not None:
                squares.append((patch, float(values[patch]), bool(mask[y // sub, x // sub]), y, x))
    heat = [h for _, h, _, _, _ in squares]
    inside = [h for _, h, on, _, _ in squares if on]
    outside = [h for _, h, on, _, _ in squares if not on]
    if not inside or sum(heat) == 0:
        return dict.fromkeys(OBJECT_METRICS, math.nan)
    overlap = sum(inside) / sum(heat)
    mean = sum(heat) / len(heat)
    sd = math.sqrt(sum((h - mean) ** 2 for h in heat) / len(heat))
    bright = [h >= threshold * max(heat) for h in heat]
    on = [s[2] for s in squares]
    both = sum(a and b for a, b in zip(bright, on, strict=True))
    either = sum(a or b for a, b in zip(bright, on, strict=True))
    # The middle pixel of what the brightest patch shows.
    best = min(p for p, h, *_ in squares if h == max(heat))
    ys = [y for p, _, _, y, _ in squares if p == best]
    xs = [x for p, _, _, _, x in squares if p == best]
    y, x = ((min(v) + max(v) + 1) // (2 * sub) for v in (ys, xs))
    away = sum(outside) / len(outside) if outside else 0.0
    return {
        "overlap_ratio": overlap,
        "concentration": sum(inside) / len(inside) / away if away else math.nan,
        "iou": both / either,
        "lift": overlap / (len(inside) / len(squares)),
        "pointing_hit": float(mask[y, x]),
        "nss": (sum(inside) / len(inside) - mean) / sd if sd > 1e-12 else math.nan,
    }


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Crop, flip, resize by a simple ratio, padding on any side, patches that may not fit."""
    source, crop, resized, offset, input_, patch, grid, origin = ([] for _ in range(8))
    for _ in range(2):
        # Scaled up by 1, 2 or 3: a patch's edge is at a multiple of 1/6 of a source pixel.
        up, down = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2), (3, 2), (1, 3)]))
        length = down * draw(st.integers(1, 3))
        before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        source.append(before + length + after)
        crop.append((before, length))
        resized.append(length * up // down)
        offset.append(draw(st.integers(0, 3)))
        input_.append(resized[-1] + offset[-1] + draw(st.integers(0, 3)))
        patch.append(float(draw(st.integers(1, 4))))
        origin.append(float(draw(st.sampled_from([0, 0, -1, -2, 1]))))
        grid.append(max(1, math.ceil((input_[-1] - origin[-1]) / patch[-1])))
    whole = draw(st.booleans())
    (top, height), (left, width) = crop
    if whole:
        source, top, left = [height, width], 0, 0

    def pair(values: list[Any]) -> tuple[Any, Any]:
        return values[0], values[1]

    geometry = Geometry(
        source=pair(source),
        input=pair(input_),
        resized=pair(resized),
        offset=pair(offset),
        grid=pair(grid),
        patch=pair(patch),
        patch_origin=pair(origin),
        crop=None if whole else (top, left, height, width),
        flip_vertical=draw(st.booleans()),
        flip_horizontal=draw(st.booleans()),
    )
    assume(geometry.coverage().any())
    return geometry


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Geometry, NDArray[np.float64], Mask]:
    geometry = draw(geometries())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.random(geometry.grid) ** draw(st.sampled_from([1, 4]))
    mask = rng.random(geometry.source) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return geometry, values, mask


@settings(max_examples=60)
@given(scenes(), st.sampled_from([0.3, 0.05, 1.0]))
def test_every_metric_is_what_the_pixels_say(
    scene: tuple[Geometry, NDArray[np.float64], Mask], threshold: float
) -> None:
    geometry, values, mask = scene
    found = object_metrics(values, cover_patches(geometry, [mask]), threshold=threshold)
    assert list(found) == list(OBJECT_METRICS)
    expected = oracle(geometry, values, mask, threshold)
    for name, value in expected.items():
        # a quotient of millions has a small difference of sums below: its digits are as many fewer
        rtol = 1e-9 * max(1.0, abs(value) / 1e5)
        np.testing.assert_allclose(found[name], [value], rtol=rtol, atol=1e-9, err_msg=name)


@settings(max_examples=100)
@given(
    scenes(),
    st.sampled_from([0.3, 0.9]),
    st.sampled_from([Error(2**-11, 0.0), Error(0.3, 0.0), Error(0.0, 0.05), Error(0.02, 1e-3)]),
    st.integers(0, 2**32 - 1),
)
def test_no_map_within_the_rounding_is_further_off_than_the_errors_say(
    scene: tuple[Geometry, NDArray[np.float64], Mask], threshold: float, error: Error, seed: int
) -> None:
    geometry, values, mask = scene
    cover = cover_patches(geometry, [mask])
    found = object_metrics(values, cover, threshold=threshold)
    bounds = metric_errors(values, cover, error, threshold=threshold)
    assert list(bounds) == list(OBJECT_ERRORS)
    rng = np.random.default_rng(seed)
    # Half of them at the ends of what each patch may be.
    away = np.concatenate([rng.uniform(-1, 1, (50, *values.shape)),
                           rng.choice([-1.0, 1.0], (50, *values.shape))])  # fmt: skip
    others = np.maximum(values + away * (error.relative * values + error.absolute), 0)
    other = object_metrics(others, cover, threshold=threshold)
    for name, bound in (
        ("overlap_ratio", "overlap_error"), ("iou", "iou_error"), ("nss", "nss_error"),
    ):  # fmt: skip
        limit = np.where(np.isnan(bounds[bound]), np.inf, bounds[bound])
        off = np.abs(other[name] - found[name])
        assert (
            off[np.isfinite(off)] <= np.broadcast_to(limit, off.shape)[np.isfinite(off)] + 1e-9
        ).all()
    if bounds["pointing_sure"] == 1:
        assert (other["pointing_hit"] == found["pointing_hit"]).all()


def test_a_tie_at_the_top_is_not_sure_and_one_at_the_threshold_costs_a_patch() -> None:
    geometry = Geometry.letterbox((2, 8), (2, 8), (2, 2))
    mask = np.zeros((2, 8), bool)
    mask[:, :2] = True
    cover = cover_patches(geometry, [mask])
    maps = np.array([[[0.4, 0.39, 0.1, 0.1]], [[0.4, 0.1, 0.12, 0.1]]])
    found = metric_errors(maps, cover, Error(0.02, 0.0))
    assert found["pointing_sure"].tolist() == [[0], [1]]
    # 0.12 is 0.3 times 0.4: the union is the object alone, or a patch more.
    np.testing.assert_allclose(np.asarray(found["iou_error"], np.float64), np.array([[0.0], [0.5]]))


@settings(max_examples=200)
@given(geometries(), st.integers(0, 2**32 - 1), st.floats(1e-6, 1.0))
def test_uniform_attention_is_chance_under_every_geometry(
    geometry: Geometry, seed: int, level: float
) -> None:
    mask = np.random.default_rng(seed).random(geometry.source) < 0.4
    cover = cover_patches(geometry, [mask])
    found = object_metrics(np.full(geometry.grid, level), cover)
    if cover.covered.sum() == 0:
        assert all(np.isnan(value).all() for value in found.values())
        return
    np.testing.assert_allclose(found["lift"], 1.0, rtol=1e-12)
    np.testing.assert_allclose(found["overlap_ratio"], cover.area_fraction, rtol=1e-12)
    assert np.isnan(found["nss"]).all()
    if cover.area_fraction[0] < 1:
        np.testing.assert_allclose(found["concentration"], 1.0, rtol=1e-9)


@settings(max_examples=100)
@given(geometries())
def test_areas_are_the_geometrys_coverage(geometry: Geometry) -> None:
    """Up to one factor, and the covered parts of objects that share the image add up to it."""
    halves = np.indices(geometry.source).sum(0) % 2 == 0
    cover = cover_patches(geometry, [halves, ~halves])
    expected = geometry.coverage()
    np.testing.assert_array_equal(cover.shown, expected > 0)
    share = cover.area / cover.area.sum()
    np.testing.assert_allclose(share, expected[cover.shown] / expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(cover.covered.sum(0), cover.area, rtol=1e-9)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry.letterbox((720, 1280), (224, 224), (14, 14)),
        Geometry.letterbox((360, 640), (224, 224), (14, 14), anchor="top-left"),
        Geometry(
            (720, 1280), (256, 256), (256, 256), (0, 0), (16, 16), (16.0, 16.0),
            crop=(0, 280, 720, 720), flip_horizontal=True, patch_origin=(-8.0, -8.0),
        ),
    ],
    ids=["openpi", "transformers", "centred patches, crop, flip"],
)  # fmt: skip
def test_geometries_of_real_policies(geometry: Geometry) -> None:
    mask = np.zeros(geometry.source, bool)
    mask[200:330, 300:505] = True
    cover = cover_patches(geometry, [mask])
    found = object_metrics(np.full(geometry.grid, 1 / 256), cover)
    np.testing.assert_allclose(found["lift"], 1.0, rtol=1e-12)
    if geometry.crop is None:
        np.testing.assert_allclose(cover.area_fraction, mask.mean(), rtol=1e-9)


def test_one_bright_patch_by_hand() -> None:
    """4x8 pixels, 2x4 patches of 2x2 pixels; the object is 3 pixels of patch (0, 1) and 1 of (0, 2)."""
    geometry = Geometry.letterbox((4, 8), (4, 8), (2, 2))
    mask = np.zeros((4, 8), bool)
    mask[0, 2:5] = mask[1, 3] = True
    planted = np.zeros((2, 4))
    planted[0, 1] = 0.5
    found = object_metrics(planted, cover_patches(geometry, [mask]))
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "overlap_ratio": 3 / 4,
            "concentration": (3 / 4) / (1 / 28),
            "iou": 3 / 5,
            "lift": (3 / 4) / (4 / 32),
            "pointing_hit": 1.0,  # pixel (1, 3)
            "nss": (3 / 4 * 0.5 - 0.5 / 8) / (0.5 * math.sqrt(1 / 8 * 7 / 8)),
        }
    )
    mask[1, 3] = False
    assert object_metrics(planted, cover_patches(geometry, [mask]))["pointing_hit"] == 0


def test_letterbox_does_not_count() -> None:
    geometry = Geometry.letterbox((2, 4), (4, 4), (1, 1))
    mask = np.zeros((2, 4), bool)
    mask[0, 0] = True
    values = np.zeros((4, 4))
    values[1, 0], values[1, 1], values[0, 0] = 0.1, 0.1, 0.8
    found = object_metrics(values, cover_patches(geometry, [mask]))
    assert found["overlap_ratio"] == pytest.approx(0.5)
    assert found["pointing_hit"] == 1


def test_leading_axes_and_several_objects() -> None:
    rng = np.random.default_rng(0)
    geometry = Geometry.letterbox((9, 12), (12, 12), (3, 3))
    masks = [rng.random((9, 12)) < p for p in (0.1, 0.5, 0.9)]
    maps = rng.random((2, 3, 4, 4)).astype(np.float16)
    found = object_metrics(maps, cover_patches(geometry, masks))
    assert {value.shape for value in found.values()} == {(2, 3, 3)}
    for layer, head, which in np.ndindex(2, 3, 3):
        alone = object_metrics(maps[layer, head], cover_patches(geometry, [masks[which]]))
        for name, value in found.items():
            assert value[layer, head, which] == pytest.approx(alone[name].item())


def test_what_is_undefined_is_nan() -> None:
    geometry = Geometry.letterbox((4, 4), (4, 4), (1, 1))
    everything = np.ones((4, 4), bool)
    none, half = ~everything, np.tile([True, False], (4, 2))
    cover = cover_patches(geometry, [everything, none, half])
    for maps in (np.zeros((4, 4)), np.full((4, 4), np.nan)):
        assert all(np.isnan(v).all() for v in object_metrics(maps, cover).values())
    inside_only = np.where(half, 0.25, 0.0)
    found = object_metrics(inside_only, cover)
    assert all(np.isnan(value[1]) for value in found.values())
    assert found["overlap_ratio"][[0, 2]].tolist() == [1.0, 1.0]
    assert np.isnan(found["concentration"]).all()
    assert found["nss"].tolist() == pytest.approx([0.0, math.nan, 1.0], nan_ok=True)


def test_refusals() -> None:
    beside = Geometry((4, 4), (9, 9), (4, 4), (0, 0), (2, 2), (2.0, 2.0), patch_origin=(5.0, 5.0))
    with pytest.raises(UsageError, match="no patch of the grid shows"):
        cover_patches(beside, [])
    geometry = Geometry.letterbox((4, 4), (4, 4), (1, 1))
    with pytest.raises(UsageError, match=r"mask is \(4, 5\) pixels, the camera's image \(4, 4\)"):
        cover_patches(geometry, [np.zeros((4, 5), bool)])
    cover = cover_patches(geometry, [np.ones((4, 4), bool)])
    with pytest.raises(UsageError, match=r"map is \(2, 8\) patches"):
        object_metrics(np.ones((2, 8)), cover)
    for threshold in (0.0, 1.1, math.nan):
        with pytest.raises(UsageError, match="the threshold is a share"):
            object_metrics(np.ones((4, 4)), cover, threshold=threshold)

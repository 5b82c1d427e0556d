"""Heat on source pixels against loops that know nothing but the resize rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from attnstore.render.picture.heatmap import draw, sampler
from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry

INPUT, PATCH = 56, 14  # 4 x 4 patches
SOURCES = {
    "16:9": (72, 128),
    "4:3": (60, 80),
    "portrait": (96, 54),
    "square": (33, 33),
    "small": (9, 16),
}


def resized_size(height: int, width: int) -> tuple[int, int]:
    """The resize rule once more, in integers: the longer side fills the input."""
    if height >= width:
        return INPUT, max(1, width * INPUT // height)
    return max(1, height * INPUT // width), INPUT


def patch_of_pixel(pixel: int, length: int, resized: int, offset: int) -> tuple[int, bool]:
    """Patch that the centre of a pixel falls into, and whether it is exactly on a border."""
    above, below = (2 * pixel + 1) * resized + 2 * length * offset, 2 * length * PATCH
    return above // below, above % below == 0


def pixels_of_patch(
    size: tuple[int, int], anchor: str, patch: tuple[int, int]
) -> NDArray[np.bool_]:
    (height, width), resized = size, resized_size(*size)
    centred = anchor == "center"
    offset = [(INPUT - side) // 2 if centred else 0 for side in resized]
    inside = np.zeros(size, bool)
    for y in range(height):
        for x in range(width):
            row, _ = patch_of_pixel(y, height, resized[0], offset[0])
            col, _ = patch_of_pixel(x, width, resized[1], offset[1])
            inside[y, x] = (row, col) == patch
    return inside


def one_patch(row: int, col: int, value: float = 1.0) -> NDArray[np.float32]:
    planted = np.zeros((INPUT // PATCH, INPUT // PATCH), np.float32)
    planted[row, col] = value
    return planted


@pytest.mark.parametrize("anchor", ["center", "top-left"])
@pytest.mark.parametrize("size", SOURCES.values(), ids=SOURCES)
def test_nearest_lights_exactly_the_patch(size: tuple[int, int], anchor: str) -> None:
    resized = resized_size(*size)
    geometry = Geometry.letterbox(
        size, (INPUT, INPUT), (PATCH, PATCH), anchor=anchor, resized=resized
    )
    lit = np.zeros(size, int)
    for row in range(4):
        for col in range(4):
            heat = draw(one_patch(row, col), geometry, "nearest")
            np.testing.assert_array_equal(heat == 1, pixels_of_patch(size, anchor, (row, col)))
            assert set(np.unique(heat)) <= {0.0, 1.0}
            lit += heat == 1
    # every pixel belongs to one patch
    assert (lit == 1).all()


@pytest.mark.parametrize("anchor", ["center", "top-left"])
@pytest.mark.parametrize("size", SOURCES.values(), ids=SOURCES)
def test_bilinear_peaks_in_the_patch_and_falls(size: tuple[int, int], anchor: str) -> None:
    geometry = Geometry.letterbox(size, (INPUT, INPUT), (PATCH, PATCH), anchor=anchor)
    for row, col in np.argwhere(geometry.coverage() == 1):
        heat = draw(one_patch(row, col), geometry)
        peak = np.unravel_index(heat.argmax(), heat.shape)
        inside = draw(one_patch(row, col), geometry, "nearest") == 1
        assert inside[peak]
        assert 0 <= heat.min() <= heat.max() <= 1
        for line in (heat[peak[0]], heat[:, peak[1]]):
            rising, falling = np.diff(line[: line.argmax() + 1]), np.diff(line[line.argmax() :])
            assert (rising >= -1e-6).all()
            assert (falling <= 1e-6).all()


def test_bilinear_is_linear_between_centres() -> None:
    # grid equals source, so a patch's centre is at (patch + 0.5) * 4 pixels
    geometry = Geometry.letterbox((16, 16), (16, 16), (4, 4))
    ramp = np.tile(np.array([0.0, 10.0, 20.0, 30.0], np.float32), (4, 1))
    heat = draw(ramp, geometry)
    centres = np.arange(16) + 0.5
    expected = np.clip((centres - 2) / 4 * 10, 0, 30)
    np.testing.assert_allclose(heat, np.tile(expected, (16, 1)), atol=1e-5)
    np.testing.assert_allclose(draw(ramp.T, geometry), heat.T, atol=1e-5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("poison", [1e30, np.inf, np.nan])
@pytest.mark.parametrize("anchor", ["center", "top-left"])
@pytest.mark.parametrize("size", SOURCES.values(), ids=SOURCES)
def test_letterbox_never_bleeds_in(
    size: tuple[int, int], anchor: str, poison: float, mode: str
) -> None:
    geometry = Geometry.letterbox(size, (INPUT, INPUT), (PATCH, PATCH), anchor=anchor)
    clean = np.random.default_rng(0).random(geometry.grid).astype(np.float32)
    poisoned = np.where(geometry.coverage() > 0, clean, np.float32(poison))
    heat = draw(poisoned, geometry, mode)  # type: ignore[arg-type]  # parametrized
    np.testing.assert_array_equal(heat, draw(clean, geometry, mode))  # type: ignore[arg-type]
    assert heat.max() <= clean.max()


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    height, width = draw(st.integers(3, 40)), draw(st.integers(3, 40))
    top, left = draw(st.integers(0, height - 2)), draw(st.integers(0, width - 2))
    crop = (
        top,
        left,
        draw(st.integers(1, height - top)),
        draw(st.integers(1, width - left)),
    )
    grid = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    patch = draw(st.integers(1, 8))
    size = grid[0] * patch, grid[1] * patch
    resized = draw(st.integers(1, size[0])), draw(st.integers(1, size[1]))
    return Geometry(
        source=(height, width),
        input=size,
        resized=resized,
        offset=(
            draw(st.integers(0, size[0] - resized[0])),
            draw(st.integers(0, size[1] - resized[1])),
        ),
        grid=grid,
        patch=(float(patch), float(patch)),
        crop=draw(st.sampled_from([None, crop])),
        flip_vertical=draw(st.booleans()),
        flip_horizontal=draw(st.booleans()),
    )


@given(geometries(), st.integers(0, 2**32 - 1))
def test_any_geometry_pixel_by_pixel(geometry: Geometry, seed: int) -> None:
    """Crop, flip and padding, each pixel looked up in whole numbers."""
    maps = np.random.default_rng(seed).random(geometry.grid).astype(np.float32)
    nearest, bilinear = draw(maps, geometry, "nearest"), draw(maps, geometry)
    top, left, high, wide = map(int, geometry.crop or (0, 0, *geometry.source))
    patch = int(geometry.patch[0])
    seen = maps[geometry.coverage() > 0]
    for y in range(geometry.source[0]):
        for x in range(geometry.source[1]):
            i, j = y - top, x - left
            if not (0 <= i < high and 0 <= j < wide):
                assert np.isnan(nearest[y, x])
                assert np.isnan(bilinear[y, x])
                continue
            i = high - 1 - i if geometry.flip_vertical else i
            j = wide - 1 - j if geometry.flip_horizontal else j
            a = (2 * i + 1) * geometry.resized[0] + 2 * high * geometry.offset[0]
            b = (2 * j + 1) * geometry.resized[1] + 2 * wide * geometry.offset[1]
            on_border = a % (2 * high * patch) == 0 or b % (2 * wide * patch) == 0
            if not on_border:  # there, rounding decides
                row, col = int(a // (2 * high * patch)), int(b // (2 * wide * patch))
                assert nearest[y, x] == maps[row, col]
            assert seen.min() - 1e-6 <= bilinear[y, x] <= seen.max() + 1e-6


def test_patches_beyond_the_grid_are_not_drawn() -> None:
    # 10 input pixels, 2 patches of 4: the last fifth of the image has no patch
    geometry = Geometry((10, 10), (10, 10), (10, 10), (0, 0), (2, 2), (4.0, 4.0))
    heat = draw(np.ones((2, 2)), geometry)
    assert np.isnan(heat[8:]).all()
    assert np.isnan(heat[:, 8:]).all()
    assert (heat[:8, :8] == 1).all()


def test_half_the_size_is_the_same_picture() -> None:
    geometry = Geometry.letterbox((720, 1280), (224, 224), (14, 14))
    maps = np.random.default_rng(1).random((16, 16)).astype(np.float32)
    full, half = draw(maps, geometry), draw(maps, geometry, size=(360, 640))
    assert half.shape == (360, 640)
    blocks = full.reshape(360, 2, 640, 2).mean((1, 3))
    # a bilinear surface at the middle of 4 pixels is their mean, but for its creases
    np.testing.assert_allclose(half, blocks, atol=0.01)


def test_an_absent_patch_is_filled_by_its_neighbours_only() -> None:
    geometry = Geometry.letterbox((16, 16), (16, 16), (4, 4))
    maps = np.full((4, 4), 0.25, np.float32)
    maps[1, 1] = np.nan
    heat = draw(maps, geometry)
    np.testing.assert_allclose(heat[np.isfinite(heat)], 0.25, rtol=1e-6)
    assert np.isnan(draw(np.full((4, 4), np.nan), geometry)).all()


def test_leading_axes_and_caching() -> None:
    geometry = Geometry.letterbox((18, 32), (56, 56), (14, 14))
    maps = np.random.default_rng(2).random((3, 2, 4, 4)).astype(np.float32)
    heat = draw(maps, geometry)
    assert heat.shape == (3, 2, 18, 32)
    assert heat.dtype == np.float32
    np.testing.assert_array_equal(heat[2, 1], draw(maps[2, 1], geometry))
    assert sampler(geometry) is sampler(geometry)


def test_refusals() -> None:
    geometry = Geometry.letterbox((18, 32), (56, 56), (14, 14))
    with pytest.raises(UsageError, match=r"map is \(3, 4\) patches, its grid \(4, 4\)"):
        draw(np.zeros((3, 4)), geometry)
    with pytest.raises(UsageError, match="bilinear or nearest"):
        sampler(geometry, "cubic")
    with pytest.raises(UsageError, match="positive"):
        sampler(geometry, size=(0, 5))

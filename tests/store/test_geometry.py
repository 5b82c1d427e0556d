from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from attnstore.store.format.geometry import Geometry

HD = Geometry.letterbox((720, 1280), (224, 224), (14, 14))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any crop, flip, resize and placement in the input, on any grid that fits a small canvas."""
    side = st.integers(1, 60)
    source, resized = (draw(side), draw(side)), (draw(side), draw(side))
    before, after = draw(st.tuples(*[st.integers(0, 20)] * 2)), draw(st.tuples(*[side] * 2))
    size = (before[0] + resized[0] + after[0], before[1] + resized[1] + after[1])
    crop = None
    if draw(st.booleans()):
        top, left = draw(st.integers(0, source[0] - 1)), draw(st.integers(0, source[1] - 1))
        height = draw(st.integers(1, source[0] - top))
        width = draw(st.integers(1, source[1] - left))
        crop = (top, left, height, width)
    patch = (draw(st.integers(1, 16)), draw(st.integers(1, 16)))
    return Geometry(
        source=source,
        input=size,
        resized=resized,
        offset=before,
        grid=(-(-size[0] // patch[0]), -(-size[1] // patch[1])),
        patch=(float(patch[0]), float(patch[1])),
        crop=crop,
        flip_vertical=draw(st.booleans()),
        flip_horizontal=draw(st.booleans()),
        patch_origin=draw(st.sampled_from([(0.0, 0.0), (-8.0, -8.0), (-3.0, 2.0)])),
    )


def shown_pixels(geometry: Geometry) -> NDArray[np.float64]:
    """Coverage by counting: paint the input's pixels one by one, look which patch each is in."""
    counts = np.zeros(geometry.grid)
    for i in range(geometry.input[0]):
        for j in range(geometry.input[1]):
            in_rows = geometry.offset[0] <= i < geometry.offset[0] + geometry.resized[0]
            in_cols = geometry.offset[1] <= j < geometry.offset[1] + geometry.resized[1]
            row = int((i - geometry.patch_origin[0]) // geometry.patch[0])
            col = int((j - geometry.patch_origin[1]) // geometry.patch[1])
            on_grid = 0 <= row < geometry.grid[0] and 0 <= col < geometry.grid[1]
            if in_rows and in_cols and on_grid:
                counts[row, col] += 1
    return counts / (geometry.patch[0] * geometry.patch[1])


@given(geometries())
def test_coverage_is_the_share_of_image_pixels(geometry: Geometry) -> None:
    assert_allclose(geometry.coverage(), shown_pixels(geometry), atol=1e-6)


@given(geometries(), st.integers(0, 2**32 - 1))
def test_to_the_grid_and_back(geometry: Geometry, seed: int) -> None:
    y, x = np.random.default_rng(seed).uniform(-0.5, 1.5, (2, 7)) * np.array([[60], [60]])
    assert_allclose(geometry.grid_to_source(*geometry.source_to_grid(y, x)), (y, x), atol=1e-9)
    assert_allclose(geometry.source_to_grid(*geometry.grid_to_source(y, x)), (y, x), atol=1e-9)


@given(geometries())
def test_the_centre_of_a_pixel_lands_where_slicing_and_nearest_resize_put_it(
    geometry: Geometry,
) -> None:
    """Oracle: NumPy crops and flips an image of pixel numbers and repeats them 3 x 2 times."""
    height, width = geometry.source
    top, left, rows, cols = map(int, geometry.crop or (0, 0, height, width))
    enlarged = replace(
        geometry,
        resized=(rows * 3, cols * 2),
        input=(int(geometry.offset[0]) + rows * 3, int(geometry.offset[1]) + cols * 2),
    )
    pixels = np.arange(height * width).reshape(height, width)[top : top + rows, left : left + cols]
    pixels = pixels[::-1] if geometry.flip_vertical else pixels
    pixels = pixels[:, ::-1] if geometry.flip_horizontal else pixels
    canvas = np.full(enlarged.input, -1)
    canvas[enlarged.offset[0] :, enlarged.offset[1] :] = pixels.repeat(3, 0).repeat(2, 1)

    number = pixels.reshape(-1)
    y: NDArray[np.float64] = number // width + np.float64(0.5)
    x: NDArray[np.float64] = number % width + np.float64(0.5)
    row, col = enlarged.source_to_grid(y, x)
    i = np.floor(row * enlarged.patch[0] + enlarged.patch_origin[0] + 1e-9).astype(int)
    j = np.floor(col * enlarged.patch[1] + enlarged.patch_origin[1] - 1e-9).astype(int)
    assert_array_equal(canvas[i, j], number)


def test_hd_camera_letterboxed_into_224() -> None:
    """x = u * 1280 / 224 and y = (v - 49) * 720 / 126, for the input's point (v, u)."""
    assert (HD.resized, HD.offset, HD.grid) == ((126, 224), (49, 0), (16, 16))
    v, u = np.array([49.0, 100, 175]), np.array([0.0, 77, 224])
    y, x = HD.grid_to_source(v / 14, u / 14)
    assert_allclose(y, (v - 49) * 720 / 126)
    assert_allclose(x, u * 1280 / 224)
    cover = HD.coverage()
    assert_array_equal(cover[4:12], 1)
    assert_array_equal(cover[[3, 12]], 0.5)
    assert_array_equal(cover[[0, 1, 2, 13, 14, 15]], 0)
    assert int((cover == 0).sum()) == 96
    assert HD.covered() == (slice(3, 13), slice(0, 16))


@pytest.mark.parametrize(
    ("source", "anchor", "resized", "offset", "covered"),
    [
        ((360, 640), "top-left", (126, 224), (0, 0), (slice(0, 9), slice(0, 16))),
        ((480, 640), "center", (168, 224), (28, 0), (slice(2, 14), slice(0, 16))),
        ((640, 480), "center", (224, 168), (0, 28), (slice(0, 16), slice(2, 14))),
        ((1280, 720), "top-left", (224, 126), (0, 0), (slice(0, 16), slice(0, 9))),
        ((100, 100), "center", (224, 224), (0, 0), (slice(0, 16), slice(0, 16))),
        ((1, 3000), "center", (1, 224), (111, 0), (slice(7, 8), slice(0, 16))),
    ],
)
def test_letterboxes(
    source: tuple[int, int],
    anchor: str,
    resized: tuple[int, int],
    offset: tuple[int, int],
    covered: tuple[slice, slice],
) -> None:
    geometry = Geometry.letterbox(source, (224, 224), (14, 14), anchor=anchor)
    assert (geometry.resized, geometry.offset) == (resized, offset)
    assert geometry.covered() == covered
    assert_allclose(geometry.coverage(), shown_pixels(geometry), atol=1e-6)


def test_patches_larger_than_the_bottom_padding() -> None:
    """640x360 in patches of 56 pixels: the image ends at 126, a quarter into the third row."""
    geometry = Geometry.letterbox((360, 640), (224, 224), (56, 56), anchor="top-left")
    assert_allclose(geometry.coverage(), np.outer([1, 1, 0.25, 0], np.ones(4)))


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_letterbox_follows_openpi(height: int, width: int) -> None:
    """openpi ``image_tools.resize_with_pad``, transcribed with its float arithmetic."""
    ratio = max(width / 224, height / 224)
    rows, cols = int(height / ratio), int(width / ratio)
    pad_top, pad_left = divmod(224 - max(1, rows), 2)[0], divmod(224 - max(1, cols), 2)[0]
    geometry = Geometry.letterbox((height, width), (224, 224), (14, 14))
    whole = (max(1, rows), max(1, cols)), (pad_top, pad_left)
    assert (geometry.resized, geometry.offset) == whole


def test_stem_centred_on_multiples_of_16() -> None:
    """Octo's SmallStem16: token (r, c) sees 16x16 pixels around pixel (16 r, 16 c)."""
    octo = Geometry(
        source=(256, 256),
        input=(256, 256),
        resized=(256, 256),
        offset=(0, 0),
        grid=(16, 16),
        patch=(16.0, 16.0),
        patch_origin=(-8.0, -8.0),
    )
    r, c = np.meshgrid(np.arange(16.0), np.arange(16.0), indexing="ij")
    assert_array_equal(octo.grid_to_source(r + 0.5, c + 0.5), (16 * r, 16 * c))
    cover = octo.coverage()
    assert_array_equal(cover[1:, 1:], 1)  # the last 8 pixels of each side belong to no token
    assert_array_equal(cover[0, 1:], 0.5)
    assert cover[0, 0] == 0.25
    assert_allclose(cover, shown_pixels(octo))


def test_flips_mirror_the_image_and_not_the_padding() -> None:
    flipped = replace(HD, flip_vertical=True, flip_horizontal=True)
    assert_array_equal(flipped.coverage(), HD.coverage())
    assert_allclose(flipped.source_to_grid(np.array(0.0), np.array(0.0)), (175 / 14, 16))


@given(geometries())
def test_json_round_trip(geometry: Geometry) -> None:
    text = geometry.to_json()
    assert Geometry.from_json(text) == geometry
    assert hash(Geometry.from_json(text)) == hash(geometry)
    assert set(json.loads(text)) == set(asdict(geometry))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": [0, 5]}, "source must be positive"),
        ({"grid": [16, -1]}, "grid must be positive"),
        ({"patch": [14.0, float("nan")]}, "patch must be two finite numbers"),
        ({"source": [720]}, "source must be two finite numbers"),
        ({"source": "hd"}, "not a geometry"),
        ({"offset": [99, 0]}, r"\[99, 225\) leaves the input's height 224"),
        ({"offset": [0, -1]}, r"\[-1, 223\) leaves the input's width 224"),
        ({"crop": [0, 0, 0, 9]}, "empty or negative"),
        ({"crop": [700, 0, 21, 9]}, r"crop \(700, 0, 21, 9\) leaves the source \(720, 1280\)"),
        ({"crop": [0, 0, 9]}, r"crop is \(top, left, height, width\)"),
        ({"colour": 1}, "not a geometry.*colour"),
    ],
)
def test_json_that_is_no_geometry(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry.from_json(json.dumps(json.loads(HD.to_json()) | change))


@pytest.mark.parametrize("text", ["", "[]", "1", "{}", "null"])
def test_text_that_is_no_geometry(text: str) -> None:
    with pytest.raises(ValueError):
        Geometry.from_json(text)


def test_a_letterbox_names_the_rule_that_is_broken() -> None:
    with pytest.raises(ValueError, match=r"patch \(13, 14\) does not divide the input"):
        Geometry.letterbox((720, 1280), (224, 224), (13, 14))
    with pytest.raises(ValueError, match="anchor is 'center' or 'top-left'; got 'middle'"):
        Geometry.letterbox((720, 1280), (224, 224), (14, 14), anchor="middle")


def test_patches_that_see_beyond_their_boxes_leave_nothing_of_the_image_out() -> None:
    # Octo's SmallStem16 on 256x256: centred on pixels 0, 16 .. 240, reaching 15 to every side
    geometry = Geometry(
        (720, 1280), (256, 256), (256, 256), (0, 0), (16, 16), (16.0, 16.0),
        patch_origin=(-7.5, -7.5), receptive=(31.0, 31.0),
    )  # fmt: skip
    np.testing.assert_array_equal(geometry.coverage(), 1)
    edges = geometry.edges(0) * 16 - 7.5
    assert edges[[0, 1, 15, 16]].tolist() == [0.0, 8.5, 232.5, 256.0]
    assert geometry.receptive_field(0, 15) == (slice(0, 16), slice(225, 256))
    # a receptive field that ends before the input does leaves the rest unseen
    short = replace(geometry, receptive=(17.0, 17.0))
    assert short.edges(0)[-1] * 16 - 7.5 == 249.0
    assert Geometry.from_json(geometry.to_json()) == geometry
    with pytest.raises(ValueError, match="receptive must be two positive numbers"):
        replace(geometry, receptive=(0.0, 3.0))
    with pytest.raises(ValueError, match="centred on 0.5 to 272.5, outside the input of 256"):
        replace(geometry, grid=(18, 16))

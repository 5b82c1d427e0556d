"""Masks on the camera's image: pixel by pixel through the geometry's definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.pixels import (
    UNSEEN,
    attention_on,
    patch_of_pixels,
    pixel_heat,
    seen_pixels,
    top_pixels,
)

LETTERBOX = Geometry.letterbox((18, 32), (28, 28), (7, 7))
PADDED = Geometry.letterbox((18, 32), (28, 28), (7, 7), anchor="top-left", resized=(16, 28))
CROPPED = Geometry(
    source=(20, 30), input=(16, 16), resized=(16, 16), offset=(0, 0), grid=(4, 4), patch=(4.0, 4.0),
    crop=(2, 5, 17, 20), flip_vertical=True, flip_horizontal=True,
)  # fmt: skip
# What lies beyond the last whole patch is seen by none.
PARTIAL = Geometry(
    source=(20, 30), input=(20, 30), resized=(20, 30), offset=(0, 0), grid=(2, 4), patch=(8.0, 7.0)
)
ALL = {"letterbox": LETTERBOX, "padded": PADDED, "cropped": CROPPED, "partial": PARTIAL}


def slow_patch(g: Geometry, y: int, x: int) -> int:
    """Patch of a pixel's centre, step by step: crop, flip, resize, pad, grid."""
    top, left, height, width = g.crop or (0, 0, *g.source)
    v, u = (y + 0.5 - top) / height, (x + 0.5 - left) / width
    if not (0 < v < 1 and 0 < u < 1):
        return -1
    v, u = (1 - v if g.flip_vertical else v), (1 - u if g.flip_horizontal else u)
    row = int((v * g.resized[0] + g.offset[0]) // g.patch[0])
    col = int((u * g.resized[1] + g.offset[1]) // g.patch[1])
    inside = row < g.grid[0] and col < g.grid[1]
    return row * g.grid[1] + col if inside else -1


@pytest.mark.parametrize("name", ALL)
def test_every_pixel_is_shown_by_its_own_patch(name: str) -> None:
    g = ALL[name]
    expected = [[slow_patch(g, y, x) for x in range(g.source[1])] for y in range(g.source[0])]
    assert patch_of_pixels(g).tolist() == expected
    assert UNSEEN == -1
    assert seen_pixels(g).tolist() == (np.array(expected) >= 0).tolist()
    shown = set(np.flatnonzero(g.coverage().ravel() > 0).tolist())
    assert {p for row in expected for p in row} - {-1} <= shown


@pytest.mark.parametrize("name", ALL)
@given(seed=st.integers(0, 1000), share=st.floats(0.02, 1))
def test_the_top_pixels_are_the_hottest_and_exactly_as_many_as_asked(
    name: str, seed: int, share: float
) -> None:
    g = ALL[name]
    values = np.random.default_rng(seed).permutation(g.grid[0] * g.grid[1]).reshape(g.grid) + 1.0
    mask = top_pixels(pixel_heat(values, g), share)
    places = [(y, x) for y in range(g.source[0]) for x in range(g.source[1])]
    places = [p for p in places if slow_patch(g, *p) >= 0]
    # sorted is stable: ties in the order of rows
    places.sort(key=lambda p: -values.ravel()[slow_patch(g, *p)])
    expected = np.zeros(g.source, bool)
    for place in places[: max(1, round(share * len(places)))]:
        expected[place] = True
    assert mask.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ALL)
def test_attention_on_a_mask_is_a_sum_over_its_pixels(name: str) -> None:
    g = ALL[name]
    rng = np.random.default_rng(3)
    maps, mask = rng.random((2, *g.grid)), rng.random(g.source) < 0.4
    expected = []
    for each in maps:
        heat: dict[bool, float] = {True: 0.0, False: 0.0}
        for y in range(g.source[0]):
            for x in range(g.source[1]):
                patch = slow_patch(g, y, x)
                heat[bool(mask[y, x])] += each.ravel()[patch] if patch >= 0 else 0.0
        expected.append(heat[True] / (heat[True] + heat[False]))
    assert attention_on(mask, maps, g) == pytest.approx(expected)
    assert attention_on(seen_pixels(g), maps, g) == pytest.approx([1, 1])
    assert np.isnan(attention_on(mask, 0 * maps, g)).all()


@pytest.mark.parametrize(("share", "said"), [(0, "got 0"), (1.1, "got 1.1")])
def test_a_share_is_one(share: float, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        top_pixels(np.zeros((2, 2)), share)


def test_a_map_of_another_grid_is_refused() -> None:
    wrong: Any = np.zeros((3, 4))
    with pytest.raises(UsageError, match=r"map is \(3, 4\) patches, its grid \(4, 4\)"):
        pixel_heat(wrong, LETTERBOX)

"""Controls have a mask's pixels and shape, elsewhere; fills replace its pixels and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnstore.ingest.probing.controls import moved, scattered
from attnstore.ingest.probing.fills import FILLS, filled
from attnstore.store.errors import UsageError

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def shape_of(mask: Mask) -> set[tuple[int, int]]:
    places = np.argwhere(mask)
    return {(int(y), int(x)) for y, x in places - places.min(0)}


def field(seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    heat = np.random.default_rng(seed).random((30, 40))
    heat[:, :4] = np.nan
    return heat


@given(seed=st.integers(0, 500), height=st.integers(1, 9), width=st.integers(1, 12))
def test_one_piece_is_moved_as_it_is(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    heat, mask = field(seed), np.zeros((30, 40), bool)
    y, x = rng.integers(0, 20), rng.integers(4, 28)
    mask[y : y + height, x : x + width] = True
    mask[y, x : x + width // 2] = False
    mask[y + height - 1, x + width - 1] = True
    found = moved(mask, heat, np.random.default_rng(0))
    assert found.mask.sum() == mask.sum()
    assert not (found.mask & (mask | np.isnan(heat))).any()
    if found.pieces == 1:
        assert shape_of(found.mask) == shape_of(mask)


def test_a_piece_that_fits_is_not_cut_and_goes_where_it_is_cold() -> None:
    heat = np.ones((30, 40))
    heat[5:12, 25:35] = 0.0
    mask = np.zeros((30, 40), bool)
    mask[20:25, 3:10] = True
    mask[22, 3] = False
    found = moved(mask, heat, np.random.default_rng(0))
    assert found.pieces == 1
    assert shape_of(found.mask) == shape_of(mask)
    # of some 800 places the coldest tenth overlap the cold corner, and the mask itself is no place
    assert heat[found.mask].mean() < 0.8
    assert not (found.mask & mask).any()


def test_repeats_differ_and_the_same_random_numbers_do_not() -> None:
    heat, mask = field(0), np.zeros((30, 40), bool)
    mask[3:8, 10:15] = True
    masks = [moved(mask, heat, np.random.default_rng(s)).mask for s in (1, 1, 2)]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()


def test_scattered_pieces_are_moved_one_by_one_and_never_onto_each_other() -> None:
    heat, mask = field(5), np.zeros((30, 40), bool)
    for y, x in ((0, 5), (0, 30), (20, 5), (20, 30)):
        mask[y : y + 6, x : x + 5] = True
    found = moved(mask, heat, np.random.default_rng(0))
    assert found.pieces == 4
    assert found.mask.sum() == mask.sum() == 4 * 30
    assert not (found.mask & (mask | np.isnan(heat))).any()


def test_a_piece_that_fits_nowhere_is_cut() -> None:
    heat, mask = np.random.default_rng(0).random((20, 20)), np.zeros((20, 20), bool)
    mask[9:11, :] = True
    mask[:, 9:11] = True  # a cross: no other place has room for it
    found = moved(mask, heat, np.random.default_rng(0))
    assert found.pieces > 1
    assert found.mask.sum() == mask.sum()
    assert not (found.mask & mask).any()


def test_no_room_is_said() -> None:
    mask = np.zeros((4, 4), bool)
    mask[:3] = True
    for control in (moved, scattered):
        with pytest.raises(UsageError, match="the mask has 12 pixels, and only 4 are seen outside"):
            control(mask, np.ones((4, 4)), np.random.default_rng(0))


@given(seed=st.integers(0, 100), count=st.integers(1, 300))
def test_scattered_pixels_are_as_many_and_cold(seed: int, count: int) -> None:
    heat = field(seed)
    seen = np.flatnonzero(np.isfinite(heat))
    mask = np.zeros(heat.size, bool)
    mask[np.random.default_rng(seed).choice(seen, count, replace=False)] = True
    mask = mask.reshape(heat.shape)
    found = scattered(mask, heat, np.random.default_rng(1))
    assert found.mask.sum() == found.pieces == count
    assert not (found.mask & (mask | np.isnan(heat))).any()
    assert heat[found.mask].max() <= np.median(heat[np.isfinite(heat) & ~mask])


@pytest.mark.parametrize("fill", FILLS)
def test_only_masked_pixels_are_replaced(fill: Any) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(1, 255, (20, 30, 3), dtype=np.uint8)
    before = image.copy()
    mask, seen = rng.random((20, 30)) < 0.3, np.ones((20, 30), bool)
    seen[:, :10] = False
    found = filled(image, mask, fill, seen, np.random.default_rng(1))
    assert (image == before).all()
    assert (found[~mask] == image[~mask]).all()
    assert (found[mask] != image[mask]).any(-1).mean() > 0.9
    if fill == "black":
        assert not found[mask].any()
    if fill == "mean":
        assert (found[mask] == np.round(image[:, 10:].reshape(-1, 3).mean(0))).all()
    if fill == "noise":
        again = filled(image, mask, fill, seen, np.random.default_rng(1))
        assert (again == found).all()
    if fill == "blur":
        assert found[mask].std() < 0.3 * image[mask].std()

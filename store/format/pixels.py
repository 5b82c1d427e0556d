"""A map of attention on the pixels of the camera's image: which of them it points at most.

Every patch is constant over the pixels that it shows, found through the inverse geometry; the
pixel's centre decides. Pixels that the policy never sees (outside the crop or the grid) belong to
no patch, and letterbox patches show no pixel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .geometry import Geometry

Array = NDArray[np.floating[Any]]
Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
UNSEEN = -1
"""Patch of a pixel that the policy does not see."""


@lru_cache(maxsize=64)
def patch_of_pixels(geometry: Geometry) -> NDArray[np.intp]:
    """Find the patch that shows each pixel of the camera's image.

    Returns
    -------
    (height, width): the patch's row-major index in the grid, or `UNSEEN`; not writable.

    Examples
    --------
    >>> patch_of_pixels(Geometry.letterbox((2, 4), (4, 4), (2, 2))).tolist()
    [[0, 0, 1, 1], [2, 2, 3, 3]]
    """
    height, width = geometry.source
    y = np.arange(height, dtype=np.float64) + 0.5
    x = np.arange(width, dtype=np.float64) + 0.5
    row, _ = geometry.source_to_grid(y, np.zeros(height))
    _, col = geometry.source_to_grid(np.zeros(width), x)
    top, left, tall, wide = geometry.crop or (0, 0, *geometry.source)
    covered = geometry.covered()
    rows = _patches(row, (y > top) & (y < top + tall), geometry.edges(0), covered[0])
    cols = _patches(col, (x > left) & (x < left + wide), geometry.edges(1), covered[1])
    both = rows[:, None] * geometry.grid[1] + cols
    found: NDArray[np.intp] = np.where((rows[:, None] < 0) | (cols < 0), UNSEEN, both)
    found.setflags(write=False)
    return found


def _patches(at: Float, inside: Mask, edges: Float, covered: slice) -> NDArray[np.intp]:
    # Where patches see beyond their boxes, what lies outside the grid is the outermost's.
    index = np.clip(np.floor(at).astype(np.intp), covered.start, covered.stop - 1)
    return np.where(inside & (at >= edges[0]) & (at < edges[-1]), index, UNSEEN)


def seen_pixels(geometry: Geometry) -> Mask:
    """Return which pixels of the camera's image the policy sees, (height, width)."""
    return np.asarray(patch_of_pixels(geometry) != UNSEEN)


def pixel_heat(values: Array, geometry: Geometry) -> Float:
    """Lay a map over the camera's image.

    Parameters
    ----------
    values
        Map, (row, col).

    Returns
    -------
    (height, width) float64; NaN where the policy sees nothing.

    Raises
    ------
    UsageError
        If the map is not of the geometry's grid.
    """
    if values.shape != geometry.grid:
        raise UsageError(f"map is {values.shape} patches, its grid {geometry.grid}")
    patch = patch_of_pixels(geometry)
    return np.where(patch == UNSEEN, np.nan, np.asarray(values, np.float64).reshape(-1)[patch])


def ranked_pixels(heat: Array) -> NDArray[np.intp]:
    """Flat indices of the pixels that are seen, hottest first; ties in the order of rows."""
    flat = np.asarray(heat, np.float64).reshape(-1)
    order = np.argsort(-flat, kind="stable")
    return order[: int(np.isfinite(flat).sum())]


def top_pixels(heat: Array, share: float) -> Mask:
    """Mask the hottest share of the pixels that are seen.

    Exactly ``round(share * pixels)``, at least one: the last patch may be cut.

    Examples
    --------
    >>> top_pixels(np.array([[0.1, 0.4], [np.nan, 0.2]]), 1 / 3).astype(int).tolist()
    [[0, 1], [0, 0]]
    """
    if not 0 < share <= 1:
        raise UsageError(f"a share of pixels is more than 0 and at most 1; got {share}")
    order = ranked_pixels(heat)
    mask = np.zeros(heat.size, np.bool_)
    mask[order[: max(1, round(share * len(order)))]] = True
    return mask.reshape(heat.shape)


def attention_on(mask: Mask, maps: Array, geometry: Geometry) -> Float:
    """Share of a camera's attention, letterbox left out, that lies on a mask.

    Parameters
    ----------
    mask
        (height, width) of the camera's image.
    maps
        (..., row, col).

    Returns
    -------
    Of the leading axes' shape, 0..1; NaN where the camera gets no attention.

    Examples
    --------
    >>> g = Geometry.letterbox((2, 4), (2, 4), (2, 2))
    >>> half = np.array([[True, False, False, False]] * 2)
    >>> attention_on(half, np.array([[3.0, 1.0]]), g).item()
    0.375
    """
    patch = patch_of_pixels(geometry)
    count = geometry.grid[0] * geometry.grid[1]
    shown = np.bincount(patch[patch != UNSEEN], minlength=count)
    on = np.bincount(patch[mask & (patch != UNSEEN)], minlength=count)
    flat = np.nan_to_num(np.asarray(maps, np.float64).reshape(*maps.shape[:-2], -1))
    total = flat @ shown
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total > 0, flat @ on / total, np.nan))

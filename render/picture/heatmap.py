"""A map drawn on the camera's own image, through the inverse geometry.

Every source pixel looks up its patch (`Geometry.source_to_grid`), instead of the small grid being
stretched over the image: so letterbox, crop and flip are undone exactly. Rows and columns are
independent, hence a map is drawn with one short list of indices and shares per axis, which is
worked out once per geometry. Not as a matrix product, though that is one line: BLAS would wake
all cores for each of a thousand small products, and drawing already uses them.

What is drawn is where an image *token* sits. After a vision encoder has mixed all patches, a
token is no longer only its patch of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry

Interpolation = Literal["bilinear", "nearest"]
Heat = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """How the pixels of one image axis look up the patches of the grid's axis."""

    index: NDArray[np.intp]
    """Patch that a pixel lies in, (pixel,), within the patches that show image."""
    low: NDArray[np.intp]
    """Patch whose centre is the last one before the pixel, (pixel,)."""
    high: NDArray[np.intp]
    """Patch whose centre is the next one, (pixel,)."""
    share: NDArray[np.float32]
    """How far the pixel is from the centre of `low` to that of `high`, 0..1, (pixel,)."""
    seen: NDArray[np.bool_]
    """False for pixels that the policy never sees (outside the crop or the grid), (pixel,)."""


@dataclass(frozen=True, slots=True, eq=False)
class HeatSampler:
    """Draws maps of one geometry at one output size."""

    geometry: Geometry
    size: tuple[int, int]
    """(height, width) of the output."""
    interpolation: Interpolation
    rows: Axis
    cols: Axis

    def draw(self, maps: NDArray[np.floating]) -> Heat:
        """Heat of every pixel of the source image.

        Parameters
        ----------
        maps
            Attention, (..., row, col).

        Returns
        -------
        (..., height, width) float32; NaN where the policy sees nothing, or where the map is NaN.
        """
        maps = np.asarray(maps)
        if maps.shape[-2:] != self.geometry.grid:
            raise UsageError(f"map is {maps.shape[-2:]} patches, its grid {self.geometry.grid}")
        shown = maps[..., *self.geometry.covered()].astype(np.float32, copy=False)
        if self.interpolation == "nearest":
            heat = shown[..., self.rows.index[:, None], self.cols.index]
        elif np.isfinite(shown).all():
            heat = self._blend(shown)
        else:
            # absent patches take no part; their neighbours' weights are scaled up to 1
            present = np.isfinite(shown)
            total = self._blend(present.astype(np.float32))
            with np.errstate(invalid="ignore", divide="ignore"):
                heat = self._blend(np.where(present, shown, np.float32(0))) / total
        if not self.rows.seen.all():
            heat[..., ~self.rows.seen, :] = np.nan
        if not self.cols.seen.all():
            heat[..., ~self.cols.seen] = np.nan
        return np.asarray(heat, np.float32)

    def _blend(self, shown: Heat) -> Heat:
        cols, rows = self.cols, self.rows
        # columns first, while there are only a few rows
        wide = shown[..., cols.low]
        wide += (shown[..., cols.high] - wide) * cols.share
        heat = wide[..., rows.low, :]
        step = wide[..., rows.high, :]
        step -= heat
        step *= rows.share[:, None]
        heat += step
        return np.asarray(heat, np.float32)


@lru_cache(maxsize=64)
def sampler(
    geometry: Geometry,
    interpolation: Interpolation = "bilinear",
    size: tuple[int, int] | None = None,
) -> HeatSampler:
    """Prepare the drawing of a geometry's maps; results are cached.

    Parameters
    ----------
    interpolation
        ``"bilinear"`` between patch centres (clamped to the outermost patches that show image, so
        that letterbox never bleeds in), or ``"nearest"``: each pixel has its own patch's value.
    size
        (height, width) of the output; the source image's own size by default.
    """
    if interpolation not in ("bilinear", "nearest"):
        raise UsageError(f"interpolation is bilinear or nearest; got {interpolation!r}")
    height, width = size or geometry.source
    if min(height, width) < 1:
        raise UsageError(f"heat map size must be positive; got {height}x{width}")
    # centres of the output's pixels, in source pixels
    y = (np.arange(height, dtype=np.float64) + 0.5) * (geometry.source[0] / height)
    x = (np.arange(width, dtype=np.float64) + 0.5) * (geometry.source[1] / width)
    row, _ = geometry.source_to_grid(y, np.zeros(height))
    _, col = geometry.source_to_grid(np.zeros(width), x)
    top, left, crop_height, crop_width = geometry.crop or (0, 0, *geometry.source)
    shown_rows, shown_cols = geometry.covered()
    inside_rows = (y > top) & (y < top + crop_height)
    inside_cols = (x > left) & (x < left + crop_width)
    return HeatSampler(
        geometry,
        (height, width),
        interpolation,
        _axis(row, shown_rows, geometry.edges(0), inside_rows),
        _axis(col, shown_cols, geometry.edges(1), inside_cols),
    )


def draw(
    maps: NDArray[np.floating],
    geometry: Geometry,
    interpolation: Interpolation = "bilinear",
    size: tuple[int, int] | None = None,
) -> Heat:
    """Draw maps on the source image; see `sampler` and `HeatSampler.draw`.

    Examples
    --------
    >>> g = Geometry.letterbox((2, 4), (4, 4), (1, 1))
    >>> one_patch = np.zeros((4, 4))
    >>> one_patch[1, 2] = 1.0
    >>> draw(one_patch, g, "nearest").tolist()
    [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    return sampler(geometry, interpolation, size).draw(maps)


def _axis(
    coordinate: NDArray[np.float64],
    shown: slice,
    edges: NDArray[np.float64],
    inside: NDArray[np.bool_],
) -> Axis:
    count = shown.stop - shown.start
    index = np.clip(np.floor(coordinate).astype(np.intp) - shown.start, 0, count - 1)
    centred = np.clip(coordinate - 0.5 - shown.start, 0, count - 1)
    low = np.minimum(np.floor(centred).astype(np.intp), max(count - 2, 0))
    high = np.minimum(low + 1, count - 1)
    share = (centred - low).astype(np.float32)
    seen = inside & (coordinate >= edges[0]) & (coordinate < edges[-1])
    for array in (index, low, high, share, seen):
        array.setflags(write=False)
    return Axis(index, low, high, share, seen)

"""How much of a map of attention lies on an object: definitions, vectorised NumPy.

A map has one value per patch, an object is a mask of the camera's pixels. They meet on the source
image: the map is drawn there through the geometry, every patch constant over the pixels that it
shows (nearest patch, the exact integral of that picture). So each patch counts with the area of
source image that it shows and, of that, the area that the object covers. Letterbox and pixels
that the policy never sees (outside the crop or the grid) have no area. With

    a_p  area of source image shown by patch p,        A = Σ a_p
    c_p  part of a_p that the object covers,           O = Σ c_p
    M_p  the map: attention averaged over the query tokens

    overlap_ratio = Σ M c / Σ M a                      share of the camera's attention, 0..1
    lift          = overlap_ratio / (O / A)            1 for uniform attention, whatever the geometry
    concentration = (Σ M c / O) / (Σ M (a - c) / (A - O))
    iou           = Σ_B c / (Σ_B a + O - Σ_B c),  B = {p: M_p >= threshold * max M}
    pointing_hit  = 1 if the pixel in the middle of what the argmax patch shows is in the mask
    nss           = (Σ M c / O - mean M) / sd M,  mean and sd over the image, weighted by a

The pointing game is from Zhang et al. 2018 ("Top-Down Neural Attention by Excitation Backprop",
IJCV 126), here without their tolerance of 15 pixels. A patch's middle pixel and not, say, half of
its area: then a map that points anywhere at random hits with the probability O / A, however small
the object. The normalised scanpath saliency is from Peters et al. 2005 ("Components of bottom-up
gaze allocation in natural images", Vision Research 45), with the object's pixels as fixations.

What is undefined is NaN: everything where the camera gets no attention at all or the object is not
in the seen part of the image; concentration where nothing lies outside the object or the outside
gets no attention; nss of a map without variance.

Maps are stored rounded: a stored M stands for an unrounded one within r M + d (`Error`), d being 0
for overview maps; of value-weighted ones see `attnstore.store.format.weighting.carried_error`.
`metric_errors` says how far a row may then be off the unrounded one::

    overlap_error   the largest |overlap_ratio' - overlap_ratio| of any M' within those bounds; lift
                    = overlap_ratio / area is within overlap_error / area, and concentration grows
                    with overlap_ratio alone
    iou_error       the same of iou, by patches that may be bright or not: at the threshold a small
                    error decides, so it can be large
    nss_error       the same of nss, a bound
    pointing_sure   whether the largest patch is, or is not, on the object for any such M'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.precision import Error

Array = NDArray[np.floating[Any]]
Float = NDArray[np.float64]

OBJECT_SEMANTICS = 3
"""Raised when a definition above changes."""
DEFAULT_THRESHOLD = 0.3
_NEGLIGIBLE = 1e-9
"""Share below which an area is the rounding of an edge."""


@dataclass(frozen=True, slots=True, eq=False)
class PatchCover:
    """How objects cover the patches of one camera at one frame.

    Only patches that show source image are listed, row-major.
    """

    shown: NDArray[np.bool_]
    """Which patches are listed, (row, col)."""
    area: Float
    """Source image that each shows, (patch,), in source pixels."""
    covered: Float
    """Part of it on each object, (object, patch), in source pixels."""
    middle: NDArray[np.bool_]
    """Whether the middle pixel of what a patch shows is on the object, (object, patch)."""

    @property
    def area_fraction(self) -> Float:
        """Each object's share of the seen image, (object,), 0..1."""
        return np.asarray(self.covered.sum(-1) / self.area.sum())


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """Patches of one axis of the grid on the pixels of that axis of the source."""

    overlap: Float
    """Length of each pixel inside each patch, (patch, pixel), in pixels."""
    middle: NDArray[np.intp]
    """Middle pixel of what each patch shows, (patch,); 0 where it shows nothing."""


def cover_patches(geometry: Geometry, masks: Sequence[NDArray[np.bool_]]) -> PatchCover:
    """Measure how masks cover a camera's patches.

    Parameters
    ----------
    geometry
        The camera's transform between pixels and patches.
    masks
        One per object, (height, width) of the source image.

    Raises
    ------
    UsageError
        If a mask has another size than the geometry's source, or no patch shows any image.

    Examples
    --------
    Two patches side by side, the object covers the right half of the right one:

    >>> g = Geometry.letterbox((2, 8), (2, 8), (2, 4))
    >>> mask = np.zeros((2, 8), bool)
    >>> mask[:, 6:] = True
    >>> cover = cover_patches(g, [mask])
    >>> cover.area.tolist(), cover.covered.tolist()
    ([8.0, 8.0], [[0.0, 4.0]])
    """
    for mask in masks:
        if mask.shape != tuple(geometry.source):
            raise UsageError(f"mask is {mask.shape} pixels, the camera's image {geometry.source}")
    rows, cols = _axes(geometry)
    area = np.outer(rows.overlap.sum(-1), cols.overlap.sum(-1))
    shown = area > _NEGLIGIBLE * area.max()
    if not shown.any():
        raise UsageError("no patch of the grid shows any of the camera's image")
    covered = np.zeros((len(masks), int(shown.sum())))
    middle = np.zeros(covered.shape, np.bool_)
    for index, mask in enumerate(masks):
        on = (rows.overlap @ mask.astype(np.float64)) @ cols.overlap.T
        covered[index] = np.minimum(on, area)[shown]
        middle[index] = mask[rows.middle[:, None], cols.middle][shown]
    return PatchCover(shown, area[shown], covered, middle)


def object_metrics(
    maps: Array, cover: PatchCover, *, threshold: float = DEFAULT_THRESHOLD
) -> dict[str, Float]:
    """Measure how much of some maps lies on each object.

    Parameters
    ----------
    maps
        Attention averaged over a group of query tokens, (..., row, col).
    cover
        How the objects cover the patches of the same camera.
    threshold
        Share of a map's largest value from which a patch counts as bright, for iou.

    Returns
    -------
    Per name in `attnstore.store.tables.objects.OBJECT_METRICS`, (..., object) float64; NaN where undefined
    or a weight is absent.

    Examples
    --------
    >>> g = Geometry.letterbox((2, 8), (2, 8), (2, 4))
    >>> mask = np.zeros((2, 8), bool)
    >>> mask[:, 6:] = True
    >>> found = object_metrics(np.array([[0.1, 0.3]]), cover_patches(g, [mask]))
    >>> {name: round(value.item(), 3) for name, value in found.items()}
    {'overlap_ratio': 0.375, 'concentration': 1.8, 'iou': 0.25, 'lift': 1.5, \
'pointing_hit': 1.0, 'nss': 1.0}
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"the threshold is a share of the largest value, 0 to 1; got {threshold}")
    if maps.shape[-2:] != cover.shown.shape:
        raise UsageError(f"map is {maps.shape[-2:]} patches, the cover {cover.shown.shape}")
    m = np.asarray(maps, np.float64)[..., cover.shown]
    area, covered = cover.area, cover.covered
    image, objects = area.sum(), covered.sum(-1)
    total = (m @ area)[..., None]
    on = m @ covered.T
    with np.errstate(invalid="ignore", divide="ignore"):
        overlap = on / total
        inside = on / objects
        rest = image - objects
        outside = np.where(rest > _NEGLIGIBLE * image, (total - on) / rest, np.nan)
        # What remains of a subtraction is not attention.
        outside = np.where(total - on > _NEGLIGIBLE * total, outside, np.nan)
        bright = m >= threshold * m.max(-1, keepdims=True)
        mean = total / image
        sd = np.sqrt(((m - mean) ** 2) @ area / image)[..., None]
        found = {
            "overlap_ratio": overlap,
            "concentration": inside / outside,
            "iou": _iou(bright, bright, area, covered),
            "lift": overlap / (objects / image),
            "pointing_hit": np.moveaxis(cover.middle[:, m.argmax(-1)].astype(np.float64), 0, -1),
            "nss": np.where(sd > _NEGLIGIBLE * mean, (inside - mean) / sd, np.nan),
        }
    undefined = ~(total > 0) | ~(objects > 0)
    return {name: np.where(undefined, np.nan, value) for name, value in found.items()}


def metric_errors(
    maps: Array, cover: PatchCover, error: Error, *, threshold: float = DEFAULT_THRESHOLD
) -> dict[str, Float]:
    """Bound how far `object_metrics` of stored maps may lie from those of the unrounded ones.

    Parameters
    ----------
    maps, cover, threshold
        As `object_metrics` got them.
    error
        Of the stored maps; arrays are (..., 1).

    Returns
    -------
    Per name in `attnstore.store.tables.objects.OBJECT_ERRORS`, (..., object) float64; pointing_sure
    is 1 or 0; NaN where the metric is, and where there is no bound (pointing_sure: 0).

    Examples
    --------
    >>> g = Geometry.letterbox((2, 8), (2, 8), (2, 4))
    >>> mask = np.zeros((2, 8), bool)
    >>> mask[:, 6:] = True
    >>> cover = cover_patches(g, [mask])
    >>> found = metric_errors(np.array([[0.1, 0.3]]), cover, Error(0.01, 0.0))
    >>> {name: round(value.item(), 3) for name, value in found.items()}
    {'overlap_error': 0.005, 'iou_error': 0.0, 'nss_error': 0.074, 'pointing_sure': 1.0}
    """
    m = np.asarray(maps, np.float64)[..., cover.shown]
    area, covered = cover.area, cover.covered
    image, objects = area.sum(), covered.sum(-1)
    low, high = _within(m, error)
    with np.errstate(invalid="ignore", divide="ignore"):
        on, on_low, on_high = (each @ covered.T for each in (m, low, high))
        total, most, least = ((each @ area)[..., None] for each in (m, high, low))
        off_low, off_high = np.maximum(least - on_low, 0), most - on_high
        ratio = on / total
        upper, lower = on_high / (on_high + off_low), on_low / (on_low + off_high)
        overlap = np.maximum(upper - ratio, ratio - lower)

        surely = low >= threshold * high.max(-1, keepdims=True)
        maybe = high >= threshold * low.max(-1, keepdims=True)
        bright = m >= threshold * m.max(-1, keepdims=True)
        united = _iou(bright, bright, area, covered)
        iou = np.maximum(
            _iou(maybe, surely, area, covered) - united, united - _iou(surely, maybe, area, covered)
        )

        inside, mean = on / objects, total / image
        spread = np.sqrt(((m - mean) ** 2) @ area / image)[..., None]
        moved = np.sqrt(((high - m) ** 2) @ area / image)[..., None]
        away = np.abs(inside - mean)
        shift = (on_high - on) / objects + (most - total) / image
        nss = (away + shift) / np.where(spread > moved, spread - moved, np.nan) - away / spread

        hit = np.moveaxis(cover.middle[:, m.argmax(-1)], 0, -1)
        # (..., object, patch): the largest that a patch of the other kind may have.
        rival = np.where(cover.middle != hit[..., None], high[..., None, :], -np.inf).max(-1)
        sure = low.max(-1, keepdims=True) > np.maximum(rival, 0)
    found = {
        "overlap_error": overlap,
        "iou_error": iou,
        "nss_error": nss,
        "pointing_sure": sure.astype(np.float64),
    }
    undefined = ~(total > 0) | ~(objects > 0)
    bounded = np.isfinite(error.relative) & np.isfinite(error.absolute)
    return {
        name: np.where(
            undefined, np.nan, np.where(bounded, value, 0.0 if name == "pointing_sure" else np.nan)
        )
        for name, value in found.items()
    }


def _within(maps: Float, error: Error) -> tuple[Float, Float]:
    """Smallest and largest unrounded map of a stored one."""
    # Where there is no bound it must be larger than any weight, not infinite: 0 * inf is no number.
    relative, absolute = (np.nan_to_num(e, posinf=1e3) for e in (error.relative, error.absolute))
    margin = relative * maps + absolute
    return np.maximum(maps - margin, 0.0), maps + margin


def _iou(
    inside: NDArray[np.bool_], outside: NDArray[np.bool_], area: Float, covered: Float
) -> Float:
    """Intersection over union of an object with the bright patches.

    Parameters
    ----------
    inside, outside
        Patches that count as bright for what they show of the object, and of the rest.
    """
    both = inside.astype(np.float64) @ covered.T
    beside = outside.astype(np.float64) @ (area - covered).T
    return np.asarray(both / (covered.sum(-1) + beside))


@lru_cache(maxsize=64)
def _axes(geometry: Geometry) -> tuple[_Axis, _Axis]:
    top, left, height, width = geometry.crop or (0, 0, *geometry.source)
    zeros = np.zeros(max(geometry.grid) + 1)
    rows, cols = geometry.edges(0), geometry.edges(1)
    y, _ = geometry.grid_to_source(rows, zeros[: len(rows)])
    _, x = geometry.grid_to_source(zeros[: len(cols)], cols)
    return (
        _axis(y, (top, top + height), geometry.source[0]),
        _axis(x, (left, left + width), geometry.source[1]),
    )


def _axis(edges: Float, seen: tuple[float, float], pixels: int) -> _Axis:
    """Intersect patches (between consecutive edges, descending if flipped) with pixels."""
    low = np.clip(np.minimum(edges[:-1], edges[1:]), *seen)
    high = np.clip(np.maximum(edges[:-1], edges[1:]), *seen)
    start = np.arange(pixels)
    overlap = np.minimum(high[:, None], start + 1) - np.maximum(low[:, None], start)
    overlap = np.clip(overlap, 0.0, None)
    # The edge of an image that falls on the edge of a patch leaves a rounding error behind it.
    overlap[overlap < _NEGLIGIBLE] = 0.0
    # A middle on the edge of a pixel belongs to the pixel after it, whatever the rounding error.
    middle = np.clip(np.floor((low + high) / 2 + 1e-9).astype(np.intp), 0, pixels - 1)
    for array in (overlap, middle):
        array.setflags(write=False)
    return _Axis(overlap, middle)

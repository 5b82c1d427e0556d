"""Where two groups of episodes look differently: maps aligned by normalised time.

Episodes differ in length, so that keyframe 5 of one is not keyframe 5 of another. Each episode's
maps are placed on time 0..1, first keyframe to last, and interpolated linearly at the same moments;
the mean over a group counts every episode once, however long it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import SelectionError

Maps = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """Mean maps of two groups at the same moments, (moment, row, col)."""

    time: NDArray[np.float64]
    """(moment,) 0 is the first keyframe, 1 the last."""
    a: Maps
    b: Maps

    @property
    def values(self) -> Maps:
        """`a` minus `b`."""
        return self.a - self.b


def at_moments(maps: NDArray[np.floating], moments: int) -> Maps:
    """Interpolate an episode's maps linearly at evenly spaced moments.

    Parameters
    ----------
    maps
        (keyframe, row, col).

    Returns
    -------
    (moment, row, col); NaN where a map that is needed is.

    Examples
    --------
    >>> at_moments(np.array([[[0.0]], [[1.0]]]), 3).ravel().tolist()
    [0.0, 0.5, 1.0]
    """
    place = np.linspace(0, len(maps) - 1, moments)
    low = np.minimum(place.astype(np.intp), max(len(maps) - 2, 0))
    high = np.minimum(low + 1, len(maps) - 1)
    share = (place - low)[:, None, None]
    low_maps, high_maps = maps[low].astype(np.float64), maps[high].astype(np.float64)
    # a share of 0 takes nothing from the other map, NaN neither
    mixed = low_maps * (1 - share) + np.where(share > 0, high_maps, 0) * share
    return np.asarray(np.where(share < 1, mixed, high_maps))


def difference(
    a: Sequence[NDArray[np.floating]], b: Sequence[NDArray[np.floating]], moments: int
) -> Difference:
    """Compare two groups of episodes' maps.

    Parameters
    ----------
    a, b
        Each episode's maps, (keyframe, row, col).

    Raises
    ------
    SelectionError
        If a group is empty, or the patch grids differ.
    """
    grids = {m.shape[1:] for m in (*a, *b)}
    if not a or not b or len(grids) != 1:
        raise SelectionError(
            f"a difference needs episodes in both groups and one patch grid; got {len(a)} and "
            f"{len(b)} episodes with grids {', '.join(map(str, sorted(grids)))}"
        )
    means = [_mean([at_moments(m, moments) for m in group]) for group in (a, b)]
    return Difference(np.linspace(0, 1, moments), *means)


def _mean(episodes: Sequence[Maps]) -> Maps:
    """Mean over episodes of what is there; NaN where no episode has anything."""
    total, count = np.zeros_like(episodes[0]), np.zeros_like(episodes[0])
    for maps in episodes:
        there = ~np.isnan(maps)
        total += np.where(there, maps, 0)
        count += there
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count)

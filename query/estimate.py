"""A mean over episodes with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .fidelity import clustered_interval, mean_of_episodes
from .resampling import FEWEST

Float = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean over episodes, each counting the same."""

    value: float
    low: float
    high: float
    """Ends of the interval; NaN where there is none."""
    episodes: int
    """With a value."""


def estimate(
    values: Float | Sequence[float],
    episodes: Sequence[str] | NDArray[np.str_],
    *,
    bootstraps: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Estimate a mean over episodes from values of their keyframes, or of the episodes themselves.

    The interval resamples episodes, then their keyframes (`clustered_interval`). Below `FEWEST`
    episodes there is none: it would be one in name only.

    Parameters
    ----------
    values
        One per keyframe; NaN is left out.
    episodes
        Episode of each.

    Examples
    --------
    >>> estimate([1.0, 3.0, 5.0], ["a", "a", "b"])
    Estimate(value=3.5, low=nan, high=nan, episodes=2)
    """
    column = np.asarray(values, np.float64)
    kept = np.isfinite(column)
    rows, names = column[kept][:, None], np.asarray(episodes)[kept]
    count = len(np.unique(names))
    if not count:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = float(mean_of_episodes(rows, names)[0])
    if count < FEWEST:
        return Estimate(mean, np.nan, np.nan, count)
    low, high = clustered_interval(rows, names, bootstraps=bootstraps, level=level, seed=seed)
    return Estimate(mean, float(low[0]), float(high[0]), count)

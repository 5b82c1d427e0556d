"""Curves of several episodes over normalised time: their mean, with an interval over episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

from ..resampling import FEWEST
from ..statistics import clustered_interval, mean_of_episodes

Float = NDArray[np.float64]
POINTS = 21
"""Places on the time axis, from the first keyframe (0) to the last (1)."""


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """The mean of some episodes' curves."""

    progress: Float
    """(point,) 0..1."""
    mean: Float
    """(point, curve), each episode counting the same; NaN where no episode has a value."""
    low: Float
    high: Float
    """Ends of the intervals; NaN below `attnstore.query.resampling.FEWEST` episodes."""
    episodes: int


def align(
    curves: Sequence[tuple[Float, Float]],
    *,
    points: int = POINTS,
    level: float = 0.95,
    seed: int = 0,
) -> Aligned:
    """Bring curves to a common time axis, linearly between keyframes, and average them.

    Parameters
    ----------
    curves
        One per episode: progress of its keyframes, (keyframe,), ascending 0..1; and values,
        (keyframe, curve). NaN is left out, and nothing is continued beyond an episode's first and
        last value.

    Raises
    ------
    UsageError
        If there is no curve, or they have different numbers of values.

    Examples
    --------
    >>> short = np.array([0.0, 1.0]), np.array([[0.0], [1.0]])
    >>> steady = np.array([0.0, 0.5, 1.0]), np.array([[0.0], [0.0], [0.0]])
    >>> align([short, steady], points=3).mean[:, 0].tolist()
    [0.0, 0.25, 0.5]
    """
    if not curves or len({values.shape[1] for _, values in curves}) != 1:
        raise UsageError("episodes are aligned curve by curve: give as many of each")
    at = np.linspace(0, 1, points)
    sampled = np.stack([_sample(at, *curve) for curve in curves])  # (episode, point, curve)
    flat = sampled.reshape(len(curves), -1)
    names = np.array([f"{i:06d}" for i in range(len(curves))])
    shape = sampled.shape[1:]
    mean = mean_of_episodes(flat, names).reshape(shape)
    low = high = np.full(shape, np.nan)
    if len(curves) >= FEWEST:
        ends = clustered_interval(flat, names, level=level, seed=seed)
        low, high = (end.reshape(shape) for end in ends)
    return Aligned(at, mean, low, high, len(curves))


def _sample(at: Float, progress: Float, values: Float) -> Float:
    found = np.full((len(at), values.shape[1]), np.nan)
    for curve, column in enumerate(values.T):
        known = np.isfinite(column)
        if known.any():
            found[:, curve] = np.interp(
                at, progress[known], column[known], left=np.nan, right=np.nan
            )
    return found

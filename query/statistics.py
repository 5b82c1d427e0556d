"""Means over episodes and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


def mean_of_episodes(values: Float, episodes: NDArray[np.str_]) -> Float:
    """Mean over episodes of their mean over keyframes; NaN values are left out.

    Parameters
    ----------
    values
        (keyframe, test).
    episodes
        Episode of each row.

    Examples
    --------
    >>> mean_of_episodes(np.array([[1.0], [3.0], [10.0]]), np.array(["a", "a", "b"])).tolist()
    [6.0]
    """
    means = np.stack([_mean(values[episodes == e]) for e in np.unique(episodes)])
    return _mean(means)


def _mean(values: Float) -> Float:
    present = np.isfinite(values)
    count = present.sum(0)
    total = np.where(present, values, 0.0).sum(0)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def clustered_interval(
    values: Float,
    episodes: NDArray[np.str_],
    *,
    bootstraps: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float, Float]:
    """Percentile interval of `mean_of_episodes`: resamples episodes, then their keyframes.

    Keyframes of one episode are alike, so that resampling them alone would promise too much (the
    hierarchical bootstrap; Davison & Hinkley 1997, "Bootstrap Methods and their Application", 3.8).
    With a single episode only its keyframes are resampled: the interval is of that episode.

    Parameters
    ----------
    values
        (keyframe, test).
    episodes
        Episode of each row.

    Returns
    -------
    (low, high), (test,) each; NaN for a single keyframe.
    """
    nothing = np.full(values.shape[1], np.nan)
    if len(values) < 2 or not bootstraps:
        return nothing, nothing.copy()
    rng = np.random.default_rng(seed)
    names = np.unique(episodes)
    chosen = rng.integers(0, len(names), (bootstraps, len(names)))
    means = np.empty((bootstraps, len(names), values.shape[1]))
    for episode, name in enumerate(names):
        own, copies = values[episodes == name], chosen == episode
        # how often each keyframe is drawn, anew for each time that the episode is
        times = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), int(copies.sum()))
        present = np.isfinite(own)
        count = times @ present
        total = times @ np.where(present, own, 0.0)
        means[copies] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    drawn = _mean(np.moveaxis(means, 1, 0))
    tails = [(1 - level) / 2, (1 + level) / 2]
    kept = np.isfinite(drawn).any(0)
    low, high = nothing, nothing.copy()
    if kept.any():
        low[kept], high[kept] = np.nanquantile(drawn[:, kept], tails, axis=0)
    return low, high

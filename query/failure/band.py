"""The alarm: a band over time that a success leaves no more often than was promised.

Functional conformal prediction, one-sided, as SAFE has it for robots (Gu et al. 2025, arXiv 2506.09937;
Diquigiovanni et al. 2022, "Conformal prediction bands for multivariate functional data"). The band's shape,
mean and spread of a success' score at each call, is of training episodes. Its level is of calibration
successes: each has one number, by how many spreads its score exceeds the mean at most, at any call; the
level is that of rank ``ceil((n + 1) (1 - alpha))`` of n. A new success is exchangeable with those that
calibrated, so it raises an alarm, at any call at all, with a probability of at most alpha: whatever the
scores are, and however many calls it has.
"""

from __future__ import annotations

import numpy as np

from .evidence import Bool, Evidence, Float
from .predictor import Fold

SHRINK = 8.0
"""Episodes' worth of the mean over all calls in the shape at one call."""


def upper_band(evidence: Evidence, scores: Float, fold: Fold, alpha: float) -> Float:
    """Largest score that raises no alarm, by call, (moment,).

    Parameters
    ----------
    scores
        (row,), of a model that was fitted on the fold's training episodes.
    alpha
        Promised rate of successes with an alarm, 0..1.
    """
    mean, spread = _shape(evidence, scores, fold.training & ~evidence.failed)
    excess = (scores - mean[evidence.moment]) / spread[evidence.moment]
    own = np.flatnonzero(fold.calibration)
    largest = np.full(len(evidence.failed), -np.inf)
    np.maximum.at(largest, evidence.of, excess)
    ordered = np.sort(largest[own])
    rank = int(np.ceil(round((len(own) + 1) * (1 - alpha), 9)))
    level = ordered[rank - 1] if rank <= len(own) else np.inf
    return np.asarray(mean + level * spread)


def _shape(evidence: Evidence, scores: Float, successes: Bool) -> tuple[Float, Float]:
    """Mean and spread by call, drawn to those of all calls where episodes are few."""
    rows = successes[evidence.of]
    moments = int(evidence.moment.max()) + 1
    at, own = evidence.moment[rows], scores[rows]
    count = np.bincount(at, minlength=moments)
    overall, variance = float(own.mean()), float(own.var())
    mean = (np.bincount(at, own, moments) + SHRINK * overall) / (count + SHRINK)
    square = np.bincount(at, (own - mean[at]) ** 2, moments)
    spread = np.sqrt((square + SHRINK * variance) / (count + SHRINK))
    return mean, np.maximum(spread, 1e-6)


def first_alarm(evidence: Evidence, alarm: Bool) -> tuple[Bool, Float]:
    """Which episodes raise an alarm, and at what row first.

    Parameters
    ----------
    alarm
        (row,).

    Returns
    -------
    (episode,) each; the row is NaN where there is none.
    """
    rows = np.flatnonzero(alarm)
    first = np.full(len(evidence.failed), np.nan)
    for row in rows[::-1]:
        first[evidence.of[row]] = row
    return np.isfinite(first), first

"""Scores of failure, of episodes that the model was not fitted on.

Of each fold, episodes are for one of three things. On *training* episodes a logistic regression learns
which ended in failure; on *calibration* episodes, successes alone, the alarm's band is set
(`attnstore.query.failure.band`); *test* episodes are scored. A score at a call is of that call and
those before it, never of what came after.

Features are standardised by the training rows, what is missing is their mean, and they are turned to
at most `COMPONENTS` principal components, since heads are many and alike. An episode's rows weigh as
much as another's, failures together as much as successes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from attnstore.store.errors import MissingExtraError, UsageError

from .evidence import Bool, Evidence, Float, Int

Split = Literal["episodes", "tasks"]
"""What test episodes are unseen of: themselves, or their whole task."""
SPLITS: tuple[Split, ...] = get_args(Split)
Model = Literal["logistic", "cumulative"]
"""Logistic regression on the features of a call, or on their mean over all calls so far."""
MODELS: tuple[Model, ...] = get_args(Model)

COMPONENTS = 32
"""Principal components at most; and at most one for each four training episodes."""
CALIBRATION = 0.3
"""Share of a fold's other successes that sets the band."""


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """What each episode is for, (episode,) each."""

    training: Bool
    calibration: Bool
    test: Bool


def make_folds(evidence: Evidence, split: Split, count: int, seed: int) -> list[Fold]:
    """Divide episodes: every one is tested once.

    Parameters
    ----------
    split
        ``episodes``: at random, outcomes evenly. ``tasks``: whole tasks, as evenly as they go.
    count
        Of folds; at most as many as tasks.
    """
    rng = np.random.default_rng(seed)
    failed = evidence.failed
    place = np.empty(len(failed), np.intp)
    if split == "episodes":
        for outcome in (False, True):
            own = rng.permutation(np.flatnonzero(failed == outcome))
            place[own] = np.arange(len(own)) % count
    else:
        tasks, sizes = np.unique(evidence.task, return_counts=True)
        load = np.zeros(min(count, len(tasks)))
        for task in np.argsort(-sizes, kind="stable"):
            place[evidence.task == tasks[task]] = int(load.argmin())
            load[load.argmin()] += sizes[task]
    folds = []
    for number in range(int(place.max()) + 1):
        test = place == number
        others = rng.permutation(np.flatnonzero(~test & ~failed))
        calibration = np.zeros(len(failed), np.bool_)
        calibration[others[: round(CALIBRATION * len(others))]] = True
        folds.append(Fold(~test & ~calibration, calibration, test))
    return folds


def check_folds(evidence: Evidence, folds: Sequence[Fold], alpha: float) -> None:
    """Refuse to predict what cannot be learnt or promised.

    Raises
    ------
    UsageError
        If an outcome is missing, a fold has too few episodes of one, or too few successes are left to
        promise the rate of false alarms.
    """
    failures, successes = int(evidence.failed.sum()), int((~evidence.failed).sum())
    if not failures or not successes:
        only = "failed" if failures else "succeeded"
        raise UsageError(
            f"all {failures + successes} episodes {only}: a failure is told from a success, which takes both"
        )
    need = needed(alpha)
    for fold in folds:
        trained = evidence.failed[fold.training]
        least = min(int(trained.sum()), int((~trained).sum()))
        calibrated = int(fold.calibration.sum())
        if least < FEWEST or calibrated < need:
            what = (
                f"{least} of one outcome to learn from, fewer than {FEWEST}"
                if least < FEWEST
                else f"{calibrated} successes to calibrate, fewer than the {need} that --alpha {alpha:g} takes"
            )
            raise UsageError(
                f"too few episodes: of {failures} failures and {successes} successes a fold has {what}; "
                "record more, or widen the choice"
            )


FEWEST = 8
"""Training episodes of each outcome, at least."""


def needed(alpha: float) -> int:
    """Successes that a band takes for a rate of false alarms: fewer could promise nothing.

    Examples
    --------
    >>> needed(0.1), needed(0.05)
    (9, 19)
    """
    return int(np.ceil(round((1 - alpha) / alpha, 9)))


def running_mean(values: Float, of: Int) -> Float:
    """Mean over an episode's rows so far; what is missing takes no part.

    Examples
    --------
    >>> running_mean(np.array([[1.0], [3.0], [10.0]]), np.array([0, 0, 1])).ravel().tolist()
    [1.0, 2.0, 10.0]
    """
    present = np.isfinite(values)
    known = np.where(present, values, 0.0)
    found = np.empty_like(known)
    starts = np.flatnonzero(np.diff(of, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(of)], strict=True):
        # By itself: a difference of sums over all episodes would round what others have into it.
        count = np.cumsum(present[start:stop], 0)
        total = np.cumsum(known[start:stop], 0)
        found[start:stop] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


class Projection:
    """A fold's features, ready to be fitted: without a look at outcomes or at test episodes."""

    def __init__(self, evidence: Evidence, features: str, model: Model, fold: Fold) -> None:
        values = evidence.features[features]
        if model == "cumulative":
            values = running_mean(values, evidence.of)
        self.training = fold.training[evidence.of]
        weights = 1.0 / evidence.lengths[evidence.of][self.training]
        weights /= weights.sum()
        own = values[self.training]
        present = np.isfinite(own)
        share = np.where(present, weights[:, None], 0.0)
        total = share.sum(0)
        mean = (share * np.where(present, own, 0.0)).sum(0) / np.where(total > 0, total, 1)
        centred = np.where(np.isfinite(values), values - mean, 0.0)
        sd = np.sqrt((share * centred[self.training] ** 2).sum(0) / np.where(total > 0, total, 1))
        kept = sd > 1e-9 * np.maximum(np.abs(mean), 1e-9)
        scaled = centred[:, kept] / sd[kept]
        most = min(COMPONENTS, max(1, int(fold.training.sum()) // 4))
        if scaled.shape[1] > most:
            root = np.sqrt(weights)[:, None]
            axes = np.linalg.svd(scaled[self.training] * root, full_matrices=False)[2][:most]
            scaled = scaled @ axes.T
            scaled /= max(float(scaled[self.training][:, 0].std()), 1e-12)
        self.values = scaled if scaled.shape[1] else np.zeros((len(values), 1))

    def scores(self, evidence: Evidence, failed: Bool) -> Float:
        """Fit on the training rows, and score all: probability of failure, (row,)."""
        return fit(self.values, self.training, failed[evidence.of], evidence.lengths[evidence.of])


def fit(values: Float, training: Bool, failed: Bool, lengths: Int) -> Float:
    """Logistic regression on some rows, and its probabilities of all."""
    regression = _regression()
    weights = 1.0 / lengths[training]
    for outcome in (False, True):
        own = failed[training] == outcome
        weights[own] *= len(weights) / (2 * max(weights[own].sum(), 1e-12))
    regression.fit(values[training], failed[training], sample_weight=weights)
    return np.asarray(regression.predict_proba(values)[:, 1])


def _regression() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "predicting failures needs scikit-learn: pip install 'attnstore[learn]'"
        ) from error
    return LogisticRegression(C=1.0, max_iter=200, tol=1e-3)

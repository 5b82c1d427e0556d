"""Predicting failures from several features, split in several ways, beside baselines and a control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnstore.store.errors import UsageError

from .band import first_alarm, upper_band
from .evidence import TRIVIAL, Bool, Evidence, Float
from .predictor import (
    MODELS,
    SPLITS,
    Fold,
    Model,
    Projection,
    Split,
    check_folds,
    make_folds,
)
from .ranking import Ranking

BASELINES = (*TRIVIAL, "trivial")
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class FailureOptions:
    """How failures are predicted; what changes the numbers."""

    features: tuple[str, ...] = ("attention",)
    weighting: str = "raw"
    alpha: float = 0.1
    """Promised rate of successes with an alarm."""
    folds: int = 5
    seed: int = 0
    shuffles: int = 100
    bootstraps: int = 1000
    strata: str | None = None
    """See `attnstore.query.failure.evidence.read_evidence`."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha is a rate, more than 0 and less than 1; got {self.alpha}")
        if self.folds < 2:
            raise UsageError(f"at least 2 folds; got {self.folds}")


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Scores of every episode by one kind of features and model."""

    split: Split
    features: str
    model: Model
    fold: Any
    """(row,), the fold that tested its episode."""
    scores: Float
    """(row,), of test episodes."""
    band: Float
    """(row,)"""
    areas: Float
    """(moment + 1,); see `Ranking.areas`."""
    low: Float
    high: Float
    shuffled: Float
    """(moment + 1,), mean of the shuffled ones; NaN of baselines."""
    p: Float
    gain: Float
    """Over the trivial baseline, (moment + 1,); NaN of baselines."""
    gain_low: Float
    gain_high: Float
    counts: Any
    """(failures and successes, moment)"""

    @property
    def alarm(self) -> Bool:
        """Whether a call's score is above its band, (row,)."""
        return np.asarray(self.scores > self.band)


def predict(
    evidence: Evidence,
    options: FailureOptions,
    progress: Callable[[float, str], None] = lambda share, now: None,
) -> list[Prediction]:
    """Score every episode in every way.

    Splits by task only where there are at least two, and enough episodes beside each.

    Parameters
    ----------
    progress
        Called with the share that is done, 0 to 1, and what is at its turn.

    Raises
    ------
    UsageError
        If there are too few episodes, or one outcome alone.
    """
    found = []
    ways = ("trivial", *TRIVIAL, *options.features)
    whole = len(SPLITS) * len(MODELS) * len(ways)
    for at, split in enumerate(SPLITS):
        if split == "tasks" and len(np.unique(evidence.task)) < 2:
            continue
        folds = make_folds(evidence, split, options.folds, options.seed)
        try:
            check_folds(evidence, folds, options.alpha)
        except UsageError:
            if split == "episodes":
                raise
            continue  # too few beside a whole task: said by its absence from the results
        ranking = Ranking(evidence, folds)
        weights = ranking.resampled(options.bootstraps, options.seed)
        for number, model in enumerate(MODELS):
            trivial: Float | None = None
            for place, features in enumerate(ways):
                done = (at * len(MODELS) + number) * len(ways) + place
                progress(done / whole, f"unseen {split}, {model}, {features}")
                one, drawn = _one(
                    evidence, options, split, model, features, folds, ranking, weights, trivial
                )
                if features == "trivial":
                    trivial = np.concatenate([one.areas[None], drawn])
                found.append(one)
    return found


def _one(
    evidence: Evidence, options: FailureOptions, split: Split, model: Model, features: str,
    folds: Sequence[Fold], ranking: Ranking, weights: Float, trivial: Float | None,
) -> tuple[Prediction, Float]:  # fmt: skip
    rows = len(evidence.of)
    projected = [Projection(evidence, features, model, fold) for fold in folds]
    scores, band, fold_of = np.empty(rows), np.empty(rows), np.empty(rows, np.intp)
    for number, (fold, projection) in enumerate(zip(folds, projected, strict=True)):
        every = projection.scores(evidence, evidence.failed)
        upper = upper_band(evidence, every, fold, options.alpha)
        own = fold.test[evidence.of]
        scores[own], band[own], fold_of[own] = every[own], upper[evidence.moment[own]], number
    areas = ranking.areas(scores)
    drawn = ranking.areas(scores, weights)
    low, high = _interval(drawn)
    nothing = np.full(len(areas), np.nan)
    shuffled, p, gain, gain_low, gain_high = (nothing.copy() for _ in range(5))
    if features not in BASELINES:
        assert trivial is not None
        gain = areas - trivial[0]
        gain_low, gain_high = _interval(drawn - trivial[1:])
        if options.shuffles:
            shuffled, p = _control(evidence, options, folds, projected, areas)
    return Prediction(
        split, features, model, fold_of, scores, band, areas, low, high, shuffled, p, gain, gain_low,
        gain_high, ranking.counts,
    ), drawn  # fmt: skip


def _interval(drawn: Float) -> tuple[Float, Float]:
    """Percentiles over the first axis; NaN where nothing is."""
    low, high = np.full(drawn.shape[1], np.nan), np.full(drawn.shape[1], np.nan)
    known = np.isfinite(drawn).any(0)
    if len(drawn) and known.any():
        tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        low[known], high[known] = np.nanquantile(drawn[:, known], tails, axis=0)
    return low, high


def _control(
    evidence: Evidence, options: FailureOptions, folds: Sequence[Fold],
    projected: Sequence[Projection], areas: Float,
) -> tuple[Float, Float]:  # fmt: skip
    """The same with outcomes shuffled among episodes: mean area, and p corrected over calls."""
    rng = np.random.default_rng([options.seed, 1])
    found = np.empty((options.shuffles, len(areas)))
    for number in range(options.shuffles):
        failed = evidence.failed.copy()
        for stratum in np.unique(evidence.stratum):
            alike = np.flatnonzero(evidence.stratum == stratum)
            failed[alike] = rng.permutation(failed[alike])
        scores = np.empty(len(evidence.of))
        for fold, projection in zip(folds, projected, strict=True):
            own = fold.test[evidence.of]
            scores[own] = projection.scores(evidence, failed)[own]
        found[number] = Ranking(evidence, folds, failed).areas(scores)
    # The whole has a family of its own: it is one number.
    most = np.nanmax(found[:, :-1], 1)
    p = np.array(
        [
            np.nan if np.isnan(area) else (1 + (most >= area).sum()) / (options.shuffles + 1)
            for area in areas
        ]
    )
    p[-1] = (1 + (found[:, -1] >= areas[-1]).sum()) / (options.shuffles + 1)
    known = np.isfinite(found)
    total = np.where(known, found, 0).sum(0)
    mean = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
    return mean, p


def score_rows(
    evidence: Evidence, predictions: Sequence[Prediction], options: FailureOptions, episode: int
) -> list[dict[str, Any]]:
    """Rows of ``failure_scores`` of one episode, without its ids and frames."""
    rows = np.flatnonzero(evidence.of == episode)
    return [
        {
            "keyframe": int(evidence.moment[row]),
            **_what(each, options),
            "elapsed": float(evidence.elapsed[row]),
            "fold": int(each.fold[row]),
            "score": float(each.scores[row]),
            "band": _known(each.band[row]),
            "alarm": bool(each.alarm[row]),
            "alpha": options.alpha,
        }
        for each in predictions
        for row in rows
    ]


def result_rows(
    evidence: Evidence, predictions: Sequence[Prediction], options: FailureOptions
) -> list[dict[str, Any]]:
    """Rows of ``failure_results``, without ids."""
    moments = int(evidence.moment.max()) + 1
    elapsed = [float(np.median(evidence.elapsed[evidence.moment == m])) for m in range(moments)]
    found = []
    for each in predictions:
        for moment in (*range(moments), None):
            at = moments if moment is None else moment
            found.append(
                {
                    **_what(each, options),
                    "strata": options.strata,
                    "moment": moment,
                    "elapsed": None if moment is None else elapsed[moment],
                    "unit": evidence.unit,
                    "failures": None if moment is None else int(each.counts[0, moment]),
                    "successes": None if moment is None else int(each.counts[1, moment]),
                    "auroc": _known(each.areas[at]),
                    **{
                        name: _known(getattr(each, name)[at])
                        for name in (
                            "low",
                            "high",
                            "shuffled",
                            "p",
                            "gain",
                            "gain_low",
                            "gain_high",
                        )
                    },
                }
            )
    return found


def alarm_rows(
    evidence: Evidence, predictions: Sequence[Prediction], options: FailureOptions
) -> list[dict[str, Any]]:
    """Rows of ``failure_alarms``, without ids."""
    ends = np.flatnonzero(np.diff(evidence.of, append=-1) != 0)
    found = []
    for each in predictions:
        raised, first = first_alarm(evidence, each.alarm)
        caught = raised & evidence.failed
        at = evidence.elapsed[first[caught].astype(np.intp)]
        left = evidence.elapsed[ends[caught]] - at
        found.append(
            {
                **_what(each, options),
                "alpha": options.alpha,
                "successes": int((~evidence.failed).sum()),
                "false_alarms": int((raised & ~evidence.failed).sum()),
                "failures": int(evidence.failed.sum()),
                "detected": int(caught.sum()),
                "at": float(np.median(at)) if len(at) else None,
                "before_end": float(np.median(left)) if len(left) else None,
                "unit": evidence.unit,
            }
        )
    return found


def _what(each: Prediction, options: FailureOptions) -> Mapping[str, str]:
    return {
        "split": each.split, "features": each.features, "model": each.model,
        "weighting": options.weighting,
    }  # fmt: skip


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

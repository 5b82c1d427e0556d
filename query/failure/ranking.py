"""How well scores rank failures above successes, by elapsed time; with intervals over episodes.

At a call only episodes that were still running are compared, so that the time alone, which ranks the
long ones behind the short ones, says nothing. And only episodes that one fold tested: scores of two
models have no common scale, and pooling folds puts a null below one half, because a fold with more
failures left fewer to learn from. And only of one stratum, where there are several: another world, or
another robot, is not foresight.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from .evidence import Bool, Evidence, Float
from .predictor import Fold

FEWEST = 5
"""Episodes of each outcome that are still running, at least, for a number at a call."""


class Ranking:
    """Area under the receiver operating characteristic at each call, and over all calls together.

    Parameters
    ----------
    evidence, folds
        What was scored, and which episodes each fold tested.
    failed
        (episode,), if not the evidence's own: of a shuffled control.
    """

    def __init__(
        self, evidence: Evidence, folds: Sequence[Fold], failed: Bool | None = None
    ) -> None:
        self.failed = evidence.failed if failed is None else failed
        self.moments = int(evidence.moment.max()) + 1
        self._rows = []
        rows = np.full((len(self.failed), self.moments), -1, np.intp)
        rows[evidence.of, evidence.moment] = np.arange(len(evidence.of))
        for fold, stratum in product(folds, np.unique(evidence.stratum)):
            within = fold.test & (evidence.stratum == stratum)
            bad, good = (np.flatnonzero(within & (self.failed == o)) for o in (True, False))
            self._rows.append((bad, good, rows[bad], rows[good]))
        self.counts = np.array(
            [
                sum((rows >= 0).sum(0) for _, _, rows, _ in self._rows),
                sum((rows >= 0).sum(0) for _, _, _, rows in self._rows),
            ]
        )
        """(failures and successes, moment) that were still running."""

    def areas(self, scores: Float, weights: Float | None = None) -> Float:
        """Areas of scores, (moment + 1,), or of every weighting, (weighting, moment + 1).

        Parameters
        ----------
        scores
            (row,).
        weights
            How often each episode counts, (weighting, episode); once if there are none.

        Returns
        -------
        The last one is over all calls together. NaN where fewer than `FEWEST` of an outcome are left.
        """
        each = np.ones((1, len(self.failed))) if weights is None else weights
        won = np.zeros((len(each), self.moments))
        pairs = np.zeros((len(each), self.moments))
        for bad, good, bad_rows, good_rows in self._rows:
            for moment in range(self.moments):
                b, g = bad_rows[:, moment], good_rows[:, moment]
                b_in, g_in = b >= 0, g >= 0
                if not b_in.any() or not g_in.any():
                    continue
                x, y = scores[b[b_in]][:, None], scores[g[g_in]][None]
                better = (x > y) + 0.5 * (x == y)
                wb, wg = each[:, bad[b_in]], each[:, good[g_in]]
                won[:, moment] += np.einsum("wb,bg,wg->w", wb, better, wg, optimize=True)
                pairs[:, moment] += wb.sum(1) * wg.sum(1)
        enough = (self.counts >= FEWEST).all(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.where(enough, won / pairs, np.nan)
            whole = won[:, enough].sum(1) / pairs[:, enough].sum(1)
        areas = np.concatenate([found, whole[:, None]], 1)
        return np.asarray(areas[0] if weights is None else areas)

    def resampled(self, count: int, seed: int) -> Float:
        """Weights of bootstrap samples, (sample, episode): of each fold, stratum, outcome as many as there are."""
        rng = np.random.default_rng(seed)
        weights = np.zeros((count, len(self.failed)))
        for bad, good, _, _ in self._rows:
            for own in (bad, good):
                if len(own):
                    weights[:, own] = rng.multinomial(
                        len(own), np.full(len(own), 1 / len(own)), count
                    )
        return weights

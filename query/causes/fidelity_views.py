"""What fidelity depends on: the view that was masked, and whether direction or length gives way.

The tables that are otherwise written by hand below a fidelity plot, with intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..statistics import Estimate, Float, clustered_interval, mean_of_episodes
from .fidelity import FidelityPairs

SIMULTANEOUS = 400
"""Bootstrap samples per test beyond each end of a simultaneous interval's tails, times two."""


@dataclass(frozen=True, slots=True)
class BestLayer:
    """The layer with the largest fidelity of one part and view."""

    pairs: FidelityPairs
    fidelity: Estimate
    """With the interval of this layer alone, as if it had not been chosen."""
    among: int
    """Layers and views of the part: from so many it is the largest."""
    low: float
    high: float
    """Ends of the interval that holds for all of these at once (Bonferroni)."""


@dataclass(frozen=True, slots=True)
class ViewDifference:
    """Fidelity of one layer where only one camera is masked, minus where only another is."""

    part: str
    phase: str
    layer: int
    first: str
    second: str
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Direction:
    """How the masked action differs from the base's: by its direction, or by its length.

    With a the base's chunk and b the masked one's, ``|b - a|² / |a|²`` is ``1 + s² - 2 s c`` for
    scale s and cosine c. ``si_mse`` is what is left of it at the best length, hence the direction's
    part; the rest is the length's.
    """

    pairs: FidelityPairs
    scale: Estimate
    """Of the masked map: above 1 the action is longer than the base's."""
    direction: Estimate
    """``si_mse`` of the masked map."""
    length: Estimate
    """Its ``|b - a|² / |a|²`` minus ``si_mse``."""
    share: float
    """Direction's part of the sum of both means; NaN if the action does not change."""


def best_layers(
    pairs: Sequence[FidelityPairs], metric: int, *, level: float = 0.95, seed: int = 0
) -> list[BestLayer]:
    """Find the layer with the largest fidelity of every part and view.

    Parameters
    ----------
    metric
        Index of the metric among those that the pairs were read with.
    """
    found = []
    for part in dict.fromkeys(p.part for p in pairs):
        of_part = [p for p in pairs if p.part == part]
        for cameras in dict.fromkeys(p.cameras for p in of_part):
            view = [p for p in of_part if p.cameras == cameras]
            best = max(view, key=lambda p: _mean(p.difference[:, metric], p.episodes))
            tail = (1 - level) / len(of_part)
            low, high = clustered_interval(
                best.difference[:, [metric]],
                best.episodes,
                bootstraps=max(2000, round(SIMULTANEOUS / 10 / tail)),
                level=1 - tail,
                seed=seed,
            )
            alone = _estimate(best.difference[:, metric], best.episodes, level=level, seed=seed)
            found.append(BestLayer(best, alone, len(of_part), float(low[0]), float(high[0])))
    return found


def view_differences(
    pairs: Sequence[FidelityPairs], metric: int, *, level: float = 0.95, seed: int = 0
) -> list[ViewDifference]:
    """Compare views of one camera each, layer by layer, keyframe by keyframe."""
    found = []
    single = [p for p in pairs if "+" not in p.cameras]
    for part, phase in dict.fromkeys((p.part, p.phase) for p in single):
        own = [p for p in single if (p.part, p.phase) == (part, phase)]
        views = list(dict.fromkeys(p.cameras for p in own))
        by = {(p.cameras, p.layer): p for p in own}
        for i, first in enumerate(views):
            for second in views[i + 1 :]:
                for layer in sorted({p.layer for p in own}):
                    a, b = by.get((first, layer)), by.get((second, layer))
                    if a is None or b is None:
                        continue
                    values, names = _matched(a, b, metric)
                    if len(values):
                        difference = _estimate(values, names, level=level, seed=seed)
                        found.append(ViewDifference(part, phase, layer, first, second, difference))
    return found


def directions(
    pairs: Sequence[FidelityPairs],
    metrics: Sequence[str],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> list[Direction]:
    """Split the effect of the masked maps into direction and length.

    Parameters
    ----------
    metrics
        That the pairs were read with; ``si_mse``, ``scale`` and ``cosine`` among them.
    """
    found = []
    for each in pairs:
        si_mse, scale, cosine = (
            each.attention[:, 1 + list(metrics).index(name)]
            for name in ("si_mse", "scale", "cosine")
        )
        # Where nothing is left of the action there is no cosine, and all of it is gone.
        whole = 1 + scale**2 - 2 * scale * np.where(scale > 0, cosine, 0.0)
        columns = np.stack([si_mse, np.maximum(whole - si_mse, 0.0), scale], 1)
        direction, length, scales = _estimates(columns, each.episodes, level=level, seed=seed)
        total = direction.value + length.value
        share = direction.value / total if total > 0 else np.nan
        found.append(Direction(each, scales, direction, length, float(share)))
    return found


def _matched(a: FidelityPairs, b: FidelityPairs, metric: int) -> tuple[Float, NDArray[np.str_]]:
    """Differences at the keyframes that both have, and their episodes."""
    other = {
        (episode, keyframe): value
        for episode, keyframe, value in zip(
            b.episodes, b.keyframes, b.difference[:, metric], strict=True
        )
    }
    rows = [
        (value - other[episode, keyframe], episode)
        for episode, keyframe, value in zip(
            a.episodes, a.keyframes, a.difference[:, metric], strict=True
        )
        if (episode, keyframe) in other
    ]
    return np.array([r[0] for r in rows], np.float64), np.array([r[1] for r in rows], np.str_)


def _mean(values: Float, episodes: NDArray[np.str_]) -> float:
    return float(np.nan_to_num(mean_of_episodes(values[:, None], episodes)[0], nan=-np.inf))


def _estimate(values: Float, episodes: NDArray[np.str_], *, level: float, seed: int) -> Estimate:
    return _estimates(values[:, None], episodes, level=level, seed=seed)[0]


def _estimates(
    values: Float, episodes: NDArray[np.str_], *, level: float, seed: int
) -> list[Estimate]:
    """As `attnstore.query.causes.fidelity` does: also of few episodes, of which the interval then is.

    Parameters
    ----------
    values
        (keyframe, test).
    """
    low, high = clustered_interval(values, episodes, level=level, seed=seed)
    mean, count = mean_of_episodes(values, episodes), len(np.unique(episodes))
    rows = zip(mean.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Estimate(value, a, b, count) for value, a, b in rows]

"""Which heads are active: the variance of their maps, and how reliably they are their layer's first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .chosen import Chosen
from .store import Store

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ActiveHeads:
    """One phase and camera."""

    phase: str
    query_group: str
    camera: str
    variance: Float
    """(layer, head), mean over episodes of the mean over keyframes; NaN where there is none."""
    first: NDArray[np.intp]
    """(layer, head), episodes in which the head has the layer's largest variance."""
    episodes: int


def active_heads(store: Store, chosen: Chosen) -> list[ActiveHeads]:
    """Rank the heads of every layer by the variance of their raw maps, at the last step (of decode: the first).

    Variance grows with the square of the camera's share of attention: it ranks heads within a
    camera, and does not compare cameras.
    """
    rows = store.sql(f"""
WITH mine AS (FROM episode_stats WHERE {chosen.condition} AND variant = 'base'),
     last AS (SELECT phase, if(phase = 'decode', min(step), max(step)) AS step FROM mine GROUP BY phase)
SELECT phase, query_group, camera, episode, layer, head, variance_mean
FROM mine JOIN last USING (phase) WHERE mine.step IS NOT DISTINCT FROM last.step
ORDER BY ALL""").fetchall()
    found = []
    for key in dict.fromkeys(row[:3] for row in rows):
        own = [row[3:] for row in rows if row[:3] == key]
        names = {name: i for i, name in enumerate(dict.fromkeys(row[0] for row in own))}
        layers, heads = (1 + max(row[i] for row in own) for i in (1, 2))
        variance = np.full((len(names), layers, heads), np.nan)
        for name, layer, head, value in own:
            if value is not None:
                variance[names[name], layer, head] = value
        known = np.isfinite(variance)
        total = np.where(known, variance, 0.0).sum(0)
        count = known.sum(0)
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        first = np.zeros((layers, heads), np.intp)
        for episode in np.where(known, variance, -1.0):
            for layer, head in enumerate(episode.argmax(-1)):
                first[layer, head] += bool(episode[layer, head] >= 0)
        phase, group, camera = key
        found.append(ActiveHeads(phase, group, camera, mean, first, len(names)))
    return found

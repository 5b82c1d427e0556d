"""Which heads are active: the variance of their mean maps, and in how many episodes they come first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnstore.store import rules
from attnstore.store.format.weighting import Weighting, check_weighting
from attnstore.store.rules import VARIANCES, Active

from ..sql.chosen import Chosen
from ..sql.store import Store

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ActiveHeads:
    """One phase and camera."""

    phase: str
    query_group: str
    camera: str
    variance: Float
    """(layer, head), mean over episodes of the mean over keyframes; NaN where there is none."""
    active: NDArray[np.intp]
    """(layer,), the head of the largest variance; `NO_HEAD` where there is none."""
    first: NDArray[np.intp]
    """(layer, head), episodes in which the head has the layer's largest variance."""
    episodes: int


def active_heads(
    store: Store, chosen: Chosen, *, active: Active = "image", weighting: Weighting = "raw"
) -> list[ActiveHeads]:
    """Rank the heads of every layer by the variance of their mean maps, at the step that stands.

    Variance grows with the square of the camera's share of attention: it ranks heads within a
    camera, and does not compare cameras.

    Parameters
    ----------
    active
        See `attnstore.store.rules.Active`.
    weighting
        See `attnstore.store.format.weighting`.

    Raises
    ------
    SelectionError
        If there is no such weighting.
    """
    check_weighting(weighting)
    rows = store.sql(f"""
SELECT phase, query_group, camera, episode, layer, head, {VARIANCES[active]}_mean
FROM episode_stats
WHERE {chosen.condition} AND variant = 'base' AND weighting = '{weighting}'
      AND stands_for_phase(run, phase, step)
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
        count = known.sum(0)
        total = np.where(known, variance, 0.0).sum(0)
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        first = np.stack(
            [(rules.active_heads(variance) == head).sum(0) for head in range(heads)], -1
        )
        phase, group, camera = key
        best = rules.active_heads(mean)
        found.append(ActiveHeads(phase, group, camera, mean, best, first, len(names)))
    return found

"""Deletion and insertion curves of maps against random order, with the areas under them.

RISE (Petsiuk et al. 2018), with a metric of the action in the place of a class's probability. The
metric is a distance from the base's action: deletion starts at 0 and rises, insertion falls to 0.
So a map whose order is better than chance has the *larger* area under deletion and the *smaller*
one under insertion; ``gain`` is positive in both cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnstore.store.errors import UsageError
from attnstore.store.format.action_metrics import curve_area
from attnstore.store.tables.probes import ACTION_METRICS

from ..sql.chosen import Chosen
from ..sql.store import Store
from ..statistics import Estimate, Float, estimate, mean_of_episodes


@dataclass(frozen=True, slots=True, eq=False)
class CurvePair:
    """One layer's curve in the order of its map, and in random order."""

    part: str
    phase: str
    layer: int
    cameras: str
    curve: str
    """``deletion`` or ``insertion``."""
    fraction: Float
    """(point,) 0..1."""
    attention: Float
    control: Float
    """(point,) metric, mean over episodes."""
    attention_area: float
    control_area: float
    """Areas under the two, mean over episodes."""
    gain: Estimate
    """Of the map over random order, keyframe by keyframe: positive if the map's is better."""
    keyframes: int


def curve_pairs(store: Store, chosen: Chosen, metric: str = "si_mse") -> list[CurvePair]:
    """Read curves and their areas; empty if none was probed.

    Parameters
    ----------
    metric
        ``mse`` or ``si_mse``: a distance from the base's action.
    """
    if metric not in ("mse", "si_mse"):
        known = ", ".join(ACTION_METRICS)
        raise UsageError(
            f"an area is of mse or si_mse, which are distances (of {known}); got {metric!r}"
        )
    return pairs_of(store.sql(curves_sql(chosen.condition, metric)).fetchall())


def curves_sql(condition: str, metric: str = "si_mse") -> str:
    """Return the SQL of what `pairs_of` takes: a row for each curve of each keyframe."""
    return f"""
SELECT part, phase, layer, array_to_string(cameras, '+') AS cameras, curve, target, episode, keyframe,
       list(fraction ORDER BY fraction) AS fraction, list(value ORDER BY fraction) AS value
FROM (SELECT part, phase, layer, cameras, curve, target, episode, keyframe, fraction::DOUBLE AS fraction,
             avg({metric}) AS value
      FROM intervention_curves WHERE {condition} GROUP BY ALL)
GROUP BY ALL ORDER BY ALL"""


def pairs_of(rows: Iterable[Sequence[Any]]) -> list[CurvePair]:
    """Pair the curves of `curves_sql`: a map's order and random order, where a keyframe has both."""
    groups: dict[tuple[str, str, int, str, str], dict[str, dict[tuple[str, int], Float]]] = {}
    for row in rows:
        target, episode, keyframe, fraction, value = row[5:]
        curve = np.array([fraction, [np.nan if v is None else v for v in value]], np.float64)
        key = (row[0], row[1], row[2], row[3], row[4])
        whole = groups.setdefault(key, {"attention": {}, "control": {}})
        whole[target][episode, keyframe] = curve
    found = []
    for key, both in groups.items():
        shared = sorted(set(both["attention"]) & set(both["control"]))
        if shared:
            found.append(_pair(key, shared, both))
    return found


def _pair(
    key: tuple[str, str, int, str, str],
    keyframes: list[tuple[str, int]],
    both: dict[str, dict[tuple[str, int], Float]],
) -> CurvePair:
    names = np.array([episode for episode, _ in keyframes])
    fraction = both["attention"][keyframes[0]][0]
    # float32 in the store: 0.1 is not 0.1, but 0 and 1 are what they are
    curves = {t: np.stack([both[t][at][1] for at in keyframes]) for t in ("attention", "control")}
    areas = {t: curve_area(fraction, values) for t, values in curves.items()}
    sign = 1.0 if key[4] == "deletion" else -1.0
    return CurvePair(
        *key,
        fraction=fraction,
        attention=mean_of_episodes(curves["attention"], names),
        control=mean_of_episodes(curves["control"], names),
        attention_area=estimate(areas["attention"], names, bootstraps=0).value,
        control_area=estimate(areas["control"], names, bootstraps=0).value,
        gain=estimate(sign * (areas["attention"] - areas["control"]), names),
        keyframes=len(keyframes),
    )

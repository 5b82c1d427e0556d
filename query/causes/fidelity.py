"""Mask fidelity of layers, with intervals, from the rows of ``attnstore probe fidelity``.

The fidelity of a layer is the metric of the masked top of its map minus that of the control, mean
over repeats of both, at each keyframe. Positive for ``mse`` and ``si_mse`` (negative for
``cosine``): the action depends more on what the layer looks at than on as much elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnstore.store.catalog.rows import quoted
from attnstore.store.errors import NotFoundError, SelectionError
from attnstore.store.tables.probes import ACTION_METRICS

from ..sql.store import Store
from ..statistics import clustered_interval, mean_of_episodes

Float = NDArray[np.float64]
Key = tuple[str, str, int | None, str, str, int, str]
"""(part, phase, step, query group, cameras, layer, heads)"""


@dataclass(frozen=True, slots=True)
class LayerFidelity:
    """One layer's maps against their controls, by one metric."""

    part: str
    phase: str
    step: int | None
    query_group: str
    cameras: str
    """Changed at once, joined by ``+``."""
    layer: int
    heads: str
    metric: str
    attention: float
    """Metric of the masked top of the map, mean over episodes."""
    control: float
    """Metric of the control."""
    fidelity: float
    """The first minus the second."""
    low: float
    high: float
    """Ends of the interval of `fidelity`; NaN for a single keyframe."""
    attention_change: float
    control_change: float
    """Mean absolute change of the replaced pixels, 0..255: both must have changed something."""
    episodes: int
    keyframes: int


@dataclass(frozen=True, slots=True, eq=False)
class FidelityPairs:
    """One layer's masked maps and their controls, keyframe by keyframe."""

    part: str
    phase: str
    step: int | None
    query_group: str
    cameras: str
    layer: int
    heads: str
    episodes: NDArray[np.str_]
    """(keyframe,) run and episode of each."""
    keyframes: NDArray[np.intp]
    """(keyframe,)"""
    attention: Float
    """(keyframe, 1 + metric): mean pixel change, then each metric; mean over repeats."""
    control: Float

    @property
    def difference(self) -> Float:
        """(keyframe, metric) of the masked map minus the control."""
        return self.attention[:, 1:] - self.control[:, 1:]


def fidelity_pairs(
    store: Store,
    *,
    run: str | None = None,
    episodes: Sequence[str] | None = None,
    metrics: Sequence[str] = tuple(ACTION_METRICS),
) -> list[FidelityPairs]:
    """Read every keyframe that has both a masked map and its control.

    Parameters
    ----------
    run, episodes
        Only this run; only these episodes' ids.
    metrics
        Of `attnstore.store.tables.probes.ACTION_METRICS`.

    Raises
    ------
    NotFoundError
        If no fidelity was probed.
    SelectionError
        If it was in several runs, and none is named.
    """
    where = "" if run is None else f" and run = {quoted(run)}"
    if episodes is not None:
        where += f" and episode in ({', '.join(map(quoted, episodes)) or 'NULL'})"
    columns = ", ".join(f"avg({m})" for m in metrics)
    rows = store.sql(f"""
select part, phase, step, query_group, array_to_string(cameras, '+'), layer, heads, target,
       run || '/' || episode, keyframe, avg(pixel_change), {columns}
from interventions where probe = 'fidelity' and target in ('attention', 'control'){where}
group by all order by all""").fetchall()
    if not rows:
        raise NotFoundError(
            f"{store.paths.name} has no mask fidelity; `attnstore probe fidelity` makes it"
        )
    if run is None and len(runs := sorted({row[8].partition("/")[0] for row in rows})) > 1:
        # Equal options make equally named parts: layers of different policies would be mixed.
        raise SelectionError(f"mask fidelity is of several runs; name one: {', '.join(runs)}")
    pairs: dict[Key, dict[tuple[str, int], dict[str, Sequence[float]]]] = {}
    for row in rows:
        place = pairs.setdefault(tuple(row[:7]), {}).setdefault((row[8], row[9]), {})
        place[row[7]] = [np.nan if v is None else float(v) for v in row[10:]]
    found = []
    for key, keyframes in pairs.items():
        both = {at: v for at, v in keyframes.items() if len(v) == 2}
        if both:
            found.append(
                FidelityPairs(
                    *key,
                    np.array([episode for episode, _ in both]),
                    np.array([keyframe for _, keyframe in both], np.intp),
                    np.array([v["attention"] for v in both.values()]),
                    np.array([v["control"] for v in both.values()]),
                )
            )
    return found


def layer_fidelity(
    store: Store,
    *,
    run: str | None = None,
    episodes: Sequence[str] | None = None,
    metrics: Sequence[str] = tuple(ACTION_METRICS),
    bootstraps: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[LayerFidelity]:
    """Fidelity of every layer that was probed, each episode counting the same.

    Parameters
    ----------
    run, episodes
        Only this run; only these episodes' ids.
    metrics
        Of `attnstore.store.tables.probes.ACTION_METRICS`.
    level
        Of the intervals; see `clustered_interval`.

    Raises
    ------
    NotFoundError
        If no fidelity was probed.
    SelectionError
        If it was in several runs, and none is named.
    """
    found = fidelity_pairs(store, run=run, episodes=episodes, metrics=metrics)
    return [each for pairs in found for each in _layer(pairs, metrics, bootstraps, level, seed)]


def _layer(
    pairs: FidelityPairs, metrics: Sequence[str], bootstraps: int, level: float, seed: int
) -> list[LayerFidelity]:
    names = pairs.episodes
    low, high = clustered_interval(
        pairs.difference, names, bootstraps=bootstraps, level=level, seed=seed
    )
    a, c = (mean_of_episodes(values, names) for values in (pairs.attention, pairs.control))
    d = mean_of_episodes(pairs.difference, names)
    return [
        LayerFidelity(
            pairs.part, pairs.phase, pairs.step, pairs.query_group, pairs.cameras, pairs.layer,
            pairs.heads, metric, float(a[i + 1]), float(c[i + 1]), float(d[i]), float(low[i]),
            float(high[i]), float(a[0]), float(c[0]), len(np.unique(names)), len(names),
        )
        for i, metric in enumerate(metrics)
    ]  # fmt: skip

"""What interventions did to the action, with intervals: regions, prompts, knock-out, base."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attnstore.store.tables.probes import ACTION_METRICS

from ..sql.chosen import Chosen
from ..sql.store import Store
from ..statistics import Estimate, estimate


@dataclass(frozen=True, slots=True)
class Effect:
    """One intervention of one part, over episodes."""

    part: str
    probe: str
    target: str
    detail: str
    """Which one; empty if there is one only."""
    cameras: str
    """Changed at once, joined by ``+``; empty if none was."""
    layer: int | None
    area: float | None
    """Share of the changed images' seen pixels that was replaced, mean."""
    pixel_change: float | None
    """Mean absolute change of the replaced pixels, 0..255."""
    metrics: dict[str, Estimate]
    """By name in `attnstore.store.tables.probes.ACTION_METRICS`."""
    keyframes: int


def effects(store: Store, chosen: Chosen, *, probes: tuple[str, ...] = ()) -> list[Effect]:
    """Average what every intervention did, of all probes but fidelity or of those that are named.

    A keyframe counts with the mean over its repeats. Rows with target ``base`` are the policy run
    again on what is stored: how close the probe came to the ingest.

    Returns
    -------
    In order of part, target, cameras and size of ``si_mse``.
    """
    wanted = f"probe IN ({', '.join(repr(p) for p in probes)})" if probes else "probe <> 'fidelity'"
    columns = ", ".join(f"avg({m})" for m in ACTION_METRICS)
    rows = store.sql(f"""
SELECT part, probe, target, coalesce(detail, ''), coalesce(array_to_string(cameras, '+'), ''), layer,
       episode, keyframe, avg(area), avg(pixel_change), {columns}
FROM interventions WHERE {chosen.condition} AND {wanted}
GROUP BY ALL ORDER BY ALL""").fetchall()
    groups: dict[tuple[str, str, str, str, str, int | None], list[tuple[object, ...]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[:6]), []).append(row[6:])
    found = []
    for key, own in groups.items():
        names = np.array([str(row[0]) for row in own])
        table = np.array([[np.nan if v is None else v for v in row[2:]] for row in own], np.float64)
        metrics = {name: estimate(table[:, 2 + i], names) for i, name in enumerate(ACTION_METRICS)}
        area, change = (_mean(table[:, i]) for i in (0, 1))
        found.append(Effect(*key, area, change, metrics, len(own)))
    found.sort(
        key=lambda e: (
            e.probe, e.part, e.target, e.cameras, -np.nan_to_num(e.metrics["si_mse"].value),
            e.detail, -1 if e.layer is None else e.layer,
        )
    )  # fmt: skip
    return found


def _mean(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None

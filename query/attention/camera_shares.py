"""Where each layer looks: attention per camera, its letterbox, and how sharply; with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attnstore.store.format.weighting import Weighting, check_weighting

from ..sql.chosen import Chosen
from ..sql.store import Store
from ..statistics import Estimate, estimate


@dataclass(frozen=True, slots=True)
class CameraShare:
    """One layer and camera: mean over heads, keyframes, then episodes; of the last step."""

    phase: str
    query_group: str
    layer: int
    camera: str
    image: Estimate
    """Share of the query group's attention on what the camera shows."""
    letterbox: Estimate
    """Share on its padding."""
    entropy: Estimate
    """Of the map over the camera's patches, mean over heads: 1 is even."""


def camera_shares(
    store: Store, chosen: Chosen, *, weighting: Weighting = "raw"
) -> list[CameraShare]:
    """Measure the attention of every layer on every camera, from ``episode_stats``.

    At the step that stands for the phase (`attnstore.store.rules`). In order of phase, query group, camera, layer.

    Parameters
    ----------
    weighting
        See `attnstore.store.format.weighting`.

    Raises
    ------
    SelectionError
        If there is no such weighting.
    """
    check_weighting(weighting)
    rows = store.sql(f"""
SELECT phase, query_group, camera, layer, episode, avg(camera_mass_mean), avg(letterbox_mass_mean),
       avg(entropy_mean)
FROM episode_stats
WHERE {chosen.condition} AND variant = 'base' AND weighting = '{weighting}'
      AND stands_for_phase(run, phase, step)
GROUP BY ALL ORDER BY ALL""").fetchall()
    found = []
    for key in dict.fromkeys(row[:4] for row in rows):
        own = [row[4:] for row in rows if row[:4] == key]
        names = np.array([row[0] for row in own])
        image, letterbox, entropy = (
            estimate([np.nan if row[i] is None else float(row[i]) for row in own], names)
            for i in (1, 2, 3)
        )
        phase, group, camera, layer = key
        found.append(CameraShare(phase, group, layer, camera, image, letterbox, entropy))
    return found

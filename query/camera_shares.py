"""Where each layer looks: attention per camera, its letterbox, and how sharply; with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .chosen import Chosen
from .estimate import Estimate, estimate
from .store import Store


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


def camera_shares(store: Store, chosen: Chosen) -> list[CameraShare]:
    """Measure the attention of every layer on every camera, from ``episode_stats``.

    Of a phase with steps it is the last step, of decode the first token that is generated, which
    every keyframe has. In order of phase, query group, camera, layer.
    """
    rows = store.sql(f"""
WITH mine AS (FROM episode_stats WHERE {chosen.condition} AND variant = 'base'),
     last AS (SELECT phase, if(phase = 'decode', min(step), max(step)) AS step FROM mine GROUP BY phase)
SELECT phase, query_group, camera, layer, episode, avg(camera_mass_mean), avg(letterbox_mass_mean),
       avg(entropy_mean)
FROM mine JOIN last USING (phase) WHERE mine.step IS NOT DISTINCT FROM last.step
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

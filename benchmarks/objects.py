"""Object overlap of an episode from its store: every layer, head, reduction and step.

The mask is the gripper's, which every keyframe has: its projection is part of the time.
"""

from __future__ import annotations

from functools import partial

import attnstore
from attnstore.query.objects.options import TIERS, ObjectOptions
from attnstore.query.objects.part import add_objects
from attnstore.store.commits import StorePaths

from .measure import Figure, Setting, Times
from .replay import SampleFrames, ingest_store, shape_of
from .sample import sample_path
from .slices import KEYFRAMES


def run(setting: Setting) -> list[Figure]:
    count = 3 if setting.toy else KEYFRAMES
    path = ingest_store(setting.directory, count, **shape_of(setting.toy))
    paths, episode = StorePaths(path), attnstore.open(path).episode(SampleFrames.episode)
    figures = []
    for tier in TIERS:
        options = ObjectOptions("gripper", tier=tier)
        add = partial(add_objects, paths, episode, sample_path() / episode.name, options, redo=True)
        times = Times()
        for _ in range(setting.repeats(3)):
            added = times.add(add)
        keyframes = int(added.commit.summary["keyframes"])
        note = f"{added.rows // keyframes} rows a keyframe; read, computed, committed"
        figures += [
            Figure(f"{tier}: a keyframe", 1e3 * times.wall_median / keyframes, "ms", note=note),
            Figure(f"{tier}: a keyframe, CPU", 1e3 * times.cpu_median / keyframes, "ms"),
        ]
    return figures

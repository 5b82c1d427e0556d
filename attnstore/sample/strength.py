"""How sure it is that the sample's policy looks at what the instruction names, computed from a store.

The heads were chosen on other episodes than the sample's (docs/findings.md), so that these numbers
are not those that they were chosen for. The untrained policy's head is chosen on the very episodes
that it is measured on, which flatters it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from attnstore.query import Store

from .looking import AGAINST, Question, look, mean_interval, read_scenes, same_scenes

WRIST, SIDE = "hand_camera", "varied_camera_1"
HEADS: Mapping[Question, tuple[int, int]] = {
    Question("cube word", "cube", WRIST): (0, 4),
    Question("bowl word", "bowl", WRIST): (0, 6),
    Question("action", "cube", WRIST): (0, 0),
    Question("cube word", "cube", SIDE): (0, 5),
    Question("bowl word", "bowl", SIDE): (0, 1),
    Question("action", "cube", SIDE): (0, 5),
}
"""Layer and head, by what they were found to look at."""


@dataclass(frozen=True, slots=True)
class Strength:
    """One question's answer; every triple is a mean over episodes with its 95 % interval."""

    question: Question
    head: tuple[int, int]
    lift: Mapping[str, list[float]]
    """By `looking.AGAINST`: on the named object, on the other of its kind, on a shuffled mask."""
    hit: list[float]
    """Share of keyframes whose largest value points at the named object."""
    untrained: list[float]
    """Lift on the named object of the untrained policy's best head."""


def measure(trained: Store, untrained: Store, dataset: Path) -> list[Strength]:
    """Answer the questions of `HEADS` for two stores of one run each, over the same episodes."""
    found = []
    for camera, questions in groupby(HEADS, key=lambda question: question.camera):
        scenes = read_scenes(trained, dataset, camera, trained.runs[0])
        random_scenes = same_scenes(untrained, scenes, untrained.runs[0])
        for question in questions:
            layer, head = HEADS[question]
            looking = look(scenes, question)
            random = look(random_scenes, question).lift["target"]
            mean = np.nanmean(random, axis=0)
            best = np.unravel_index(int(np.nanargmax(mean)), mean.shape)
            found.append(
                Strength(
                    question,
                    (layer, head),
                    {name: mean_interval(looking.lift[name][:, layer, head]) for name in AGAINST},
                    mean_interval(looking.hit["target"][:, layer, head]),
                    mean_interval(random[:, best[0], best[1]]),
                )
            )
    return found

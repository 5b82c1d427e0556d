"""What a probe's variants cost: CPU time of a forward, in batches, and where the prefix is reused.

Everything of a probe's forward is in it: the processor, capture, the health gate. The naive loop
runs one variant after the other, prefix and all. Torch runs on one thread; rounds alternate.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.keyframes import observation
from attnstore.ingest.policies.base import ATTENTION_ONLY, Observation
from attnstore.ingest.policies.blocking import Blocked
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.probing.forward import Forward

from .full_pi0 import full_policy, tiny_policy
from .measure import Figure, Setting, timed
from .sample import sample_path

POLICIES: dict[str, tuple[str, Callable[[], Pi0Policy], int]] = {
    "tiny": ("Pi0 tiny", tiny_policy, 8),
    "full": ("Pi0 full", full_policy, 4),
}
"""Label, policy, variants of a keyframe."""


def run(setting: Setting) -> list[Figure]:
    figures = []
    for size in ("tiny",) if setting.toy else ("tiny", "full"):
        label, make, count = POLICIES[size]
        figures += _costs(label, make(), count, setting.repeats(9 if size == "tiny" else 1))
    return figures


def _costs(label: str, policy: Pi0Policy, count: int, rounds: int) -> list[Figure]:
    sight = _sight()
    images = _variants(sight, count)
    blocked = _blocked(policy, sight, count)
    naive = Forward(policy, ATTENTION_ONLY, reuse=False)
    reusing = Forward(policy, ATTENTION_ONLY)
    reusing.run_base(0, sight)
    same = [sight] * count

    kinds: dict[str, Callable[[], Any]] = {
        "masks, one at a time": lambda: [naive.run(0, [o]) for o in images],
        f"masks, {count} a batch": lambda: naive.run(0, images),
        "knock-out in the suffix, one at a time": lambda: [
            naive.run(0, [sight], [blocks]) for blocks in blocked
        ],
        f"knock-out in the suffix, {count} a batch": lambda: naive.run(0, same, blocked),
        "knock-out in the suffix, prefix reused": lambda: [
            reusing.run(0, [sight], [blocks]) for blocks in blocked
        ],
        f"knock-out in the suffix, prefix reused, {count} a batch": lambda: reusing.run(
            0, same, blocked
        ),
    }
    if rounds > 1:
        for kind in kinds.values():
            kind()
    spent: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, kind in kinds.items():
            spent[name].append(timed(kind, 1).cpu_median / count)
    assert reusing.reused >= 2 * count * rounds, "the prefix was not reused"
    figures = []
    for name, seconds in spent.items():
        against = f"{name.split(',')[0]}, one at a time"
        faster = statistics.median(a / b for a, b in zip(spent[against], seconds, strict=True))
        each = statistics.median(seconds)
        note = f"median of {rounds} rounds of {count} variants"
        figures.append(Figure(f"{label}: {name}", 1 / each, "forwards a CPU s", note=note))
        if name != against:
            figures.append(
                Figure(f"{label}: {name}, faster", faster, "times", baseline="one at a time")
            )
    return figures


def _sight() -> Observation:
    dataset = DroidDataset(sample_path(), name="sample")
    name = dataset.episode_names()[0]
    return observation(next(iter(dataset.frames(name, (0,)))), dataset.info(name), 0)


def _variants(sight: Observation, count: int) -> list[Observation]:
    """The same keyframe with a black bar, each time at another place."""
    found = []
    for i in range(count):
        images = {camera: image.copy() for camera, image in sight.images.items()}
        for image in images.values():
            height = image.shape[0] // count
            image[i * height : (i + 1) * height] = 0
        found.append(replace(sight, images=images))
    return found


def _blocked(policy: Pi0Policy, sight: Observation, count: int) -> Sequence[list[Blocked]]:
    """A knock-out each of one more layer of the expert: actions must not see the first camera."""
    layout = policy.prepare([sight]).samples[0].layouts["suffix"]
    image = next(s for s in layout.key if s.camera is not None)
    action = next(s for s in layout.query if s.kind == "action")
    query = tuple(range(action.model_start, action.model_start + len(action)))
    key = tuple(range(image.model_start, image.model_start + len(image)))
    layers = policy.phases["suffix"].layers
    return [[Blocked("suffix", i % layers, query, key)] for i in range(count)]

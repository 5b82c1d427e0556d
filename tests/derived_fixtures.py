"""Episodes for the tests of derived quantities: one from the real pipeline, and ones in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from droid_sample import sample_path
from numpy.typing import NDArray

import attnstore
from attnstore.ingest.datasets.base import EpisodeInfo
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import EpisodeJob, ingest_episode
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.tiny import build_tiny_pi0
from attnstore.query import Episode
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import RunConfig, save_run
from attnstore.store.format.episode import EpisodeSpec, PhaseSpec
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import AlignedAxis, Axis, Span, Token
from attnstore.store.opening import create_store

LAYERS, HEADS, STEPS, CHUNK = 3, 8, 3, 5
SAMPLE = "2025-12-12_10-14-19"
INSTRUCTION = "place the greenish cube into the purple bowls"
"""Not the sample's own: two of its words are several tokens."""
CAMERA = "hand_camera"
Float = NDArray[np.float64]


class _Reworded(DroidDataset):
    def info(self, name: str) -> EpisodeInfo:
        return replace(super().info(name), instruction=INSTRUCTION)


_ingested: list[Episode] = []


def ingested_episode(factory: pytest.TempPathFactory) -> Episode:
    """A sample episode, 4 keyframes, that a tiny Pi0 was run on; once per test process."""
    if not _ingested:
        _ingested.append(_ingest(factory))
    return _ingested[0]


def _ingest(factory: pytest.TempPathFactory) -> Episode:
    policy: Any = Pi0Policy.from_model(*build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK))
    dataset = _Reworded(sample_path())
    name = next(n for n in dataset.episode_names() if n.endswith(SAMPLE))
    run = RunConfig(
        policy="pi0", checkpoint="tiny", checkpoint_digest="0" * 64, dtype="float32",
        dataset="droid:sample", cameras=tuple(dataset.cameras), stride=8, precision="float16", seed=0,
    )  # fmt: skip
    paths = create_store(factory.mktemp("derived") / "store")
    save_run(paths, run, {})
    ingest_episode(EpisodeJob(paths, run), policy, dataset, name)
    return attnstore.open(paths.root).episode(SAMPLE)


@dataclass
class MemoryPart:
    """Stands for a committed part whose attention is given."""

    spec: EpisodeSpec
    arrays: dict[str, NDArray[np.floating]]
    reads: list[Any] = field(default_factory=list)
    """(phase, index) of every read."""
    commit: Any = field(default_factory=lambda: SimpleNamespace(run="memory-0", episode="memory"))

    def attention(self, phase: str, index: Any) -> NDArray[np.floating]:
        self.reads.append((phase, index))
        return np.asarray(self.arrays[phase][index])


def memory_episode(
    prefix: NDArray[np.floating], suffix: NDArray[np.floating] | None = None
) -> Episode:
    """An episode of one image (all prefix tokens but one) and one word, state and actions.

    `prefix` is (keyframe, layer, head, query, key), `suffix` (keyframe, step, layer, head, query,
    key).
    """
    tokens = prefix.shape[-1]
    grid = (1, tokens - 1)
    image = Span("image:cam", "image", 0, tokens - 1, 0, camera="cam", grid=grid)
    word = (Token(7, " word"),)
    text = Span("task", "text", tokens - 1, tokens, tokens - 1, role="task", tokens=word)
    axis = Axis((image, text))
    aligned = AlignedAxis.over([axis])
    layers, heads = prefix.shape[1:3]
    phases = {"prefix": PhaseSpec("prefix", layers, heads, None, aligned, aligned, ("text",))}
    arrays = {"prefix": prefix}
    if suffix is not None:
        count = suffix.shape[-2]
        own = Axis((Span("state", "state", 0, 1, 0), Span("action", "action", 1, count, 1)))
        key = AlignedAxis.over([axis.followed_by(own, model_offset=tokens)])
        query = AlignedAxis.over([own])
        steps, layers, heads = suffix.shape[1:4]
        phases["suffix"] = PhaseSpec("suffix", layers, heads, steps, query, key, ("action",))
        arrays["suffix"] = suffix
    spec = EpisodeSpec(
        name="memory",
        outcome="unknown",
        instruction="word",
        frames=tuple(8 * i for i in range(len(prefix))),
        seeds=(0,) * len(prefix),
        precision="float16",
        geometry={"cam": Geometry.letterbox((14, 14 * grid[1]), (14, 14 * grid[1]), (14, 14))},
        phases=phases,
    )
    return Episode(cast(Part, MemoryPart(spec, arrays)))


def random_rows(rng: np.random.Generator, *shape: int) -> Float:
    """Attention-like rows: uneven, positive, summing to 1."""
    weights = np.exp(2 * rng.standard_normal(shape))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def slow_divergence(p: Float, q: Float) -> float:
    """Jensen-Shannon divergence in bits, term by term."""
    total = 0.0
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        middle = (a + b) / 2
        for value in (a, b):
            if value > 0:
                total += value * float(np.log2(value / middle)) / 2
    return total


def slow_distribution(weights: Float, cover: NDArray[np.floating]) -> Float:
    """A camera's attention weighted by coverage, over the patches that show image."""
    kept = [
        float(w) * float(c)
        for w, c in zip(weights.reshape(-1), cover.reshape(-1), strict=True)
        if c > 0
    ]
    return np.array(kept) / sum(kept)

"""Writing prepared keyframes through `EpisodeWriter`, for the benchmarks of writer and size."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from attnstore.ingest.keyframes import describe_episode
from attnstore.ingest.reduction import encode_on_device
from attnstore.ingest.writing import WriteQueue
from attnstore.store.commits import Attempt
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.opening import create_store

from .measure import size_of
from .replay import ReplayPolicy, SampleFrames
from .trained import Keyframe

Coded = tuple[list[NDArray[Any]], list[list[NDArray[Any]]]]


def encode(keyframe: Keyframe, precision: str) -> Coded:
    """Code a keyframe's weights as capture does."""
    return (
        [encode_on_device(w, precision) for w in keyframe.prefix],
        [[encode_on_device(w, precision) for w in step] for step in keyframe.suffix],
    )


def weights_in(keyframe: Keyframe) -> int:
    """Number of weights, padding stripped."""
    return sum(w.numel() for w in [*keyframe.prefix, *(w for s in keyframe.suffix for w in s)])


@contextmanager
def open_writer(
    directory: Path, policy: ReplayPolicy, count: int, precision: str
) -> Iterator[EpisodeWriter]:
    """Open a new episode of `count` keyframes; it is removed afterwards."""
    dataset = SampleFrames(count)
    name, indices = SampleFrames.episode, range(count)
    spec, shapes = describe_episode(
        dataset.info(name), dataset.frames(name, indices), policy,
        indices=indices, seed=0, precision=precision,
    )  # fmt: skip
    attempt = Attempt(create_store(directory / uuid.uuid4().hex[:8]), "run", "episode", "base")
    try:
        yield EpisodeWriter(attempt, spec, shapes)
    finally:
        attempt.discard()


def write(writer: EpisodeWriter, policy: ReplayPolicy, number: int, coded: Coded) -> None:
    """Write one keyframe's attention as ingest does, durable and hashed when this returns."""
    prefix, suffix = coded
    with WriteQueue() as queue:
        for layer, weights in enumerate(prefix):
            layout = policy.layouts["prefix"]
            add = partial(writer.write_attention, "prefix", number, layer, weights, layout)
            queue.put(add, weights.nbytes)
        for step, layers in enumerate(suffix):
            for layer, weights in enumerate(layers):
                layout = policy.layouts["suffix"]
                add = partial(
                    writer.write_attention, "suffix", number, layer, weights, layout, step
                )
                queue.put(add, weights.nbytes)


def stored_bytes(writer: EpisodeWriter, number: int) -> int:
    """Bytes of one keyframe's shards."""
    root = writer.path
    return size_of(
        p for a in ("prefix", "suffix") for p in (root / a / "attention/c" / str(number)).rglob("*")
    )

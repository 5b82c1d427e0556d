"""One process of the capture benchmark: MODE SIZE DIRECTORY ROUNDS; prints one line of JSON."""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from attnstore.ingest import episode_capture
from attnstore.ingest.datasets.base import Frame
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode_capture import EpisodeCapture
from attnstore.ingest.keyframes import describe_episode, observation
from attnstore.ingest.policies.base import ATTENTION_ONLY, Batch, HiddenChoice, Watch
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.vlm.policy import VlmPolicy
from attnstore.ingest.writing import WriteQueue
from attnstore.store.commits import Attempt
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.opening import create_store

from .full_paligemma import paligemma
from .full_pi0 import full_policy, tiny_policy
from .sample import sample_path

KEYFRAMES = (0, 8, 16)
WATCHED: Mapping[str, Watch] = {
    "value norms": Watch(values=True),
    "hidden states": Watch(hidden=HiddenChoice()),
    "both": Watch(values=True, hidden=HiddenChoice()),
}
"""What ingest captures by default beside the attention."""
POLICIES: Mapping[str, Callable[[], Pi0Policy | VlmPolicy]] = {
    "tiny": tiny_policy,
    "full": full_policy,
    "paligemma": paligemma,
    "paligemma toy": partial(paligemma, toy=True),
}


class _Dropped:
    """A queue that drops what it is given."""

    def put(self, write: Callable[[], None], size: int) -> None:
        return

    def flush(self) -> None:
        return


class Bench:
    """A policy and the keyframes of a sample episode."""

    def __init__(self, policy: Any, directory: Path, keyframes: Sequence[int] = KEYFRAMES) -> None:
        self.policy, self.directory, self.keyframes = policy, directory, keyframes
        self.dataset = DroidDataset(sample_path(), name="sample")
        self.name = self.dataset.episode_names()[0]
        self.info = self.dataset.info(self.name)
        self.frames: list[Frame] = list(self.dataset.frames(self.name, keyframes))
        self.commit_seconds = 0.0
        self.stored: dict[str, int] = {}

    def batch(self, frame: Frame) -> Batch:
        return self.policy.prepare([observation(frame, self.info, 0)])

    def plain(self, *, eager: bool = False) -> float:
        """CPU seconds of one keyframe's inference."""
        batch = self.batch(self.frames[0])
        with self.policy.eager() if eager else nullcontext():
            start = time.process_time()
            self.policy.act(batch)
            return time.process_time() - start

    def captured(
        self, precision: str, *, write: bool = True, watch: Watch = ATTENTION_ONLY
    ) -> float:
        """CPU seconds of a keyframe with capture, median of an episode's."""
        spec, shapes = describe_episode(
            self.info,
            iter(self.frames),
            self.policy,
            indices=self.keyframes,
            seed=0,
            precision=precision,
            watch=watch,
        )
        paths = create_store(self.directory / uuid.uuid4().hex[:8])
        attempt = Attempt(paths, "run", "episode", "base")
        seconds = []
        with WriteQueue() as real:
            queue: Any = real if write else _Dropped()
            writer = EpisodeWriter(attempt, spec, shapes)
            recorder = EpisodeCapture(self.policy, writer, queue, watch)
            for number, frame in enumerate(self.frames):
                batch = self.batch(frame)
                start = time.process_time()
                recorder.run([number], [frame], batch)
                queue.flush()
                seconds.append(time.process_time() - start)
            if write:
                start = time.process_time()
                recorder.finish()
                writer.commit({})
                self.commit_seconds = time.process_time() - start
                self.stored = bytes_by_array(paths.root)
        attempt.discard()
        return statistics.median(seconds)

    def encoding(self, precision: str) -> tuple[float, float]:
        """CPU seconds of a keyframe without writing, and those of them that encode."""
        spent = 0.0
        encode = episode_capture.encode_on_device

        def encode_timed(*arguments: Any) -> Any:
            nonlocal spent
            start = time.thread_time()
            try:
                return encode(*arguments)
            finally:
                spent += time.thread_time() - start

        with mock.patch.object(episode_capture, "encode_on_device", encode_timed):
            total = self.captured(precision, write=False)
        return total, spent / len(self.frames)


def bytes_by_array(store: Path) -> dict[str, int]:
    """Bytes on disk of attention, value norms and hidden states: chunks, and what describes them."""
    found = dict.fromkeys(("attention", "value_norm", "hidden"), 0)
    for file in store.rglob("*"):
        kinds = found.keys() & set(file.parts)
        if kinds and file.is_file():
            found[min(kinds)] += file.stat().st_size
    return found


def times(bench: Bench, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {k: [] for k in ("plain", "eager")}
    bench.plain()
    bench.captured("float16")
    for _ in range(rounds):
        found["plain"].append(bench.plain())
        found["eager"].append(bench.plain(eager=True))
        for precision in ("float16", "log8"):
            total, encoding = bench.encoding(precision)
            found.setdefault(f"{precision} unwritten", []).append(total)
            found.setdefault(f"{precision} encoding", []).append(encoding)
            found.setdefault(precision, []).append(bench.captured(precision))
            found[f"{precision} commit"] = bench.commit_seconds
        for name, watch in WATCHED.items():
            found.setdefault(name, []).append(bench.captured("float16", watch=watch))
    found["bytes"] = bench.stored
    layouts = bench.batch(bench.frames[0]).samples[0].layouts
    found["raw"] = sum(
        2 * s.layers * s.heads * (s.steps or 1) * len(layouts[p].query) * len(layouts[p].key)
        for p, s in bench.policy.phases.items()
    )
    found["parameters"] = sum(p.numel() for p in bench.policy.model.parameters())
    return found


def memory(bench: Bench, precision: str | None) -> dict[str, Any]:
    """Peak resident memory while keyframes run."""

    def once() -> None:
        if precision is None:
            for _ in KEYFRAMES:
                bench.plain()
        else:
            bench.captured(precision)

    once()
    process, peak, done = psutil.Process(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    once()
    done.set()
    watcher.join()
    return {"peak": peak}


def measure(mode: str, size: str, directory: Path, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    bench = Bench(POLICIES[size](), directory)
    if mode == "times":
        return times(bench, rounds)
    kind = mode.removeprefix("memory-")
    return memory(bench, None if kind == "plain" else kind)


if __name__ == "__main__":
    mode, size, directory, rounds = sys.argv[1:]
    print(json.dumps(measure(mode, size, Path(directory), int(rounds))))

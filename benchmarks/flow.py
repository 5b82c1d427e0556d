"""Functions that an episode and a keyframe pass on their way to the commit, and how soon the command line answers.

Counted are functions of attnstore, each once, that Python enters in any thread while an episode is ingested. Most of
what an episode enters is entered once, before its first frame is read or when it is committed; a keyframe's way is what
is entered at least once for each keyframe, between the reading of the first frame and the commit.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from attnstore.ingest.datasets.base import Frame
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import EpisodeJob, ingest_episode
from attnstore.ingest.plan import describe_run
from attnstore.ingest.policies.registry import load_policy
from attnstore.sample import checkpoint_path, episodes_path
from attnstore.store.commits import all_commits
from attnstore.store.commits.run import save_run
from attnstore.store.opening import create_store

from .measure import Figure, Setting

TOP = Path(__file__).resolve().parents[1]
PACKAGES = tuple(
    f"{TOP / name}{os.sep}" for name in ("attnstore", "ingest", "store", "query", "render")
)
STRIDE = 8


class Watched(DroidDataset):
    """Says when a frame has been read."""

    read = False

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        for frame in super().frames(name, indices):
            self.read = True
            yield frame


def run(setting: Setting) -> list[Figure]:
    policy = load_policy("pi0", str(checkpoint_path()), dtype="float32")
    dataset = Watched(episodes_path(), name="toy_cube")
    first, second = dataset.episode_names()[:2]
    paths = create_store(setting.directory / "flow.attn")
    config = describe_run(policy, "pi0", dataset, stride=STRIDE, precision="float16", seed=0)
    save_run(paths, config, {})
    job = EpisodeJob(paths, config)
    ingest_episode(job, policy, dataset, first)  # what is made once is made
    entered: Counter[tuple[str, str]] = Counter()
    on_the_way: Counter[tuple[str, str]] = Counter()
    dataset.read = committing = False

    def count(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal committing
        if event == "call":
            code = frame.f_code
            file = os.path.realpath(code.co_filename)
            if file.startswith(PACKAGES) and "<" not in code.co_name:
                entered[file, code.co_qualname] += 1
                committing |= code.co_qualname == "EpisodeWriter.commit"
                if dataset.read and not committing:
                    on_the_way[file, code.co_qualname] += 1

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        ingest_episode(job, policy, dataset, second)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    (keyframes,) = (
        int(c.summary["keyframes"]) for c in all_commits(paths) if c.summary["name"] == second
    )
    each = [place for place, times in on_the_way.items() if times >= keyframes]
    seconds = []
    for _ in range(setting.repeats(7)):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "attnstore", "--help"], check=True, capture_output=True
        )
        seconds.append(time.perf_counter() - start)
    about = f"of attnstore, distinct; an episode of {keyframes} keyframes, all threads"
    return [
        Figure("functions entered for an episode", len(entered), "functions", note=about),
        Figure("files that they are in", len({file for file, _ in entered}), "files"),
        Figure("functions entered for each keyframe", len(each), "functions",
               note="between the reading of a frame and the commit"),
        Figure("files that they are in, for a keyframe", len({file for file, _ in each}), "files"),
        Figure("attnstore --help", statistics.median(seconds), "s", note="a process of its own"),
    ]  # fmt: skip

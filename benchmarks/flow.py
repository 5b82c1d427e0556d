"""Functions that an episode passes between its frames and its commit, and how soon the command line answers."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

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


def run(setting: Setting) -> list[Figure]:
    policy = load_policy("pi0", str(checkpoint_path()), dtype="float32")
    dataset = DroidDataset(episodes_path(), name="toy_cube")
    first, second = dataset.episode_names()[:2]
    paths = create_store(setting.directory / "flow.attn")
    config = describe_run(policy, "pi0", dataset, stride=STRIDE, precision="float16", seed=0)
    save_run(paths, config, {})
    job = EpisodeJob(paths, config)
    ingest_episode(job, policy, dataset, first)  # what is made once is made
    entered: dict[tuple[str, str], int] = {}

    def count(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            file = os.path.realpath(code.co_filename)
            if file.startswith(PACKAGES) and "<" not in code.co_name:
                entered[file, code.co_qualname] = entered.get((file, code.co_qualname), 0) + 1

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        ingest_episode(job, policy, dataset, second)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    keyframes = sum(int(c.summary["keyframes"]) for c in all_commits(paths)) // 2
    seconds = []
    for _ in range(setting.repeats(7)):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "attnstore", "--help"], check=True, capture_output=True
        )
        seconds.append(time.perf_counter() - start)
    return [
        Figure("functions entered between a frame and its commit", len(entered), "functions",
               note=f"of attnstore, distinct; episodes of about {keyframes} keyframes, all threads"),
        Figure("files that they are in", len({file for file, _ in entered}), "files"),
        Figure("attnstore --help", statistics.median(seconds), "s", note="a process of its own"),
    ]  # fmt: skip

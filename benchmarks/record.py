"""What recording adds to a policy's calls, and what a call takes on disk.

A small Pi0 that sees as the real one does, 224 x 224 pixels of three cameras, so that inputs have their real
size; camera images of 360 x 640 with a camera's noise.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import attnstore
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.policies.base import Batch, Observation
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.tiny import PROMPTS, build_tiny_pi0
from attnstore.sample import episodes_path

from .measure import Figure, Setting

CAMERAS = ("hand_camera", "varied_camera_1", "varied_camera_2")
RATES = (5.0, 15.0)
"""Calls a second: at 15 steps a second, a policy whose chunk is carried out for eight is asked twice; one
that is asked at every step, 15 times."""
NOISE = 4.0
"""Standard deviation of a pixel's noise, of 255 levels."""
_here = threading.local()


def run(setting: Setting) -> list[Figure]:
    model, processor = build_tiny_pi0(image=56 if setting.toy else 224, chunk=50)
    policy = Pi0Policy.from_model(model, processor)
    calls = 5 if setting.toy else 150
    seen = _observations(8)
    policy.act(policy.prepare(seen[:1]))
    figures = []
    for rate in RATES[: 1 if setting.toy else None]:
        added, clock, busy, recorder, lost = _drive(
            policy, seen, setting.directory / f"{rate:g}", "replay", calls, rate
        )
        what = f"replay, {rate:g} calls a second"
        size = sum(p.stat().st_size for p in recorder.directory.glob("*.journal"))
        figures += [
            Figure(
                f"{what}: added to a call, median", statistics.median(added), "ms", aim="<= 2",
                note=f"{calls} calls; in the caller's thread, over the policy's own time, without waiting "
                "for a processor that others have",
            ),
            Figure(f"{what}: added to a call, p99", float(np.percentile(added, 99)), "ms"),
            Figure(f"{what}: by the clock, median", statistics.median(clock), "ms", aim="<= 2"),
            Figure(f"{what}: by the clock, p99", float(np.percentile(clock, 99)), "ms"),
            Figure(f"{what}: of it CPU time, median", statistics.median(busy), "ms"),
            Figure(f"{what}: calls dropped", lost, "calls", aim="<= 0"),
        ]  # fmt: skip
    figures.append(
        Figure(
            "a call in the journal", size / calls / 1e6, "MB", aim="<= 0.5",
            note="three cameras: exact inputs, JPEG of 360 x 640, noise, tokens, actions",
        )
    )  # fmt: skip
    calls = 5 if setting.toy else 60
    added, _, _, recorder, lost = _drive(
        policy, seen, setting.directory / "live", "live", calls, None
    )
    note = f"{calls} calls, as fast as they come; weights copied to memory, hooks, eager"
    figures += [
        Figure("live: added to a call, median", statistics.median(added), "ms", note=note),
        Figure("live: added to a call, p99", float(np.percentile(added, 99)), "ms"),
        Figure("live: calls dropped", lost, "calls", aim="<= 0"),
    ]
    return figures


def _drive(
    policy: Pi0Policy,
    seen: list[Observation],
    store: Path,
    mode: Any,
    count: int,
    rate: float | None,
) -> tuple[list[float], list[float], list[float], Any, int]:
    """Return what each call took more than the policy, in ms: wall time but for the time that the thread waited
    for a processor, wall time, and CPU time."""
    own: list[float] = []
    own_clock: list[float] = []
    own_busy: list[float] = []
    act = policy.act

    def timed(batch: Batch) -> Any:
        clock, busy = time.perf_counter(), time.thread_time()
        began = clock - starved()
        actions = act(batch)
        own_clock.append(time.perf_counter() - clock)
        own.append(time.perf_counter() - starved() - began)
        own_busy.append(time.thread_time() - busy)
        return actions

    batches = [policy.prepare([s]) for s in seen]
    plain = []
    for i in range(min(count, 30)):
        began = time.perf_counter() - starved()
        act(batches[i % len(batches)])
        plain.append(time.perf_counter() - starved() - began)
    policy.__dict__["act"] = timed
    added, clock_added, busy_added = [], [], []
    try:
        with (
            attnstore.record(policy, store, mode=mode) as recorder,
            recorder.episode("drive") as episode,
        ):
            for i in range(count):
                batch = policy.prepare([seen[i % len(seen)]])
                began, busy = time.perf_counter(), time.thread_time()
                waited = starved()
                policy.act(batch)
                clock = time.perf_counter() - began
                took = clock - (starved() - waited)
                clock_added.append(1e3 * (clock - own_clock[-1]))
                busy_added.append(1e3 * (time.thread_time() - busy - own_busy[-1]))
                # Hooks and eager attention are within the policy's time when it is watched.
                base = own[-1] if mode == "replay" else statistics.median(plain)
                added.append(1e3 * (took - base))
                if rate is not None:
                    time.sleep(max(0.0, 1 / rate - (time.perf_counter() - began)))
            recorder.flush()
            lost = episode.dropped.total()
            episode.finish(outcome="success")
    finally:
        policy.__dict__.pop("act", None)
    return added, clock_added, busy_added, recorder, lost


def starved() -> float:
    """Seconds that this thread could run and had no processor: others' work, not the recorder's."""
    # An open file: to open and read it by its name takes 0.02 ms, 0.1 where nothing of it is in a cache, of the
    # time that is measured.
    try:
        file = _here.file
    except AttributeError:
        try:
            file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except FileNotFoundError:
            file = -1
        _here.file = file
    return int(os.pread(file, 128, 0).split()[1]) / 1e9 if file >= 0 else 0.0


def _observations(count: int) -> list[Observation]:
    dataset = DroidDataset(episodes_path())
    name = dataset.episode_names()[0]
    random = np.random.default_rng(0)
    made = []
    for i, frame in enumerate(dataset.frames(name, range(count))):
        images = {}
        for j, camera in enumerate(CAMERAS):
            picture = frame.cameras[j % len(frame.cameras)].rgb
            large = cv2.resize(picture, (640, 360), interpolation=cv2.INTER_CUBIC)
            noisy = large + random.normal(0, NOISE, large.shape)
            images[camera] = np.clip(noisy, 0, 255).astype(np.uint8)
        made.append(Observation(images, PROMPTS[i % len(PROMPTS)], np.zeros(8, np.float32), i))
    return made

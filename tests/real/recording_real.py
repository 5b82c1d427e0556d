"""A robot that is recorded for ten minutes onto a slow disk, and a thousand recorders that are killed.

``make test-recording``: needs root, for a file system of its own whose writes the kernel slows down (a loop
device, and cgroup v1's ``blkio.throttle.write_bps_device``).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from recording_policy import Still, kill_recorders

import attnstore
from attnstore.ingest.policies.base import Observation
from attnstore.ingest.recording.dataset import RecordingDataset, recording_directories

RATE, SECONDS = 15.0, float(os.environ.get("ATTNSTORE_TEST_SECONDS", "600"))
BYTES_A_SECOND = 1_000_000
"""Of the disk; the recording writes about four times as much."""
GROUP = Path("/sys/fs/cgroup/blkio/attnstore-slow")


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes a megabyte a second from this process."""
    if os.geteuid() or not GROUP.parent.joinpath("blkio.throttle.write_bps_device").exists():
        pytest.fail("this needs root and cgroup v1's blkio controller")
    image, mounted = tmp_path / "disk", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(2 << 30)
    run = subprocess.run(
        ["losetup", "-f", "--show", image], check=True, capture_output=True, text=True
    )
    device = run.stdout.strip()
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
        subprocess.run(["mount", device, mounted], check=True)
        GROUP.mkdir(exist_ok=True)
        number = Path(device).stat().st_rdev
        limit = f"{os.major(number)}:{os.minor(number)} {BYTES_A_SECOND}"
        (GROUP / "blkio.throttle.write_bps_device").write_text(limit)
        (GROUP / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield mounted
        finally:
            (GROUP.parent / "cgroup.procs").write_text(str(os.getpid()))
            subprocess.run(["umount", mounted], check=True)
            GROUP.rmdir()
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def starved() -> float:
    """Seconds that this thread could run and had no processor: others' work, not the recorder's."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def test_the_robot_never_waits_for_a_slow_disk(slow_disk: Path) -> None:
    """Every call within its budget, every call kept or counted, what is kept as it was."""
    policy, random = Still(), np.random.default_rng(0)
    pictures = random.integers(0, 256, (16, 224, 224, 3), np.uint8)
    calls = int(RATE * SECONDS)
    took, waited = np.zeros(calls), np.zeros(calls)
    began = time.perf_counter()
    recording = attnstore.record(policy, slow_disk / "s", mode="replay", rate=RATE)
    with recording as recorder, recorder.episode("drive") as episode:
        began = time.perf_counter()
        for call in range(calls):
            due = began + call / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            state = np.full(7, call, np.float32)
            seen = Observation({"hand_camera": pictures[call % 16]}, "hold still", state, call)
            start, before = time.perf_counter(), starved()
            policy.act(policy.prepare([seen]))
            took[call], waited[call] = time.perf_counter() - start, starved() - before
            episode.advance()
        drove = time.perf_counter() - began
        dropped = episode.dropped.total()
        episode.finish(outcome="success")
    (directory,) = recording_directories(slow_disk / "s")
    dataset = RecordingDataset(directory)
    info = dataset.info("drive")
    kept = dataset.numbers("drive")
    late, own = int((took > 1 / RATE).sum()), took - waited
    print(
        f"{calls} calls in {drove:.0f} s, {len(kept)} kept, {dropped} dropped, {late} late; "
        f"a call took {1e3 * np.median(took):.2f} ms at the median, "
        f"{1e3 * np.percentile(took, 99):.1f} at p99, {1e3 * took.max():.1f} at most; without waiting "
        f"for a processor {1e3 * np.percentile(own, 99):.1f}, {1e3 * own.max():.1f}; the queue was "
        f"written {time.perf_counter() - began - drove:.0f} s later; load {os.getloadavg()[0]:.1f}"
    )
    assert 0 < dropped < calls
    assert len(set(kept)) == len(kept) == calls - dropped
    assert info.attributes["dropped"] == dropped
    assert info.attributes["dropped_because"] == {"the queue is full": dropped}
    for number, frame in zip(kept, dataset.frames("drive", info.keyframes or ()), strict=True):
        assert frame.state[0] == number
    assert own.max() < 1 / RATE


def test_a_thousand_recorders_are_killed(ram_path: Path) -> None:
    print(f"{kill_recorders(ram_path, kills=1000, seed=2026)} flushed calls, none lost")

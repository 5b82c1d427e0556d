"""``python -m examples.toy_cube.record``: drive, record, and save what was recorded in the DROID layout.

The policy drives inside `attnstore.record`. What the DROID layout has beside a recording is what a robot's log has,
pictures of every camera at every frame, and, here, the simulator's masks and truth: `retrace` sees them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from attnstore.ingest.recording import Recorder
from attnstore.ingest.recording.dataset import RecordingDataset
from attnstore.ingest.recording.recorder import Mode

from .conditions import WORLDS
from .drivers import PolicyDriver
from .episode import write_episode
from .retrace import retrace
from .rollout import Rollout, add_recording, recording, roll
from .world import RemoteWorld, remote_world

POLICY = "toy_pi0"
"""What drove, as the episodes' attribute `sim_policy` has it."""


def main() -> None:
    """Record the asked seeds, and write them as episodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--world", choices=tuple(WORLDS), default="plain")
    parser.add_argument("--seeds", required=True, help="0,3,17 or 100:150")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--masks", choices=("npy", "rle"), default="npy")
    parser.add_argument("--pictures", choices=("frames", "mp4"), default="frames")
    add_recording(parser)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    driver = PolicyDriver(given.checkpoint)
    arrays, videos = given.masks == "npy", given.pictures == "mp4"
    mode: Mode = "replay" if given.store is None else given.mode
    with (
        kept_in(given.store) as store,
        recording(driver, "policy", store, mode) as recorder,
        remote_world(WORLDS[given.world]) as world,
    ):
        assert recorder is not None
        for seed in seeds(given.seeds):
            done = again(
                world, recorder, roll(world, driver, seed, name=given.world, recorder=recorder)
            )
            print(write_episode(given.out, done, POLICY, arrays=arrays, videos=videos), flush=True)


def again(world: RemoteWorld, recorder: Recorder, done: Rollout) -> Rollout:
    """Retrace a rollout from what was recorded of it."""
    assert done.recorded is not None
    recorder.flush()
    return retrace(
        world, RecordingDataset(recorder.directory, episodes=[done.recorded]), done.recorded
    )


@contextmanager
def kept_in(store: str | None) -> Iterator[str]:
    """Store of the recording; None: one that is gone afterwards."""
    if store is not None:
        yield store
        return
    with TemporaryDirectory() as directory:
        yield f"{directory}/recorded.attn"


def seeds(text: str) -> list[int]:
    """Read ``0,3,17`` or a half-open range, ``100:150``."""
    if ":" in text:
        first, last = text.split(":")
        return list(range(int(first), int(last)))
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()

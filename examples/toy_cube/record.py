"""``python -m examples.toy_cube.record``: save chosen rollouts as episodes in the DROID layout.

With ``--store`` the policy is recorded by `attnstore.record` in the same drive: what the DROID layout adds is what a
robot's log has beside it, pictures of every frame and, here, the simulator's masks and truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .conditions import WORLDS
from .episode import write_episode
from .rollout import add_recording, make_driver, recording, roll
from .world import remote_world


def main() -> None:
    """Run the asked seeds again, this time with pictures of every frame."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", choices=("policy", "blind", "expert", "random"), required=True)
    parser.add_argument("--checkpoint")
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
    driver = make_driver(given.driver, given.checkpoint)
    name = "toy_pi0" if given.driver == "policy" else given.driver
    with (
        recording(driver, given.driver, given.store, given.mode) as recorder,
        remote_world(WORLDS[given.world]) as world,
    ):
        for seed in seeds(given.seeds):
            done = roll(world, driver, seed, name=given.world, record=True, recorder=recorder)
            arrays, videos = given.masks == "npy", given.pictures == "mp4"
            print(write_episode(given.out, done, name, arrays=arrays, videos=videos), flush=True)


def seeds(text: str) -> list[int]:
    """Read ``0,3,17`` or a half-open range, ``100:150``."""
    if ":" in text:
        first, last = text.split(":")
        return list(range(int(first), int(last)))
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()

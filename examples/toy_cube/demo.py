"""``python -m examples.toy_cube.demo --out EPISODES``: the episodes that ``attnstore demo`` works on.

The checkpoint of the package drives inside `attnstore.record`, in the world of its training and in the dim one, until
there are four episodes of each kind; they are what `record` makes of the recordings.
"""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import count
from pathlib import Path

from attnstore.sample import checkpoint_path

from .conditions import WORLDS
from .drivers import PolicyDriver
from .episode import write_episode
from .record import POLICY, again, kept_in
from .rollout import recording, roll
from .world import remote_world

KINDS = {"plain": ("success",), "dim": ("success", "failure")}
"""Outcomes by world."""
EACH = 4
"""Episodes of each, the first by number."""


def main() -> None:
    """Drive, record, and write the first of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", help="keep the recordings, in this store")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(2)  # as many as the stored episodes were made with
    driver = PolicyDriver(str(checkpoint_path()))
    with kept_in(given.store) as store, recording(driver, "policy", store, "replay") as recorder:
        assert recorder is not None
        for name, kinds in KINDS.items():
            wanted = Counter(dict.fromkeys(kinds, EACH))
            with remote_world(WORLDS[name]) as world:
                for seed in count():
                    done = roll(world, driver, seed, name=name, recorder=recorder)
                    outcome = "success" if done.success else "failure"
                    if wanted[outcome]:
                        wanted[outcome] -= 1
                        made = again(world, recorder, done)
                        print(
                            write_episode(given.out, made, POLICY, arrays=False, videos=True),
                            flush=True,
                        )
                    if not wanted.total():
                        break


if __name__ == "__main__":
    main()

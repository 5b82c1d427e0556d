"""``python -m examples.toy_cube.samples``: states with pictures and exact labels, for training.

Every sample is drawn on its own: a random layout, a random state of the task in it, two small
pictures, and the chunk that the expert would command from there. So no two samples share a layout,
and states off the expert's path are as common as those on it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .expert import GRASP, HOVER, State, chunk
from .renderer import OBJECTS, Renderer, choose_backend
from .scene import CUBE_HALF, HAND_CAMERA, LEFT, Float, Layout, sample_layout
from .simulator import Simulator

CAMERAS = (HAND_CAMERA, LEFT)
"""What the policy sees, in its order."""
HEIGHT, WIDTH, PATCH = 84, 112, 14
"""Size of a picture in the policy's input, before padding, and of a patch."""
KINDS = {"start": 0.25, "approach": 0.27, "near": 0.13, "held": 0.25, "missed": 0.04, "done": 0.06}
"""States of the task and their shares. A policy's error is largest where it has seen least: in the
first frames, before the hand points at anything."""


def sample_state(layout: Layout, kind: str, random: np.random.Generator) -> State:
    """Draw a state of the task in a layout, also ones that the expert would not get into."""
    cube = np.array([*layout.cube_xy[0], CUBE_HALF])
    bowl = layout.bowl_xy[0]
    closed, held, done = 0.0, False, False
    hover = np.array([*cube[:2], HOVER])
    if kind == "start":
        hand = layout.hand + random.normal(0, (0.02, 0.02, 0.01))
    elif kind == "approach":
        hand = layout.hand + random.uniform(0, 1) * (hover - layout.hand)
        hand = hand + random.normal(0, 0.025, 3)
        if random.random() < 0.25:  # beside the path: towards the other cube or a bowl
            wrong = (layout.cube_xy[1], *layout.bowl_xy)[random.integers(3)]
            hand = np.array([*wrong, random.uniform(HOVER, 0.22)]) + random.normal(0, 0.02, 3)
    elif kind == "near":
        spread = random.choice([0.003, 0.012])
        hand = np.array([*(cube[:2] + random.normal(0, spread, 2)), random.uniform(GRASP, 0.115)])
    elif kind == "held":
        closed, held = random.uniform(0.44, 0.50), True
        share = random.choice([0.0, random.uniform(0, 1), 1.0], p=[0.3, 0.4, 0.3])
        xy = cube[:2] + share * (bowl - cube[:2]) + random.normal(0, 0.012, 2)
        hand = np.array([*xy, random.uniform(0.02 if share == 0 else 0.06, 0.15)])
        if share not in (0.0, 1.0):
            hand[2] = random.normal(0.12, 0.015)
        cube = hand + random.normal((0.0, 0.0, 0.004), (0.006, 0.002, 0.002))
    elif kind == "missed":
        closed = random.uniform(0.9, 1.0)
        hand = np.array([*(cube[:2] + random.normal(0, 0.035, 2)), random.uniform(GRASP, 0.15)])
    else:
        done = True
        cube = np.array([*(bowl + random.normal(0, 0.012, 2)), 0.028])
        hand = np.array([*(bowl + random.normal(0, 0.015, 2)), random.uniform(0.06, 0.22)])
    hand[2] = max(hand[2], 0.016)
    if not closed:
        closed = random.uniform(0, 0.02)
    return State(hand, closed, cube, bowl, held, done)


def show(simulator: Simulator, state: State, yaw: float) -> None:
    """Put the simulator into a state, without physics."""
    simulator.place_cube(0, state.cube, yaw)
    simulator.place_hand(state.hand, state.closed)


def actions_of(state: State) -> Float:
    """Return the expert's chunk as the policy's action: (way from the hand, closed), (chunk, 4)."""
    commands = chunk(state)
    return np.concatenate([commands[:, :3] - state.hand, commands[:, 3:]], axis=1)


def patch_shares(objects: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Count each object's pixels in each patch, (row * col, object)."""
    rows, cols = HEIGHT // PATCH, WIDTH // PATCH
    tiles = objects.reshape(rows, PATCH, cols, PATCH).transpose(0, 2, 1, 3)
    blocks = tiles.reshape(rows * cols, -1)
    counts = [(blocks == number).sum(1) for number in range(len(OBJECTS))]
    return np.stack(counts, axis=1).astype(np.uint8)


def make_shard(seed: int, shard: int, count: int) -> dict[str, NDArray[Any]]:
    """Draw `count` samples; the same arguments give the same ones."""
    choose_backend()
    random = np.random.default_rng([seed, shard])
    simulator = Simulator()
    simulator.reset(sample_layout(random))
    fine, coarse = Renderer(simulator, HEIGHT, WIDTH, 2), Renderer(simulator, HEIGHT, WIDTH)
    rows: dict[str, list[Any]] = {
        key: []
        for key in ("image", "share", "instruction", "colours", "place", "hand", "closed", "action",
                    "kind")
    }  # fmt: skip
    names, shares = list(KINDS), list(KINDS.values())
    for _ in range(count):
        layout = sample_layout(random)
        kind = str(random.choice(names, p=shares))
        state = sample_state(layout, kind, random)
        simulator.reset(layout)
        show(simulator, state, layout.cube_yaw[0])
        rows["image"].append([fine.rgb(camera) for camera in CAMERAS])
        rows["share"].append([patch_shares(coarse.objects(camera)) for camera in CAMERAS])
        rows["instruction"].append(layout.instruction)
        rows["colours"].append([*layout.cubes, *layout.bowls])
        rows["place"].append([state.cube[:2], layout.cube_xy[1], *layout.bowl_xy])
        rows["hand"].append(state.hand)
        rows["closed"].append(state.closed)
        rows["action"].append(actions_of(state))
        rows["kind"].append(kind)
    fine.close()
    coarse.close()
    exact = {"image": np.uint8, "share": np.uint8, "action": np.float32}
    return {key: np.array(value, exact.get(key)) for key, value in rows.items()}


def main() -> None:
    """Write shards as ``.npz``; those that are there already are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shards", default="0:20", help="half-open range, such as 0:20")
    parser.add_argument("--count", type=int, default=1000, help="samples in a shard")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    first, last = (int(n) for n in given.shards.split(":"))
    for shard in range(first, last):
        path = given.out / f"{shard:04d}.npz"
        if path.exists():
            continue
        start = time.monotonic()
        rows = make_shard(given.seed, shard, given.count)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **rows)
        partial.rename(path)
        print(f"{path}: {given.count} samples in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""``python -m examples.toy_cube.rollout``: closed-loop success of a driver, with its interval."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import attnstore
from attnstore.ingest.keyframes import noise_seed
from attnstore.ingest.recording import Recorder
from attnstore.ingest.recording.recorder import Mode

from .conditions import WORLDS
from .drivers import Driver, ExpertDriver, PolicyDriver, RandomDriver
from .expert import CHUNK
from .scene import Float, Layout, sample_layout
from .simulator import RATE
from .world import Moment, RemoteWorld, remote_world

CHUNKS = 8
"""Chunks before an episode is given up: 64 commands, 12.8 s."""
FIRST = 1_000_000
"""Seeds of evaluation layouts start here; `samples` draws from another stream."""


@dataclass(slots=True)
class Rollout:
    """One episode."""

    seed: int
    layout: Layout
    world: str = "plain"
    """Key of `conditions.WORLDS`."""
    success: bool = False
    moments: list[Moment] = field(default_factory=list)
    """The first of every chunk and the last; every frame, if `retrace` saw it."""
    commands: list[Float] = field(default_factory=list)
    recorded: str | None = None
    """Name under which it was recorded."""
    checkpoint: str | None = None
    """SHA-256 of the checkpoint that drove, if `retrace` read it from a recording."""


def roll(
    world: RemoteWorld,
    driver: Driver,
    seed: int,
    *,
    name: str = "plain",
    chunks: int = CHUNKS,
    recorder: Recorder | None = None,
) -> Rollout:
    """Run one episode: commands in chunks, until the cube is in its bowl after one of them.

    Parameters
    ----------
    name
        Key of `conditions.WORLDS`: what the world was made of.
    recorder
        Records what the driver's policy sees and does; see `attnstore.record`, and `retrace` for the
        pictures of the frames between.
    """
    layout = sample_layout(np.random.default_rng(FIRST + seed), WORLDS[name])
    done = Rollout(seed, layout, name)
    if recorder is None:
        _drive(world, driver, done, chunks, lambda steps: None)
        return done
    with recorder.episode(
        f"{name}/{seed}", instruction=layout.instruction, seed=seed, world=name
    ) as episode:
        _drive(world, driver, done, chunks, episode.advance)
        episode.finish(outcome=done.success, reward=float(done.success))
        done.recorded = episode.name
    return done


def _drive(
    world: RemoteWorld,
    driver: Driver,
    done: Rollout,
    chunks: int,
    advanced: Callable[[int], None],
) -> None:
    """Drive until the cube is in its bowl; `advanced` is told of the commands carried out."""
    seed = done.seed
    world.reset(done.layout)
    for turn in range(chunks):
        moment = world.look(driver.cameras)
        done.moments.append(moment)
        noise = noise_seed(0, f"{seed}", turn * CHUNK)
        commands = driver.commands(world, moment, done.layout.instruction, noise)
        for command in commands:
            world.follow(command)
        done.commands.extend(commands)
        advanced(len(commands))
        if world.look(()).success:
            break
    last = world.look(())
    done.moments.append(last)
    done.success = last.success


def interval(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927).

    Examples
    --------
    >>> [round(n, 3) for n in interval(50, 100)]
    [0.404, 0.596]
    """
    share, square = successes / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return middle - half, middle + half


def make_driver(name: str, checkpoint: str | None) -> Driver:
    """Return a driver by its name on the command line."""
    if name in ("policy", "blind"):
        if checkpoint is None:
            raise SystemExit(f"--driver {name} needs --checkpoint")
        return PolicyDriver(checkpoint, blind=name == "blind")
    return ExpertDriver() if name == "expert" else RandomDriver()


def recording(
    driver: Driver, name: str, store: str | None, mode: Mode
) -> AbstractContextManager[Recorder | None]:
    """Record what a driver's policy sees and does; None without a store."""
    if store is None:
        return nullcontext()
    if not isinstance(driver, PolicyDriver):
        raise SystemExit(f"--store records a policy; --driver {name} has none")
    return attnstore.record(driver.policy, store, mode=mode, name=f"toy_cube-{name}", rate=RATE)


def add_recording(parser: argparse.ArgumentParser) -> None:
    """Add the options of `recording` to a command line."""
    parser.add_argument("--store", help="record what the policy sees and does into this store")
    parser.add_argument("--mode", choices=("live", "replay"), default="live")


def evaluate(
    name: str, checkpoint: str | None, place: str, store: str | None, mode: Mode, seeds: list[int]
) -> list[dict[str, Any]]:
    """Run episodes in a world of their own; return what became of each.

    With a store, what a policy saw and did is recorded into it.
    """
    import torch

    torch.set_num_threads(1)
    driver = make_driver(name, checkpoint)
    with recording(driver, name, store, mode) as recorder, remote_world(WORLDS[place]) as world:
        return [outcome(roll(world, driver, seed, name=place, recorder=recorder)) for seed in seeds]


def main() -> None:
    """Print the share of successes, and write what became of each episode if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", choices=("policy", "blind", "expert", "random"), required=True)
    parser.add_argument("--checkpoint")
    parser.add_argument("--world", choices=tuple(WORLDS), default="plain")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    add_recording(parser)
    given = parser.parse_args()
    count = min(given.processes, given.episodes)
    seeds = [list(range(first, given.episodes, count)) for first in range(count)]
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        task = partial(
            evaluate, given.driver, given.checkpoint, given.world, given.store, given.mode
        )
        several = pool.map(task, seeds)
        rows = sorted((row for some in several for row in some), key=lambda row: int(row["seed"]))
    successes = sum(row["success"] for row in rows)
    low, high = interval(successes, len(rows))
    share = successes / len(rows)
    who = f"{given.driver}, {given.world}"
    print(f"{who}: {successes} of {len(rows)}, {share:.3f} ({low:.3f} to {high:.3f})")
    if given.json:
        summary = {"driver": given.driver, "world": given.world}
        summary |= {"successes": successes, "episodes": len(rows)}
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        head = json.dumps({**summary, "wilson_95": [round(low, 4), round(high, 4)]})
        given.json.write_text(f'{head[:-1]}, "rollouts": [\n{lines}\n]}}\n')


def outcome(done: Rollout) -> dict[str, Any]:
    """Say how far an episode came."""
    last = done.moments[-1]
    bowls = np.linalg.norm(last.cubes[0, :2] - done.layout.bowl_xy, axis=1)
    lifted = any(m.cubes[0, 2] > 0.05 for m in done.moments)
    wrong = any((m.cubes[1:, 2] > 0.05).any() for m in done.moments)
    first = np.array(done.commands[CHUNK - 1][:2])
    return {
        "seed": done.seed,
        "success": done.success,
        "commands": len(done.commands),
        "lifted": bool(lifted),
        "lifted_other": bool(wrong),
        "in_other_bowl": bool(bowls[1] < 0.05 and last.cubes[0, 2] < 0.05),
        "first_chunk_cm": round(100 * float(np.hypot(*(first - done.layout.cube_xy[0]))), 2),
    }


if __name__ == "__main__":
    main()

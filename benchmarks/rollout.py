"""Attention rollout at Pi0's size: 572 prefix tokens, 18 layers, 8 heads, 51 suffix tokens.

Aim: 3 s on 2 cores for the prefix, read from a store. Weights are random; speed does not depend on
them but for how well they compress.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from attnstore.query import Episode, open
from attnstore.query.attention.rollout import rollout, rollout_map
from attnstore.store.arrays.groups import PolicyShapes
from attnstore.store.commits import Attempt, slug
from attnstore.store.commits.run import RunConfig, save_run
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.format.episode import EpisodeSpec, PhaseSpec
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.precision import PRECISIONS, encode
from attnstore.store.format.tokens import AlignedAxis, Axis, Span, Token, TokenLayout
from attnstore.store.opening import create_store

from .measure import Figure, Setting, timed

LAYERS, HEADS, STEPS = 18, 8, 1
CAMERAS, GRID, TEXT, ACTIONS = ("hand_camera", "varied_camera_1"), (16, 16), 60, 50
NAME = "random"


def write_random_episode(root: Path, precision: str, layers: int = LAYERS) -> Episode:
    """Write one keyframe of random attention, without maps and tables."""
    layouts = _layouts()
    geometry = Geometry.letterbox((720, 1280), (224, 224), (14, 14))
    phases = {
        phase: PhaseSpec(
            phase,
            layers,
            HEADS,
            STEPS if phase == "suffix" else None,
            AlignedAxis.over([layout.query]),
            AlignedAxis.over([layout.key]),
            (),
        )
        for phase, layout in layouts.items()
    }
    spec = EpisodeSpec(
        name=NAME, outcome="unknown", instruction="", frames=(0,), seeds=(0,), precision=precision,
        geometry=dict.fromkeys(CAMERAS, geometry), phases=phases,
    )  # fmt: skip
    run = RunConfig(
        policy="pi0", checkpoint="random", checkpoint_digest="0" * 64, dtype="float32",
        dataset="droid:random", cameras=CAMERAS, stride=8, precision=precision, seed=0,
    )  # fmt: skip
    paths = create_store(root)
    attempt = Attempt(paths, save_run(paths, run, {}), slug(NAME), "base")
    writer = EpisodeWriter(attempt, spec, PolicyShapes(1, 1, 1, 1, None))
    rng = np.random.default_rng(0)
    for phase, layout in layouts.items():
        shape = (HEADS, len(layout.query), len(layout.key))
        for layer in range(layers):
            weights = np.exp(2 * rng.standard_normal(shape, np.float32))
            coded = encode(weights / weights.sum(-1, keepdims=True), precision)
            step = 0 if phase == "suffix" else None
            writer.write_attention(phase, 0, layer, coded, layout, step)
    writer.commit({}, after=0)
    return open(root).episode(NAME)


def run(setting: Setting) -> list[Figure]:
    calls: dict[str, Callable[[Episode], object]] = {
        "prefix": lambda e: rollout(e, keyframe=0),
        "prefix, max over heads": lambda e: rollout(e, keyframe=0, head_fusion="max"),
        "suffix through the prefix": lambda e: rollout(e, "suffix", keyframe=0),
        "map of the actions": lambda e: rollout_map(
            e, CAMERAS[0], "suffix", keyframe=0, query="action"
        ),
    }
    figures, layers = [], 2 if setting.toy else LAYERS
    for precision in PRECISIONS[:1] if setting.toy else PRECISIONS:
        episode = write_random_episode(
            setting.directory / f"rollout-{precision}", precision, layers
        )
        tokens = len(episode.phase("prefix").query)
        for name, call in calls.items():
            first = timed(partial(call, episode), 1).wall_median
            aim = "<= 3" if name == "prefix" else ""
            figures += [
                Figure(f"{precision}: {name}, first", first, "s", aim=aim,
                       note=f"{tokens} tokens, {layers} layers, {HEADS} heads"),
                Figure(f"{precision}: {name}, again", timed(partial(call, episode), 3).wall_median,
                       "s", note="median of 3; decoded chunks are cached"),
            ]  # fmt: skip
    return figures


def _layouts() -> dict[str, TokenLayout]:
    spans: list[Span] = []
    start, count = 0, GRID[0] * GRID[1]
    for camera in CAMERAS:
        name = f"image:{camera}"
        spans.append(Span(name, "image", start, start + count, start, camera=camera, grid=GRID))
        start += count
    tokens = tuple(Token(i, f" {i}") for i in range(TEXT))
    spans.append(Span("task", "text", start, start + TEXT, start, role="task", tokens=tokens))
    prefix = Axis(tuple(spans))
    suffix = Axis((Span("state", "state", 0, 1, 0), Span("action", "action", 1, 1 + ACTIONS, 1)))
    key = prefix.followed_by(suffix, model_offset=start + TEXT)
    return {
        "prefix": TokenLayout("prefix", prefix, prefix),
        "suffix": TokenLayout("suffix", suffix, key),
    }

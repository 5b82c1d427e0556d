"""Small episodes of random attention for tests: as an oracle in memory, and written to a store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from attnstore.store.arrays.groups import PolicyShapes
from attnstore.store.commits import (
    Attempt,
    Commit,
    StorePaths,
    all_commits,
    entry,
    hash_file,
    latest_commit,
    slug,
)
from attnstore.store.commits.run import RunConfig, save_run
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.format.episode import EpisodeSpec, PhaseSpec
from attnstore.store.format.generated import at_step, reserve, with_tokens
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.precision import encode
from attnstore.store.format.statistics import (
    entropy,
    gini,
    grid_variance,
    image_distribution,
    image_mass,
    image_variance,
    jensen_shannon,
    largest,
    top_mass,
)
from attnstore.store.format.tokens import AlignedAxis, Axis, Span, Token, TokenLayout
from attnstore.store.tables.base import METRICS
from attnstore.store.tables.inventory import TABLES

CAMERAS = ("hand_camera", "varied_camera_1")
SOURCE = (36, 64)
GROUPS = {"prefix": "task", "suffix": "action"}
POLICY = PolicyShapes(horizon=4, action_dof=6, recorded_dof=7, state_dof=8, denoising_steps=2)
Weights = NDArray[np.float32]
Block = tuple[str, int, int, int | None]
"""(phase, keyframe, layer, step)"""


@dataclass(frozen=True)
class RandomEpisode:
    """What `write_blocks` writes: layouts per keyframe and phase, weights per block."""

    spec: EpisodeSpec
    layouts: tuple[dict[str, TokenLayout], ...]
    weights: dict[Block, Weights]
    """(head, query, key) each, compact: no padding."""
    texts: tuple[int, ...] = ()
    """Tokens that each keyframe generates."""

    def padded(self, phase: str) -> Weights:
        """What a reader must see before rounding: the naive way, token by token."""
        spec = self.spec.phases[phase]
        steps = () if spec.steps is None else (spec.steps,)
        shape = (len(self.layouts), *steps, spec.layers, spec.heads, len(spec.query), len(spec.key))
        out = np.full(shape, np.nan, np.float32)
        for (name, keyframe, layer, step), values in self.weights.items():
            if name != phase:
                continue
            layout = at_step(self.layouts[keyframe][phase], step)
            rows = list(_stored_indices(spec.query, layout.query))
            cols = list(_stored_indices(spec.key, layout.key))
            at = (keyframe, layer) if step is None else (keyframe, step, layer)
            for q, stored_q in enumerate(rows):
                for k, stored_k in enumerate(cols):
                    out[(*at, slice(None), stored_q, stored_k)] = values[:, q, k]
        return out


def _stored_indices(aligned: AlignedAxis, axis: Axis) -> Iterator[int]:
    for span in axis:
        yield from range(aligned[span.name].start, aligned[span.name].start + len(span))


def random_episode(
    name: str = "success/2025-01-01/2025-01-01_10-00-00",
    outcome: str = "success",
    seed: int = 0,
    *,
    keyframes: int = 3,
    layers: int = 2,
    heads: int = 2,
    steps: int = 2,
    grid: tuple[int, int] = (4, 4),
    cameras: Sequence[str] = CAMERAS,
    precision: str = "float16",
    missing: Mapping[int, str] = MappingProxyType({}),
    texts: Sequence[int] = (),
) -> RandomEpisode:
    """Make an episode whose prompts have another number of tokens at every keyframe.

    Parameters
    ----------
    missing
        A camera that the keyframe lacks.
    texts
        How many tokens each keyframe generates, in phase decode; none: there is no such phase.
    """
    rng = np.random.default_rng(seed)
    geometry = Geometry.letterbox(SOURCE, (14 * grid[0], 14 * grid[1]), (14, 14))
    layouts = tuple(
        _layouts(rng, [c for c in cameras if c != missing.get(k)], grid) for k in range(keyframes)
    )
    for length, each in zip(texts, layouts, strict=False):
        prompt = each["prefix"].key
        text = tuple(Token(int(i), f" said{i}") for i in rng.integers(0, 99, length))
        reserved = reserve(prompt, length=99, steps=max(texts))
        each["decode"] = with_tokens(reserved, text)
    phases = {}
    groups = {**GROUPS, **({"decode": "readout"} if texts else {})}
    for phase, group in groups.items():
        phases[phase] = PhaseSpec(
            phase,
            layers,
            heads,
            {"suffix": steps, "decode": max(texts, default=0)}.get(phase),
            AlignedAxis.over([each[phase].query for each in layouts]),
            AlignedAxis.over([each[phase].key for each in layouts]),
            (group,),
        )
    spec = EpisodeSpec(
        name=name,
        outcome=outcome,
        instruction="put the cube in the bowl",
        frames=tuple(8 * i for i in range(keyframes)),
        seeds=tuple(seed + i for i in range(keyframes)),
        precision=precision,
        geometry=dict.fromkeys(cameras, geometry),
        phases=phases,
        task="cube",
        date="2025-01-01",
        rate=15.0,
        total_frames=8 * keyframes,
    )
    weights = {}
    for keyframe, each in enumerate(layouts):
        for phase, layout in each.items():
            count = texts[keyframe] if phase == "decode" else steps
            for step in [None] if phase == "prefix" else range(count):
                for layer in range(layers):
                    shape = (heads, len(layout.query), len(at_step(layout, step).key))
                    logits = np.exp(3 * rng.standard_normal(shape, np.float32))
                    weights[phase, keyframe, layer, step] = logits / logits.sum(-1, keepdims=True)
    return RandomEpisode(spec, layouts, weights, tuple(texts))


def _layouts(
    rng: np.random.Generator, cameras: Sequence[str], grid: tuple[int, int]
) -> dict[str, TokenLayout]:
    spans: list[Span] = []
    start = model = 0
    for camera in cameras:
        count = grid[0] * grid[1]
        stop = start + count
        spans.append(Span(f"image:{camera}", "image", start, stop, model, camera=camera, grid=grid))
        start, model = stop, model + count + 3
    for name, length in (("task", rng.integers(2, 6)), ("state_text", rng.integers(1, 4))):
        tokens = tuple(Token(int(i), f" {name}{i}") for i in rng.integers(0, 99, length))
        role = "task" if name == "task" else "state"
        stop = start + len(tokens)
        spans.append(Span(name, "text", start, stop, model, role=role, tokens=tokens))
        start, model = stop, model + len(tokens)
    prefix = Axis(tuple(spans))
    suffix = Axis((Span("state", "state", 0, 1, 0), Span("action", "action", 1, 5, 1)))
    return {
        "prefix": TokenLayout("prefix", prefix, prefix),
        "suffix": TokenLayout("suffix", suffix, prefix.followed_by(suffix, model_offset=model + 2)),
    }


def run_config(seed: int = 0, precision: str = "float16") -> RunConfig:
    return RunConfig(
        policy="pi0",
        checkpoint="tiny",
        checkpoint_digest="0" * 64,
        dtype="float32",
        dataset="droid:random",
        cameras=CAMERAS,
        stride=8,
        precision=precision,
        seed=seed,
    )


def write_episode(
    paths: StorePaths,
    name: str,
    outcome: str = "success",
    seed: int = 0,
    *,
    run_seed: int = 0,
    precision: str = "float16",
    replace: bool = False,
    **shape: Any,
) -> Commit:
    """Write a random episode with every table, and commit it.

    `replace` commits the next revision; otherwise a second commit is a ConflictError. `shape` are
    keywords of `random_episode`.
    """
    episode = random_episode(name, outcome, seed, precision=precision, **shape)
    run = save_run(paths, run_config(run_seed, precision), {"host": "test", "code": "0"})
    latest = latest_commit(paths, run, slug(name)) if replace else None
    writer = EpisodeWriter(Attempt(paths, run, slug(name), "base"), episode.spec, POLICY)
    write_blocks(writer, episode)
    write_rows(writer, episode, seed)
    return writer.commit({}, after=0 if latest is None else latest.revision)


def write_blocks(
    writer: EpisodeWriter, episode: RandomEpisode, each: Callable[..., Iterable[None]] = map
) -> None:
    """Write attention, overview maps and policy arrays; `each` maps over the blocks of attention."""
    spec = episode.spec

    def write(block: tuple[Block, Weights]) -> None:
        (phase, keyframe, layer, step), weights = block
        layout = at_step(episode.layouts[keyframe][phase], step)
        coded = encode(weights, spec.precision)
        writer.write_attention(phase, keyframe, layer, coded, layout, step)

    for _ in each(write, episode.weights.items()):
        pass
    for keyframe, length in enumerate(episode.texts):
        writer.end_steps("decode", keyframe, length)
    for phase, about in spec.phases.items():
        (group,) = about.query_groups
        for camera in spec.geometry:
            for keyframe in range(len(spec.frames)):
                mean, largest = maps_of(episode, phase, group, camera, keyframe)
                writer.write_map(phase, group, camera, "mean", keyframe, mean)
                writer.write_map(phase, group, camera, "max", keyframe, largest)
    rng = np.random.default_rng(spec.seeds[0])
    for keyframe in range(len(spec.frames)):
        writer.write_policy("actions", keyframe, rng.standard_normal((4, 6)).astype(np.float32))
        writer.write_policy("actions_recorded", keyframe, np.arange(7, dtype=np.float32))
        writer.write_policy("state", keyframe, np.arange(8, dtype=np.float32))
        writer.write_policy("denoising", keyframe, rng.standard_normal((2, 4, 6)).astype("f4"))


def maps_of(
    episode: RandomEpisode, phase: str, group: str, camera: str, keyframe: int
) -> tuple[Weights, Weights]:
    """Mean and max over a group's query tokens, ([step], layer, head, row, col); NaN where absent."""
    layout = episode.layouts[keyframe][phase]
    spec = episode.spec.phases[phase]
    rows = np.concatenate([np.arange(s.start, s.stop) for s in layout.query.group(group)])
    grid = episode.spec.geometry[camera].grid
    found: list[Weights] = []
    if camera not in {s.camera for s in layout.key}:
        steps = () if spec.steps is None else (spec.steps,)
        nothing = np.full((*steps, spec.layers, spec.heads, *grid), np.nan, np.float32)
        return nothing, nothing
    (cols,) = layout.key.group(f"image:{camera}")
    for step in [None] if spec.steps is None else range(spec.steps):
        if (phase, keyframe, 0, step) not in episode.weights:
            found.append(np.full_like(found[0], np.nan))
            continue
        layers = [episode.weights[phase, keyframe, i, step] for i in range(spec.layers)]
        found.append(np.stack(layers)[:, :, rows, cols])
    stacked = np.stack(found)
    mean, largest = (a.reshape(*a.shape[:-1], *grid) for a in (stacked.mean(-2), stacked.max(-2)))
    return (mean[0], largest[0]) if spec.steps is None else (mean, largest)


def write_rows(writer: EpisodeWriter, episode: RandomEpisode, seed: int = 0) -> None:
    """Fill every table; the metrics are those of the weights."""
    spec = episode.spec
    count = len(spec.frames)
    writer.add_rows(
        "keyframes",
        {
            "keyframe": range(count),
            "frame": spec.frames,
            "timestamp": [f / 15 for f in spec.frames],
            "instruction": [spec.instruction] * count,
            "seed": spec.seeds,
            "state": [[0.5] * 8] * count,
            "action_recorded": [[0.25] * 7] * count,
            "row_sum_min": [1.0] * count,
            "row_sum_max": [1.0] * count,
        },
    )
    for keyframe, frame in enumerate(spec.frames):
        for camera, geometry in spec.geometry.items():
            if camera not in {s.camera for s in episode.layouts[keyframe]["prefix"].key}:
                continue
            writer.add_rows(
                "frames",
                {
                    "keyframe": [keyframe],
                    "frame": [frame],
                    "camera": [camera],
                    "image": [_image(seed + keyframe)],
                    "media_type": ["image/jpeg"],
                    "height": [SOURCE[0]],
                    "width": [SOURCE[1]],
                    "geometry": [geometry.to_json()],
                },
            )
        for phase, layout in episode.layouts[keyframe].items():
            _write_tokens(writer, keyframe, phase, layout)
    for keyframe, length in enumerate(episode.texts):
        writer.add_rows(
            "tokens",
            {
                "keyframe": [keyframe] * length, "phase": ["decode"] * length,
                "axis": ["step"] * length, "index": range(length), "span": ["generated"] * length,
                "role": ["generated"] * length, "token_id": range(length),
                "text": [f" said{i}" for i in range(length)],
            },
        )  # fmt: skip
    for phase in spec.phases:
        _write_statistics(writer, episode, phase)
    writer.add_rows("episode_stats", _episode_stats(writer.rows("head_stats")))
    writer.add_rows(
        "sinks",
        {
            "phase": ["prefix"], "step": [None], "layer": [0], "head": [0], "key": [0],
            "span": [f"image:{next(iter(spec.geometry))}"], "text": [None],
            "camera": [next(iter(spec.geometry))],
            "row": [0], "col": [0], "fraction": [1.0], "mass": [0.5],
        },
    )  # fmt: skip


@lru_cache(maxsize=8)
def _image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*SOURCE, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", pixels)[1])


def _write_tokens(writer: EpisodeWriter, keyframe: int, phase: str, layout: TokenLayout) -> None:
    for name, axis in (("query", layout.query), ("key", layout.key)):
        aligned = getattr(writer.spec.phases[phase], name)
        for span in axis:
            home = aligned[span.name]
            writer.add_rows(
                "spans",
                {
                    "keyframe": [keyframe], "phase": [phase], "axis": [name], "span": [span.name],
                    "kind": [span.kind], "role": [span.role], "camera": [span.camera],
                    "start": [home.start], "stop": [home.start + len(span)],
                    "reserved_stop": [home.stop],
                    "rows": [span.grid[0] if span.grid else None],
                    "cols": [span.grid[1] if span.grid else None],
                    "model_start": [span.model_start],
                },
            )  # fmt: skip
            if span.tokens:
                n = len(span.tokens)
                writer.add_rows(
                    "tokens",
                    {
                        "keyframe": [keyframe] * n, "phase": [phase] * n, "axis": [name] * n,
                        "index": range(home.start, home.start + n), "span": [span.name] * n,
                        "role": [span.role] * n, "token_id": [t.id for t in span.tokens],
                        "text": [t.text for t in span.tokens],
                    },
                )  # fmt: skip


def _write_statistics(writer: EpisodeWriter, episode: RandomEpisode, phase: str) -> None:
    spec = episode.spec
    (group,) = spec.phases[phase].query_groups
    rows: list[dict[str, Any]] = []
    for camera, geometry in spec.geometry.items():
        cover = geometry.coverage()
        previous: dict[tuple[int | None, int, int], Any] = {}
        for keyframe, frame in enumerate(spec.frames):
            mean, _ = maps_of(episode, phase, group, camera, keyframe)
            if np.isnan(mean).all():
                continue
            if phase == "decode":
                mean = mean[: episode.texts[keyframe]]
            stepped = mean if spec.phases[phase].steps is not None else mean[None]
            p = image_distribution(stepped, cover)
            inside, outside = image_mass(stepped, cover)
            for s, layer, head in np.ndindex(*stepped.shape[:3]):
                step = s if spec.phases[phase].steps is not None else None
                one, raw = p[s, layer, head], stepped[s, layer, head]
                before = previous.get((step, layer, head))
                brightest, row, col = largest(raw, cover)
                metrics: dict[str, Any] = {
                    "camera_mass": inside[s, layer, head],
                    "letterbox_mass": outside[s, layer, head],
                    "letterbox_max": largest(raw, 1 - cover)[0],
                    "variance": image_variance(raw, cover),
                    "grid_variance": grid_variance(raw),
                    "max": brightest,
                    "entropy": entropy(one, float(cover.sum())),
                    "top10_mass": top_mass(one),
                    "gini": gini(one),
                    "confidence": 0.5,
                    "drift": None if before is None else jensen_shannon(one, before),
                    "step_drift": jensen_shannon(one, p[s - 1, layer, head]) if s else None,
                }
                previous[step, layer, head] = one
                rows.append(
                    {
                        "keyframe": keyframe, "frame": frame, "phase": phase, "step": step,
                        "layer": layer, "head": head, "query_group": group, "camera": camera,
                        **{k: None if v is None else float(v) for k, v in metrics.items()},
                        "argmax_row": int(row), "argmax_col": int(col),
                        "mass": [("task", 0.25), (f"image:{camera}", 0.75)],
                    }
                )  # fmt: skip
    writer.add_rows("head_stats", {k: [row[k] for row in rows] for k in rows[0]})


def _episode_stats(head_stats: pa.Table) -> dict[str, pa.Array]:
    keys = ("phase", "step", "layer", "head", "query_group", "camera")
    functions = {"mean": "avg", "sd": "stddev_samp", "max": "max"}
    columns = [
        f'{function}("{metric}") AS {metric}_{name}'
        for metric in METRICS
        for name, function in functions.items()
    ]
    with duckdb.connect() as connection:
        connection.register("rows_of_heads", head_stats)
        table = connection.sql(
            f"SELECT {', '.join(keys)}, count(*) AS keyframes, {', '.join(columns)} "
            f"FROM rows_of_heads GROUP BY {', '.join(keys)} ORDER BY ALL"
        ).to_arrow_table()
    schema = TABLES["episode_stats"].schema
    return {
        name: table.column(name).cast(schema.field(name).type).combine_chunks()
        for name in table.column_names
    }


def flip_byte(file: Path, position: int) -> None:
    """Damage one byte of a file."""
    data = bytearray(file.read_bytes())
    data[position] ^= 0xFF
    file.write_bytes(data)


def sealed(paths: StorePaths, commit: Commit) -> Commit:
    """Commit a part's files as they are now, as the author of a hostile store would."""
    (file,) = (f for f in paths.log.glob("*.json") if commit.attempt in f.read_text())
    value = json.loads(file.read_text())
    folder = commit.directory(paths)
    value["files"] = [
        [path, (folder / path).stat().st_size, hash_file(folder / path)]
        for path, _, _ in value["files"]
    ]
    file.write_bytes(entry.sealed(value))
    return next(c for c in all_commits(paths) if c.attempt == commit.attempt)

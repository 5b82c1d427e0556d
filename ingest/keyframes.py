"""Which frames are keyframes, their noise seeds, and the description of an episode of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from attnstore.store.arrays.groups import PolicyShapes
from attnstore.store.errors import EpisodeError
from attnstore.store.format.axes import split_path
from attnstore.store.format.episode import EpisodeSpec, PhaseSpec
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import AlignedAxis, Axis, TokenLayout
from attnstore.store.json_text import json_value

from .datasets.base import EpisodeInfo, Frame
from .encoders import all_layouts, all_shapes
from .hidden import check_choice, hidden_spec
from .policies.base import ATTENTION_ONLY, Observation, Policy, Watch
from .reading import prepare


def keyframe_indices(frames: int, stride: int) -> tuple[int, ...]:
    """Every `stride`-th frame from the first.

    Examples
    --------
    >>> keyframe_indices(20, 8)
    (0, 8, 16)
    """
    return tuple(range(0, frames, stride))


def keyframes_of(info: EpisodeInfo, stride: int) -> tuple[int, ...]:
    """Frames of an episode that are keyframes: those of a policy that drove, else every `stride`-th."""
    return keyframe_indices(info.frames, stride) if info.keyframes is None else info.keyframes


def noise_seed(base: int, episode: str, frame: int) -> int:
    """Seed of a keyframe's noise: the same whatever the batching, the order or the worker.

    Examples
    --------
    >>> noise_seed(0, "success/a", 8) == noise_seed(0, "success/a", 8)
    True
    """
    digest = hashlib.sha256(f"{base}\0{episode}\0{frame}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def observation(frame: Frame, info: EpisodeInfo, seed: int) -> Observation:
    """Return what the policy sees of a frame."""
    images = {c.camera: c.rgb for c in frame.cameras}
    if (call := frame.call) is not None:
        return Observation(images, call.instruction, frame.state, call.seed, call.batch)
    return Observation(
        images, info.instruction, frame.state, noise_seed(seed, info.name, frame.index)
    )


def _query_groups(asked: Sequence[str], queries: Sequence[Axis]) -> tuple[str, ...]:
    """Return the asked groups that any keyframe has; of a policy that is given no words, what it has."""

    def there(groups: Sequence[str]) -> tuple[str, ...]:
        return tuple(group for group in groups if any(query.group(group) for query in queries))

    return there(asked) or there(("text", "state", "image"))[:1] or tuple(asked)


def describe_episode(
    info: EpisodeInfo,
    frames: Iterator[Frame],
    policy: Policy,
    *,
    indices: Sequence[int],
    seed: int,
    precision: str,
    watch: Watch = ATTENTION_ONLY,
) -> tuple[EpisodeSpec, PolicyShapes]:
    """Describe an episode before the policy runs: aligned token layouts, geometry, shapes.

    Raises
    ------
    EpisodeError
        If a camera's image changes its size within the episode.
    """
    layouts: dict[str, list[TokenLayout]] = {}
    geometry: Mapping[str, Geometry] = {}
    seeds, state_dof, recorded_dof = [], 0, 0
    for frame in frames:
        sight = observation(frame, info, seed)
        sample = prepare(policy, [sight]).samples[0]
        for path, layout in all_layouts(policy, sample, watch).items():
            layouts.setdefault(path, []).append(layout)
        if geometry and sample.geometry != geometry:
            raise EpisodeError(info.name, f"frame {frame.index}: a camera's image changes its size")
        geometry, state_dof, recorded_dof = sample.geometry, frame.state.size, frame.action.size
        seeds.append(sight.seed)
    own = all_shapes(policy, geometry, watch)
    queries = {path: AlignedAxis.over([x.query for x in layouts[path]]) for path in own}
    check_choice(watch.hidden, own, {path: query.spans for path, query in queries.items()})
    phases = {
        path: PhaseSpec(
            split_path(path)[0],
            shape.layers,
            shape.heads,
            shape.steps,
            queries[path],
            AlignedAxis.over([x.key for x in layouts[path]]),
            _query_groups(shape.query_groups, [x.query for x in layouts[path]]),
            camera=split_path(path)[1],
            causal=shape.causal,
            values=watch.values,
            hidden=hidden_spec(shape, queries[path], watch.hidden),
        )
        for path, shape in own.items()
    }
    spec = EpisodeSpec(
        name=info.name,
        outcome=info.outcome,
        instruction=info.instruction,
        frames=tuple(indices),
        seeds=tuple(seeds),
        precision=precision,
        geometry=geometry,
        phases=phases,
        task=info.task,
        date=info.date,
        rate=info.rate,
        total_frames=info.frames,
        attributes=json_value(info.attributes),
    )
    steps = [s.steps for s in policy.phases.values() if s.steps is not None]
    kept = steps[0] if steps and policy.denoiser_steps else None
    return spec, PolicyShapes(policy.horizon, policy.action_dof, recorded_dof, state_dof, kept)

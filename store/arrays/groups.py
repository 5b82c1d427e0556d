"""The Zarr groups of an episode: which arrays there are, with dims, coordinates and codecs.

::

    attention.zarr/                     attributes: the episode's description
      frame                             keyframe
      lut                               code   (log8 only)
      <phase>/attention                 keyframe [step] layer head query key
      <phase>/value_norm                keyframe [step] layer head key   (float32, if captured)
      hidden/<phase>/mean               keyframe [step] layer span feature    (float32, if captured)
      hidden/<phase>/last               keyframe [step] query feature         (float32, if captured)
      hidden/<phase>/layer              layer: -1 is what enters layer 0
      hidden_tokens/<phase>/state       keyframe [step] layer query feature   (float32, if asked for)
      hidden_tokens/<phase>/{layer,query}   which layers, and which of the phase's query tokens
      vision/<camera>/attention         keyframe layer head query key
      maps/<phase>/<group>/<camera>/{mean,max}   keyframe [step] layer head row col   (float32)
      policy/{actions,actions_recorded,state,denoising}

Dimensions that count from 0 have no coordinate array: a Zarr reader's own numbering is theirs, and each
would be two files. Those that say more have one: the frame of each keyframe, the table that decodes log8,
the layers and tokens of hidden states.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..format.axes import attention_dims, map_dims, norm_dims
from ..format.episode import EpisodeSpec, PhaseSpec, spec_to_json
from ..format.hidden import (
    HIDDEN_BITS,
    Form,
    hidden_dims,
    hidden_layers,
    hidden_path,
    hidden_positions,
    hidden_shape,
)
from ..format.precision import absent, dtype, log8_table
from ..format.version import written
from .chunking import (
    ChunkPlan,
    attention_plan,
    blosc,
    hidden_plan,
    map_plan,
    norm_plan,
    shuffled,
)

MAP_REDUCTIONS = ("mean", "max")
MAP_BITS: Mapping[str, int] = MappingProxyType({"mean": 11, "max": 6})
"""Significant bits of overview maps, which are plain float32 otherwise: numbers are computed from
means, pictures are drawn of maxima. Measured: docs/decisions/016-image-statistics.md."""

VALUE_NORM = "value_norm"
"""Name of the array of value norms, beside ``attention``."""
NORM_BITS = 11
"""Significant bits of value norms, plain float32 otherwise: as many as float16 has, in any range."""

NORM_LEVEL = 5
"""Level of zstd for value norms: the first at which Blosc's blocks are so large that a suffix's prefix
keys, the same at every step, compress to those of one; measured: 16.5 kB a layer of Pi0.5, 57 at 1."""


@dataclass(frozen=True, slots=True)
class PolicyShapes:
    """Lengths of the policy arrays' axes."""

    horizon: int
    """Actions in a chunk."""
    action_dof: int
    """The policy's action vector, padding included."""
    recorded_dof: int
    """The dataset's recorded action vector."""
    state_dof: int
    """The dataset's state vector."""
    denoising_steps: int | None = None
    """Intermediate action chunks kept per keyframe; None keeps none."""


def create_arrays(path: Path, spec: EpisodeSpec, policy: PolicyShapes) -> None:
    """Define every array of an episode, empty, with coordinates and consolidated metadata."""
    import zarr  # whoever reads needs none of it

    # Attributes are written with their node: each that is set afterwards writes its file anew.
    about: dict[str, Any] = {
        "attnstore_format": written(),
        "attnstore_episode": spec_to_json(spec),
    }
    root = zarr.open_group(str(path), mode="w-", zarr_format=3, attributes=about)
    frames = np.asarray(spec.frames, np.int32)
    small_array(root, "frame", frames, ("keyframe",), "frame index in the recording")
    if spec.precision == "log8":
        small_array(root, "lut", log8_table(), ("code",), "decodes log8: weight = lut[code]")
    for phase in spec.phases.values():
        _create_phase(root, spec, phase)
    _create_policy(root, spec, policy)
    with warnings.catch_warnings():
        # Zarr warns that the v3 specification has no consolidated metadata yet. Readers that do
        # not know it ignore it; those that do open an episode in one request.
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        zarr.consolidate_metadata(root.store)


def plan_phase(phase: PhaseSpec, keyframes: int) -> ChunkPlan:
    """Plan the attention array of a phase."""
    return attention_plan(
        phase.phase, keyframes, phase.steps, phase.layers, phase.heads, len(phase.query),
        len(phase.key),
    )  # fmt: skip


def _create_phase(root: Any, spec: EpisodeSpec, phase: PhaseSpec) -> None:
    count = len(spec.frames)
    plan = plan_phase(phase, count)
    group = root.create_group(phase.path)
    dims = attention_dims(phase.phase)
    description = f"{phase.path} attention weights; rows over key sum to 1; absent tokens are NaN"
    attributes = {"precision": spec.precision}
    if spec.precision == "log8":
        attributes["decode"] = "lut[code]"
    _weights(
        group, "attention", plan, dims, dtype(spec.precision), blosc(spec.precision),
        absent(spec.precision), {"description": description, **attributes},
    )  # fmt: skip
    if phase.values:
        norms = norm_plan(
            phase.phase, count, phase.steps, phase.layers, phase.heads, len(phase.key)
        )
        text = (
            f"{phase.path}: norm of what each key token would add through each head, in the units of "
            "the hidden states; 0 where a layer has no such key; absent tokens are NaN"
        )
        _weights(
            group, VALUE_NORM, norms, norm_dims(phase.phase), np.dtype(np.float32),
            {**shuffled(4, norms.chunk), "clevel": NORM_LEVEL}, float("nan"),
            {"description": text, "significant_bits": NORM_BITS},
        )  # fmt: skip
    if phase.hidden is not None:
        _create_hidden(root, phase, count)
    for camera in phase.cameras:
        grid = spec.geometry[camera].grid
        shape = map_plan(phase.phase, count, phase.steps, phase.layers, phase.heads, grid)
        dims = map_dims(phase.phase)
        for query_group in phase.query_groups:
            maps = root.create_group(f"maps/{phase.phase}/{query_group}/{camera}")
            for reduction in MAP_REDUCTIONS:
                text = f"{reduction} over the {query_group} tokens of their attention to {camera}"
                bits = MAP_BITS[reduction]
                _weights(
                    maps, reduction, shape, dims, np.dtype(np.float32), shuffled(4, shape.chunk),
                    float("nan"), {"description": text, "significant_bits": bits},
                )  # fmt: skip


HIDDEN_TEXT: Mapping[Form, str] = MappingProxyType(
    {
        "mean": "mean over a span's tokens of their hidden states after the layer",
        "last": "last hidden state, after the final norm, which the policy makes actions of",
        "tokens": "hidden state after the layer",
    }
)


def plan_hidden(phase: PhaseSpec, keyframes: int, form: Form) -> ChunkPlan:
    """Plan an array of hidden states of a phase that has them."""
    assert phase.hidden is not None
    shape = hidden_shape(keyframes, phase.steps, phase.layers, phase.query, phase.hidden, form)
    return hidden_plan(shape, hidden_dims(phase.phase, form))


def _create_hidden(root: Any, phase: PhaseSpec, count: int) -> None:
    hidden = phase.hidden
    assert hidden is not None
    for form in hidden.forms:
        folder, _, name = hidden_path(phase.path, form).rpartition("/")
        group = root.require_group(folder)
        plan = plan_hidden(phase, count, form)
        named = {"mean": [s.name for s in phase.query], "last": hidden.last, "tokens": hidden.spans}
        _weights(
            group, name, plan, hidden_dims(phase.phase, form), np.dtype(np.float32),
            shuffled(4, plan.chunk), float("nan"),
            {
                "description": f"{phase.path}: {HIDDEN_TEXT[form]}; absent tokens are NaN",
                "spans": list(named[form]),
                "significant_bits": HIDDEN_BITS,
            },
        )  # fmt: skip
        if layers := hidden_layers(phase.layers, hidden, form):
            text = "layer whose output it is; -1: what enters layer 0"
            small_array(group, "layer", np.asarray(layers, np.int16), ("layer",), text)
        if form == "tokens":
            at = hidden_positions(phase.query, hidden, form).astype(np.int32)
            small_array(group, "query", at, ("query",), f"index on the query axis of {phase.path}")


def _create_policy(root: Any, spec: EpisodeSpec, shapes: PolicyShapes) -> None:
    count = len(spec.frames)
    group = root.create_group("policy")
    definitions: dict[str, tuple[Sequence[str], tuple[int, ...], str]] = {
        "actions": (
            ("keyframe", "horizon", "action_dof"),
            (count, shapes.horizon, shapes.action_dof),
            "the policy's action chunk, in its normalised units",
        ),
        "actions_recorded": (
            ("keyframe", "recorded_dof"),
            (count, shapes.recorded_dof),
            "the action recorded in the dataset at the keyframe, in the dataset's units",
        ),
        "state": (
            ("keyframe", "state_dof"),
            (count, shapes.state_dof),
            "the robot state recorded at the keyframe, in the dataset's units",
        ),
    }
    if shapes.denoising_steps is not None:
        definitions["denoising"] = (
            ("keyframe", "step", "horizon", "action_dof"),
            (count, shapes.denoising_steps, shapes.horizon, shapes.action_dof),
            "the action chunk after each denoising step, in the policy's normalised units",
        )
    from zarr.codecs import BloscCodec, Crc32cCodec

    for name, (dims, shape, text) in definitions.items():
        if 0 in shape:
            continue
        group.create_array(
            name,
            shape=shape,
            chunks=shape,
            dtype="float32",
            compressors=(BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec()),
            fill_value=float("nan"),
            dimension_names=dims,
            attributes={"description": text},
        )


def _weights(
    group: Any,
    name: str,
    plan: ChunkPlan,
    dims: Sequence[str],
    kind: np.dtype[Any],
    codec: Mapping[str, Any],
    fill: float,
    attributes: Mapping[str, Any],
) -> None:
    from zarr.codecs import BloscCodec, Crc32cCodec

    group.create_array(
        name,
        shape=plan.shape,
        chunks=plan.chunk,
        shards=plan.shard,
        dtype=kind,
        # crc32c last: without it, flipped bytes inside a Blosc frame decode without an error.
        compressors=(BloscCodec(**codec), Crc32cCodec()),
        fill_value=fill,
        dimension_names=dims,
        attributes=dict(attributes),
    )


def small_array(
    group: Any, name: str, data: NDArray[Any], dims: Sequence[str], description: str
) -> None:
    """Write an array of one chunk, checksummed: a coordinate, or a table to decode by."""
    from zarr.codecs import Crc32cCodec

    # Not create_array(data=...): that came with zarr 3.1, and openpi's lock has 3.0.8.
    array = group.create_array(
        name,
        shape=data.shape,
        dtype=data.dtype,
        chunks=data.shape,
        compressors=(Crc32cCodec(),),
        dimension_names=dims,
        attributes={"description": description},
    )
    array[...] = data

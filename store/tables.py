"""Columns of every Parquet table of a part, with units and definitions.

docs/schema.md is generated from this module.
"""
# ruff: noqa: E501 - one line per column, however long its definition

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    type: pa.DataType
    definition: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: what a row is, and its columns."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema; definitions and units are field metadata."""
        return pa.schema(
            [
                pa.field(
                    c.name,
                    c.type,
                    metadata={"definition": c.definition, **({"unit": c.unit} if c.unit else {})},
                )
                for c in self.columns
            ],
            metadata={"row": self.row},
        )


_S, _I16, _I32, _I64, _F32, _F64 = (
    pa.string(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(),
)  # fmt: skip

_RUN = Column("run", _S, "id of the run")
_EPISODE = Column("episode", _S, "id of the episode; its own name is in table episodes")
_VARIANT = Column("variant", _S, "'base', or the intervention on the observation")
_KEYFRAME = Column("keyframe", _I32, "ordinal of the keyframe in the episode")
_FRAME = Column("frame", _I32, "frame index in the recording")
_PHASE = Column("phase", _S, "prefix, suffix, joint, decode or vision")
_STEP = Column("step", _I16, "denoising step, 0 = noisiest; NULL in one-pass phases")
_LAYER = Column("layer", _I16, "0-based layer")
_HEAD = Column("head", _I16, "0-based head")
_GROUP = Column("query_group", _S, "query tokens that are averaged: text, action")
_CAMERA = Column("camera", _S, "the dataset's camera name")

METRICS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "camera_mass": ("sum over the camera's patches of coverage * mean attention", "share of attention, 0..1"),
        "letterbox_mass": ("sum over the camera's patches of (1 - coverage) * mean attention", "share of attention, 0..1"),
        "variance": ("variance over patches of the raw map (mean over query tokens); grows with the square of camera_mass: ranks heads within a camera", "squared share"),
        "max": ("largest value of the raw map", "share of attention, 0..1"),
        "entropy": ("-sum P log P / log N over the patches that show image; comparable across heads and cameras", "0..1"),
        "top10_mass": ("share of P on the top 10 % of patches", "0..1"),
        "gini": ("Gini coefficient of P over patches", "0..1"),
        "confidence": ("mean over the group's query tokens of their largest weight on any key", "0..1"),
        "drift": ("Jensen-Shannon divergence of P from the previous keyframe; NULL at the first", "bits, 0..1"),
        "step_drift": ("Jensen-Shannon divergence of P from the previous step; NULL at the first and in one-pass phases", "bits, 0..1"),
    }
)  # fmt: skip
"""Per-head metrics of ``head_stats``: definition and unit. DESIGN: semantics version 1."""

_HEAD_KEYS = (
    _RUN,
    _EPISODE,
    _VARIANT,
    _KEYFRAME,
    _FRAME,
    _PHASE,
    _STEP,
    _LAYER,
    _HEAD,
    _GROUP,
    _CAMERA,
)

_TABLES = (
    Table(
        "keyframes",
        "one keyframe of an episode",
        (
            _RUN, _EPISODE, _VARIANT, _KEYFRAME, _FRAME,
            Column("timestamp", _F64, "time since the first frame; NULL if not recorded", "s"),
            Column("instruction", _S, "the prompt that the policy got"),
            Column("seed", _I64, "seed of the initial noise"),
            Column("state", pa.list_(_F32), "recorded robot state", "dataset units"),
            Column("action_recorded", pa.list_(_F32), "recorded action", "dataset units"),
            Column("row_sum_min", _F32, "smallest sum of an attention row over keys, all phases"),
            Column("row_sum_max", _F32, "largest sum of an attention row over keys, all phases"),
        ),
    ),
    Table(
        "frames",
        "one camera image of a keyframe, as read",
        (
            _RUN, _EPISODE, _KEYFRAME, _FRAME, _CAMERA,
            Column("image", pa.binary(), "encoded image"),
            Column("media_type", _S, "image/jpeg or image/png"),
            Column("height", _I32, "height of the image", "pixels"),
            Column("width", _I32, "width of the image", "pixels"),
            Column("geometry", _S, "JSON of the transform from these pixels to the patch grid"),
        ),
    ),
    Table(
        "spans",
        "one span of tokens on one axis of a phase at one keyframe",
        (
            _RUN, _EPISODE, _KEYFRAME, _PHASE,
            Column("axis", _S, "query or key"),
            Column("span", _S, "name, unique on its axis"),
            Column("kind", _S, "image, text, state, action, readout or other"),
            Column("role", _S, "text spans: task, state or other; else NULL"),
            _CAMERA,
            Column("start", _I32, "first index on the stored axis"),
            Column("stop", _I32, "one past the last index that exists at this keyframe"),
            Column("reserved_stop", _I32, "one past the last index kept for the span in this episode"),
            Column("rows", _I32, "image spans: rows of the patch grid"),
            Column("cols", _I32, "image spans: columns of the patch grid"),
            Column("model_start", _I32, "first index in the model's own sequence, padding included"),
        ),
    ),
    Table(
        "tokens",
        "one text token at one keyframe",
        (
            _RUN, _EPISODE, _KEYFRAME, _PHASE,
            Column("axis", _S, "query or key"),
            Column("index", _I32, "index on the stored axis"),
            Column("span", _S, "span that the token is in"),
            Column("role", _S, "task, state or other"),
            Column("token_id", _I32, "vocabulary index"),
            Column("text", _S, "the string that the token stands for"),
        ),
    ),
    Table(
        "head_stats",
        "one head's attention from one query group to one camera, at one keyframe and step",
        (
            *_HEAD_KEYS,
            *(Column(name, _F32, text, unit) for name, (text, unit) in METRICS.items()),
            Column("argmax_row", _I16, "row of the raw map's largest value"),
            Column("argmax_col", _I16, "column of the raw map's largest value"),
            Column("mass", pa.map_(_S, _F32), "share of attention per coarse key span (each camera's image and letterbox, text by role, state, action); sums to 1, the same for every camera's row", "0..1"),
        ),
    ),
    Table(
        "sinks",
        "a key that draws more than 0.3 of all queries' mean attention in at least 80 % of the keyframes",
        (
            _RUN, _EPISODE, _VARIANT, _PHASE, _STEP, _LAYER, _HEAD,
            Column("key", _I32, "index on the stored key axis"),
            Column("span", _S, "span that the key is in"),
            Column("text", _S, "the token's string; NULL for other kinds"),
            _CAMERA,
            Column("row", _I16, "patch row; NULL outside images"),
            Column("col", _I16, "patch column; NULL outside images"),
            Column("fraction", _F32, "share of the keyframes above the threshold", "0..1"),
            Column("mass", _F32, "mean attention of all valid queries to this key, over keyframes", "0..1"),
        ),
    ),
    Table(
        "episode_stats",
        "a head's metrics over an episode's keyframes",
        (
            _RUN, _EPISODE, _VARIANT, _PHASE, _STEP, _LAYER, _HEAD, _GROUP, _CAMERA,
            Column("keyframes", _I32, "number of keyframes aggregated"),
            *(
                Column(f"{name}_{aggregate}", _F32, f"{word} over keyframes of {name}", unit)
                for name, (_, unit) in METRICS.items()
                for aggregate, word in (("mean", "mean"), ("sd", "standard deviation (n - 1)"), ("max", "maximum"))
            ),
        ),
    ),
)  # fmt: skip

TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _TABLES})
"""Tables of every base part."""

OBJECT_METRICS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "overlap_ratio": ("share of the camera's attention (letterbox left out) that lies on the object", "0..1"),
        "concentration": ("mean attention per pixel inside the object over that outside; NULL if the outside gets none", "ratio"),
        "iou": ("intersection over union of the object with the pixels whose attention is at least threshold times the largest", "0..1"),
        "lift": ("overlap_ratio over area: 1 for uniform attention under every letterbox, crop and flip", "ratio"),
        "pointing_hit": ("1 if the middle pixel of what the patch with the largest value shows is on the object, else 0; its mean is the pointing game's accuracy (Zhang et al. 2018)", "0 or 1"),
        "nss": ("normalised scanpath saliency: mean over the object of the map z-scored over the image (Peters et al. 2005)", "standard deviations"),
    }
)  # fmt: skip
"""Metrics of ``object_stats``: definition and unit."""

_OBJECT_KEYS = (
    _RUN,
    _EPISODE,
    _VARIANT,
    Column("part", _S, "objects-...: digest of source, camera and parameters"),
    _KEYFRAME,
    _FRAME,
    _CAMERA,
    Column("source", _S, "detector (files beside the episode) or gripper (projected proxy)"),
    Column("object", _S, "the detector's category, all its detections united; or gripper"),
)

_PART_TABLES = (
    Table(
        "object_stats",
        "one map of attention (a head's, their mean or their maximum) against one object at one keyframe and step; from the stored weights (float16 or log8, overview maps are log8), while head_stats saw the unrounded ones; NULL where the camera gets no attention",
        (
            *_OBJECT_KEYS,
            Column("mask_frame", _I32, "frame that the mask is of; differs from frame at most by the part's parameter within", "frames"),
            _PHASE, _STEP, _LAYER,
            Column("head", _I16, "0-based head; NULL for the mean and the maximum over heads"),
            Column("head_kind", _S, "head, mean (map averaged over heads) or max (largest over heads, patch by patch)"),
            _GROUP,
            Column("tier", _S, "what was read: maps (overview maps) or full (all weights)"),
            Column("threshold", _F32, "share of a map's largest value from which a patch is bright, for iou", "0..1"),
            Column("area", _F32, "share of the seen image that the object covers: what overlap_ratio is by chance", "0..1"),
            *(Column(name, _F32, text, unit) for name, (text, unit) in OBJECT_METRICS.items()),
        ),
    ),
    Table(
        "object_masks",
        "the mask of one object at one keyframe that object_stats was computed with",
        (
            *_OBJECT_KEYS,
            Column("mask_frame", _I32, "frame that the mask is of", "frames"),
            Column("instances", _I16, "detections that were united"),
            Column("score", _F32, "the detector's confidence, the lowest of the detections; NULL if it gives none", "0..1"),
            Column("height", _I32, "height of the camera's image", "pixels"),
            Column("width", _I32, "width of the camera's image", "pixels"),
            Column("counts", _S, "run lengths of the mask as COCO's string, column by column"),
        ),
    ),
)  # fmt: skip

PART_TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _PART_TABLES})
"""Tables that other parts bring, by name: object_stats and object_masks of objects-..."""

ALL_TABLES: Mapping[str, Table] = MappingProxyType({**TABLES, **PART_TABLES})


def write_table(path: Path, table: pa.Table) -> None:
    """Write Parquet that any reader opens: zstd, dictionaries for text only."""
    text = [
        f.name
        for f in table.schema
        if pa.types.is_string(f.type) and f.name not in ("geometry", "counts")
    ]
    keys = [f.name for f in table.schema if pa.types.is_integer(f.type)]
    dictionary = [n for n in text + keys if n not in ("seed",)]
    if "mass" in table.schema.names and pa.types.is_map(table.schema.field("mass").type):
        dictionary.append("mass.key_value.key")
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=3,
        use_dictionary=dictionary,
        write_statistics=True,
        row_group_size=64 * 1024,
    )

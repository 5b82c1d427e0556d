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
    optional: bool = False
    """Rows may be added without it: NULL."""


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
_STEP = Column(
    "step",
    _I16,
    "denoising step, 0 = noisiest, or generated token (phase decode), 0 = first; NULL in one-pass phases",
)
_LAYER = Column("layer", _I16, "0-based layer")
_HEAD = Column("head", _I16, "0-based head")
_GROUP = Column("query_group", _S, "query tokens that are averaged: text, action, image")
_CAMERA = Column(
    "camera",
    _S,
    "the dataset's camera name; hand_camera@-1 is what it showed one frame earlier, to a policy with a window",
)
_TOKEN_CAMERA = Column(
    "camera",
    _S,
    "of image tokens, and of every token of a camera's encoder (phase vision): the dataset's camera name; else NULL",
)

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
            Column("generated", _S, "text that the policy generated, without markers such as end-of-sequence; NULL if it generates none", optional=True),
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
            Column("role", _S, "task, repeated (the instruction beside the images once more), state, generated, padding (of an instruction, where the model attends to it) or other; NULL for tokens that are no text"),
            _TOKEN_CAMERA,
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
            Column("axis", _S, "query or key; step: the token that a step of phase decode chose"),
            Column("index", _I32, "index on the stored axis"),
            Column("span", _S, "span that the token is in"),
            Column("role", _S, "as in spans"),
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
            _TOKEN_CAMERA,
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

TOKEN_METRICS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "norm": ("Euclidean norm of the hidden state after the layer, residual stream included", "the model's activations"),
        "cosine_previous": ("cosine of the hidden state after the layer to that before it; NULL if one of them is 0", "-1..1"),
        "cosine_embedding": ("cosine of the hidden state after the layer to that which enters layer 0; NULL if one of them is 0", "-1..1"),
    }
)  # fmt: skip
"""Metrics of ``token_stats``: definition and unit. In float32, from the hidden states as computed."""

_OPTIONAL_TABLES = (
    Table(
        "token_stats",
        "one token's hidden state after one layer, at one keyframe and step; only from an ingest with --token-stats",
        (
            _RUN, _EPISODE, _VARIANT, _KEYFRAME, _PHASE, _TOKEN_CAMERA, _STEP, _LAYER,
            Column("index", _I32, "index on the stored query axis, as in tokens where axis = 'query'"),
            Column("span", _S, "span that the token is in"),
            Column("kind", _S, "image, text, state, action, readout or other"),
            Column("role", _S, "as in spans"),
            *(Column(name, _F32, text, unit) for name, (text, unit) in TOKEN_METRICS.items()),
        ),
    ),
)  # fmt: skip

OPTIONAL_TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _OPTIONAL_TABLES})
"""Tables that a base part has when the ingest was asked for them."""

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

ACTION_METRICS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "mse": ("mean squared difference of the action chunk from the base's, over the horizon and the real degrees of freedom", "squared normalised action"),
        "si_mse": ("scale-invariant: min over alpha >= 0 of |alpha b - a|^2 / |a|^2, a the base's chunk, b the variant's; a reversed action scores 1", "0..1"),
        "scale": ("|b| / |a|: how much longer the variant's action is", "ratio"),
        "cosine": ("cosine of the variant's action chunk to the base's; NULL if one of them is 0", "-1..1"),
    }
)  # fmt: skip
"""Metrics of ``interventions``: definition and unit; see `attnstore.store.action_metrics`."""

_PROBE_KEYS = (
    _RUN,
    _EPISODE,
    Column("variant", _S, "the intervention, unique in its part and keyframe: L05/attention, prompt/empty; base: the policy run again on what is stored"),
    Column("part", _S, "probe-...: digest of what was asked for"),
    _KEYFRAME,
    _FRAME,
    Column("probe", _S, "fidelity, regions, prompts or knockout"),
)  # fmt: skip
_SHOWN_MAP = (
    Column("phase", _S, "phase of the map that the mask is made from, or whose attention is blocked; NULL if neither"),
    Column("step", _I16, "step of that map; NULL in one-pass phases, and where all steps are blocked"),
    Column("layer", _I16, "layer of that map; NULL if there is none, or several layers are blocked"),
    Column("query_group", _S, "query tokens of that map, or those that are blocked"),
    Column("heads", _S, "how the map is reduced over heads: mean, max, active (largest variance over the episode) or a head's number; blocked heads: all"),
)  # fmt: skip
_EFFECT = (
    Column("dof", _I16, "real degrees of freedom that were compared"),
    *(Column(name, _F32, text, unit) for name, (text, unit) in ACTION_METRICS.items()),
)

_PROBE_TABLES = (
    Table(
        "interventions",
        "one run of the policy on a changed observation, or with attention blocked, against the base; from the same noise",
        (
            *_PROBE_KEYS,
            Column("target", _S, "what was taken away: attention (the top of a map), control, cell, camera, object, rank (attention by rank), prompt, attention from > to; base"),
            Column("detail", _S, "which one: 1,2 (cell), the object's or the prompt's name, 0.1-0.2 (rank), text > image:hand_camera; NULL if there is one only"),
            Column("cameras", pa.list_(_S), "cameras whose image was changed"),
            *_SHOWN_MAP,
            Column("repeat", _I16, "0-based; controls and noise differ between repeats"),
            Column("share", _F32, "share of each changed image's seen pixels that was asked for; NULL if the region says it", "0..1"),
            Column("fill", _S, "what the pixels were replaced by: black, mean, blur or noise; NULL if no pixel was"),
            Column("pixels", _I32, "pixels replaced, all cameras", "pixels"),
            Column("area", _F32, "share of the changed images' seen pixels that was replaced", "0..1"),
            Column("pixel_change", _F32, "mean absolute difference of the replaced pixels, over colours: a control that blacks out black changes nothing", "0..255"),
            Column("attention", _F32, "share of the map's attention on the replaced pixels, mean over the changed cameras; letterbox left out", "0..1"),
            Column("pieces", _I16, "pieces that the moved mask was cut into to find room, all cameras; as many as the mask has if none was cut"),
            Column("instruction", _S, "the prompt that the policy got"),
            *_EFFECT,
        ),
    ),
    Table(
        "intervention_curves",
        "one point of a deletion or insertion curve (Petsiuk et al. 2018)",
        (
            *_PROBE_KEYS,
            Column("curve", _S, "deletion (pixels are replaced, hottest first) or insertion (all are replaced, then shown again, hottest first)"),
            Column("target", _S, "attention (in the order of the map) or control (patches in random order)"),
            Column("cameras", pa.list_(_S), "cameras whose image was changed"),
            *_SHOWN_MAP,
            Column("repeat", _I16, "0-based; of the control"),
            Column("fill", _S, "what the pixels were replaced by"),
            Column("fraction", _F32, "share of the seen pixels that is replaced (deletion) or shown (insertion)", "0..1"),
            *_EFFECT,
        ),
    ),
    Table(
        "region_attention",
        "how much of one map lies on one region of regions; from the overview maps (log8)",
        (
            *_PROBE_KEYS,
            _CAMERA,
            _PHASE, _STEP, _LAYER,
            _GROUP,
            Column("area", _F32, "share of the camera's seen pixels that is in the region: what attention is by chance", "0..1"),
            Column("attention", _F32, "share of the camera's attention (mean over heads, letterbox left out) that lies on the region", "0..1"),
        ),
    ),
    Table(
        "map_shifts",
        "how much one head's map of a camera changes between the base and an intervention; from the unrounded weights; NULL where the camera gets no attention",
        (
            *_PROBE_KEYS,
            _PHASE, _STEP, _LAYER, _HEAD, _GROUP, _CAMERA,
            Column("l2", _F32, "Euclidean distance of P from the base's", "share of attention, 0..1.41"),
            Column("correlation", _F32, "Pearson correlation of P with the base's over patches; NULL if one is constant", "-1..1"),
            Column("jensen_shannon", _F32, "Jensen-Shannon divergence of P from the base's", "bits, 0..1"),
            Column("mass_change", _F32, "change of the share of attention on the camera's image", "share of attention, -1..1"),
        ),
    ),
    Table(
        "intervention_masks",
        "the pixels of one camera that one intervention replaced",
        (
            *_PROBE_KEYS,
            _CAMERA,
            Column("height", _I32, "height of the camera's image", "pixels"),
            Column("width", _I32, "width of the camera's image", "pixels"),
            Column("counts", _S, "run lengths of the mask as COCO's string, column by column"),
        ),
    ),
)  # fmt: skip

PROBE_TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _PROBE_TABLES})
"""Tables of probe-... parts."""

_CNN_KEYS = (
    _RUN,
    _EPISODE,
    Column("part", _S, "cnn-...: digest of network, layer, filters and settings"),
    Column("network", _S, "the convolutional network: vgg16"),
    Column("module", _S, "the convolution, as the network calls it: features.10"),
    Column("conv", _I16, "0-based ordinal among the network's convolutions"),
    Column("filter", _I32, "0-based channel of the convolution's output"),
)
_CNN_TABLES = (
    Table(
        "cnn_objective",
        "one iteration of the ascent to the image that one filter answers most to",
        (
            *_CNN_KEYS,
            Column("iteration", _I32, "steps that were done before; the last row is of the result"),
            Column("objective", _F32, "mean over positions of the positive part of the filter's output", "the network's activations"),
            Column("gradient_rms", _F32, "root mean square over the input of the objective's gradient, before it is normalised", "activation per unit of the input"),
        ),
    ),
    Table(
        "cnn_response",
        "one filter's answer to one image",
        (
            *_CNN_KEYS,
            Column("kind", _S, "activations or guided"),
            Column("keyframe", _I32, "ordinal of the keyframe in the episode; 0 for an image of a file"),
            Column("frame", _I32, "frame index in the recording; NULL for an image of a file"),
            Column("camera", _S, "the dataset's camera name; NULL for an image of a file"),
            Column("mean", _F32, "mean over positions of the filter's output; NULL of kind guided", "the network's activations"),
            Column("max", _F32, "largest output over positions; NULL of kind guided", "the network's activations"),
            Column("active", _F32, "share of positions with a positive output; NULL of kind guided", "0..1"),
            Column("value", _F32, "the activation that was taken back to the input; NULL of kind activations", "the network's activations"),
            Column("relus", _I16, "rectifications on the way to the input, 0: the plain gradient; NULL of kind activations"),
        ),
    ),
)  # fmt: skip

CNN_TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _CNN_TABLES})
"""Tables of cnn-... parts."""

PART_TABLES: Mapping[str, Table] = MappingProxyType(
    {t.name: t for t in (*_PART_TABLES, *_PROBE_TABLES, *_CNN_TABLES)}
)
"""Tables that other parts bring, by name: object_stats and object_masks of objects-..., those of
probe-... and of cnn-..."""

ALL_TABLES: Mapping[str, Table] = MappingProxyType({**TABLES, **OPTIONAL_TABLES, **PART_TABLES})

ROW_GROUP = 64 * 1024
"""Rows that a reader gets at least; a table that is written while it grows keeps so many."""


def write_table(path: Path, table: pa.Table) -> None:
    """Write Parquet that any reader opens: zstd, dictionaries for text only."""
    with open_table(path, table.schema) as file:
        file.write_table(table, row_group_size=ROW_GROUP)


def open_table(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file to write, block by block; to be closed."""
    text = [
        f.name
        for f in schema
        if pa.types.is_string(f.type) and f.name not in ("geometry", "counts")
    ]
    keys = [f.name for f in schema if pa.types.is_integer(f.type)]
    dictionary = [n for n in text + keys if n not in ("seed",)]
    if "mass" in schema.names and pa.types.is_map(schema.field("mass").type):
        dictionary.append("mass.key_value.key")
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=dictionary,
        write_statistics=True,
    )

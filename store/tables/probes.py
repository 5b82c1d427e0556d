"""Tables of probe-... parts: interventions and their effect on the actions."""
# ruff: noqa: E501 - one line per column, however long its definition

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

from .columns import (
    CAMERA,
    EPISODE,
    FLOAT32,
    FRAME,
    HEAD,
    INT16,
    INT32,
    KEYFRAME,
    LAYER,
    PHASE,
    QUERY_GROUP,
    RUN,
    STEP,
    STRING,
    Column,
    Table,
)

ACTION_METRICS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "mse": ("mean squared difference of the action chunk from the base's, over the horizon and the real degrees of freedom", "squared normalised action"),
        "si_mse": ("scale-invariant: min over alpha >= 0 of |alpha b - a|^2 / |a|^2, a the base's chunk, b the variant's; a reversed action scores 1", "0..1"),
        "scale": ("|b| / |a|: how much longer the variant's action is", "ratio"),
        "cosine": ("cosine of the variant's action chunk to the base's; NULL if one of them is 0", "-1..1"),
    }
)  # fmt: skip
"""Metrics of ``interventions``: definition and unit; see `attnstore.store.format.action_metrics`."""

_PROBE_KEYS = (
    RUN,
    EPISODE,
    Column("variant", STRING, "the intervention, unique in its part and keyframe: L05/attention, prompt/empty; base: the policy run again on what is stored"),
    Column("part", STRING, "probe-...: digest of what was asked for"),
    KEYFRAME,
    FRAME,
    Column("probe", STRING, "fidelity, regions, prompts or knockout"),
)  # fmt: skip
_SHOWN_MAP = (
    Column("phase", STRING, "phase of the map that the mask is made from, or whose attention is blocked; NULL if neither"),
    Column("step", INT16, "step of that map; NULL in one-pass phases, and where all steps are blocked"),
    Column("layer", INT16, "layer of that map; NULL if there is none, or several layers are blocked"),
    Column("query_group", STRING, "query tokens of that map, or those that are blocked"),
    Column("heads", STRING, "how the map is reduced over heads: mean, max, active (largest variance over the episode) or a head's number; blocked heads: all"),
)  # fmt: skip
_EFFECT = (
    Column("dof", INT16, "real degrees of freedom that were compared"),
    *(Column(name, FLOAT32, text, unit) for name, (text, unit) in ACTION_METRICS.items()),
)

_PROBE_TABLES = (
    Table(
        "interventions",
        "one run of the policy on a changed observation, or with attention blocked, against the base; from the same noise",
        (
            *_PROBE_KEYS,
            Column("target", STRING, "what was taken away: attention (the top of a map), control, cell, camera, object, object together (in several cameras at once), rank (attention by rank), prompt, attention from > to; base"),
            Column("detail", STRING, "which one: 1,2 (cell), the object's or the prompt's name, 0.1-0.2 (rank), text > image:hand_camera; NULL if there is one only"),
            Column("cameras", pa.list_(STRING), "cameras whose image was changed"),
            *_SHOWN_MAP,
            Column("repeat", INT16, "0-based; controls and noise differ between repeats"),
            Column("share", FLOAT32, "share of each changed image's seen pixels that was asked for; NULL if the region says it", "0..1"),
            Column("fill", STRING, "what the pixels were replaced by: black, mean, blur or noise; NULL if no pixel was"),
            Column("pixels", INT32, "pixels replaced, all cameras", "pixels"),
            Column("area", FLOAT32, "share of the changed images' seen pixels that was replaced", "0..1"),
            Column("pixel_change", FLOAT32, "mean absolute difference of the replaced pixels, over colours: a control that blacks out black changes nothing", "0..255"),
            Column("attention", FLOAT32, "share of the map's attention on the replaced pixels, mean over the changed cameras; letterbox left out", "0..1"),
            Column("pieces", INT16, "pieces that the moved mask was cut into to find room, all cameras; as many as the mask has if none was cut"),
            Column("instruction", STRING, "the prompt that the policy got"),
            *_EFFECT,
        ),
    ),
    Table(
        "intervention_curves",
        "one point of a deletion or insertion curve (Petsiuk et al. 2018)",
        (
            *_PROBE_KEYS,
            Column("curve", STRING, "deletion (pixels are replaced, hottest first) or insertion (all are replaced, then shown again, hottest first)"),
            Column("target", STRING, "attention (in the order of the map) or control (patches in random order)"),
            Column("cameras", pa.list_(STRING), "cameras whose image was changed"),
            *_SHOWN_MAP,
            Column("repeat", INT16, "0-based; of the control"),
            Column("fill", STRING, "what the pixels were replaced by"),
            Column("fraction", FLOAT32, "share of the seen pixels that is replaced (deletion) or shown (insertion)", "0..1"),
            *_EFFECT,
        ),
    ),
    Table(
        "region_attention",
        "how much of one map lies on one region of regions; from the overview maps (within 0.05 %)",
        (
            *_PROBE_KEYS,
            CAMERA,
            PHASE, STEP, LAYER,
            QUERY_GROUP,
            Column("area", FLOAT32, "share of the camera's seen pixels that is in the region: what attention is by chance", "0..1"),
            Column("attention", FLOAT32, "share of the camera's attention (mean over heads, letterbox left out) that lies on the region", "0..1"),
        ),
    ),
    Table(
        "map_shifts",
        "how much one head's map of a camera changes between the base and an intervention; from the unrounded weights; NULL where the camera gets no attention",
        (
            *_PROBE_KEYS,
            PHASE, STEP, LAYER, HEAD, QUERY_GROUP, CAMERA,
            Column("l2", FLOAT32, "Euclidean distance of P from the base's", "share of attention, 0..1.41"),
            Column("correlation", FLOAT32, "Pearson correlation of P with the base's over patches; NULL if one is constant", "-1..1"),
            Column("jensen_shannon", FLOAT32, "Jensen-Shannon divergence of P from the base's", "bits, 0..1"),
            Column("mass_change", FLOAT32, "change of the share of attention on the camera's image", "share of attention, -1..1"),
        ),
    ),
    Table(
        "intervention_masks",
        "the pixels of one camera that one intervention replaced",
        (
            *_PROBE_KEYS,
            CAMERA,
            Column("height", INT32, "height of the camera's image", "pixels"),
            Column("width", INT32, "width of the camera's image", "pixels"),
            Column("counts", STRING, "run lengths of the mask as COCO's string, column by column"),
        ),
    ),
)  # fmt: skip

PROBE_TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _PROBE_TABLES})
"""Tables of probe-... parts."""

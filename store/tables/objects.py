"""Tables of objects-... parts: attention on objects."""
# ruff: noqa: E501 - one line per column, however long its definition

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .columns import (
    CAMERA,
    EPISODE,
    FLOAT32,
    FRAME,
    INT16,
    INT32,
    KEYFRAME,
    LAYER,
    PHASE,
    QUERY_GROUP,
    RUN,
    STEP,
    STRING,
    VARIANT,
    WEIGHTING,
    Column,
    Table,
)

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

OBJECT_ERRORS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "overlap_error": ("bound on how far overlap_ratio is off for being of stored, rounded maps; NULL if there is no bound; lift is within overlap_error / area, and concentration grows with overlap_ratio alone", "0..1"),
        "iou_error": ("the same for iou: large where a patch is nearly as bright as the threshold; NULL if there is no bound", "0..1"),
        "nss_error": ("the same for nss; NULL if there is no bound", "standard deviations"),
        "pointing_sure": ("1 if rounding cannot have changed pointing_hit, else 0: another patch is as bright", "0 or 1"),
    }
)  # fmt: skip
"""Error bounds of ``object_stats``: definition and unit."""

_OBJECT_KEYS = (
    RUN,
    EPISODE,
    VARIANT,
    Column("part", STRING, "objects-...: digest of source, camera and parameters"),
    KEYFRAME,
    FRAME,
    CAMERA,
    Column("source", STRING, "detector (files beside the episode) or gripper (projected proxy)"),
    Column("object", STRING, "the detector's category, all its detections united; or gripper"),
)

_TABLES = (
    Table(
        "object_stats",
        "one map of attention (a head's, their mean or their maximum), raw or weighted by values, against one object at one keyframe and step; from the stored weights, while head_stats saw the unrounded ones: the last four columns bound the difference; NULL where the camera gets no attention",
        (
            *_OBJECT_KEYS,
            Column("mask_frame", INT32, "frame that the mask is of; differs from frame at most by the part's parameter within", "frames"),
            PHASE, STEP, LAYER,
            Column("head", INT16, "0-based head; NULL for the mean and the maximum over heads"),
            Column("head_kind", STRING, "head, mean (map averaged over heads) or max (largest over heads, patch by patch)"),
            QUERY_GROUP,
            WEIGHTING,
            Column("tier", STRING, "what was read: maps (overview maps, float32 of 11 significant bits) or full (all weights, at the run's precision); of weighting value always full"),
            Column("threshold", FLOAT32, "share of a map's largest value from which a patch is bright, for iou", "0..1"),
            Column("area", FLOAT32, "share of the seen image that the object covers: what overlap_ratio is by chance", "0..1"),
            *(Column(name, FLOAT32, text, unit) for name, (text, unit) in {**OBJECT_METRICS, **OBJECT_ERRORS}.items()),
        ),
    ),
    Table(
        "object_masks",
        "the mask of one object at one keyframe that object_stats was computed with",
        (
            *_OBJECT_KEYS,
            Column("mask_frame", INT32, "frame that the mask is of", "frames"),
            Column("instances", INT16, "detections that were united"),
            Column("score", FLOAT32, "the detector's confidence, the lowest of the detections; NULL if it gives none", "0..1"),
            Column("height", INT32, "height of the camera's image", "pixels"),
            Column("width", INT32, "width of the camera's image", "pixels"),
            Column("counts", STRING, "run lengths of the mask as COCO's string, column by column"),
        ),
    ),
)  # fmt: skip

OBJECT_TABLES: Mapping[str, Table] = MappingProxyType({t.name: t for t in _TABLES})
"""Tables of objects-... parts."""

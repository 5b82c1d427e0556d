"""Rows of ``object_stats`` and ``object_masks``: an episode's maps against its objects.

Overview maps are within 0.05 % of the unrounded ones whatever the run's precision; the full attention
is float16 or log8, and value-weighted maps are always made of it. Every row says how far it may be off
for that (`OBJECT_ERRORS`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from attnstore.store.arrays.groups import MAP_BITS, NORM_BITS
from attnstore.store.format.axes import STEPPED_PHASES
from attnstore.store.format.precision import Error, rounding_error, weight_error
from attnstore.store.format.rle import encode_rle
from attnstore.store.format.weighting import Weighting, carried, carried_error
from attnstore.store.reader.episode import DEFAULT_MAX_BYTES, Episode
from attnstore.store.reader.reads import NormsRead, WeightsRead
from attnstore.store.reader.selection import select_tokens
from attnstore.store.tables.inventory import PART_TABLES
from attnstore.store.tables.objects import OBJECT_ERRORS, OBJECT_METRICS

from .masks import MaskSource, ObjectMask
from .options import ObjectOptions
from .overlap import PatchCover, cover_patches, metric_errors, object_metrics

STATS, MASKS = "object_stats", "object_masks"


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """The objects at one keyframe."""

    keyframe: int
    """Ordinal in the episode."""
    frame: int
    """Frame of the keyframe."""
    mask_frame: int
    """Frame that the masks are of."""
    masks: tuple[ObjectMask, ...]
    """Those that have a pixel in the image."""
    cover: PatchCover
    """How they cover the patches, in the same order."""

    @classmethod
    def read(
        cls, episode: Episode, source: MaskSource, camera: str, keyframe: int, mask_frame: int
    ) -> Scene:
        """Read a frame's masks and lay them over the patches."""
        geometry = episode.geometry(camera)
        masks = tuple(m for m in source.read(mask_frame, geometry.source) if m.pixels.any())
        cover = cover_patches(geometry, [m.pixels for m in masks])
        return cls(keyframe, int(episode.frames[keyframe]), mask_frame, masks, cover)


def phase_rows(
    episode: Episode,
    options: ObjectOptions,
    phase: str,
    scenes: Sequence[Scene],
    weightings: Sequence[Weighting] = ("raw",),
) -> Iterator[pa.Table]:
    """Yield rows of ``object_stats`` for one phase, a block per query group, step, keyframe, weighting."""
    scenes = [s for s in scenes if s.masks]
    keyframes = [s.keyframe for s in scenes]
    if not scenes:
        return
    for group in episode.phase(phase, options.camera).query_groups:
        for step in range(episode.steps(phase) or 1):
            for weighting in weightings:
                maps, errors = _maps(episode, options, phase, group, step, keyframes, weighting)
                # The mean and the maximum over heads are two more maps behind those of the heads.
                maps = np.concatenate(
                    [maps, maps.mean(2, keepdims=True), maps.max(2, keepdims=True)], 2
                )
                for scene, each, error in zip(scenes, maps, errors, strict=True):
                    found = object_metrics(
                        each, scene.cover, threshold=options.threshold
                    ) | metric_errors(each, scene.cover, error, threshold=options.threshold)
                    yield _block(episode, options, phase, group, step, weighting, scene, found)


def _maps(
    episode: Episode,
    options: ObjectOptions,
    phase: str,
    group: str,
    step: int,
    keyframes: list[int],
    weighting: Weighting,
) -> tuple[NDArray[np.float32], list[Error]]:
    """Mean over the group's query tokens, (keyframe, layer, head, row, col), and each keyframe's error."""
    camera = options.camera
    if options.tier == "maps" and weighting == "raw":
        stored = episode.maps(
            phase, camera, step=step, reduce="mean", keyframe=keyframes, query=group
        ).values
        return stored, [rounding_error(MAP_BITS["mean"])] * len(keyframes)
    grid = episode.geometry(camera).grid
    spec = episode.phase(phase, camera)
    shape = (len(keyframes), episode.layers(phase), episode.heads(phase), *grid)
    maps = np.empty(shape, np.float32)
    exact = weight_error(episode.spec.precision)
    errors = [exact] * len(keyframes)
    patches = select_tokens(spec.key, f"image:{camera}", where=f"{spec.path} key").indices
    queries = select_tokens(spec.query, group, where=f"{spec.path} query").indices
    steps = np.array([step]) if phase in STEPPED_PHASES else None
    heads, keys = np.arange(shape[2]), np.arange(len(spec.key))
    # Not the episode's labelled arrays: of thousands of small reads, their labels are four fifths.
    read_weights = WeightsRead(episode.part, spec, DEFAULT_MAX_BYTES)
    read_norms = NormsRead(episode.part, spec, DEFAULT_MAX_BYTES)
    # Behind those of the heads the bounds of their mean and maximum, which are the largest of all.
    bounds = np.empty((2, *shape[:2], shape[2] + 2, 1))
    for index, keyframe in enumerate(keyframes):
        for layer in range(shape[1]):
            at = np.array([keyframe]), steps, np.array([layer]), heads
            # Whole rows: a value-weighted one is divided by its sum.
            weights = read_weights(*at, queries, keys).reshape(shape[2], len(queries), len(keys))
            if weighting == "value":
                norms = read_norms(*at, keys).reshape(shape[2], len(keys))
                each = np.stack(carried_error(weights, norms, exact, rounding_error(NORM_BITS)))
                bounds[:, index, layer, :-2, 0] = each
                bounds[:, index, layer, -2:, 0] = each.max(-1, keepdims=True)
                weights = carried(weights, norms)
            weights = weights[..., patches]
            # Queries that this keyframe does not have are NaN; they take no part in the mean.
            present = np.isfinite(weights)
            count = present.sum(-2)
            with np.errstate(invalid="ignore"):
                mean = np.where(present, weights, 0).sum(-2) / np.where(count, count, np.nan)
            maps[index, layer] = mean.reshape(shape[2], *grid)
    if weighting == "value":
        errors = [Error(*bounds[:, index]) for index in range(len(keyframes))]
    return maps, errors


def _block(
    episode: Episode, options: ObjectOptions, phase: str, group: str, step: int,
    weighting: Weighting, scene: Scene, metrics: dict[str, NDArray[np.float64]],
) -> pa.Table:  # fmt: skip
    shape = next(iter(metrics.values())).shape
    heads = shape[1] - 2
    layer, head, which = (i.reshape(-1) for i in np.indices(shape))
    kinds = np.array(["head"] * heads + ["mean", "max"])
    constant: dict[str, Any] = {
        **_common(episode, options),
        "keyframe": scene.keyframe,
        "frame": scene.frame,
        "mask_frame": scene.mask_frame,
        "phase": phase,
        "step": step if phase in STEPPED_PHASES else None,
        "query_group": group,
        "weighting": weighting,
        "tier": "full" if weighting == "value" else options.tier,
        "threshold": options.threshold,
    }
    varying: dict[str, Any] = {
        "object": np.array([m.category for m in scene.masks], object)[which],
        "layer": layer,
        "head": pa.array(head, mask=head >= heads),
        "head_kind": kinds[head],
        "area": scene.cover.area_fraction[which],
        **{name: metrics[name].reshape(-1) for name in (*OBJECT_METRICS, *OBJECT_ERRORS)},
    }
    return _table(STATS, constant, varying, len(layer))


def mask_rows(episode: Episode, options: ObjectOptions, scenes: Sequence[Scene]) -> pa.Table:
    """Return the rows of ``object_masks``."""
    rows = [
        {
            **_common(episode, options),
            "keyframe": scene.keyframe,
            "frame": scene.frame,
            "mask_frame": scene.mask_frame,
            "object": mask.category,
            "instances": mask.instances,
            "score": mask.score,
            "height": mask.pixels.shape[0],
            "width": mask.pixels.shape[1],
            "counts": encode_rle(mask.pixels),
        }
        for scene in scenes
        for mask in scene.masks
    ]
    return pa.Table.from_pylist(rows, PART_TABLES[MASKS].schema)


def _common(episode: Episode, options: ObjectOptions) -> dict[str, Any]:
    return {
        "run": episode.run,
        "episode": episode.id,
        "variant": "base",
        "part": options.part,
        "camera": options.camera,
        "source": options.source,
    }


def _table(name: str, constant: dict[str, Any], varying: dict[str, Any], count: int) -> pa.Table:
    arrays = []
    for field in PART_TABLES[name].schema:
        if field.name in constant:
            arrays.append(pa.array([constant[field.name]] * count, field.type))
        elif isinstance(varying[field.name], pa.Array):
            arrays.append(varying[field.name].cast(field.type))
        else:
            arrays.append(pa.array(varying[field.name], from_pandas=True).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=PART_TABLES[name].schema)

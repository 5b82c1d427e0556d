"""An episode's objects: their masks, and how much every head's map lies on one.

Parts with objects come after the episode and may be replaced, so answers have tags of their content and
not of the episode's version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from fastapi import Query
from pydantic import Field

from attnstore.store.catalog.rows import quoted
from attnstore.store.commits.part import Part
from attnstore.store.format.rle import decode_rle
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.selection import check_index
from attnstore.store.rules import standing_step
from attnstore.store.tables.objects import OBJECT_METRICS

from ..answers import MaskAnswer, ObjectAnswer, ObjectMetric
from ..endpoint import EPISODE, Asked
from ..endpoint import router as new_router
from ..guard.refusal import Refusal
from ..parameters import Number, OfEpisode, Step, Weighting
from ..payload import Json, respond_json

router = new_router(EPISODE)


class MaskParameters(OfEpisode):
    """Which masks."""

    keyframe: Number | None = Field(None, examples=[0], description="One keyframe, or all.")


class ObjectMetricParameters(OfEpisode):
    """Which maps against which object."""

    object: str = Field(max_length=400, examples=["red cube"])
    camera: str = Field(max_length=200, examples=["hand_camera"])
    phase: str = Field(max_length=80, examples=["prefix"])
    query: str | None = Field(None, max_length=200, description="A stored query group.")
    step: Step = None
    weighting: Weighting = "raw"


@router.get("/objects")
async def objects(
    asked: Asked, parameters: Annotated[OfEpisode, Query()]
) -> Json[list[ObjectAnswer]]:
    """List the objects of the parts that count, in each camera."""

    def read() -> list[ObjectAnswer]:
        areas: dict[tuple[str, str, str], list[float]] = {}
        for source, row in _masks(asked.episode):
            shape = row["height"], row["width"]
            area = float(decode_rle(shape, row["counts"]).mean())
            areas.setdefault((row["object"], row["camera"], source), []).append(area)
        return [
            ObjectAnswer(*key, keyframes=len(found), area=float(np.mean(found)))
            for key, found in sorted(areas.items())
        ]

    return respond_json(asked.request, await asked.service.read(read))


@router.get("/masks")
async def masks(
    asked: Asked, parameters: Annotated[MaskParameters, Query()]
) -> Json[list[MaskAnswer]]:
    """Return the objects' masks: at a keyframe, or all."""
    at = parameters.keyframe

    def read() -> list[MaskAnswer]:
        if at is not None:
            check_index(at, len(asked.episode.frames), "keyframe")
        names = ("keyframe", "camera", "object", "mask_frame", "height", "width", "counts")
        return [
            MaskAnswer(**{name: row[name] for name in names})
            for _, row in _masks(asked.episode)
            if at is None or row["keyframe"] == at
        ]

    return respond_json(asked.request, await asked.service.read(read))


@router.get("/objects/{metric}")
async def object_metric(
    asked: Asked, metric: str, parameters: Annotated[ObjectMetricParameters, Query()]
) -> Json[ObjectMetric]:
    """Return how much every head's map lies on an object, at every keyframe: lift, pointing_hit and others."""
    if metric not in OBJECT_METRICS:
        raise Refusal(404, f"no metric {metric[:80]!r}; there are: {', '.join(OBJECT_METRICS)}")
    p, episode = parameters, asked.episode
    phase = episode.phase(p.phase)
    if not phase.query_groups:
        raise Refusal(404, f"{p.phase} has no maps that objects were measured on")
    query = p.query or phase.query_groups[0]
    step = None
    if phase.steps is not None:
        step = standing_step(phase.phase, phase.steps) if p.step is None else p.step
        step = check_index(step or 0, phase.steps, f"{p.phase} step")
    parts = await asked.service.read(lambda: [commit.part for commit in episode.object_parts()])
    equal = {
        "run": episode.run, "episode": episode.id, "object": p.object, "camera": p.camera,
        "phase": phase.phase, "query_group": query, "head_kind": "head", "variant": "base",
        "weighting": p.weighting,
    }  # fmt: skip
    conditions = [f"{name} = {quoted(value)}" for name, value in equal.items()]
    conditions.append("step is null" if step is None else f"step = {step}")
    conditions.append(f"part in ({', '.join(map(quoted, parts))})" if parts else "false")
    rows = await asked.service.rows(
        asked.store,
        f"select keyframe, layer, head, arg_min({metric}, source) as value from object_stats "
        f"where {' and '.join(conditions)} group by all",
    )
    values = np.full((len(episode.frames), phase.layers, phase.heads), np.nan, np.float32)
    for row in rows:
        value: Any = row["value"]
        values[row["keyframe"], row["layer"], row["head"]] = np.nan if value is None else value
    definition, unit = OBJECT_METRICS[metric]
    return respond_json(
        asked.request,
        ObjectMetric(
            metric=metric, definition=definition, unit=unit, object=p.object, camera=p.camera,
            phase=p.phase, query=query, step=step, values=values,
        ),
    )  # fmt: skip


def _masks(episode: Episode) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield source and row of each mask that counts: a detector's before the gripper's, each object once."""
    known: set[tuple[int, str, str]] = set()
    for commit in episode.object_parts():
        source = str(commit.summary.get("source"))
        for row in Part(episode.part.paths, commit).table("object_masks").to_pylist():
            key = row["keyframe"], row["camera"], row["object"]
            if key not in known:
                known.add(key)
                yield source, row

"""Attention weights, and maps over a camera's patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import xarray as xr
from fastapi import Query
from starlette.responses import Response

from attnstore.store.reader.blocks import Cost, Dimension
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.selection import check_index
from attnstore.store.rules import (
    NO_HEAD,
    active_heads,
    describe_active,
    mean_over_keyframes,
    standing_step,
)

from ...attention.rollout import rollout_cost, rollout_map
from ..answers import ActiveHead, ArrayAnswer
from ..endpoint import EPISODE, Asked, binary
from ..endpoint import router as new_router
from ..guard.refusal import Refusal
from ..parameters import (
    ActiveHeadParameters,
    MapParameters,
    RolloutParameters,
    SliceParameters,
    parse_group,
    parse_index,
)
from ..payload import NPY, Json

router = new_router(EPISODE)


@router.get("/attention", responses=binary(NPY))
async def attention(
    asked: Asked, parameters: Annotated[SliceParameters, Query()]
) -> Json[ArrayAnswer] | Response:
    """Return a slice of the attention weights, as `Episode.attention` does."""
    p, episode, most = parameters, asked.episode, asked.service.config.limits.slice_bytes

    def read() -> xr.DataArray:
        # by name, in one dictionary: what `explain` and `attention` both take
        chosen: dict[str, Any] = {
            name: parse_index(getattr(p, name), name) for name in ("step", "layer", "head")
        }
        chosen |= {name: parse_group(getattr(p, name), name) for name in ("query", "key")}
        chosen["weighting"] = p.weighting
        keyframe = parse_index(p.keyframe, "keyframe")
        if p.frame is not None and keyframe is None:
            keyframe = episode.keyframe_of(p.frame)
        elif p.frame is not None:
            raise Refusal(400, f"give keyframe or frame; got {p.keyframe} and {p.frame}")
        _check_cost(episode.explain(p.phase, keyframe=keyframe, **chosen), most)
        array = episode.attention(p.phase, keyframe=keyframe, **chosen, max_bytes=most)
        # As stored: nothing is lost, and half the bytes.
        stored = p.weighting == "raw" and episode.spec.precision == "float16"
        return array.astype(np.float16) if stored else array

    return await asked.array(p.format, read)


@router.get("/maps", responses=binary(NPY))
async def maps(
    asked: Asked, parameters: Annotated[MapParameters, Query()]
) -> Json[ArrayAnswer] | Response:
    """Return maps of attention over a camera's patches, as `Episode.maps` does."""
    most = asked.service.config.limits.slice_bytes
    return await asked.array(parameters.format, lambda: read_maps(asked.episode, parameters, most))


@router.get("/rollout", responses=binary(NPY))
async def rollout(
    asked: Asked, parameters: Annotated[RolloutParameters, Query()]
) -> Json[ArrayAnswer] | Response:
    """Return attention rollout over a camera's patches, up to a layer, as `rollout_map` does."""
    p, episode, most = parameters, asked.episode, asked.service.config.limits.slice_bytes

    def read() -> xr.DataArray:
        spec = episode.phase(p.phase, p.camera)
        last = check_index(p.layer, spec.layers, f"{p.phase} layer")
        at: dict[str, Any] = {"keyframe": p.keyframe, "step": p.step, "layers": range(last + 1)}
        _check_layers(rollout_cost(episode, spec.path, **at), most)
        return rollout_map(episode, p.camera, spec.path, query=map_group(p.query), **at)

    return await asked.array(parameters.format, read)


@router.get("/active-head")
async def active_head(
    asked: Asked, parameters: Annotated[ActiveHeadParameters, Query()]
) -> Json[ActiveHead]:
    """Return the head of a layer whose map varies most, as `Episode.active_head` does."""
    p, episode, most = parameters, asked.episode, asked.service.config.limits.slice_bytes

    def read() -> ActiveHead:
        spec = episode.phase(p.phase)
        query = map_group(p.query)
        step = standing_step(p.phase, spec.steps) if p.step is None else p.step
        _check_heads(episode, p, p.layer, p.keyframe, step, query, most)
        variance = episode.map_variance(
            p.phase, p.camera, layer=p.layer, step=step, keyframe=p.keyframe, query=query,
            reduce=p.reduce, sink_corrected=p.sink_corrected, active=p.active, weighting=p.weighting,
        )  # fmt: skip
        if p.keyframe is None:
            variance = mean_over_keyframes(variance)
        head = int(active_heads(variance))
        return ActiveHead(
            phase=p.phase, camera=p.camera, layer=p.layer, step=step, keyframe=p.keyframe,
            head=None if head == NO_HEAD else head,
            variance=np.ascontiguousarray(variance, np.float32),
            chosen_by=describe_active(p.active),
        )  # fmt: skip

    return await asked.json(read)


def read_maps(episode: Episode, parameters: MapParameters, most: int) -> xr.DataArray:
    """Load maps, (keyframe, layer, head, row, col) without the dimensions of single indices."""
    p = parameters
    spec = episode.phase(p.phase)
    keyframe, layer = parse_index(p.keyframe, "keyframe"), parse_index(p.layer, "layer")
    query = map_group(p.query)
    step = standing_step(p.phase, spec.steps) if p.step is None else p.step
    if p.head == "active":
        if not isinstance(layer, int):
            raise Refusal(400, "the active head is that of one layer: give layer")
        at = keyframe if isinstance(keyframe, int) else None
        _check_heads(episode, p, layer, at, step, query, most)
        head: Any = episode.active_head(
            p.phase, p.camera, layer=layer, step=step, keyframe=at, query=query, reduce=p.reduce,
            sink_corrected=p.sink_corrected, active=p.active, weighting=p.weighting,
        )  # fmt: skip
    else:
        head = parse_index(None if p.head == "mean" else p.head, "head")
    chosen: dict[str, Any] = {"keyframe": keyframe, "layer": layer, "head": head}
    at_step = step if spec.steps is not None else None
    averaged = spec.heads if p.head == "mean" else 1
    cost = episode.explain(
        p.phase, camera=p.camera, step=at_step, query=query, weighting=p.weighting, **chosen
    )
    _check_cost(cost, most, averaged)
    asked: dict[str, Any] = {
        "step": step, "reduce": p.reduce, "query": query, "sink_corrected": p.sink_corrected,
        "weighting": p.weighting, "max_bytes": most,
    }  # fmt: skip
    if p.head == "mean":
        # A head at a time: all of them may be more than fits.
        each = [{**chosen, "head": number} for number in range(spec.heads)]
        values = sum(episode.maps(p.phase, p.camera, **asked, **one).values for one in each)
        values = np.asarray(values / np.float32(spec.heads), np.float32)
    else:
        values = episode.maps(p.phase, p.camera, **asked, **chosen).values
    geometry = episode.geometry(p.camera)
    dimensions = {
        "keyframe": Dimension.of(keyframe, len(episode.frames), "keyframe"),
        "layer": Dimension.of(layer, spec.layers, f"{p.phase} layer"),
    }
    if p.head != "mean":
        dimensions["head"] = Dimension.of(head, spec.heads, f"{p.phase} head")
    coords: dict[str, Any] = {}
    for name, dimension in dimensions.items():
        at_ = dimension.positions
        coords[name] = int(at_[0]) if dimension.scalar else (name, at_)
    frames = episode.frames[dimensions["keyframe"].positions]
    single = dimensions["keyframe"].scalar
    coords["frame"] = int(frames[0]) if single else ("keyframe", frames)
    dims = [name for name, d in dimensions.items() if not d.scalar]
    attributes: dict[str, Any] = {
        "phase": p.phase, "camera": p.camera, "reduce": p.reduce, "geometry": geometry.to_json(),
        "sink_corrected": p.sink_corrected, "weighting": p.weighting,
    }  # fmt: skip
    if p.head == "mean":
        attributes["head"] = "mean"
    if spec.steps is not None and step is not None:
        attributes["step"] = check_index(step, spec.steps, f"{p.phase} step")
    return xr.DataArray(
        values, coords, [*dims, "row", "col"], name=f"{p.phase}_map", attrs=attributes
    )


def map_group(text: str | None) -> str | int | list[int] | None:
    """Read the query tokens of a map: a group, or indices."""
    group = parse_group(text, "query")
    if isinstance(group, slice) or (isinstance(group, list) and not group):
        raise Refusal(400, f"query of a map is a group or indices; got {text!r}")
    return group  # type: ignore[return-value]  # parse_group's lists are of int


def _check_heads(
    episode: Episode, p: MapParameters | ActiveHeadParameters, layer: int, keyframe: int | None,
    step: int | None, query: str | int | list[int] | None, most: int,
) -> None:  # fmt: skip
    """Refuse to look for the active head among maps that are too large to read."""
    spec = episode.phase(p.phase)
    at_step = step if spec.steps is not None else None
    _check_cost(
        episode.explain(
            p.phase,
            camera=p.camera,
            keyframe=keyframe,
            layer=layer,
            step=at_step,
            query=query,
            weighting=p.weighting,
        ),
        most,
    )


def _check_layers(costs: Sequence[Cost], most: int) -> None:
    """Refuse a rollout that reads a layer, or as many of them, as no other request may."""
    for cost in costs:
        _check_cost(cost, most)
    size = sum(cost.decoded_bytes for cost in costs)
    if size // 16 > most:
        raise Refusal(
            413,
            f"this rollout reads {len(costs)} matrices of {size / 1e6:.0f} MB; at most "
            f"{16 * most / 1e6:.0f} MB are read for a request: ask for a lower layer",
        )


def _check_cost(cost: Cost, most: int, averaged: int = 1) -> None:
    size = 4 * int(np.prod(cost.shape, dtype=np.int64)) // averaged
    if max(size, cost.decoded_bytes // 16) > most:
        raise Refusal(
            413,
            f"this is {size / 1e6:.0f} MB ({cost}); at most {most / 1e6:.0f} MB are read for a "
            "request: select fewer keyframes, layers, heads or tokens",
        )

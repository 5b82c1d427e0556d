"""Attention weights, and maps over a camera's patches."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import xarray as xr
from fastapi import APIRouter, Query, Request
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

from ..answers import ActiveHead, ArrayAnswer
from ..guard.refusal import Refusal
from ..parameters import (
    ActiveHeadParameters,
    MapParameters,
    SliceParameters,
    parse_group,
    parse_index,
)
from ..payload import MEDIA_TYPES, array_body, chosen_format, respond, respond_json, unchanged
from ..service import service_of

router = APIRouter(prefix="/v1/stores/{store}/episodes/{run}/{episode}")
FORMS = ("json", "npy")
NPY_TOO: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ArrayAnswer,
        "content": {MEDIA_TYPES["npy"]: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("/attention", responses=NPY_TOO)
async def attention(
    request: Request,
    store: str,
    run: str,
    episode: str,
    parameters: Annotated[SliceParameters, Query()],
) -> Response:
    """Return a slice of the attention weights, as `Episode.attention` does."""
    service = service_of(request)
    found = await service.episode(store, run, episode)
    form = chosen_format(request, FORMS, parameters.format)
    headers = service.tag(request, found, form)
    if (known := unchanged(request, headers["ETag"], headers)) is not None:
        return known
    most = service.config.limits.slice_bytes

    def read() -> tuple[bytes, dict[str, str]]:
        p = parameters
        # by name, in one dictionary: what `explain` and `attention` both take
        chosen: dict[str, Any] = {
            name: parse_index(getattr(p, name), name) for name in ("step", "layer", "head")
        }
        chosen |= {name: parse_group(getattr(p, name), name) for name in ("query", "key")}
        keyframe = parse_index(p.keyframe, "keyframe")
        opened = found.episode
        if p.frame is not None and keyframe is None:
            keyframe = opened.keyframe_of(p.frame)
        elif p.frame is not None:
            raise Refusal(400, f"give keyframe or frame; got {p.keyframe} and {p.frame}")
        _check_cost(opened.explain(p.phase, keyframe=keyframe, **chosen), most)
        array = opened.attention(p.phase, keyframe=keyframe, **chosen, max_bytes=most)
        return array_body(array, form)

    body, more = await service.read(read)
    return respond(request, body, MEDIA_TYPES[form], {**headers, **more})


@router.get("/maps", responses=NPY_TOO)
async def maps(
    request: Request,
    store: str,
    run: str,
    episode: str,
    parameters: Annotated[MapParameters, Query()],
) -> Response:
    """Return maps of attention over a camera's patches, as `Episode.maps` and `Episode.map` do."""
    service = service_of(request)
    found = await service.episode(store, run, episode)
    form = chosen_format(request, FORMS, parameters.format)
    headers = service.tag(request, found, form)
    if (known := unchanged(request, headers["ETag"], headers)) is not None:
        return known

    def read() -> tuple[bytes, dict[str, str]]:
        array = read_maps(found.episode, parameters, service.config.limits.slice_bytes)
        return array_body(array, form)

    body, more = await service.read(read)
    return respond(request, body, MEDIA_TYPES[form], {**headers, **more})


@router.get("/active-head", response_model=ActiveHead)
async def active_head(
    request: Request,
    store: str,
    run: str,
    episode: str,
    parameters: Annotated[ActiveHeadParameters, Query()],
) -> Response:
    """Return the head of a layer whose map varies most, as `Episode.active_head` does."""
    service = service_of(request)
    found = await service.episode(store, run, episode)
    headers = service.tag(request, found, "json")
    if (known := unchanged(request, headers["ETag"], headers)) is not None:
        return known
    most = service.config.limits.slice_bytes

    def read() -> dict[str, Any]:
        p, opened = parameters, found.episode
        spec = opened.phase(p.phase)
        query = map_group(p.query)
        step = standing_step(p.phase, spec.steps) if p.step is None else p.step
        _check_heads(opened, p, p.layer, p.keyframe, step, query, most)
        variance = opened.map_variance(
            p.phase, p.camera, layer=p.layer, step=step, keyframe=p.keyframe, query=query,
            reduce=p.reduce, sink_corrected=p.sink_corrected, active=p.active,
        )  # fmt: skip
        if p.keyframe is None:
            variance = mean_over_keyframes(variance)
        head = int(active_heads(variance))
        return {
            "phase": p.phase, "camera": p.camera, "layer": p.layer, "step": step,
            "keyframe": p.keyframe, "head": None if head == NO_HEAD else head,
            "variance": np.ascontiguousarray(variance, np.float32),
            "chosen_by": describe_active(p.active),
        }  # fmt: skip

    return respond_json(request, await service.read(read), headers)


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
            sink_corrected=p.sink_corrected, active=p.active,
        )  # fmt: skip
    else:
        head = parse_index(p.head, "head")
    chosen: dict[str, Any] = {"keyframe": keyframe, "layer": layer, "head": head}
    at_step = step if spec.steps is not None else None
    _check_cost(
        episode.explain(p.phase, camera=p.camera, step=at_step, query=query, **chosen), most
    )
    values = episode.maps(
        p.phase, p.camera, step=step, reduce=p.reduce, query=query,
        sink_corrected=p.sink_corrected, max_bytes=most, **chosen,
    )  # fmt: skip
    geometry = episode.geometry(p.camera)
    dimensions = {
        "keyframe": Dimension.of(keyframe, len(episode.frames), "keyframe"),
        "layer": Dimension.of(layer, spec.layers, f"{p.phase} layer"),
        "head": Dimension.of(head, spec.heads, f"{p.phase} head"),
    }
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
        "sink_corrected": p.sink_corrected,
    }  # fmt: skip
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
            p.phase, camera=p.camera, keyframe=keyframe, layer=layer, step=at_step, query=query
        ),
        most,
    )


def _check_cost(cost: Cost, most: int) -> None:
    size = 4 * int(np.prod(cost.shape, dtype=np.int64))
    if max(size, cost.decoded_bytes // 16) > most:
        raise Refusal(
            413,
            f"this is {size / 1e6:.0f} MB ({cost}); at most {most / 1e6:.0f} MB are read for a "
            "request: select fewer keyframes, layers, heads or tokens",
        )

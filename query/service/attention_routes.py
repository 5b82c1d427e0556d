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

from .answers import ArrayAnswer
from .parameters import MapParameters, SliceParameters, parse_group, parse_index
from .payload import MEDIA_TYPES, array_body, chosen_format, respond, unchanged
from .pictures import Pictures
from .refusal import Refusal
from .service import service_of

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
        array = read_maps(
            found.episode, parameters, service.pictures, service.config.limits.slice_bytes
        )
        return array_body(array, form)

    body, more = await service.read(read)
    return respond(request, body, MEDIA_TYPES[form], {**headers, **more})


def read_maps(
    episode: Episode, parameters: MapParameters, pictures: Pictures, most: int
) -> xr.DataArray:
    """Load maps, (keyframe, layer, head, row, col) without the dimensions of single indices."""
    p = parameters
    spec = episode.phase(p.phase)
    keyframe, layer = parse_index(p.keyframe, "keyframe"), parse_index(p.layer, "layer")
    query = parse_group(p.query, "query")
    if isinstance(query, slice) or (isinstance(query, list) and not query):
        raise Refusal(400, f"query of a map is a group or indices; got {p.query!r}")
    if p.head == "active":
        if not isinstance(layer, int):
            raise Refusal(400, "the active head is that of one layer: give layer")
        at = keyframe if isinstance(keyframe, int) else None
        head: Any = episode.active_head(p.phase, p.camera, layer=layer, step=p.step, keyframe=at)
    else:
        head = parse_index(p.head, "head")
    chosen: dict[str, Any] = {"keyframe": keyframe, "layer": layer, "head": head}
    step = p.step if spec.steps is not None else None
    _check_cost(episode.explain(p.phase, camera=p.camera, step=step, query=query, **chosen), most)
    values = episode.maps(
        p.phase, p.camera, step=p.step, reduce=p.reduce, query=query, max_bytes=most, **chosen
    )
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
    if spec.steps is not None:
        attributes["step"] = check_index(p.step, spec.steps, f"{p.phase} step")
    if p.sink_corrected:
        values = _without_sinks(episode, p, pictures, values, dimensions)
    return xr.DataArray(
        values, coords, [*dims, "row", "col"], name=f"{p.phase}_map", attrs=attributes
    )


def _without_sinks(
    episode: Episode,
    p: MapParameters,
    pictures: Pictures,
    values: np.ndarray[Any, np.dtype[np.float32]],
    dimensions: dict[str, Dimension],
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Correct each layer's and head's maps on its own: a sink belongs to a head."""
    sizes = [len(d.positions) for d in dimensions.values()]
    full = values.reshape(*sizes, *values.shape[-2:]).copy()
    for i, layer in enumerate(dimensions["layer"].positions):
        for j, head in enumerate(dimensions["head"].positions):
            full[:, i, j] = pictures.without_sinks(
                episode, p.camera, full[:, i, j],
                phase=p.phase, layer=int(layer), head=int(head), step=p.step,
            )  # fmt: skip
    return full.reshape(values.shape)


def _check_cost(cost: Cost, most: int) -> None:
    size = 4 * int(np.prod(cost.shape, dtype=np.int64))
    if max(size, cost.decoded_bytes // 16) > most:
        raise Refusal(
            413,
            f"this is {size / 1e6:.0f} MB ({cost}); at most {most / 1e6:.0f} MB are read for a "
            "request: select fewer keyframes, layers, heads or tokens",
        )

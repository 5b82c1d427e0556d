"""What the query service draws: overlays, as pictures with an address. It must not import this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from attnstore.query.service.endpoint import EPISODE, Asked, binary
from attnstore.query.service.endpoint import router as new_router
from attnstore.query.service.parameters import (
    Active,
    Number,
    OfEpisode,
    Parameters,
    Step,
    Tokens,
    Weighting,
)
from attnstore.query.service.payload import MEDIA_TYPES, REVALIDATE, chosen_format, respond
from attnstore.query.service.routes.attention import map_group
from attnstore.query.service.routes.recordings import (
    CALL,
    RECORDINGS,
    call_of,
    maps_of,
    picture_of,
)
from attnstore.query.service.service import service_of
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.selection import check_index

from .picture import heatmap, image_file, overlay
from .picture.layout import Box
from .picture.scale import ColorScale, data_limits
from .picture.scene import decode_frame
from .picture.sheet import fit_image

# resolved: an editable install consists of links, and files outside the folder are not served
PAGE = Path(__file__).resolve().parent / "viewer"
"""Folder of the viewer page."""
FORMS = ("jpg", "png", "webp")
_of_episodes, _of_recordings = new_router(EPISODE), new_router(RECORDINGS)


class OverlayParameters(OfEpisode):
    """An overlay: what is drawn, and how it looks."""

    phase: str = Field(max_length=80, examples=["prefix"])
    keyframe: Number = Field(examples=[0])
    layer: Number = Field(examples=[1])
    head: Number | Literal["active"] = Field("active", description="`active`: at this keyframe.")
    step: Step = None
    reduce: Literal["max", "mean"] = "max"
    query: Tokens = None
    sink_corrected: bool = False
    active: Active = "image"
    weighting: Weighting = "raw"
    cmap: str = Field("inferno", max_length=40, examples=["viridis"])
    alpha: float = Field(0.75, ge=0, le=1, description="Opacity of the strongest heat.")
    blend: overlay.Blend = "spotlight"
    interpolation: heatmap.Interpolation = "bilinear"
    scale: str = Field(
        "frame",
        max_length=60,
        description="Ends of the colours: `frame`, `video` (all keyframes share one) or `LOW:HIGH`.",
    )
    width: int | None = Field(None, ge=16, le=2048, description="Pixels; the image's own if none.")
    quality: int = Field(85, ge=1, le=100)
    format: Literal["png", "jpg", "webp"] | None = Field(None, description="Instead of Accept.")


@_of_episodes.get(
    "/overlays/{camera}",
    name="overlay",
    response_class=Response,
    responses=binary(*(MEDIA_TYPES[form] for form in FORMS)),
)
async def draw(
    asked: Asked, camera: str, parameters: Annotated[OverlayParameters, Query()]
) -> Response:
    """Draw attention on a camera's image."""
    form = chosen_format(asked.request, FORMS, parameters.format)
    return await asked.encoded(
        form, lambda: (overlay_of(asked.episode, camera, parameters, form), MEDIA_TYPES[form], {})
    )


def overlay_of(episode: Episode, camera: str, p: OverlayParameters, form: str) -> bytes:
    """Draw one camera at one keyframe, and encode it."""
    keyframe = check_index(p.keyframe, len(episode.frames), "keyframe")
    geometry = episode.geometry(camera)
    query = map_group(p.query)
    head = p.head
    if head == "active":
        head = episode.active_head(
            p.phase, camera, layer=p.layer, step=p.step, keyframe=keyframe, query=query,
            reduce=p.reduce, sink_corrected=p.sink_corrected, active=p.active, weighting=p.weighting,
        )  # fmt: skip
    scale = ColorScale.parse(p.scale)
    wanted = None if scale.scope == "video" else keyframe
    maps = episode.maps(
        p.phase, camera, layer=p.layer, head=int(head), step=p.step, reduce=p.reduce,
        keyframe=wanted, query=query, sink_corrected=p.sink_corrected, weighting=p.weighting,
    ).values  # fmt: skip
    limits = scale.limits({camera: maps}, {camera: geometry})[camera]
    data = episode.image_bytes(keyframe, camera)
    image = decode_frame(data, geometry, episode.name, f"{camera} at keyframe {keyframe}")
    if p.width is not None:
        height = max(1, round(geometry.source[0] * p.width / geometry.source[1]))
        image = fit_image(image, Box(0, 0, p.width, height))
    size = (image.shape[0], image.shape[1])
    shown = maps[keyframe] if wanted is None else maps
    heat = heatmap.sampler(geometry, p.interpolation, size).draw(shown)
    drawn = overlay.blend(image, heat, limits, cmap=p.cmap, alpha=p.alpha, style=p.blend)
    return image_file.encode(drawn, form, p.quality)


class RecordedOverlay(Parameters):
    """Whose heat is drawn on a picture of an episode that is being recorded."""

    phase: str | None = Field(None, max_length=80, description="By default the first one.")
    layer: Number | None = Field(None, description="By default the middle one.")
    width: int | None = Field(None, ge=16, le=2048, description="Pixels; the image's own if none.")


@_of_recordings.get(
    CALL + "/overlays/{camera}",
    name="recorded_overlay",
    response_class=Response,
    responses=binary(MEDIA_TYPES["jpg"]),
)
async def draw_recorded(
    request: Request, store: str, recording: str, file: str, call: Number, camera: str,
    parameters: Annotated[RecordedOverlay, Query()],
) -> Response:  # fmt: skip
    """Draw the active head of a call of an episode that is being recorded; without attention, the picture."""
    service = service_of(request)
    seen, maps = await call_of(service, store, recording, file, call)

    def drawn() -> bytes:
        geometry = seen.geometry.get(camera)
        data, where = picture_of(seen, camera), f"{camera} at call {seen.number}"
        if geometry is None:
            return data
        image = decode_frame(data, geometry, file, where)
        if parameters.width is not None:
            height = max(1, round(geometry.source[0] * parameters.width / geometry.source[1]))
            image = fit_image(image, Box(0, 0, parameters.width, height))
        if maps:
            chosen = maps_of(maps, parameters.phase, camera)
            count = len(chosen.maps)
            layer = count // 2 if parameters.layer is None else parameters.layer
            layer = check_index(layer, count, f"{chosen.phase} layer")
            one = chosen.maps[layer, chosen.active[layer]]
            heat = heatmap.sampler(geometry, "bilinear", (image.shape[0], image.shape[1])).draw(one)
            image = overlay.blend(image, heat, data_limits(one))
        return image_file.encode(image, "jpg", 85)

    body = await service.read(drawn)
    return respond(request, body, MEDIA_TYPES["jpg"], {"Cache-Control": REVALIDATE})


router = APIRouter()
"""For `attnstore.query.service.create_app`."""
router.include_router(_of_episodes)
router.include_router(_of_recordings)

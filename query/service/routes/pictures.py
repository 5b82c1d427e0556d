"""Camera images as stored, overlays, and videos."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse, Response

from attnstore.store.image import read_header

from ..parameters import Number, OfEpisode
from ..payload import MEDIA_TYPES, chosen_format, respond, unchanged
from ..pictures import OverlayParameters, VideoParameters
from ..service import service_of

router = APIRouter(prefix="/v1/stores/{store}/episodes/{run}/{episode}")
PICTURES = ("jpg", "png", "webp")
CONTAINERS = {"vp9": ("webm", "video/webm"), "h264": ("mp4", "video/mp4")}
_BINARY: Any = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/frames/{keyframe}/{camera}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": _BINARY, "image/png": _BINARY}}},
)
async def frame(
    request: Request,
    store: str,
    run: str,
    episode: str,
    keyframe: Number,
    camera: str,
    parameters: Annotated[OfEpisode, Query()],
) -> Response:
    """Return a keyframe's camera image: JPEG or PNG, whose pixels are those that the policy saw."""
    service = service_of(request)
    found = await service.episode(store, run, episode)
    headers = service.tag(request, found, "frame")
    if (known := unchanged(request, headers["ETag"], headers)) is not None:
        return known
    data = await service.read(lambda: found.episode.image_bytes(keyframe, camera))
    # What the store says of the type is not believed: it could say text/html.
    return respond(request, data, read_header(data).media_type, headers)


@router.get(
    "/overlays/{camera}",
    response_class=Response,
    responses={200: {"content": {MEDIA_TYPES[form]: _BINARY for form in PICTURES}}},
)
async def overlay(
    request: Request,
    store: str,
    run: str,
    episode: str,
    camera: str,
    parameters: Annotated[OverlayParameters, Query()],
) -> Response:
    """Draw attention on a camera's image."""
    service = service_of(request)
    found = await service.episode(store, run, episode)
    form = chosen_format(request, PICTURES, parameters.format)
    headers = service.tag(request, found, form)
    if (known := unchanged(request, headers["ETag"], headers)) is not None:
        return known
    body = await service.drawing.run(
        lambda: service.pictures.overlay(found.episode, camera, parameters, form)
    )
    return respond(request, body, MEDIA_TYPES[form], headers)


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {media: _BINARY for _, media in CONTAINERS.values()}},
    206: {"description": "A part of the file, as header Range asked for"},
    416: {"description": "The range lies outside the file"},
}


@router.head("/video", response_class=FileResponse, responses=_ANSWERS)
@router.get("/video", response_class=FileResponse, responses=_ANSWERS)
async def video(
    request: Request,
    store: str,
    run: str,
    episode: str,
    parameters: Annotated[VideoParameters, Query()],
) -> Response:
    """Draw an episode's keyframes as a video, once; parts of it are sent by `Range`."""
    service = service_of(request)
    found = await service.episode(store, run, episode)
    headers = service.tag(request, found, parameters.codec)
    if (known := unchanged(request, headers["ETag"], headers)) is not None:
        return known
    ending, media_type = CONTAINERS[parameters.codec]
    shown = parameters.model_dump_json(exclude={"v"})
    identity = f"{store}/{run}/{episode}/{found.version}/{shown}"
    name = f"{hashlib.sha256(identity.encode()).hexdigest()}.{ending}"
    path = await service.filming.run(
        lambda: service.videos.get(
            name, lambda path: service.pictures.video(found.episode, parameters, path)
        )
    )
    return FileResponse(path, media_type=media_type, headers=headers)

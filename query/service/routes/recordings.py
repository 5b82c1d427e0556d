"""Episodes that are being recorded: how far they are, their newest pictures, and where the policy looked.

They are not committed, so that nothing of this is in the catalog: it is read from what the recorder has written.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import xarray as xr
from fastapi import Query, Request
from starlette.responses import Response

from attnstore.store.image import read_header
from attnstore.store.recordings.call import SeenCall
from attnstore.store.recordings.spool import CallMaps

from ..answers import ArrayAnswer, UnderWayAnswer
from ..endpoint import binary
from ..endpoint import router as new_router
from ..guard.refusal import Refusal
from ..parameters import Number, Parameters
from ..payload import (
    MEDIA_TYPES,
    NPY,
    REVALIDATE,
    Json,
    array_body,
    chosen_format,
    respond,
    respond_json,
)
from ..service import Service, service_of

RECORDINGS = "/v1/stores/{store}/recordings"
CALL = "/{recording}/{file}/calls/{call}"
"""Of a recording's episode; a call by its place, negative ones from the newest."""
router = new_router(RECORDINGS)


@router.get("")
async def recordings(
    request: Request, store: str, parameters: Annotated[Parameters, Query()]
) -> Json[list[UnderWayAnswer]]:
    """List episodes that have no end: those that are being recorded, and those whose recorder died."""
    service = service_of(request)
    served = service.store(store)
    found = await service.read(served.under_way.episodes)
    return respond_json(request, [UnderWayAnswer(**asdict(each)) for each in found])


@router.get(
    CALL + "/pictures/{camera}",
    response_class=Response,
    responses=binary("image/jpeg", "image/png"),
)
async def recorded_picture(
    request: Request, store: str, recording: str, file: str, call: Number, camera: str,
    parameters: Annotated[Parameters, Query()],
) -> Response:  # fmt: skip
    """Return a camera's picture at a policy call of an episode that is being recorded."""
    service = service_of(request)
    seen, _ = await call_of(service, store, recording, file, call)
    data = picture_of(seen, camera)
    # What the journal says of the type is not believed.
    return respond(request, data, read_header(data).media_type, {"Cache-Control": REVALIDATE})


@router.get(CALL + "/maps/{phase}/{camera}", responses=binary(NPY))
async def recorded_maps(
    request: Request, store: str, recording: str, file: str, call: Number, phase: str, camera: str,
    parameters: Annotated[Parameters, Query()],
) -> Json[ArrayAnswer] | Response:  # fmt: skip
    """Return where a policy looked at one call of a live recording: maps of every layer and head.

    Of the query group that stands for the phase, the largest weight over its tokens, at the last step.
    """
    service = service_of(request)
    form = chosen_format(request, ("json", "npy"), None)
    _, maps = await call_of(service, store, recording, file, call)
    chosen = maps_of(maps, phase, camera)
    array = xr.DataArray(
        chosen.maps, dims=("layer", "head", "row", "col"), name="maps",
        attrs={"query": chosen.query, "active": chosen.active.tolist()},
    )  # fmt: skip
    body, headers = array_body(array, form)
    return respond(request, body, MEDIA_TYPES[form], {**headers, "Cache-Control": REVALIDATE})


async def call_of(
    service: Service, store: str, recording: str, file: str, call: int
) -> tuple[SeenCall, list[CallMaps]]:
    """Read a call that the address names."""
    served = service.store(store)
    return await service.read(lambda: served.under_way.call(recording, file, call))


def picture_of(call: SeenCall, camera: str) -> bytes:
    """Return a camera's picture.

    Raises
    ------
    Refusal
        404 if the call has none.
    """
    for picture in call.pictures:
        if picture.camera == camera:
            return picture.data
    known = ", ".join(p.camera for p in call.pictures)
    raise Refusal(404, f"no camera {camera[:80]!r} in this call; it has: {known}")


def maps_of(maps: list[CallMaps], phase: str | None, camera: str) -> CallMaps:
    """Choose a camera's maps; of the first phase that has some, where none is named.

    Raises
    ------
    Refusal
        404 if there are none, as in replay mode.
    """
    for each in maps:
        if each.camera == camera and phase in (None, each.phase):
            return each
    known = ", ".join(f"{m.phase} of {m.camera}" for m in maps)
    raise Refusal(404, f"no such maps; {f'there are: {known}' if known else 'this call has none'}")

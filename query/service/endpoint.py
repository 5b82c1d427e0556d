"""Endpoints that are documented by what they return, and the episode that most of them are about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import xarray as xr
from fastapi import APIRouter, Depends, Request
from fastapi.datastructures import Default, DefaultPlaceholder
from fastapi.routing import APIRoute
from starlette.responses import Response

from attnstore.store.reader.episode import Episode

from .payload import (
    IMMUTABLE,
    MEDIA_TYPES,
    REVALIDATE,
    Json,
    array_body,
    chosen_format,
    entity_tag,
    is_known,
    respond,
    respond_json,
)
from .served import ServedStore
from .service import Service, service_of

T = TypeVar("T")
BINARY: Any = {"schema": {"type": "string", "format": "binary"}}
EPISODE = "/v1/stores/{store}/episodes/{run}/{episode}"
"""Where everything about one episode is."""


def binary(*media_types: str, **more: Any) -> dict[int | str, dict[str, Any]]:
    """Document an answer in bytes, beside JSON if the endpoint's type says that."""
    return {200: {"content": dict.fromkeys(media_types, BINARY), **more}}


class Endpoint(APIRoute):
    """A route whose 200 is documented by T where the function returns `Json[T]`, alone or in a union."""

    def __init__(
        self, path: str, endpoint: Callable[..., Any], *,
        response_model: Any = Default(None), **options: Any,  # noqa: B008 - FastAPI's own default
    ) -> None:  # fmt: skip
        if isinstance(response_model, DefaultPlaceholder):
            response_model = _answered(endpoint)
        super().__init__(path, endpoint, response_model=response_model, **options)


def router(prefix: str) -> APIRouter:
    """Make a router of `Endpoint`s."""
    return APIRouter(prefix=prefix, route_class=Endpoint)


def operation_id(route: APIRoute) -> str:
    """Name an endpoint for generators of clients, and for the viewer's questions: its function's."""
    return f"{route.name}_head" if "HEAD" in (route.methods or ()) else route.name


def _answered(endpoint: Callable[..., Any]) -> Any:
    said = get_type_hints(endpoint, include_extras=True)["return"]
    for each in get_args(said) if get_origin(said) in (Union, UnionType) else (said,):
        if get_origin(each) is Json:
            return get_args(each)[0]
    return None


@dataclass(frozen=True, slots=True)
class AskedEpisode:
    """An episode, and the request that is about it.

    Its answers depend on the episode's data and the request alone: a client that has one is told so
    before anything is read.
    """

    request: Request
    service: Service
    store: ServedStore
    episode: Episode
    version: str

    def headers(self, form: str) -> dict[str, str]:
        """Entity tag of an answer in a form, and how long it may be kept."""
        asked = self.request.query_params
        identity = (self.version, self.request.url.path, sorted(asked.multi_items()), form)
        return {
            "ETag": entity_tag(*identity),
            "Cache-Control": IMMUTABLE if asked.get("v") == self.version else REVALIDATE,
        }

    async def json(self, read: Callable[[], T]) -> Json[T]:
        """Answer with what `read` returns; it runs in a thread."""
        return await self.json_of(lambda: self.service.read(read))

    async def json_of(self, read: Callable[[], Awaitable[T]]) -> Json[T]:
        """Answer with what `read` comes to."""
        headers = self.headers("json")
        if is_known(self.request, headers["ETag"]):
            return Json(status_code=304, headers=headers)
        return respond_json(self.request, await read(), headers)

    async def array(self, asked: str | None, read: Callable[[], xr.DataArray]) -> Response:
        """Answer with an array: as JSON, or its values as npy."""
        form = chosen_format(self.request, ("json", "npy"), asked)

        def encoded() -> tuple[bytes, str, dict[str, str]]:
            body, more = array_body(read(), form)
            return body, MEDIA_TYPES[form], more

        return await self.encoded(form, encoded)

    async def encoded(
        self, form: str, read: Callable[[], tuple[bytes, str, dict[str, str]]]
    ) -> Response:
        """Answer with bytes, their media type and further headers."""
        headers = self.headers(form)
        if is_known(self.request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        body, media_type, more = await self.service.read(read)
        return respond(self.request, body, media_type, {**headers, **more})


async def _asked_episode(request: Request, store: str, run: str, episode: str) -> AskedEpisode:
    service = service_of(request)
    served = service.store(store)
    opened = await service.read(lambda: served.episode(run, episode))
    return AskedEpisode(request, service, served, opened.episode, opened.version)


Asked = Annotated[AskedEpisode, Depends(_asked_episode)]
"""Parameter of an endpoint below `EPISODE`."""

"""The service as an ASGI application."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.staticfiles import StaticFiles

from attnstore.store.errors import AttnstoreError

from .answers import Failure
from .config import ServiceConfig
from .endpoint import operation_id
from .guard.access import Access
from .guard.middleware import Guard
from .guard.refusal import Refusal, refusal_of
from .routes import (
    actions,
    attention,
    causes,
    comparison,
    episodes,
    files,
    learnt,
    objects,
    overview,
    recordings,
    sql,
    stores,
)
from .service import Service

_log = logging.getLogger(__name__)


ROUTERS = (
    *(r.router for r in (stores, overview, sql, comparison, files, attention, episodes)),
    *(r.router for r in (objects, actions, causes, learnt, recordings)),
    comparison.episode_router,
    sql.catalog_router,
)


def create_app(config: ServiceConfig, *more: APIRouter) -> FastAPI:
    """Make the service.

    Parameters
    ----------
    config
        The stores, the token, the limits.
    more
        Further endpoints: what draws is ``attnstore.render.serving.router``, since this package does
        not import `attnstore.render`.

    Raises
    ------
    NotFoundError
        If one of the stores is none.
    """
    service = Service(config)
    roots = [store.paths.root for store in service.stores.values()]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Not waited for: pictures need no SQL.
        threading.Thread(target=_warm, args=(service,), daemon=True).start()
        yield
        service.close()

    app = _api(
        more,
        lifespan=lifespan,
        middleware=[
            Middleware(
                Guard, access=Access(config.token, config.hosts), limits=config.limits, roots=roots
            )
        ],
    )
    app.state.service = service

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return refusal_of(error).response(roots)

    async def refuse_parameters(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        said = "; ".join(_said(problem) for problem in error.errors()[:5])
        return Refusal(422, said).response(roots)

    async def refuse_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return Refusal(error.status_code, str(error.detail)).response(roots)

    app.add_exception_handler(AttnstoreError, refuse)
    app.add_exception_handler(RequestValidationError, refuse_parameters)
    app.add_exception_handler(HTTPException, refuse_http)
    if config.page is not None:
        app.mount("/", StaticFiles(directory=config.page, html=True))
    return app


def document(*more: APIRouter) -> dict[str, Any]:
    """Return the OpenAPI document of the service; it needs no store.

    Parameters
    ----------
    more
        Further endpoints, as for `create_app`.
    """
    return _api(more).openapi()


def _api(more: Sequence[APIRouter], **options: Any) -> FastAPI:
    app = FastAPI(
        title="attnstore",
        version=version("attnstore"),
        summary="Where a robot policy looks: stores of attention, read-only.",
        description="Every answer is of committed data. Names of phases, cameras, token groups and "
        "metrics are those of the Python API.",
        openapi_url="/v1/openapi.json",
        # Their pages load scripts from another host.
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": Failure}},
        generate_unique_id_function=operation_id,
        **options,
    )
    for router in (*ROUTERS, *more):
        app.include_router(router)
    return app


def _warm(service: Service) -> None:
    """Have a process for SQL ready, or say in the log why there is none."""
    for store in service.stores.values():
        for children in (store.own, store.users):
            try:
                children.warm()
            except AttnstoreError as error:
                _log.warning("store %s: %s", store.id, error)


def _said(problem: Any) -> str:
    place = ".".join(str(p) for p in problem["loc"] if p not in ("query", "path", "body"))
    given = problem.get("input")
    shown = f"; got {given!r}" if isinstance(given, str | int | float) else ""
    return f"{place or 'body'}: {problem['msg']}{shown[:100]}"

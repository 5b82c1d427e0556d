"""Stores, runs and lists of episodes."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from attnstore.store.catalog.rows import quoted
from attnstore.store.commits.run import load_run
from attnstore.store.tables.base import METRICS

from ..answers import Health, MetricAnswer, Page, RunAnswer, StoreAnswer
from ..parameters import EpisodesParameters, Parameters
from ..payload import respond_json
from ..served import ServedStore
from ..service import Service, service_of

router = APIRouter(prefix="/v1")
EXACT = ("run", "outcome", "task", "date")


@router.get("/health", response_model=Health)
async def health(request: Request) -> Response:
    """Say that the service is up. The one endpoint that needs no token."""
    return respond_json(request, {"status": "ok", "version": version("attnstore")})


@router.get("/stores", response_model=list[StoreAnswer])
async def stores(request: Request, parameters: Annotated[Parameters, Query()]) -> Response:
    """List the stores."""
    service = service_of(request)
    return respond_json(request, [await _store(service, s) for s in service.stores.values()])


@router.get("/metrics", response_model=list[MetricAnswer])
async def metrics(request: Request, parameters: Annotated[Parameters, Query()]) -> Response:
    """List the metrics of heads: definitions and units."""
    rows = [{"name": n, "definition": d, "unit": u} for n, (d, u) in METRICS.items()]
    return respond_json(request, rows)


@router.get("/stores/{store}", response_model=StoreAnswer)
async def store(
    request: Request, store: str, parameters: Annotated[Parameters, Query()]
) -> Response:
    """Describe a store."""
    service = service_of(request)
    return respond_json(request, await _store(service, service.store(store)))


async def _store(service: Service, store: ServedStore) -> dict[str, Any]:
    (counts,) = await service.rows(
        store,
        "select (select count(*) from runs) as runs, count(*) as episodes, "
        "coalesce(sum(keyframes), 0)::bigint as keyframes, coalesce(sum(bytes), 0)::bigint as bytes "
        "from episodes",
    )
    return {"id": store.id, "store_id": store.store_id, **counts}


@router.get("/stores/{store}/runs", response_model=Page)
async def runs(
    request: Request, store: str, parameters: Annotated[Parameters, Query()]
) -> Response:
    """List the runs: table `runs`."""
    service = service_of(request)
    rows = await service.rows(service.store(store), "from runs order by run")
    return respond_json(
        request, {"total": len(rows), "offset": 0, "limit": len(rows), "rows": rows}
    )


@router.get("/stores/{store}/runs/{run}", response_model=RunAnswer)
async def run(
    request: Request, store: str, run: str, parameters: Annotated[Parameters, Query()]
) -> Response:
    """Return a run's configuration and provenance."""
    service = service_of(request)
    served = service.store(store)
    config, provenance = await service.read(lambda: load_run(served.paths, run))
    shown = {name: getattr(config, name) for name in type(config).__dataclass_fields__}
    return respond_json(request, {"run": run, "config": shown, "provenance": provenance})


@router.get("/stores/{store}/episodes", response_model=Page)
async def episodes(
    request: Request, store: str, parameters: Annotated[EpisodesParameters, Query()]
) -> Response:
    """List episodes: table `episodes`, filtered, in pages."""
    service = service_of(request)
    served = service.store(store)
    conditions = [
        f"{column} = {quoted(value)}"
        for column in EXACT
        if (value := getattr(parameters, column)) is not None
    ]
    for column in ("name", "instruction"):
        part = getattr(parameters, column)
        if part is not None:
            conditions.append(f"contains(lower({column}), lower({quoted(part)}))")
    if parameters.where is not None:
        # Asked by itself first, so that a parenthesis of its own cannot close ours.
        probe = f"select run from episodes where\n{parameters.where}\nlimit 0"
        await service.users_rows(served, probe, request)
        conditions.append(f"(\n{parameters.where}\n)")
    where = f"where {' and '.join(conditions)}" if conditions else ""
    order = f"{parameters.order} {'desc' if parameters.descending else 'asc'} nulls last"
    page = (
        f"select *, count(*) over () as total_ from episodes {where}\n"
        f"order by {order}, run, episode limit {parameters.limit} offset {parameters.offset}"
    )
    users = parameters.where is not None
    rows = await _page(service, served, request, page, users=users)
    total = rows[0]["total_"] if rows else 0
    if not rows and parameters.offset:
        counted = f"select count(*) as total_ from episodes {where}"
        (row,) = await _page(service, served, request, counted, users=users)
        total = row["total_"]
    for row in rows:
        del row["total_"]
    return respond_json(
        request,
        {
            "total": total,
            "offset": parameters.offset,
            "limit": parameters.limit,
            "rows": rows,
        },
    )


async def _page(
    service: Service, store: ServedStore, request: Request, sql: str, *, users: bool
) -> list[dict[str, Any]]:
    """Ask for rows; a question that holds the user's own SQL goes where that belongs."""
    if users:
        return await service.users_rows(store, sql, request)
    return await service.rows(store, sql)

"""Stores, runs and lists of episodes."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

from fastapi import Query, Request

from attnstore.store.catalog.rows import quoted
from attnstore.store.catalog.tables import CATALOG
from attnstore.store.commits.run import load_run
from attnstore.store.tables.base import METRICS

from ..answers import (
    Health,
    MetricAnswer,
    Page,
    Row,
    RunAnswer,
    StoreAnswer,
    page_model,
    page_of,
)
from ..endpoint import router as new_router
from ..parameters import EpisodesParameters, Parameters
from ..payload import Json, respond_json
from ..served import ServedStore
from ..service import Service, service_of

router = new_router("/v1")
EXACT = ("run", "outcome", "task", "date")


@router.get("/health")
async def health(request: Request) -> Json[Health]:
    """Say that the service is up. The one endpoint that needs no token."""
    return respond_json(request, Health("ok", version("attnstore")))


@router.get("/stores")
async def stores(
    request: Request, parameters: Annotated[Parameters, Query()]
) -> Json[list[StoreAnswer]]:
    """List the stores."""
    service = service_of(request)
    return respond_json(request, [await _store(service, s) for s in service.stores.values()])


@router.get("/metrics")
async def metrics(
    request: Request, parameters: Annotated[Parameters, Query()]
) -> Json[list[MetricAnswer]]:
    """List the metrics of heads: definitions and units."""
    return respond_json(request, [MetricAnswer(n, d, u) for n, (d, u) in METRICS.items()])


@router.get("/stores/{store}")
async def store(
    request: Request, store: str, parameters: Annotated[Parameters, Query()]
) -> Json[StoreAnswer]:
    """Describe a store."""
    service = service_of(request)
    return respond_json(request, await _store(service, service.store(store)))


async def _store(service: Service, store: ServedStore) -> StoreAnswer:
    (counts,) = await service.rows(
        store,
        "select (select count(*) from runs) as runs, count(*) as episodes, "
        "coalesce(sum(keyframes), 0)::bigint as keyframes, coalesce(sum(bytes), 0)::bigint as bytes "
        "from episodes",
    )
    return StoreAnswer(id=store.id, store_id=store.store_id, **counts)


@router.get("/stores/{store}/runs", response_model=page_model(CATALOG["runs"]))
async def runs(
    request: Request, store: str, parameters: Annotated[Parameters, Query()]
) -> Json[Page[Row]]:
    """List the runs: table `runs`."""
    service = service_of(request)
    rows = await service.rows(service.store(store), "from runs order by run")
    return respond_json(request, Page(len(rows), 0, len(rows), rows))


@router.get("/stores/{store}/runs/{run}")
async def run(
    request: Request, store: str, run: str, parameters: Annotated[Parameters, Query()]
) -> Json[RunAnswer]:
    """Return a run's configuration and provenance."""
    service = service_of(request)
    served = service.store(store)
    config, provenance = await service.read(lambda: load_run(served.paths, run))
    return respond_json(request, RunAnswer(run, config, provenance))


@router.get("/stores/{store}/episodes", response_model=page_model(CATALOG["episodes"]))
async def episodes(
    request: Request, store: str, parameters: Annotated[EpisodesParameters, Query()]
) -> Json[Page[Row]]:
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
    if parameters.text is not None:
        every = "lower(concat_ws(' ', name, instruction, task, run))"
        conditions.append(f"contains({every}, lower({quoted(parameters.text)}))")
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
    total = None
    if not rows and parameters.offset:
        counted = f"select count(*) as total_ from episodes {where}"
        (row,) = await _page(service, served, request, counted, users=users)
        total = row["total_"]
    return respond_json(request, page_of(rows, parameters.limit, parameters.offset, total))


async def _page(
    service: Service, store: ServedStore, request: Request, sql: str, *, users: bool
) -> list[dict[str, Any]]:
    """Ask for rows; a question that holds the user's own SQL goes where that belongs."""
    if users:
        return await service.users_rows(store, sql, request)
    return await service.rows(store, sql)

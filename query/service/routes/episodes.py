"""One episode: what it is, its small tables, its metrics."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from starlette.responses import Response

from attnstore.store.catalog.rows import quoted
from attnstore.store.errors import SelectionError
from attnstore.store.format.tokens import Span
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.selection import check_index
from attnstore.store.rules import mean_over_keyframes, standing_step
from attnstore.store.tables.base import METRICS

from ..answers import EpisodeAnswer, Matrix, Page, Trace
from ..guard.refusal import Refusal
from ..parameters import MatrixParameters, OfEpisode, TableParameters, TraceParameters
from ..payload import respond_json, unchanged
from ..served import OpenEpisode
from ..service import service_of

router = APIRouter(prefix="/v1/stores/{store}/episodes/{run}/{episode}")
TABLES = {
    "keyframes": 'keyframe',
    "tokens": 'phase, axis, keyframe, "index"',
    "spans": 'phase, axis, keyframe, start',
    "sinks": 'phase, step, layer, head, "key"',
}  # fmt: skip
"""Tables that are listed, and the order of their rows."""


@router.get("", response_model=EpisodeAnswer)
async def describe(
    request: Request, store: str, run: str, episode: str, parameters: Annotated[OfEpisode, Query()]
) -> Response:
    """Describe an episode: frames, cameras, phases, axes."""
    service = service_of(request)
    found = await service.episode(store, run, episode)
    headers = service.tag(request, found, "json")
    return unchanged(request, headers["ETag"], headers) or respond_json(
        request, _description(found), headers
    )


@router.get("/metrics/{metric}/matrix", response_model=Matrix)
async def matrix(
    request: Request,
    store: str,
    run: str,
    episode: str,
    metric: str,
    parameters: Annotated[MatrixParameters, Query()],
) -> Response:
    """Return a metric of every layer and head: at a keyframe, or over the episode."""
    service = service_of(request)
    found = await service.episode(store, run, episode)
    headers = service.tag(request, found, "json")
    if (known := unchanged(request, headers["ETag"], headers)) is not None:
        return known

    def read() -> dict[str, Any]:
        values, about = _metric(found.episode, metric, parameters)
        if parameters.keyframe is None:
            over = _over_keyframes(values, parameters.reduce)
        else:
            over = values[check_index(parameters.keyframe, len(values), "keyframe")]
        return {**about, "keyframe": parameters.keyframe, "values": np.ascontiguousarray(over)}

    return respond_json(request, await service.read(read), headers)


@router.get("/metrics/{metric}/trace", response_model=Trace)
async def trace(
    request: Request,
    store: str,
    run: str,
    episode: str,
    metric: str,
    parameters: Annotated[TraceParameters, Query()],
) -> Response:
    """Return a metric at every keyframe: of one head, or of all heads of a layer."""
    service = service_of(request)
    found = await service.episode(store, run, episode)
    headers = service.tag(request, found, "json")
    if (known := unchanged(request, headers["ETag"], headers)) is not None:
        return known

    def read() -> dict[str, Any]:
        opened, p = found.episode, parameters
        values, about = _metric(opened, metric, p)
        layer = check_index(p.layer, values.shape[1], f"{p.phase} layer")
        if p.head == "all":
            heads = list(range(values.shape[2]))
        elif p.head == "active":
            # Of mean maps, as the metrics are.
            heads = [
                opened.active_head(
                    p.phase, p.camera, layer=layer, step=about["step"], query=about["query"],
                    reduce="mean",
                )
            ]  # fmt: skip
        else:
            heads = [check_index(int(p.head), values.shape[2], f"{p.phase} head")]
        shown = np.ascontiguousarray(values[:, layer, heads].T)
        return {**about, "layer": layer, "heads": heads, "frames": opened.frames, "values": shown}

    return respond_json(request, await service.read(read), headers)


@router.get("/{table}", response_model=Page)
async def table(
    request: Request,
    store: str,
    run: str,
    episode: str,
    table: str,
    parameters: Annotated[TableParameters, Query()],
) -> Response:
    """List rows of an episode's `keyframes`, `tokens`, `spans` or `sinks`."""
    service = service_of(request)
    if table not in TABLES:
        raise Refusal(404, f"an episode's lists are {', '.join(TABLES)}; got {table[:80]!r}")
    found = await service.episode(store, run, episode)
    headers = service.tag(request, found, "json")
    if (known := unchanged(request, headers["ETag"], headers)) is not None:
        return known
    conditions = [f"run = {quoted(run)}", f"episode = {quoted(episode)}"]
    allowed = {
        "keyframes": ("keyframe",), "tokens": ("phase", "axis", "keyframe"),
        "spans": ("phase", "axis", "keyframe"), "sinks": ("phase",),
    }[table]  # fmt: skip
    for name in ("phase", "axis", "keyframe"):
        value = getattr(parameters, name)
        if value is None:
            continue
        if name not in allowed:
            raise Refusal(400, f"{table} are listed by {', '.join(allowed)}, not by {name}")
        conditions.append(f"{name} = {quoted(str(value))}")
    rows = await service.rows(
        service.store(store),
        f"select *, count(*) over () as total_ from {table} where {' and '.join(conditions)} "
        f"order by {TABLES[table]} limit {parameters.limit} offset {parameters.offset}",
    )
    total = rows[0]["total_"] if rows else 0
    shown = [{k: v for k, v in row.items() if k != "total_"} for row in rows]
    answer = {"total": total, "offset": parameters.offset, "limit": parameters.limit}
    return respond_json(request, {**answer, "rows": shown}, headers)


def _description(found: OpenEpisode) -> dict[str, Any]:
    episode, spec = found.episode, found.episode.spec
    return {
        "run": episode.run,
        "episode": episode.id,
        "name": episode.name,
        "version": found.version,
        "outcome": episode.outcome,
        "task": spec.task,
        "date": episode.date,
        "instruction": episode.instruction,
        "precision": spec.precision,
        "rate": spec.rate,
        "total_frames": spec.total_frames,
        "frames": episode.frames,
        "cameras": {
            camera: {
                "height": geometry.source[0],
                "width": geometry.source[1],
                "grid": list(geometry.grid),
                "coverage": np.ascontiguousarray(geometry.coverage()),
                "geometry": geometry.to_json(),
            }
            for camera, geometry in spec.geometry.items()
        },
        "phases": {
            path: {
                "layers": phase.layers,
                "heads": phase.heads,
                "steps": phase.steps,
                "query_groups": list(phase.query_groups),
                "cameras": list(phase.cameras),
                "query": [_span(s) for s in phase.query],
                "key": [_span(s) for s in phase.key],
            }
            for path, phase in spec.phases.items()
        },
    }


def _span(span: Span) -> dict[str, Any]:
    return {
        "name": span.name,
        "kind": span.kind,
        "start": span.start,
        "stop": span.stop,
        "camera": span.camera,
        "grid": None if span.grid is None else list(span.grid),
        "role": span.role,
    }


def _metric(
    episode: Episode, metric: str, parameters: MatrixParameters | TraceParameters
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """(keyframe, layer, head) of a metric at a step, and what it is."""
    if metric not in METRICS:
        raise Refusal(404, f"no metric {metric[:80]!r}; there are: {', '.join(METRICS)}")
    phase = episode.phase(parameters.phase)
    if not phase.query_groups:
        raise SelectionError(f"{parameters.phase} has no statistics")
    step = parameters.step
    if step is None:
        step = standing_step(phase.phase, phase.steps) or 0
    step = check_index(step, phase.steps or 1, f"{parameters.phase} step")
    query = parameters.query or phase.query_groups[0]
    values = episode.stats(metric, parameters.phase, parameters.camera, query=query)[:, step]
    definition, unit = METRICS[metric]
    return values, {
        "metric": metric, "definition": definition, "unit": unit, "phase": parameters.phase,
        "camera": parameters.camera, "query": query, "step": step,
    }  # fmt: skip


def _over_keyframes(values: NDArray[np.float32], reduce: str) -> NDArray[np.float32]:
    """Mean or maximum over the first axis of what is there; NaN where nothing is."""
    if reduce == "max":
        return np.asarray(np.fmax.reduce(values, axis=0))
    return mean_over_keyframes(values)

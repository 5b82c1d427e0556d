"""One episode: what it is, its images, its small tables, its metrics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Query
from numpy.typing import NDArray
from pydantic import Field
from starlette.responses import Response

from attnstore.store.catalog.rows import quoted
from attnstore.store.errors import SelectionError
from attnstore.store.format.tokens import Span
from attnstore.store.image import read_header
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.selection import check_index
from attnstore.store.rules import mean_over_keyframes, standing_step
from attnstore.store.tables.base import METRICS, TABLES

from ..answers import (
    CameraAnswer,
    EpisodeAnswer,
    Matrix,
    Page,
    PhaseAnswer,
    Row,
    SpanAnswer,
    Trace,
    page_model,
    page_of,
)
from ..endpoint import EPISODE, Asked, AskedEpisode, binary
from ..endpoint import router as new_router
from ..guard.refusal import Refusal
from ..parameters import MatrixParameters, Number, OfEpisode, TraceParameters
from ..payload import Json

router = new_router(EPISODE)


@router.get("")
async def episode(asked: Asked, parameters: Annotated[OfEpisode, Query()]) -> Json[EpisodeAnswer]:
    """Describe an episode: frames, cameras, phases, axes."""
    return await asked.json(lambda: _description(asked))


@router.get(
    "/frames/{keyframe}/{camera}",
    response_class=Response,
    responses=binary("image/jpeg", "image/png"),
)
async def frame(
    asked: Asked, keyframe: Number, camera: str, parameters: Annotated[OfEpisode, Query()]
) -> Response:
    """Return a keyframe's camera image: JPEG or PNG, whose pixels are those that the policy saw."""

    def read() -> tuple[bytes, str, dict[str, str]]:
        data = asked.episode.image_bytes(keyframe, camera)
        # What the store says of the type is not believed: it could say text/html.
        return data, read_header(data).media_type, {}

    return await asked.encoded("frame", read)


@router.get("/metrics/{metric}/matrix")
async def matrix(
    asked: Asked, metric: str, parameters: Annotated[MatrixParameters, Query()]
) -> Json[Matrix]:
    """Return a metric of every layer and head: at a keyframe, or over the episode."""
    p = parameters

    def read() -> Matrix:
        values, about = _metric(asked.episode, metric, p)
        if p.keyframe is None:
            over = _over_keyframes(values, p.reduce)
        else:
            over = values[check_index(p.keyframe, len(values), "keyframe")]
        return Matrix(**about, keyframe=p.keyframe, values=np.ascontiguousarray(over))

    return await asked.json(read)


@router.get("/metrics/{metric}/trace")
async def trace(
    asked: Asked, metric: str, parameters: Annotated[TraceParameters, Query()]
) -> Json[Trace]:
    """Return a metric at every keyframe: of one head, or of all heads of a layer."""
    p, opened = parameters, asked.episode

    def read() -> Trace:
        values, about = _metric(opened, metric, p)
        layer = check_index(p.layer, values.shape[1], f"{p.phase} layer")
        if p.head == "all":
            heads = list(range(values.shape[2]))
        elif p.head == "active":
            # Of mean maps, as the metrics are.
            heads = [
                opened.active_head(
                    p.phase, p.camera, layer=layer, step=about["step"], query=about["query"],
                    reduce="mean", weighting=p.weighting,
                )
            ]  # fmt: skip
        else:
            heads = [check_index(int(p.head), values.shape[2], f"{p.phase} head")]
        shown = np.ascontiguousarray(values[:, layer, heads].T)
        return Trace(**about, layer=layer, heads=heads, frames=opened.frames, values=shown)

    return await asked.json(read)


class RowsParameters(OfEpisode):
    """Which rows."""

    limit: int = Field(10_000, ge=1, le=100_000)
    offset: int = Field(0, ge=0, lt=1 << 31)


class KeyframeRows(RowsParameters):
    """Rows of a keyframe, or of all."""

    keyframe: Number | None = Field(None, examples=[0])


class PhaseRows(RowsParameters):
    """Rows of a phase, or of all."""

    phase: str | None = Field(None, max_length=80, examples=["prefix"])


class AxisRows(KeyframeRows, PhaseRows):
    """Rows of an axis of a phase."""

    axis: Literal["query", "key", "step"] | None = None


@router.get("/keyframes", response_model=page_model(TABLES["keyframes"]))
async def keyframes(asked: Asked, parameters: Annotated[KeyframeRows, Query()]) -> Json[Page[Row]]:
    """List an episode's rows of table `keyframes`."""
    return await _rows(asked, "keyframes", parameters, "keyframe")


@router.get("/tokens", response_model=page_model(TABLES["tokens"]))
async def tokens(asked: Asked, parameters: Annotated[AxisRows, Query()]) -> Json[Page[Row]]:
    """List an episode's rows of table `tokens`."""
    return await _rows(asked, "tokens", parameters, 'phase, axis, keyframe, "index"')


@router.get("/spans", response_model=page_model(TABLES["spans"]))
async def spans(asked: Asked, parameters: Annotated[AxisRows, Query()]) -> Json[Page[Row]]:
    """List an episode's rows of table `spans`."""
    return await _rows(asked, "spans", parameters, "phase, axis, keyframe, start")


@router.get("/sinks", response_model=page_model(TABLES["sinks"]))
async def sinks(asked: Asked, parameters: Annotated[PhaseRows, Query()]) -> Json[Page[Row]]:
    """List an episode's rows of table `sinks`."""
    return await _rows(asked, "sinks", parameters, 'weighting, phase, step, layer, head, "key"')


async def _rows(asked: AskedEpisode, table: str, p: RowsParameters, order: str) -> Json[Page[Row]]:
    equal = {"run": asked.episode.run, "episode": asked.episode.id}
    equal |= p.model_dump(exclude={"v", "limit", "offset"}, exclude_none=True)
    conditions = " and ".join(f"{name} = {quoted(str(value))}" for name, value in equal.items())

    async def read() -> Page[Row]:
        rows = await asked.service.rows(
            asked.store,
            f"select *, count(*) over () as total_ from {table} where {conditions} "
            f"order by {order} limit {p.limit} offset {p.offset}",
        )
        return page_of(rows, p.limit, p.offset)

    return await asked.json_of(read)


def _description(asked: AskedEpisode) -> EpisodeAnswer:
    episode, spec = asked.episode, asked.episode.spec
    return EpisodeAnswer(
        run=episode.run,
        episode=episode.id,
        name=episode.name,
        version=asked.version,
        outcome=episode.outcome,
        task=spec.task,
        date=episode.date,
        instruction=episode.instruction,
        precision=spec.precision,
        rate=spec.rate,
        total_frames=spec.total_frames,
        frames=episode.frames,
        cameras={
            camera: CameraAnswer(
                height=geometry.source[0],
                width=geometry.source[1],
                grid=geometry.grid,
                coverage=np.ascontiguousarray(geometry.coverage()),
                geometry=geometry,
            )
            for camera, geometry in spec.geometry.items()
        },
        phases={
            path: PhaseAnswer(
                layers=phase.layers,
                heads=phase.heads,
                steps=phase.steps,
                query_groups=phase.query_groups,
                values=phase.values,
                cameras=phase.cameras,
                query=[_span(s) for s in phase.query],
                key=[_span(s) for s in phase.key],
            )
            for path, phase in spec.phases.items()
        },
        policy=episode.policy_shapes(),
    )


def _span(span: Span) -> SpanAnswer:
    return SpanAnswer(
        name=span.name, kind=span.kind, start=span.start, stop=span.stop, camera=span.camera,
        grid=span.grid, role=span.role,
    )  # fmt: skip


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
    values = episode.stats(
        parameters.phase, parameters.camera, metric, query=query, step=step,
        weighting=parameters.weighting,
    )  # fmt: skip
    definition, unit = METRICS[metric]
    return values.values, {
        "metric": metric, "definition": definition, "unit": unit, "phase": parameters.phase,
        "camera": parameters.camera, "query": query, "weighting": parameters.weighting,
        "step": step,
    }  # fmt: skip


def _over_keyframes(values: NDArray[np.float32], reduce: str) -> NDArray[np.float32]:
    """Mean or maximum over the first axis of what is there; NaN where nothing is."""
    if reduce == "max":
        return np.asarray(np.fmax.reduce(values, axis=0))
    return mean_over_keyframes(values)

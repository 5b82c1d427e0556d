"""Two groups of episodes: which heads differ, and where they look differently."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import xarray as xr
from fastapi import Query, Request
from numpy.typing import NDArray
from pydantic import Field
from starlette.responses import Response

from attnstore.store.catalog.rows import quoted

from ...groups.comparison import Comparison, compare
from ...groups.difference import difference as mean_difference
from ...groups.run_diff import diff_episodes
from ...sql.store import Store
from ..answers import ArrayAnswer, CompareAnswer, DivergenceAnswer
from ..endpoint import EPISODE, Asked, binary
from ..endpoint import router as new_router
from ..guard.refusal import Refusal
from ..parameters import Number, OfEpisode, Parameters, Step, Weighting
from ..payload import MEDIA_TYPES, NPY, Json, array_body, chosen_format, respond, respond_json
from ..served import ServedStore
from ..service import Service, service_of

router = new_router("/v1/stores/{store}")
episode_router = new_router(EPISODE)


class GroupParameters(Parameters):
    """Which two groups."""

    by: Literal["outcome", "task", "date", "instruction", "run"] | None = Field(
        None, examples=["outcome"], description="Column of `episodes` with two values."
    )
    a: str | None = Field(None, max_length=4000, description="SQL condition, instead of `by`.")
    b: str | None = Field(None, max_length=4000, description="SQL condition, instead of `by`.")
    where: str | None = Field(None, max_length=4000, description="SQL condition for both groups.")


class CompareParameters(GroupParameters):
    """What is compared; see `attnstore.query.groups.membership.comparison.compare`."""

    metric: str = Field(max_length=80, examples=["entropy"])
    phase: str | None = Field(None, max_length=80)
    camera: str | None = Field(None, max_length=200)
    query: str | None = Field(None, max_length=200, description="A stored query group.")
    step: Number | Literal["last"] = "last"
    reduce: Literal["mean", "max"] = "mean"
    weighting: Weighting = "raw"
    window: int | None = Field(None, ge=1, lt=1 << 31)
    align: Literal["none", "time", "progress"] = Field(
        "none", description="What keyframes of episodes of different lengths have in common."
    )
    permutations: int = Field(999, ge=99, le=9999)
    bootstraps: int = Field(0, ge=0, le=2000)
    alpha: float = Field(0.05, gt=0, lt=1)
    seed: int = Field(0, ge=0, lt=1 << 32)


class DifferenceParameters(GroupParameters):
    """Which maps are compared."""

    phase: str = Field(max_length=80, examples=["prefix"])
    camera: str = Field(max_length=200, examples=["hand_camera"])
    layer: Number = Field(examples=[1])
    head: Number | Literal["mean"] = Field("mean", description="A head, or the mean over heads.")
    step: Step = None
    reduce: Literal["max", "mean"] = "mean"
    weighting: Weighting = "raw"
    query: str | None = Field(None, max_length=200)
    moments: int = Field(11, ge=1, le=101, description="Points of normalised time, 0 to 1.")
    format: Literal["npy", "json"] | None = None


class DivergenceParameters(OfEpisode):
    """Which maps of two runs are compared."""

    phase: str = Field(max_length=80, examples=["prefix"])
    camera: str = Field(max_length=200, examples=["hand_camera"])
    query: str | None = Field(None, max_length=200, description="A stored query group.")
    step: Step = None
    reduce: Literal["max", "mean"] = "mean"
    weighting: Weighting = "raw"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Two groups, as the sandbox found them: ids and nothing that a client wrote."""

    a: tuple[tuple[str, str], ...]
    """(run, episode)"""
    b: tuple[tuple[str, str], ...]
    labels: tuple[str, str]


@router.get("/compare")
async def comparison(
    request: Request, store: str, parameters: Annotated[CompareParameters, Query()]
) -> Json[CompareAnswer]:
    """Compare a metric of every head between two groups of episodes."""
    service = service_of(request)
    served = service.store(store)
    chosen = await _choose(service, served, request, parameters)
    p = parameters

    def read() -> CompareAnswer:
        # Nothing that a client wrote goes into this SQL: it is not run in the sandbox.
        groups: dict[str, Any] = {"a": _condition(chosen.a), "b": _condition(chosen.b)}
        if p.by is not None:
            groups = {"by": p.by, "where": _condition(chosen.a + chosen.b)}
        found = compare(
            Store(served.paths), p.metric, **groups, strata=_strata(p), phase=p.phase,
            camera=p.camera, query=p.query, step=p.step, reduce=p.reduce, window=p.window,
            align=p.align, permutations=p.permutations, bootstraps=p.bootstraps, alpha=p.alpha,
            seed=p.seed, weighting=p.weighting,
        )  # fmt: skip
        return _compared(found, chosen)

    return respond_json(request, await service.read(read))


@router.get("/difference", responses=binary(NPY))
async def difference(
    request: Request, store: str, parameters: Annotated[DifferenceParameters, Query()]
) -> Json[ArrayAnswer] | Response:
    """Return mean maps of two groups and their difference, aligned by normalised time.

    (group, moment, row, col); groups are `a`, `b` and `difference`.
    """
    service = service_of(request)
    served = service.store(store)
    form = chosen_format(request, ("json", "npy"), parameters.format)
    chosen = await _choose(service, served, request, parameters)
    most = service.config.limits.compared_episodes
    if len(chosen.a) + len(chosen.b) > most:
        raise Refusal(413, f"maps of at most {most} episodes are compared; narrow the groups")

    def read() -> xr.DataArray:
        groups = [list(_maps(served, ids, parameters)) for ids in (chosen.a, chosen.b)]
        found = mean_difference(groups[0], groups[1], parameters.moments)
        return xr.DataArray(
            np.stack([found.a, found.b, found.values]).astype(np.float32),
            {"group": ["a", "b", "difference"], "time": ("moment", found.time)},
            ("group", "moment", "row", "col"),
            name=f"{parameters.phase}_difference",
            attrs={
                "a": chosen.labels[0], "b": chosen.labels[1], "episodes_a": len(chosen.a),
                "episodes_b": len(chosen.b), "camera": parameters.camera,
                "reduce": parameters.reduce, "weighting": parameters.weighting,
            },
        )  # fmt: skip

    body, headers = array_body(await service.read(read), form)
    return respond(request, body, MEDIA_TYPES[form], headers)


@episode_router.get("/divergence/{other}")
async def divergence(
    asked: Asked, other: str, parameters: Annotated[DivergenceParameters, Query()]
) -> Json[DivergenceAnswer]:
    """Say how far apart an episode's maps are in another run, head by head; see `compare runs`."""
    p, a = parameters, asked.episode

    def read() -> DivergenceAnswer:
        b = asked.store.episode(other, a.id).episode
        found = diff_episodes(
            a, b, phase=p.phase, cameras=[p.camera], query=p.query,
            step="last" if p.step is None else p.step, reduce=p.reduce, weighting=p.weighting,
        )  # fmt: skip
        step = int(found["step"].values[0])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice")  # no map at any keyframe
            values = np.nanmean(found.values[0, :, 0], axis=0)
        return DivergenceAnswer(
            other=other, phase=p.phase, camera=p.camera, query=str(found.attrs["query_group"]),
            step=None if step < 0 else step, weighting=p.weighting,
            frames=np.asarray(found["frame"].values), values=values.astype(np.float32),
        )  # fmt: skip

    return respond_json(asked.request, await asked.service.read(read))


async def _choose(
    service: Service, store: ServedStore, request: Request, p: GroupParameters
) -> Chosen:
    """Find the two groups' episodes; conditions run in the sandbox, like any SQL of a client."""
    conditions = [] if p.where is None else [p.where]
    if p.by is not None and p.a is None and p.b is None:
        rows = await _episodes(service, store, request, [f"{p.by} is not null", *conditions])
        values = sorted({r["value"] for r in (row | {"value": row[p.by]} for row in rows)})
        if p.by == "outcome":
            values = [v for v in ("success", "failure") if v in values]
        if len(values) != 2:
            raise Refusal(
                400,
                f"two groups by {p.by} need episodes of two values; there are: "
                f"{', '.join(map(str, values[:8])) or 'none'}",
            )
        a, b = ([_ids(row) for row in rows if row[p.by] == value] for value in values)
        return Chosen(tuple(a), tuple(b), (values[0], values[1]))
    if p.by is not None or p.a is None or p.b is None:
        raise Refusal(400, "name two groups: by a column, or by two SQL conditions a and b")
    found = [
        [_ids(row) for row in await _episodes(service, store, request, [sql, *conditions])]
        for sql in (p.a, p.b)
    ]
    for name, ids in zip("ab", found, strict=True):
        if not ids:
            raise Refusal(400, f"group {name} is empty")
    return Chosen(tuple(found[0]), tuple(found[1]), (p.a, p.b))


async def _episodes(
    service: Service, store: ServedStore, request: Request, conditions: list[str]
) -> list[dict[str, Any]]:
    columns = "run, episode, outcome, task, date, instruction"
    for sql in conditions:
        # Each by itself, so that a parenthesis of its own cannot close ours.
        await service.users_rows(store, f"select run from episodes where\n{sql}\nlimit 0", request)
    where = " and ".join(f"(\n{sql}\n)" for sql in conditions)
    return await service.users_rows(
        store, f"select {columns} from episodes where {where} order by run, episode", request
    )


def _strata(p: GroupParameters) -> tuple[str, ...] | None:
    """What compared episodes share, when a condition of the client is about task or date."""
    mentioned = set(re.findall(r"\w+", f"{p.a} {p.b}".lower()))
    if p.by is not None or not mentioned & {"task", "date"}:
        return None
    return tuple(column for column in ("task", "date") if column not in mentioned)


def _ids(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["run"]), str(row["episode"])


def _condition(ids: tuple[tuple[str, str], ...]) -> str:
    listed = ", ".join(f"({quoted(run)}, {quoted(episode)})" for run, episode in ids)
    return f"(run, episode) in ({listed})"


def _maps(
    store: ServedStore, ids: tuple[tuple[str, str], ...], p: DifferenceParameters
) -> Iterator[NDArray[np.float32]]:
    for run, id in ids:
        episode = store.episode(run, id).episode
        head = None if p.head == "mean" else int(p.head)
        maps = episode.maps(
            p.phase, p.camera, layer=p.layer, head=head, step=p.step, reduce=p.reduce, query=p.query,
            weighting=p.weighting,
        ).values  # fmt: skip
        yield maps if head is not None else np.asarray(maps.mean(1))


def _compared(found: Comparison, chosen: Chosen) -> CompareAnswer:
    keys = found.values
    layers, heads = np.unique(keys.layer), np.unique(keys.head)
    at = (np.searchsorted(layers, keys.layer), np.searchsorted(heads, keys.head))

    def matrix(values: NDArray[Any], empty: Any) -> NDArray[Any]:
        dense = np.full((len(layers), len(heads)), empty)
        dense[at] = values
        return dense

    results = found.results
    columns = ("rank", "layer", "head", "mean_a", "mean_b", "difference", "cliffs_delta", "p", "q",
               "significant")  # fmt: skip
    notes = [note.replace(found.groups.a, chosen.labels[0]) for note in found.notes]
    return CompareAnswer(
        a=chosen.labels[0],
        b=chosen.labels[1],
        episodes_a=len(chosen.a),
        episodes_b=len(chosen.b),
        metric=keys.metric,
        phase=keys.phase,
        camera=keys.camera,
        family=found.family,
        conclusive=bool(found.attainable.conclusive),
        notes=[note.replace(found.groups.b, chosen.labels[1]) for note in notes],
        layers=layers,
        heads=heads,
        difference=matrix(results["difference"], np.nan),
        cliffs_delta=matrix(results["cliffs_delta"], np.nan),
        p=matrix(results["p"], np.nan),
        q=matrix(found.q, np.nan),
        significant=matrix(found.significant, False),
        table=found.table().select(columns).slice(0, 200).to_pylist(),
    )

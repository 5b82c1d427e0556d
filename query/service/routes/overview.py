"""What a store holds at a glance: outcomes, where layers look, active heads, whether it is sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, TypeVar

from fastapi import Query, Request

from attnstore.store.catalog.rows import quoted
from attnstore.store.commits.quarantine import quarantined

from ..answers import (
    CommittedParts,
    Glimpse,
    LayerLook,
    LookingHead,
    OutcomeCount,
    Overview,
    Reasons,
    Soundness,
)
from ..endpoint import router as new_router
from ..parameters import Parameters
from ..payload import Json, respond_json
from ..served import ServedStore
from ..service import Service, service_of

router = new_router("/v1/stores/{store}")
SAMPLED = 100
"""Episodes of a run whose statistics are averaged; of more, as many, evenly spread."""
GLIMPSES = 3
"""Episodes of each outcome that are worth opening first."""
HEADS = 3
"""Most active heads of a phase, its queries and a camera."""
REASONS = 5
"""Reasons that are spelt out."""


@router.get("/overview")
async def overview(
    request: Request, store: str, parameters: Annotated[Parameters, Query()]
) -> Json[Overview]:
    """Show what a store holds: what one wants to see before any episode."""
    service = service_of(request)
    return respond_json(request, await _overview(service, service.store(store)))


async def _overview(service: Service, store: ServedStore) -> Overview:
    async def rows(sql: str) -> list[dict[str, Any]]:
        return await service.rows(store, sql)

    outcomes = await rows(
        "select run, outcome, task, count(*) as episodes, sum(keyframes)::bigint as keyframes "
        "from episodes group by all order by all"
    )
    # In order of name, which has outcome and date: evenly spread, they reach each of these.
    sampled = await rows(
        "with ranked as (select run, episode, row_number() over (partition by run order by name, "
        "episode) - 1 as place, count(*) over (partition by run) as n from episodes) "
        f"select run, episode from ranked where place % greatest(1, (n + {SAMPLED - 1}) // {SAMPLED}) = 0"
    )
    # One look at the statistics for both.
    looks = await rows(
        f"with {_meant(sampled)}, layers as (select 'layer' as kind, run, phase, query_group as query, "
        "layer, camera, avg(camera_mass_mean) as image, avg(letterbox_mass_mean) as letterbox "
        "from meant group by all), "
        "heads as (select 'head' as kind, run, phase, query_group as query, camera, layer, head, "
        "avg(variance_mean) as variance, avg(entropy_mean) as entropy, "
        "avg(camera_mass_mean) as image, arg_max(episode, variance_mean) as episode, "
        "arg_max(keyframes, variance_mean) as keyframes from meant group by all), "
        "most as (from heads where variance is not null "
        "qualify row_number() over (partition by run, phase, query, camera "
        f"order by variance desc, layer, head) <= {HEADS}) "
        "from (from layers union all by name from most) order by kind, run, phase, query, "
        "if(kind = 'layer', layer, null), camera, variance desc"
    )
    return Overview(
        sampled=len(sampled),
        outcomes=[OutcomeCount(**row) for row in outcomes],
        layers=[_told(LayerLook, row) for row in looks if row["kind"] == "layer"],
        heads=[_told(LookingHead, row) for row in looks if row["kind"] == "head"],
        glimpses=await _glimpses(service, store),
        soundness=await _soundness(service, store),
    )


async def _glimpses(service: Service, store: ServedStore) -> list[Glimpse]:
    """Some episodes of each outcome, evenly spread, each with its most active layer."""
    found = await service.rows(
        store,
        "with ranked as (select run, episode, name, outcome, instruction, keyframes, row_number() "
        "over (partition by run, outcome order by name, episode) - 1 as place, "
        "count(*) over (partition by run, outcome) as n from episodes) "
        f"select * exclude (place, n) from ranked "
        f"where place % greatest(1, (n + {GLIMPSES - 1}) // {GLIMPSES}) = 0 "
        "order by run, outcome desc, name",
    )
    active = await service.rows(
        store,
        f"with {_meant(found)} select run, episode, phase, query_group as query, camera, layer "
        "from meant where variance_mean is not null "
        "qualify row_number() over (partition by run, episode "
        "order by phase, variance_mean desc, camera, layer) = 1",
    )
    looks = {(row["run"], row["episode"]): row for row in active}
    glimpses = []
    for row in found:
        look = looks.get((row["run"], row["episode"]), {})
        seen: dict[str, Any] = {
            name: look.get(name) for name in ("phase", "query", "camera", "layer")
        }
        glimpses.append(Glimpse(**row, **seen))
    return glimpses


async def _soundness(service: Service, store: ServedStore) -> Soundness:
    ((sums,), parts, unreadable) = (
        await service.rows(
            store,
            "select min(row_sum_min) as low, max(row_sum_max) as high, "
            "(select max(committed)::varchar from episodes) as newest, "
            "(select count(*) from (select distinct run, phase, layer, head from sinks "
            "where variant = 'base' and weighting = 'raw')) as sink_heads from keyframes",
        ),
        await service.rows(
            store,
            "select split_part(part, '-', 1) as kind, count(distinct (run, episode)) as episodes, "
            "count(*) as parts, sum(bytes)::bigint as bytes from commits group by all order by kind",
        ),
        await service.rows(
            store,
            f"select reason, count(*) over () as n from unreadable order by all limit {REASONS}",
        ),
    )
    kept_out = await service.read(lambda: quarantined(store.paths))
    return Soundness(
        row_sums=(sums["low"], sums["high"]),
        newest=sums["newest"],
        sink_heads=sums["sink_heads"],
        parts=[CommittedParts(**row) for row in parts],
        unreadable=Reasons(
            unreadable[0]["n"] if unreadable else 0, [row["reason"] for row in unreadable]
        ),
        quarantined=Reasons(
            len(kept_out), [f"{e.get('name')}: {e.get('reason')}" for e in kept_out[:REASONS]]
        ),
    )


A = TypeVar("A", LayerLook, LookingHead)


def _told(answer: type[A], row: Mapping[str, Any]) -> A:
    return answer(**{each.name: row[each.name] for each in fields(answer)})


def _meant(rows: Sequence[Mapping[str, Any]]) -> str:
    """Spell a table `meant`: `episode_stats` of some episodes, raw, of the step that stands for its phase.

    First the episodes, by a join, and put aside: of 32 million rows a list of names and the steps took
    four times as long.
    """
    listed = ", ".join(f"({quoted(row['run'])}, {quoted(row['episode'])})" for row in rows)
    # without an episode, a row that none has
    return (
        "chosen as materialized (select run, episode, keyframes, phase, query_group, step, camera, "
        "layer, head, camera_mass_mean, letterbox_mass_mean, variance_mean, entropy_mean "
        f"from episode_stats semi join (values {listed or '(NULL, NULL)'}) named(run, episode) "
        "using (run, episode) where variant = 'base' and weighting = 'raw'), "
        "meant as materialized (from chosen where stands_for_phase(run, phase, step))"
    )

"""What interventions did: rows of an episode's probes, the pixels that each replaced, and curves.

Probes come after the episode, so answers have tags of their content and not of the episode's version.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import Field

from attnstore.store.catalog.rows import quoted
from attnstore.store.tables.inventory import PART_TABLES

from ...causes.fidelity_curves import curves_sql, pairs_of
from ..answers import CurveAnswer, Page, Row, page_model, page_of
from ..endpoint import EPISODE, Asked, AskedEpisode
from ..endpoint import router as new_router
from ..parameters import Number, OfEpisode
from ..payload import Json, respond_json

router = new_router(EPISODE)


class InterventionRows(OfEpisode):
    """Which rows."""

    keyframe: Number | None = Field(None, examples=[0], description="One keyframe, or all.")
    limit: int = Field(20_000, ge=1, le=100_000)
    offset: int = Field(0, ge=0, lt=1 << 31)


class CurveParameters(OfEpisode):
    """Which curves."""

    keyframe: Number | None = Field(
        None, examples=[0], description="One keyframe; else the mean over all that were probed."
    )


@router.get("/interventions", response_model=page_model(PART_TABLES["interventions"]))
async def interventions(
    asked: Asked, parameters: Annotated[InterventionRows, Query()]
) -> Json[Page[Row]]:
    """List an episode's rows of table `interventions`; none without probes."""
    return await _rows(asked, "interventions", parameters)


@router.get("/intervention-masks", response_model=page_model(PART_TABLES["intervention_masks"]))
async def intervention_masks(
    asked: Asked, parameters: Annotated[InterventionRows, Query()]
) -> Json[Page[Row]]:
    """List an episode's rows of table `intervention_masks`: which pixels each intervention replaced."""
    return await _rows(asked, "intervention_masks", parameters)


@router.get("/curves")
async def curves(
    asked: Asked, parameters: Annotated[CurveParameters, Query()]
) -> Json[list[CurveAnswer]]:
    """Return deletion and insertion curves of maps beside random order; none without `probe fidelity --curves`."""
    where = _where(asked, parameters.keyframe)
    rows = await asked.service.rows(asked.store, curves_sql(where))
    pairs = pairs_of([tuple(row.values()) for row in rows])
    answers = [
        CurveAnswer(
            part=p.part, phase=p.phase, layer=p.layer, cameras=p.cameras, curve=p.curve,
            fraction=p.fraction, attention=p.attention, control=p.control,
            attention_area=p.attention_area, control_area=p.control_area, gain=p.gain.value,
            keyframes=p.keyframes,
        )
        for p in pairs
    ]  # fmt: skip
    return respond_json(asked.request, answers)


async def _rows(asked: AskedEpisode, table: str, p: InterventionRows) -> Json[Page[Row]]:
    where = _where(asked, p.keyframe)
    rows = await asked.service.rows(
        asked.store,
        f"select *, count(*) over () as total_ from {table} where {where} "
        f"order by part, keyframe, variant limit {p.limit} offset {p.offset}",
    )
    return respond_json(asked.request, page_of(rows, p.limit, p.offset))


def _where(asked: AskedEpisode, keyframe: int | None) -> str:
    where = f"run = {quoted(asked.episode.run)} and episode = {quoted(asked.episode.id)}"
    return where if keyframe is None else f"{where} and keyframe = {keyframe}"

"""What interventions did: rows of an episode's probes, and the pixels that each replaced.

Probes come after the episode, so answers have tags of their content and not of the episode's version.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import Field

from attnstore.store.catalog.rows import quoted
from attnstore.store.tables.inventory import PART_TABLES

from ..answers import Page, Row, page_model, page_of
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


async def _rows(asked: AskedEpisode, table: str, p: InterventionRows) -> Json[Page[Row]]:
    where = f"run = {quoted(asked.episode.run)} and episode = {quoted(asked.episode.id)}"
    if p.keyframe is not None:
        where += f" and keyframe = {p.keyframe}"
    rows = await asked.service.rows(
        asked.store,
        f"select *, count(*) over () as total_ from {table} where {where} "
        f"order by part, keyframe, variant limit {p.limit} offset {p.offset}",
    )
    return respond_json(asked.request, page_of(rows, p.limit, p.offset))

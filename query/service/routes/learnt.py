"""What was learnt over many episodes: which layer knows what, and whether a failure is seen coming.

Such parts come after the episodes and may be replaced, so answers have tags of their content.
"""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Query, Request

from attnstore.store.catalog.rows import quoted

from ...failure.part import newest_part
from ...hidden.part import apart, knows, probes_sql
from ..answers import (
    FailurePrediction,
    FailurePredictor,
    LinearProbeAnswer,
    ProbedLayer,
    Row,
)
from ..endpoint import EPISODE, Asked
from ..endpoint import router as new_router
from ..parameters import OfEpisode, Parameters
from ..payload import Json, respond_json
from ..service import service_of

router = new_router("")
_OF_A_LAYER = (
    "layer", "score", "low", "high", "shuffled", "shuffled_high", "gain", "gain_low", "gain_high",
    "p_holm",
)  # fmt: skip
_OF_A_PROBE = (
    "part", "target", "kind", "split", "phase", "span", "tokens", "step", "chance", "episodes",
    "keyframes",
)  # fmt: skip


@router.get("/v1/stores/{store}/runs/{run}/linear-probes")
async def linear_probes(
    request: Request, store: str, run: str, parameters: Annotated[Parameters, Query()]
) -> Json[list[LinearProbeAnswer]]:
    """List what a run's linear probes found, layer by layer; the newest first, none without `linear-probe`."""
    service = service_of(request)
    rows = await service.rows(service.store(store), probes_sql(run))
    return respond_json(request, [_probe(own) for own in apart(rows)])


def _probe(rows: list[Row]) -> LinearProbeAnswer:
    baseline, *layers = [
        ProbedLayer(knows=knows(row), **{name: row[name] for name in _OF_A_LAYER}) for row in rows
    ]
    first = rows[0]
    return LinearProbeAnswer(
        baseline=baseline, layers=layers, classes=json.loads(first["classes"] or "[]"),
        **{name: first[name] for name in _OF_A_PROBE},
    )  # fmt: skip


@router.get(EPISODE + "/failure")
async def failure(
    asked: Asked, parameters: Annotated[OfEpisode, Query()]
) -> Json[FailurePrediction]:
    """Return the scores of failure that the newest `attnstore failure` gave an episode, and how good they are."""
    run, episode = quoted(asked.episode.run), quoted(asked.episode.id)
    newest = await asked.service.rows(asked.store, newest_part(asked.episode.run))
    if not newest:
        return respond_json(asked.request, FailurePrediction(None, None, None, ()))
    part = newest[0]["part"]
    of_part = f"run = {run} and part = {quoted(part)}"
    rows = await asked.service.rows(
        asked.store,
        "with scores as (select split, features, model, "
        "list(keyframe order by keyframe) as keyframes, list(score order by keyframe) as score, "
        "list(band order by keyframe) as band, min(keyframe) filter (alarm) as alarm "
        f"from failure_scores where {of_part} and episode = {episode} group by all) "
        "select s.*, r.auroc, r.low, r.high, r.shuffled, r.p, a.successes, a.false_alarms, a.failures, "
        "a.detected, a.before_end, a.unit, a.alpha, a.weighting "
        f"from (from failure_alarms where {of_part}) a "
        f"join (from failure_results where {of_part} and moment is null) r using (split, features, model) "
        "left join scores s using (split, features, model) order by all",
    )
    said = [{k: v for k, v in row.items() if k not in ("alpha", "weighting")} for row in rows]
    predictors = [FailurePredictor(**row) for row in said if row["keyframes"] is not None]
    return respond_json(
        asked.request,
        FailurePrediction(part, rows[0]["alpha"], rows[0]["weighting"], predictors),
    )

"""Object overlap of several episodes, summed up: per episode, per layer, per head.

One number per episode first (the mean over its keyframes), then mean and standard deviation over
episodes: keyframes of an episode are not independent, and failures have more of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb
import pyarrow as pa

from attnstore.store.commits import Commit, latest_commit
from attnstore.store.commits.part import Part
from attnstore.store.errors import NotFoundError
from attnstore.store.format.rle import Mask, decode_rle
from attnstore.store.reader.episode import Episode
from attnstore.store.rules import standing_step
from attnstore.store.tables.objects import OBJECT_METRICS

from ..sql.store import Store
from .rows import MASKS, STATS

Row = dict[str, Any]
NOTE = (
    "Computed from stored maps: overview maps are within 0.05 % a patch, the full attention, of which "
    "value-weighted maps are made, is float16 or log8; in object_stats each row says how far it may be "
    "off. lift 1 is chance. The gripper is a proxy of three boxes."
)


@dataclass(frozen=True, slots=True, eq=False)
class ObjectsOfEpisode:
    """One committed part of one episode."""

    episode: Episode
    commit: Commit
    part: Part


@dataclass(frozen=True, slots=True, eq=False)
class KeptMask:
    """A mask that was kept with the numbers."""

    object: str
    source: str
    keyframe: int
    pixels: Mask


class ObjectResults:
    """Numbers of some parts; made by `load_object_results`."""

    def __init__(self, parts: Sequence[ObjectsOfEpisode], missing: Mapping[str, str]) -> None:
        self.parts = tuple(parts)
        self.missing = dict(missing)

    @cached_property
    def episodes(self) -> list[Row]:
        """Mean over keyframes, per episode, object, phase, weighting, step, layer and kind of head or head."""
        means = ", ".join(f"avg({name}) AS {name}" for name in OBJECT_METRICS)
        return self._query(
            "SELECT run, episode, name, outcome, source, object, phase, query_group, weighting, step, standing, "
            f"layer, head_kind, head, count(*) AS keyframes, avg(area) AS area, {means} "
            "FROM stats JOIN names USING (run, episode) JOIN steps USING (run, phase) "
            "GROUP BY ALL ORDER BY ALL"
        )

    @cached_property
    def layers(self) -> list[Row]:
        """Mean and deviation over episodes, per object, phase, weighting, step, layer, of head mean and max.

        ``sd`` is over episodes, ``keyframe_sd`` over all keyframes; NULL (None) for a single one.
        """
        keys = "source, object, phase, query_group, weighting, step, standing, layer, head_kind"
        means = ", ".join(f"avg({n}) AS {n}" for n in OBJECT_METRICS)
        overall = ", ".join(
            f"avg({n}) AS {n}_mean, stddev_samp({n}) AS {n}_sd" for n in OBJECT_METRICS
        )
        pooled = ", ".join(f"stddev_samp({n}) AS {n}_keyframe_sd" for n in OBJECT_METRICS)
        maps = "FROM stats JOIN steps USING (run, phase) WHERE head_kind <> 'head' GROUP BY ALL"
        rows = self._query(
            f"SELECT {keys}, count(*) AS episodes, sum(keyframes)::BIGINT AS keyframes, {overall} "
            f"FROM (SELECT run, episode, {keys}, count(*) AS keyframes, {means} {maps}) "
            "GROUP BY ALL ORDER BY ALL"
        )
        spread = self._query(f"SELECT {keys}, {pooled} {maps} ORDER BY {keys}")
        return [{**row, **more} for row, more in zip(rows, spread, strict=True)]

    def masks(self, episode: Episode) -> list[KeptMask]:
        """Masks of an episode's parts, in order of keyframe and object."""
        found = [
            KeptMask(
                row["object"],
                row["source"],
                row["keyframe"],
                decode_rle((row["height"], row["width"]), row["counts"]),
            )
            for each in self.parts
            if (each.episode.run, each.episode.id) == (episode.run, episode.id)
            for row in each.part.table(MASKS).to_pylist()
        ]
        return sorted(found, key=lambda m: (m.keyframe, m.source, m.object))

    def to_json(self) -> dict[str, Any]:
        """Everything but the single keyframes, as JSON values; what is undefined is null."""
        of_last = [
            r for r in self.episodes if r["head_kind"] == "mean" and r["step"] == r["standing"]
        ]
        return {
            "note": NOTE,
            "metrics": {n: {"definition": d, "unit": u} for n, (d, u) in OBJECT_METRICS.items()},
            "parts": [
                {
                    "run": p.commit.run,
                    "episode": p.commit.episode,
                    "part": p.commit.part,
                    "revision": p.commit.revision,
                    **{k: v for k, v in p.commit.summary.items() if k != "inputs"},
                }
                for p in self.parts
            ],
            "missing": self.missing,
            "layers": self.layers,
            "episodes": [{k: v for k, v in r.items() if k != "standing"} for r in of_last],
        }

    def _query(self, sql: str) -> list[Row]:
        stats = pa.concat_tables([p.part.table(STATS) for p in self.parts])
        names = {(p.episode.run, p.episode.id): p.episode for p in self.parts}
        of_episode = pa.Table.from_pylist(
            [
                {"run": e.run, "episode": e.id, "name": e.name, "outcome": e.outcome}
                for e in names.values()
            ]
        )
        standing = {
            (e.run, phase): standing_step(phase, e.steps(phase))
            for e in names.values()
            for phase in e.phases
        }
        steps = pa.table(
            {
                "run": pa.array([run for run, _ in standing], pa.string()),
                "phase": pa.array([phase for _, phase in standing], pa.string()),
                "standing": pa.array(list(standing.values()), pa.int16()),
            }
        )
        with duckdb.connect() as connection:
            for name, table in (("stats", stats), ("names", of_episode), ("steps", steps)):
                connection.register(name, table)
            relation = connection.sql(sql)
            columns = relation.columns
            return [
                {k: _finite(v) for k, v in zip(columns, row, strict=True)}
                for row in relation.fetchall()
            ]


def load_object_results(
    store: Store, parts: Sequence[tuple[Episode, str]], missing: Mapping[str, str] | None = None
) -> ObjectResults:
    """Load what `attnstore objects add` committed.

    Parameters
    ----------
    parts
        Episodes and names of their parts.
    missing
        Names of episodes that have none, and why; for reports.

    Raises
    ------
    NotFoundError
        If an episode has no such part.
    """
    found = []
    for episode, name in parts:
        commit = latest_commit(store.paths, episode.run, episode.id, name)
        if commit is None:
            raise NotFoundError(f"{episode.name} has no part {name}")
        found.append(ObjectsOfEpisode(episode, commit, Part(store.paths, commit)))
    if not found:
        raise NotFoundError("no parts to report")
    return ObjectResults(found, missing or {})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

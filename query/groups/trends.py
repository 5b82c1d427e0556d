"""Trends of a metric within episodes, which make means of longer episodes differ by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import duckdb
import numpy as np

from ..resampling import Bool, Float, Int, student_p
from .episode_values import NAN, EpisodeValues, member_rows, of_members, tests_of
from .membership import Member

LEVEL = 0.05
"""Family-wise level at which a trend is said to be there."""


@dataclass(frozen=True, slots=True)
class Trends:
    """Which heads have a trend."""

    significant: Bool
    """(head,) over steps, layers and heads."""
    by: Literal["time", "progress"]
    """Whether the slope a keyframe, or that from first to last keyframe, is the steadier one."""


def find_trends(slopes: Float, lengths: Int) -> Trends:
    """Test whether the mean slope over episodes is zero, by Student's t with Bonferroni.

    Episodes are what is counted, so that correlated keyframes and an episode's own level do no
    harm. Slopes are taken a keyframe (time) and an episode (progress); the smaller p counts, twice.

    Parameters
    ----------
    slopes
        (episode, head) change a keyframe; NaN where an episode has none.
    lengths
        (episode,) keyframes.
    """
    t: dict[Literal["time", "progress"], Float] = {}
    count = (~np.isnan(slopes)).sum(0)
    for by, change in (("time", slopes), ("progress", slopes * (lengths[:, None] - 1))):
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.nansum(change, 0) / count
            square = np.nansum((change - mean) ** 2, 0) / (count - 1)
            # the same slope in every episode: as sure as can be
            t[by] = np.where(  # type: ignore[index]  # the tuple's strings are widened
                (square > 0) | (mean == 0), mean / np.sqrt(square / count), np.sign(mean) * 1e9
            )
    degrees = np.where(count > 1, count - 1, np.nan).astype(np.float64)
    larger = np.fmax(np.abs(t["time"]), np.abs(t["progress"]))
    p = student_p(larger, degrees)
    significant = np.asarray(2 * slopes.shape[1] * p <= LEVEL)
    sure = {by: np.nansum(np.abs(values[significant])) for by, values in t.items()}
    return Trends(significant, "time" if sure["time"] >= sure["progress"] else "progress")


def episode_trends(
    connection: duckdb.DuckDBPyConnection,
    members: tuple[Member, ...],
    values: EpisodeValues,
    lengths: Int,
) -> Trends:
    """Find the trends of the metric, phase, camera and steps that are compared."""
    metric = values.metric
    rows = member_rows(
        connection, members,
        f"SELECT m.member, r.step, r.layer, r.head, coalesce(r.slope, {NAN}) AS slope "
        "FROM (SELECT run, episode, "
        "coalesce(step, -1) AS step, layer, head, "
        f'regr_slope("{metric}", keyframe) FILTER (NOT isnan("{metric}")) AS slope '
        f"FROM head_stats WHERE {values.chosen} AND {of_members(members)} GROUP BY ALL) r "
        "JOIN members m USING (run, episode)",
    )  # fmt: skip
    heads, at = tests_of(rows)
    slopes = np.full((len(members), heads.shape[1]), np.nan)
    slopes[rows["member"], at] = rows["slope"]
    return find_trends(slopes, lengths)

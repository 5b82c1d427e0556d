"""Rows of ``episode_stats``: every metric of ``head_stats`` over an episode's keyframes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from attnstore.store.tables.base import METRICS

_KEYS = ["phase", "step", "layer", "head", "query_group", "weighting", "camera"]
_AGGREGATES = (
    ("mean", "mean", None),
    ("sd", "stddev", pc.VarianceOptions(ddof=1)),
    ("max", "max", None),
)


def episode_stats(head_stats: pa.Table) -> dict[str, Any]:
    """Aggregate ``head_stats`` of one episode over its keyframes.

    Returns
    -------
    Columns of ``episode_stats``, sorted by the keys. A standard deviation needs two keyframes.
    """
    wanted: list[Any] = [("keyframe", "count_distinct")]
    wanted += [(m, function, options) for m in METRICS for _, function, options in _AGGREGATES]
    grouped = head_stats.group_by(_KEYS, use_threads=False).aggregate(wanted)
    # Arrow's hash grouping gives the groups in no order that one could rely on.
    grouped = grouped.sort_by([(key, "ascending") for key in _KEYS])
    columns: dict[str, Any] = {key: grouped[key].combine_chunks() for key in _KEYS}
    columns["keyframes"] = grouped["keyframe_count_distinct"].cast(pa.int32()).combine_chunks()
    for metric in METRICS:
        for name, function, _ in _AGGREGATES:
            values = grouped[f"{metric}_{function}"].cast(pa.float32()).combine_chunks()
            columns[f"{metric}_{name}"] = values
    return columns

"""View ``ledger``: what is looked at, beside what matters; one table to ask with SQL.

A row joins `region_attention` (how much of a map lies on a region) with `interventions` (what
removing that region did to the action). Nothing is stored for it.
"""
# ruff: noqa: E501 - one line per column, however long its definition

from __future__ import annotations

from .columns import FLOAT32, INT16, STRING, Column, Table
from .probes import ACTION_METRICS, PROBE_TABLES

_LOOKED_AT, _MATTERS = PROBE_TABLES["region_attention"], PROBE_TABLES["interventions"]


def _of(table: Table, *names: str) -> tuple[Column, ...]:
    known = {c.name: c for c in table.columns}
    return tuple(known[name] for name in names)


_KEYS = _of(_LOOKED_AT, "run", "episode", "part", "keyframe", "frame", "variant")
_REGION = (
    Column("target", STRING, "kind of region: cell, object, camera, or rank (pixels by attention)"),
    Column("detail", STRING, "which one: 1,2 (cell), the object's name, 0.1-0.2 (rank); NULL for a camera"),
    *_of(_MATTERS, "cameras"),
)  # fmt: skip
_MAP = _of(_LOOKED_AT, "camera", "phase", "step", "layer", "query_group", "area", "attention")
_EFFECT = _of(_MATTERS, "fill", "pixel_change", *ACTION_METRICS)

LEDGER = Table(
    "ledger",
    "one region that `attnstore probe regions` removed, against one map: how much the map looks at the region, and what removing it did to the action; the effect is the same for every map of a region",
    (
        *_KEYS,
        *_REGION,
        *_MAP,
        Column("lift", FLOAT32, "attention over area: 1 if the region gets as much attention as its area", "ratio"),
        *_EFFECT,
        Column("effect_by_area", FLOAT32, "si_mse over area: effects of regions of different size can be compared", "ratio"),
        Column("repeat", INT16, "0-based; noise differs between repeats"),
    ),
)  # fmt: skip
"""Columns of the view, in order."""


_COMPUTED = {
    "lift": "a.attention / nullif(a.area, 0)",
    "effect_by_area": "i.si_mse / nullif(a.area, 0)",
}


def ledger_query() -> str:
    """Spell the view's SQL, over the two tables that it joins.

    Filters on run and episode reach both, so that only those episodes' files are opened.
    """
    looked_at = {c.name for c in (*_KEYS, *_MAP)}
    columns = [
        f"{_COMPUTED.get(name) or ('a.' if name in looked_at else 'i.') + name} AS {name}"
        for name in (c.name for c in LEDGER.columns)
    ]
    keys = " AND ".join(
        f"i.{key} = a.{key}" for key in ("run", "episode", "part", "keyframe", "variant")
    )
    return f"SELECT {', '.join(columns)} FROM region_attention a JOIN interventions i ON {keys}"

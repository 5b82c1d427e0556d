"""Sections on interventions other than fidelity, and on attention beside effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attnstore.query.causes.effects import Effect, effects
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.store import Store

from ..charts.plots import scatter_chart
from .document import Block, Figure, Section, Table, finding, missing, note, text
from .spelling import number, percent, with_interval

SHOWN = 16
"""Rows of a table of many regions."""
_KINDS = {
    "regions": "Regions: parts of the image replaced",
    "prompts": "Prompts: other words",
    "knockout": "Knock-out: attention blocked",
}


def interventions(store: Store, chosen: Chosen) -> Section:
    """Say what every intervention did to the action."""
    title = "What the action depends on"
    found = effects(store, chosen)
    if not found:
        said = (
            "No interventions. `attnstore probe regions`, `prompts` and `knockout` (with `--checkpoint "
            "CHECKPOINT`) remove cameras, objects or cells, change words, or block attention."
        )
        return Section("interventions", title, (missing(said),))
    blocks: list[Block] = [
        text(
            "Mean change of the action chunk over keyframes and then episodes, from the same noise; 0 is "
            "no change. Intervals in brackets."
        )
    ]
    for probe in dict.fromkeys(e.probe for e in found):
        own = [e for e in found if e.probe == probe and e.target != "base"]
        if own:
            most = max(own, key=lambda e: np.nan_to_num(e.metrics["si_mse"].value, nan=-1.0))
            blocks.append(
                finding(
                    f"{_KINDS.get(probe, probe)}. The action changes most with {_name(most)} "
                    f"({len(own)} tried): si_mse {with_interval(most.metrics['si_mse'])}."
                )
            )
        for part in dict.fromkeys(e.part for e in found if e.probe == probe):
            own = [e for e in found if e.part == part]
            blocks += _tables(probe, part, own)
    blocks.append(
        note("Many rows are many comparisons: the largest of many is the largest of many.")
    )
    absent = [p for p in _KINDS if all(e.probe != p for e in found)]
    if absent:
        listed = ", ".join(f"`attnstore probe {p}`" for p in absent)
        blocks.append(missing(f"Not probed: {listed}."))
    return Section("interventions", title, tuple(blocks))


_HEAD = (
    "what", "cameras", "area", "si_mse", "scale", "cosine", "pixel change", "episodes", "keyframes",
)  # fmt: skip


def _tables(probe: str, part: str, found: Sequence[Effect]) -> list[Block]:
    blocks: list[Block] = []
    said = f"`{part}`"
    for target in dict.fromkeys(e.target for e in found):
        own = [e for e in found if e.target == target]
        own.sort(key=lambda e: -np.nan_to_num(e.metrics["si_mse"].value, nan=-1.0))
        if target == "base":
            said += f"; run again unchanged, its actions differ by mse {number(own[0].metrics['mse'].value)}"
            continue
        rows = [_row(e) for e in own[:SHOWN]]
        # Prompts have no area, cells of one image no other camera.
        used = [i for i in range(len(_HEAD)) if any(row[i] != "–" for row in rows)]
        blocks.append(
            Table(
                f"{_KINDS.get(probe, probe)}" + ("" if probe == "knockout" else f", {target}"),
                tuple(_HEAD[i] for i in used),
                tuple(tuple(row[i] for i in used) for row in rows),
                f"The {SHOWN} largest of {len(own)}." if len(own) > SHOWN else "",
            )
        )
    return [*blocks, note(f"{said}.")]


def _row(e: Effect) -> tuple[str, ...]:
    return (
        _what(e), e.cameras.replace("+", ", ") or "–", percent(e.area),
        with_interval(e.metrics["si_mse"]), number(e.metrics["scale"].value),
        number(e.metrics["cosine"].value), number(e.pixel_change),
        str(e.metrics["mse"].episodes), str(e.keyframes),
    )  # fmt: skip


def _what(e: Effect) -> str:
    name = f"cell {e.detail}" if e.target == "cell" else e.detail or e.target
    return name + ("" if e.layer is None else f", L{e.layer:02d}")


def _name(e: Effect) -> str:
    """Name an intervention in a sentence."""
    said = f"“{_what(e)}”" if e.probe == "knockout" or e.target == "cell" else e.target
    if e.probe != "knockout" and e.target != "cell" and e.detail:
        said += f" “{_what(e)}”"
    return said + (f" in {e.cameras.replace('+', ' and ')}" if e.cameras else "")


def ledger(store: Store, chosen: Chosen) -> Section:
    """Hold what is looked at against what matters, region by region."""
    title = "Looked at, and used"
    rows = _ledger_rows(store, chosen)
    if not rows:
        said = (
            "No regions were removed. `attnstore probe regions --by cell --by object` measures the effect "
            "of each, beside every layer's attention on it."
        )
        return Section("ledger", title, (missing(said),))
    blocks: list[Block] = [
        text(
            "Each point is a region (a cell or an object) of one camera. Across: `lift` of the attention on "
            "it. Up: the effect of removing it, over its area, relative to the mean region. Both "
            "are 1 by chance (dashed). Bottom right is looked at but unused, top left is used but not looked at. "
            '`attnstore sql "from ledger"` has every keyframe.'
        )
    ]
    for phase, camera in dict.fromkeys((r["phase"], r["camera"]) for r in rows):
        own = [r for r in rows if (r["phase"], r["camera"]) == (phase, camera)]
        best, correlation = _strongest_layer(own)
        at = [r for r in own if r["layer"] == best and r["effect_lift"] is not None]
        names = sorted({r["target"] for r in at})
        points = [(r["lift"], r["effect_lift"], r["target"]) for r in at if r["lift"] is not None]
        if not points:
            continue
        chart = scatter_chart(
            f"{phase} L{best:02d} → {camera}", "lift of the attention", "effect, relative to area",
            points, names, crossing=(1.0, 1.0),
        )  # fmt: skip
        layers = len({r["layer"] for r in own})
        caption = (
            f"{phase}, L{best:02d} (of {layers} layers the one where attention and effect go together "
            f"most; Pearson r {number(correlation)} over {len(points)} regions), {camera}."
        )
        blocks.append(Figure(f"ledger_{phase}_{camera}", chart, caption))
        blocks += _quadrants(phase, camera, best, at)
    blocks.append(
        note(
            "Removing one region at a time misses what is there twice. Points are means over episodes, "
            "without intervals: a list of where to look, not a test."
        )
    )
    return Section("ledger", title, tuple(blocks))


def _ledger_rows(store: Store, chosen: Chosen) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        store.sql(f"""
WITH regions AS (
       SELECT part, target, detail, cameras, camera, phase, layer, query_group,
              avg(area) AS area, avg(attention) / nullif(avg(area), 0) AS lift, avg(si_mse) AS effect
       FROM ledger
       WHERE {chosen.condition} AND target IN ('cell', 'object') AND len(cameras) = 1
       GROUP BY ALL)
SELECT *, effect / nullif(area, 0) / nullif(avg(effect / nullif(area, 0)) OVER alike, 0) AS effect_lift
FROM regions
WINDOW alike AS (PARTITION BY part, target, camera, phase, layer, query_group)
ORDER BY ALL""")
        .to_arrow_table()
        .to_pylist()
    )
    return found


def _strongest_layer(rows: Sequence[dict[str, Any]]) -> tuple[int, float]:
    found = []
    for layer in sorted({r["layer"] for r in rows}):
        pairs = [
            (r["lift"], r["effect_lift"])
            for r in rows
            if r["layer"] == layer and r["lift"] is not None and r["effect_lift"] is not None
        ]
        lift, effect = np.array(pairs, np.float64).reshape(-1, 2).T
        varied = len(lift) > 2 and lift.std() > 0 and effect.std() > 0
        found.append((float(np.corrcoef(lift, effect)[0, 1]) if varied else -2.0, -layer))
    correlation, layer = max(found)
    return -layer, correlation if correlation > -2 else float("nan")


def _quadrants(phase: str, camera: str, layer: int, rows: Sequence[dict[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    for title, sign in (("looked at but unused", 1), ("used but not looked at", -1)):
        own = [
            r
            for r in rows
            if r["lift"] is not None
            and (r["lift"] - 1) * sign > 0
            and (r["effect_lift"] - 1) * sign < 0
        ]
        own.sort(key=lambda r: -(r["lift"] if sign > 0 else r["effect_lift"]))
        if own:
            cells = tuple(
                (
                    f"{r['target']} {r['detail'] or ''}".strip(), percent(r["area"]),
                    number(r["lift"]), number(r["effect"]), number(r["effect_lift"]),
                )
                for r in own[:5]
            )  # fmt: skip
            head = ("region", "area", "lift", "effect", "effect_lift")
            blocks.append(Table(f"{phase} L{layer:02d}, {camera}: {title}", head, cells))
    return blocks

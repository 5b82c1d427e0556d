"""Section on what hidden states say: linear probes, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attnstore.query.hidden.part import knows, layer_name, run_probe_rows
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.store import Store
from attnstore.query.statistics import Estimate

from ..charts.plots import Series, line_chart
from ..charts.svg import Chart
from .document import Block, Figure, Section, Table, finding, missing, note, text
from .spelling import number, with_interval

TITLE = "Which layer knows what"
SHOWN = 8
"""Probes that are drawn, the newest."""


def hidden(store: Store, chosen: Chosen) -> Section:
    """Say how well each layer's hidden states tell what was asked for."""
    found = run_probe_rows(store, chosen.run)
    if not found:
        absent = (
            "No linear probes. `attnstore linear-probe STORE --target outcome` says, layer by layer, how well "
            "something is read off the hidden states; it needs no policy."
        )
        return Section("hidden", TITLE, (missing(absent),))
    blocks: list[Block] = [
        text(
            "A linear probe reads a target off the hidden states of one span at one layer, on episodes (or "
            "tasks) that it was not fitted on. Beside it: the same from time, robot state and instruction "
            "(trivial), and with targets that whole episodes exchanged (shuffled). It says what is there to "
            "be read, not what the policy uses."
        )
    ]
    hardest = {rows[0]["part"]: place for place, rows in enumerate(found)}
    for place, rows in enumerate(found[:SHOWN]):
        blocks += _probe(rows, place, hardest[rows[0]["part"]] == place)
    if len(found) > SHOWN:
        blocks.append(
            note(f"The newest {SHOWN} of {len(found)}; all are in table `linear_probes`.")
        )
    episodes = max(int(rows[0]["episodes"]) for rows in found[:SHOWN])
    if episodes != len(chosen.episodes):
        blocks.append(
            note(
                f"Probes are of the run's episodes that they were fitted and tested on (up to {episodes}), "
                f"whichever {len(chosen.episodes)} this report is of."
            )
        )
    return Section("hidden", TITLE, tuple(blocks))


def _probe(rows: Sequence[dict[str, Any]], place: int, hardest: bool) -> list[Block]:
    """One target on unseen episodes or tasks; what is found on tasks, where there are any, is the finding."""
    baseline, *layers = rows
    measure = "balanced accuracy" if baseline["kind"] == "classes" else "R²"
    what = f"{baseline['target']}, from {baseline['phase']} {baseline['span']}"
    if baseline["tokens"] == "last":
        what += ", last hidden states"
    unseen = f"unseen {baseline['split']}"
    best = max(layers, key=lambda row: -np.inf if row["score"] is None else row["score"])
    knowing = [layer_name(row["layer"]) for row in layers if knows(row)]
    said = (
        f"More than the trivial baseline and than shuffled targets: {', '.join(knowing)}."
        if knowing
        else "No layer says more than the trivial baseline and than shuffled targets."
    )
    blocks: list[Block] = [
        (finding if hardest else text)(
            f"{what}: {measure} on {unseen} best at {layer_name(best['layer'])} of {len(layers)}, "
            f"{with_interval(_of(best, 'score', 'low', 'high'))}; trivial "
            f"{with_interval(_of(baseline, 'score', 'low', 'high'))}, chance {number(baseline['chance'])}. {said}"
        )
    ]
    if len(layers) > 1:
        blocks.append(
            Figure(
                f"hidden_{place}",
                _chart(f"{unseen}: {measure}", measure, baseline, layers),
                f"{what}, {unseen}; {baseline['episodes']} episodes, {baseline['keyframes']} keyframes. Layer "
                "-1 is what enters layer 0. Bars are 95 % intervals over episodes; dashed at "
                f"{number(baseline['chance'])}: chance.",
            )
        )
    head = ("states", "score", "shuffled", "shuffled_high", "gain over trivial", "p_holm", "knows")
    cells = tuple(
        (
            "trivial" if row is baseline else layer_name(row["layer"]),
            with_interval(_of(row, "score", "low", "high")),
            number(row["shuffled"]), number(row["shuffled_high"]),
            with_interval(_of(row, "gain", "gain_low", "gain_high")), number(row["p_holm"]),
            "" if row is baseline else "yes" if knows(row) else "no",
        )
        for row in rows
    )  # fmt: skip
    return [*blocks, Table(f"{what}, {unseen}", head, cells)]


def _chart(
    title: str, measure: str, baseline: dict[str, Any], layers: Sequence[dict[str, Any]]
) -> Chart:
    x = [float(row["layer"]) for row in layers]
    lines = [
        Series.of(
            "hidden states", x, [_of(row, "score", "low", "high") for row in layers], "#0072b2"
        ),
        Series("trivial", x, [baseline["score"]] * len(x), colour="#d55e00", dashed=True),
    ]
    if any(row["shuffled_high"] is not None for row in layers):
        shuffled = [row["shuffled_high"] for row in layers]
        lines.append(
            Series("95 % of shuffled are below", x, shuffled, colour="#009e73", dashed=True)
        )
    return line_chart(title, "layer", measure, lines, reference=baseline["chance"])


def _of(row: dict[str, Any], value: str, low: str, high: str) -> Estimate:
    each = [np.nan if row[name] is None else float(row[name]) for name in (value, low, high)]
    return Estimate(each[0], each[1], each[2], 0)

"""Mask fidelity: does the action depend on what a layer looks at? A section, and a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnstore.query.causes.fidelity import (
    FidelityPairs,
    LayerFidelity,
    fidelity_pairs,
    layer_fidelity,
)
from attnstore.query.causes.fidelity_views import BestLayer, best_layers
from attnstore.query.resampling import FEWEST
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.store import Store
from attnstore.store.errors import NotFoundError
from attnstore.store.tables.probes import ACTION_METRICS

from ..charts.plots import Series, line_chart
from .document import Block, Figure, Section, Table, finding, missing, note, text
from .spelling import interval, known, number

METRIC = "si_mse"
METRICS = tuple(ACTION_METRICS)
_AT = METRICS.index(METRIC)


@dataclass(frozen=True, slots=True, eq=False)
class Fidelity:
    """Everything that was probed of one part."""

    part: str
    options: Mapping[str, Any]
    """Of `attnstore probe fidelity`; empty if the commit does not say."""
    pairs: tuple[FidelityPairs, ...]
    layers: tuple[LayerFidelity, ...]
    best: tuple[BestLayer, ...]
    """By view."""

    @property
    def views(self) -> list[str]:
        """Cameras that were masked at once: the most cameras first."""
        found = dict.fromkeys(p.cameras for p in self.pairs)
        return sorted(found, key=lambda v: (-v.count("+"), v))

    @property
    def episodes(self) -> int:
        """With at least one keyframe that was probed."""
        return len({name for p in self.pairs for name in p.episodes.tolist()})

    def of(self, cameras: str, metric: str = METRIC) -> list[LayerFidelity]:
        """Layers of one view by one metric, in order."""
        found = [f for f in self.layers if (f.cameras, f.metric) == (cameras, metric)]
        return sorted(found, key=lambda f: f.layer)

    @property
    def asked(self) -> str:
        """The options in words."""
        first, o = self.pairs[0], self.options
        said = f"{first.phase}, {first.query_group} tokens, {first.heads} over heads"
        if first.step is not None:
            said += f", step {first.step}"
        if o:
            said += (
                f"; the hottest {100 * float(o.get('share', 0.1)):g} % of the seen pixels, filled with "
                f"{o.get('fill', '?')}; control: {o.get('control', '?')}, {o.get('repeats', '?')} repeats"
            )
        return said


def read_fidelity(store: Store, chosen: Chosen) -> list[Fidelity]:
    """Read every fidelity part of the chosen episodes; empty if there is none."""
    run, episodes = chosen.run, chosen.episodes
    try:
        pairs = fidelity_pairs(store, run=run, episodes=episodes, metrics=METRICS)
    except NotFoundError:
        return []
    layers = layer_fidelity(store, run=run, episodes=episodes, metrics=METRICS)
    best = best_layers(pairs, _AT)
    options = {
        c.part: dict(c.summary.get("options") or {})
        for c in store.commits()
        if c.run == chosen.run and c.part.startswith("probe-")
    }
    return [
        Fidelity(
            part,
            options.get(part, {}),
            tuple(p for p in pairs if p.part == part),
            tuple(f for f in layers if f.part == part),
            tuple(b for b in best if b.pairs.part == part),
        )
        for part in dict.fromkeys(p.part for p in pairs)
    ]


def verdict(low: float, high: float) -> str:
    """Say what an interval of fidelity says.

    Examples
    --------
    >>> verdict(0.1, 0.2), verdict(-0.1, 0.2), verdict(-0.2, -0.1), verdict(0.0, 0.0)
    ('matters', 'not decided', 'matters less than elsewhere', 'not decided')
    """
    if low > 0:
        return "matters"
    if high < 0:
        return "matters less than elsewhere"
    return "not decided"


def fidelity_section(found: Sequence[Fidelity], page: str) -> Section:
    """Sum fidelity up for the report.

    Parameters
    ----------
    page
        File of the page that has it all.
    """
    title = "Does what it looks at matter?"
    if not found:
        said = (
            "No mask fidelity. `attnstore probe fidelity --checkpoint CHECKPOINT` masks what each layer "
            "looks at, and as much elsewhere, and measures what the action does; it needs the policy."
        )
        return Section("fidelity", title, (missing(said),))
    blocks: list[Block] = [
        text(
            "The hottest pixels of each layer's map are replaced, and as many pixels with little attention "
            "as a control. Fidelity is the change of the action (`si_mse`: direction without length) under "
            "the first minus that under the second: positive, if the action depends more on what the "
            f"layer looks at. Curves, pictures, views and lengths: `{page}`, written beside this page."
        )
    ]
    for each in found:
        blocks.append(text(f"`{each.part}`: {each.asked}; {each.episodes} episodes."))
        blocks += summary(each)
        blocks.append(layers_chart(each, f"fidelity_{each.part}"))
    return Section("fidelity", title, tuple(blocks))


def summary(found: Fidelity) -> list[Block]:
    """Say which layer of each view is the best, and how much that is worth."""
    blocks: list[Block] = []
    for best in sorted(found.best, key=lambda b: found.views.index(b.pairs.cameras)):
        layer, value = best.pairs.layer, best.fidelity
        decided = verdict(best.low, best.high)
        outcome = {
            "matters": "which is above 0 even so",
            "not decided": "which contains 0, so that chance may have chosen it",
            "matters less than elsewhere": "which is below 0: no layer's looking matters more",
        }[decided]
        if not np.isfinite(best.low):
            outcome = "of a single keyframe there is no interval"
        blocks.append(
            finding(
                f"{views(best.pairs.cameras)}: largest at L{layer:02d}, fidelity {number(value.value)} "
                f"({interval(value.low, value.high) or 'no interval'} taken alone). It is the best of "
                f"{best.among} layers and views; the interval that holds for all of them at once is "
                f"{interval(best.low, best.high) or 'not there'}, {outcome}."
            )
        )
    if found.episodes < FEWEST:
        blocks.append(
            note(
                f"Of {found.episodes} episode{'s' if found.episodes > 1 else ''} only: the intervals are of "
                "these, and say nothing about others."
            )
        )
    changes = [(p, p.attention[:, 0].mean(), p.control[:, 0].mean()) for p in found.pairs]
    weak = [p for p, high, control in changes if control < 0.5 * high]
    if weak:
        listed = ", ".join(f"L{p.layer:02d} ({views(p.cameras)})" for p in weak[:6])
        blocks.append(
            note(
                f"The control changes the picture less than half as much as the masked map at {listed}: "
                "there, fidelity may only say that a control on an even background changes nothing."
            )
        )
    return blocks


def layers_chart(found: Fidelity, name: str, metric: str = METRIC) -> Figure:
    """Draw fidelity over layers, a line per view."""
    lines = []
    for cameras in found.views:
        own = found.of(cameras, metric)
        x = [float(f.layer) for f in own]
        low, high = known([f.low for f in own]), known([f.high for f in own])
        lines.append(Series(views(cameras), x, known([f.fidelity for f in own]), low, high))
    chart = line_chart(
        f"fidelity by layer, {metric}", "layer", f"fidelity ({metric})", lines, reference=0.0
    )
    caption = (
        "Masked map minus control, mean over keyframes and then episodes; bars are 95 % intervals of each "
        "layer alone. Above 0 (dashed) the action depends more on what the layer looks at."
    )
    return Figure(name, chart, caption)


def layers_table(found: Fidelity, cameras: str) -> Table:
    """Every layer of one view, by every metric."""
    rows = []
    for f in found.of(cameras):
        other = {g.metric: g for m in METRICS for g in found.of(cameras, m) if g.layer == f.layer}
        rows.append(
            (
                f"L{f.layer:02d}",
                number(f.attention),
                number(f.control),
                number(f.fidelity)
                + (f" ({interval(f.low, f.high)})" if np.isfinite(f.low) else ""),
                verdict(f.low, f.high),
                number(other["mse"].fidelity),
                number(other["scale"].attention),
                number(other["cosine"].attention),
                f"{f.attention_change:.1f}, {f.control_change:.1f}",
                str(f.keyframes),
            )
        )
    head = (
        "layer", "masked map", "control", "fidelity", "what the layer looks at", "fidelity, mse", "scale",
        "cosine", "pixel change", "keyframes",
    )  # fmt: skip
    return Table(f"{views(cameras)}, si_mse", head, tuple(rows))


def views(cameras: str) -> str:
    """Name the cameras that were masked at once.

    Examples
    --------
    >>> views("hand_camera"), views("hand_camera+side")
    ('only hand_camera', 'hand_camera + side')
    """
    return cameras.replace("+", " + ") if "+" in cameras else f"only {cameras}"

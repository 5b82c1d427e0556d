"""The page on mask fidelity: layers, views, pictures, curves, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attnstore.query.attention.camera_shares import camera_shares
from attnstore.query.causes.fidelity_curves import CurvePair, curve_pairs
from attnstore.query.causes.fidelity_views import directions, view_differences
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.store import Store

from ..charts.plots import Series, line_chart
from .document import Block, Figure, Page, Section, Table, note, text
from .fidelity import METRIC, METRICS, Fidelity, layers_chart, layers_table, summary, verdict, views
from .glossary import glossary
from .masked import masked_strip
from .spelling import known, number, percent, with_interval

CURVES_DRAWN = 6
"""Layers of a view whose curves are drawn: those with the largest gain under deletion."""


def fidelity_page(store: Store, chosen: Chosen, found: Sequence[Fidelity]) -> Page:
    """Write the page of one run."""
    sections = [_definition()]
    several = len(found) > 1
    for each in found:
        prefix = f"{each.part}-" if several else ""
        title = f" ({each.part})" if several else ""
        sections += [
            Section(f"{prefix}layers", f"Layers{title}", tuple(_layers(each))),
            Section(
                f"{prefix}pictures",
                f"What was masked{title}",
                tuple(_pictures(store, chosen, each)),
            ),
            Section(f"{prefix}roles", f"Layer roles{title}", tuple(_roles(store, chosen, each))),
            Section(f"{prefix}views", f"View dependence{title}", tuple(_views(each))),
            Section(f"{prefix}scale", f"Scale against direction{title}", tuple(_directions(each))),
        ]
    curves = curve_pairs(store, chosen)
    sections.append(Section("curves", "Deletion and insertion", tuple(_curves(curves))))
    config, _ = store.run(chosen.run)
    lead = (
        f"{config.policy} on {config.dataset}, run `{chosen.run}`: does the action depend on the pixels "
        f"that a layer looks at? {found[0].episodes if found else 0} episodes, "
        f"{len(found)} part{'s' if several else ''} of `attnstore probe fidelity`."
    )
    return Page("Mask fidelity", lead, tuple(sections), glossary(sections))


def _definition() -> Section:
    said = (
        "For every layer the hottest pixels of its map are replaced on the camera's own image (masked map), "
        "and as many pixels of the same shape where little attention lies (control). The policy acts on "
        "both from the same noise; its action chunk is compared with that of the unchanged keyframe. "
        "Fidelity is the metric of the masked map minus that of the control."
    )
    caveat = (
        "An image token is no longer only its patch of pixels once a vision encoder has mixed them; and a "
        "masked picture is one that the policy never saw in training. Fidelity says what the policy does "
        "with such pictures."
    )
    return Section("how", "How it is measured", (text(said), note(caveat)))


def _layers(found: Fidelity) -> list[Block]:
    blocks: list[Block] = [text(f"{found.asked[:1].upper()}{found.asked[1:]}.")]
    blocks += summary(found)
    blocks += [
        layers_chart(found, f"layers_{found.part}_{metric}", metric) for metric in ("si_mse", "mse")
    ]
    blocks += [layers_table(found, cameras) for cameras in found.views]
    blocks.append(
        note(
            "`matters`: the 95 % interval of si_mse is above 0. Each layer is judged alone; of 20 layers "
            "without any effect one is expected to look as if it had. The best of all is judged for all "
            "at once in the sentences above."
        )
    )
    return blocks


def _pictures(store: Store, chosen: Chosen, found: Fidelity) -> list[Block]:
    blocks: list[Block] = []
    fill = str(found.options.get("fill", "mean"))
    for best in sorted(found.best, key=lambda b: found.views.index(b.pairs.cameras)):
        drawn = masked_strip(store, chosen, best.pairs, fill)
        if drawn is None:
            continue
        name = f"masked_{found.part}_{best.pairs.cameras.replace('+', '_')}"
        caption = (
            f"{views(best.pairs.cameras)}, L{best.pairs.layer:02d}, the best layer of this view: the image, "
            f"its masked map and a control, as the policy got them; yellow is the outline. {drawn[1]}."
        )
        if fill == "noise":
            caption += " The noise is drawn anew."
        blocks.append(Figure(name, drawn[0], caption))
    return blocks or [note("This part kept no masks.")]


def _roles(store: Store, chosen: Chosen, found: Fidelity) -> list[Block]:
    """What each layer looks at, beside whether it matters."""
    first = found.pairs[0]
    shares = [
        s for s in camera_shares(store, chosen)
        if (s.phase, s.query_group) == (first.phase, first.query_group)
    ]  # fmt: skip
    cameras = list(dict.fromkeys(s.camera for s in shares))
    at = {(s.layer, s.camera): s for s in shares}
    rows = []
    for layer in sorted({p.layer for p in found.pairs}):
        own = [at[layer, c] for c in cameras if (layer, c) in at]
        cells = [f"L{layer:02d}", *(percent(s.image.value) for s in own)]
        cells.append(percent(sum(s.letterbox.value for s in own)))
        entropies = [s.entropy.value for s in own if np.isfinite(s.entropy.value)]
        cells.append(number(float(np.mean(entropies)) if entropies else None))
        for view in found.views:
            f = next((f for f in found.of(view) if f.layer == layer), None)
            cells.append("–" if f is None else f"{number(f.fidelity)}, {verdict(f.low, f.high)}")
        rows.append(tuple(cells))
    head = (
        "layer", *(f"on {c}" for c in cameras), "on letterboxes", "entropy",
        *(f"fidelity, {views(v)}" for v in found.views),
    )  # fmt: skip
    said = (
        "Where each layer's tokens look (share of their attention, over all heads; entropy over the "
        "cameras, 1 is even), beside whether the action depends on it."
    )
    return [text(said), Table("Layers", head, tuple(rows))]


def _views(found: Fidelity) -> list[Block]:
    single = [v for v in found.views if "+" not in v]
    if len(single) < 2:
        said = "Only one view was masked alone. `attnstore probe fidelity --camera each` masks each by itself."
        return [note(said)]
    rows = []
    for d in view_differences(found.pairs, METRICS.index(METRIC)):
        side = {
            "matters": f"more on {d.first}",
            "matters less than elsewhere": f"more on {d.second}",
            "not decided": "not decided",
        }[verdict(d.difference.low, d.difference.high)]
        rows.append(
            (f"L{d.layer:02d}", f"{d.first} − {d.second}", with_interval(d.difference), side)
        )
    said = (
        "Fidelity where only the first camera is masked minus where only the second is, keyframe by "
        "keyframe, by si_mse: on which camera does what the layer looks at matter more? If either camera "
        "is enough for the policy, neither matters alone: compare with the view of all cameras."
    )
    head = ("layer", "views", "difference", "what the layer looks at matters")
    return [text(said), Table("", head, tuple(rows))]


def _directions(found: Fidelity) -> list[Block]:
    each = directions(found.pairs, METRICS)
    rows = tuple(
        (
            f"L{d.pairs.layer:02d}",
            views(d.pairs.cameras),
            with_interval(d.direction),
            with_interval(d.length),
            number(d.share),
            with_interval(d.scale),
        )
        for d in sorted(each, key=lambda d: (found.views.index(d.pairs.cameras), d.pairs.layer))
    )
    shares = [d.share for d in each if np.isfinite(d.share)]
    said = (
        "Does the masked action point elsewhere, or is it only longer or shorter? "
        "|b − a|² / |a|² of the masked maps, split into what is left at the best length (direction) and what "
        "a change of length mends (length)."
    )
    blocks: list[Block] = [text(said)]
    if shares:
        blocks.append(
            text(
                f"Direction's share is {percent(min(shares))} to {percent(max(shares))} over layers and views."
            )
        )
    head = ("layer", "view", "direction", "length", "direction's share", "scale")
    return [*blocks, Table("Masked maps", head, rows)]


def _curves(curves: Sequence[CurvePair]) -> list[Block]:
    if not curves:
        said = "No curves. `attnstore probe fidelity --curves 10` removes, and shows, ever more pixels."
        return [note(said)]
    blocks: list[Block] = [
        text(
            "Deletion replaces ever more pixels, the hottest of a layer's map first; insertion begins with "
            "all replaced and shows the hottest first (RISE, Petsiuk et al. 2018). Dashed: the same with "
            "patches in random order. The value is si_mse, a distance from the unchanged action: a map "
            "that points at what matters rises faster under deletion and falls faster under insertion."
        )
    ]
    for part, cameras in dict.fromkeys((c.part, c.cameras) for c in curves):
        own = [c for c in curves if (c.part, c.cameras) == (part, cameras)]
        ranked = sorted((c for c in own if c.curve == "deletion"), key=lambda c: -c.gain.value)
        shown = sorted(c.layer for c in ranked[:CURVES_DRAWN])
        for curve in ("deletion", "insertion"):
            of = [c for c in own if c.curve == curve and c.layer in shown]
            lines = []
            for index, c in enumerate(of):
                colour = _COLOURS[index % len(_COLOURS)]
                x = c.fraction.tolist()
                lines.append(
                    Series(f"L{c.layer:02d}", x, known(c.attention.tolist()), colour=colour)
                )
            # Every layer is held against the same random orders.
            controls = {tuple(known(c.control.tolist())): c for c in of}
            for y, c in controls.items():
                words = "random order" if len(controls) == 1 else f"L{c.layer:02d}, random"
                x = c.fraction.tolist()
                lines.append(Series(words, x, y, colour="#777777", dashed=True))
            label = "share of the seen pixels that is " + (
                "replaced" if curve == "deletion" else "shown"
            )
            chart = line_chart(f"{curve}, {views(cameras)}", label, "si_mse", lines, whole=False)
            caption = (
                f"{curve.capitalize()}, {views(cameras)}; mean over keyframes and then episodes."
            )
            if len({c.layer for c in own}) > len(shown):
                caption += f" The {len(shown)} layers with the largest gain under deletion."
            name = f"{curve}_{part}_{cameras.replace('+', '_')}"
            blocks.append(Figure(name, chart, caption))
        blocks.append(_areas(cameras, own))
    return blocks


_COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#8a7a00", "#56b4e9")


def _areas(cameras: str, curves: Sequence[CurvePair]) -> Table:
    rows = tuple(
        (
            f"L{c.layer:02d}",
            c.curve,
            number(c.attention_area),
            number(c.control_area),
            with_interval(c.gain),
            str(c.gain.episodes),
        )
        for c in sorted(curves, key=lambda c: (c.curve, c.layer))
    )
    head = ("layer", "curve", "area under: map", "area under: random", "gain", "episodes")
    return Table(f"Areas, {views(cameras)}", head, rows)

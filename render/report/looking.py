"""Sections on where each layer looks, and which heads do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attnstore.query.attention.active_heads import ActiveHeads, active_heads
from attnstore.query.attention.camera_shares import CameraShare, camera_shares
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.store import Store
from attnstore.store.errors import NotFoundError
from attnstore.store.format.axes import PHASES, VISION
from attnstore.store.format.views import is_current
from attnstore.store.format.weighting import WEIGHTINGS, Weighting, described
from attnstore.store.reader.episode import Episode
from attnstore.store.rules import NO_HEAD, Active

from ..charts.matrix import matrix_chart
from ..charts.plots import Series, line_chart
from ..picture import overlay
from ..picture.heatmap import sampler
from ..picture.scale import data_limits
from ..picture.scene import decode_frame
from ..picture.source import describe_query
from .document import Block, Figure, Paragraph, Section, Table, finding, missing, note, text
from .spelling import known, layer_names, percent, with_interval
from .strip import strip

_OVER: dict[Active, str] = {
    "image": "Variance over the patches that show image, weighted by their coverage,",
    "lab": "Variance over the whole patch grid, letterbox included (the lab's rule),",
}
OVERLAY_LAYERS = 4
"""Layers of a phase that are drawn."""
CARRIED = (
    "Value-weighted attention is attention times the norm of what each token adds through the head, "
    "divided by the row's sum: the share of what is carried, by size. A sink that adds next to nothing "
    "has a large share of the attention and a small one of this."
)
SINKS_SHOWN = 12
"""Rows of the table of sinks."""


def looking(store: Store, chosen: Chosen) -> Section:
    """Say where each layer looks: camera, letterbox, sharpness, with pictures."""
    blocks: list[Block] = [
        text(
            "Share of a query group's attention that goes to each camera's image and to its letterbox, "
            "mean over heads, keyframes and then episodes, at the last step, of decode the first. What is "
            "missing to 1 goes to words, state and actions. Bars are 95 % intervals over episodes."
        )
    ]
    weightings = store.weightings("episode_stats", chosen.condition)
    if "value" in weightings:
        blocks.append(text(CARRIED))
    shares = {
        weighting: [
            s for s in camera_shares(store, chosen, weighting=weighting) if s.phase != VISION
        ]
        for weighting in weightings
    }
    every = sorted(shares.get("raw", []), key=lambda s: PHASES.index(s.phase))
    for phase, group in dict.fromkeys((s.phase, s.query_group) for s in every):
        by = {
            weighting: own
            for weighting, found in shares.items()
            if (own := [s for s in found if (s.phase, s.query_group) == (phase, group)])
        }
        for weighting, own in by.items():
            blocks.append(_sum(phase, group, own, weighting))
            blocks += _charts(phase, group, own, weighting)
        blocks.append(_table(phase, group, by))
    blocks += overlays(store, chosen)
    return Section("looking", "Where each layer looks", tuple(blocks))


def _sum(phase: str, group: str, shares: Sequence[CameraShare], weighting: Weighting) -> Paragraph:
    """Sum a phase up: the mean over its layers."""
    said, letterbox = [], 0.0
    for camera in dict.fromkeys(s.camera for s in shares):
        own = [s for s in shares if s.camera == camera]
        mean = float(np.mean([s.image.value for s in own]))
        letterbox += float(np.mean([s.letterbox.value for s in own]))
        top = max(own, key=lambda s: s.image.value)
        said.append(
            f"{percent(mean)} to {camera} (most in L{top.layer:02d}: {percent(top.image.value)})"
        )
    padding = f"; {percent(letterbox)} goes to letterboxes, which show nothing" if letterbox else ""
    return finding(
        f"{phase}: of the {group} tokens' {described(weighting)}attention, mean over layers, "
        f"{', '.join(said)}{padding}."
    )


def _charts(
    phase: str, group: str, shares: Sequence[CameraShare], weighting: Weighting
) -> list[Block]:
    cameras = list(dict.fromkeys(s.camera for s in shares))
    colours = {camera: _COLOURS[i % len(_COLOURS)] for i, camera in enumerate(cameras)}
    padded = any(s.letterbox.value > 0 for s in shares)
    on, sharp = [], []
    for camera, colour in colours.items():
        own = [s for s in shares if s.camera == camera]
        x = [float(s.layer) for s in own]
        on.append(Series.of(camera, x, [s.image for s in own], colour))
        if padded:
            letterbox = [s.letterbox for s in own]
            on.append(Series.of(f"{camera}, letterbox", x, letterbox, colour, dashed=True))
        sharp.append(Series.of(camera, x, [s.entropy for s in own], colour))
    carried, ending = described(weighting), "" if weighting == "raw" else f"_{weighting}"
    title = f"{phase}: {carried}{group} tokens"
    return [
        Figure(
            f"shares_{phase}_{group}{ending}",
            line_chart(f"{title} → cameras", "layer", "share of attention", on),
            f"{phase}: share of the {group} tokens' {carried}attention on each camera"
            + (", and (dashed) on its letterbox." if padded else ", which has no letterbox."),
        ),
        Figure(
            f"entropy_{phase}_{group}{ending}",
            line_chart(
                f"{title}: how evenly", "layer", "entropy", sharp, reference=1.0, bottom=None
            ),
            f"{phase}: entropy of the {carried}maps over each camera's patches, mean over heads. 1 is even "
            "(dashed); lower is sharper. A head that gives a camera no attention has none there.",
        ),
    ]


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a7a00")


def _table(phase: str, group: str, shares: Mapping[Weighting, Sequence[CameraShare]]) -> Table:
    rows = tuple(
        (
            f"L{s.layer:02d}",
            s.camera,
            weighting,
            with_interval(s.image),
            with_interval(s.letterbox),
            with_interval(s.entropy) + _of_fewer(s),
            str(s.image.episodes),
        )
        for s, weighting in sorted(
            ((s, weighting) for weighting, own in shares.items() for s in own),
            key=lambda each: (each[0].layer, each[0].camera, each[1]),
        )
    )
    head = (
        "layer",
        "camera",
        "weighting",
        "on the camera",
        "on its letterbox",
        "entropy",
        "episodes",
    )
    return _without_weighting(Table(f"{phase}, {group} tokens", head, rows), shares)


def _without_weighting(table: Table, weightings: Iterable[Weighting]) -> Table:
    """Leave the column out where there is nothing to tell apart."""
    if set(weightings) != {"raw"}:
        return table
    at = table.head.index("weighting")
    rows = tuple((*row[:at], *row[at + 1 :]) for row in table.rows)
    return Table(table.title, (*table.head[:at], *table.head[at + 1 :]), rows, table.note)


def _of_fewer(share: CameraShare) -> str:
    """Say of how many episodes an entropy is, where not of all: there is none without attention."""
    some = 0 < share.entropy.episodes < share.image.episodes
    return f", {share.entropy.episodes} of them" if some else ""


def overlays(store: Store, chosen: Chosen) -> list[Block]:
    """Draw the middle keyframe of the first success and of the first failure."""
    first: dict[str, str] = {}
    for episode_id, outcome in zip(chosen.episodes, chosen.outcomes, strict=True):
        first.setdefault(outcome, episode_id)
    picked = [first[o] for o in ("success", "failure", "unknown") if o in first][:2]
    blocks: list[Block] = []
    for episode_id in picked:
        episode = store.episode(episode_id, run=chosen.run)
        for phase in (p for p in episode.phases if p != VISION):
            name = f"overlay_{phase}_{episode.outcome}"
            blocks.append(drawn_keyframe(episode, phase, len(episode.frames) // 2, name))
    return blocks


def drawn_keyframe(episode: Episode, phase: str, keyframe: int, name: str) -> Block:
    """Draw a keyframe of every camera with the heat of some layers; `name` is the figure's."""
    count = episode.layers(phase)
    layers = sorted({round(i) for i in np.linspace(0, count - 1, min(count, OVERLAY_LAYERS))})
    rows = []
    for camera in (c for c in episode.cameras if is_current(c)):
        geometry = episode.geometry(camera)
        what = f"{camera} at keyframe {keyframe}"
        try:
            data = episode.image_bytes(keyframe, camera)
        except NotFoundError:
            continue  # the keyframe lacks the camera
        image = decode_frame(data, geometry, episode.name, what)
        height, width = image.shape[:2]
        row = [(camera, image)]
        for layer in layers:
            maps = episode.maps(phase, camera, layer=layer, reduce="mean", keyframe=keyframe).values
            mean = maps.mean(0)
            limits = data_limits(mean[geometry.coverage() > 0])
            heat = sampler(geometry, "bilinear", (height, width)).draw(mean)
            on = float((mean * geometry.coverage()).sum())
            row.append((f"L{layer:02d}: {percent(on)} on it", overlay.blend(image, heat, limits)))
        rows.append(row)
    if not rows:
        return note(f"{phase}: no camera has an image at keyframe {keyframe} of {episode.name}.")
    caption = (
        f"{phase}, {describe_query(episode, phase)}: {episode.name}, frame "
        f"{int(episode.frames[keyframe])}, “{episode.instruction.strip()}”. Mean over heads; each "
        "picture has its own colour scale, from 0; above it the share of attention on the camera's image."
    )
    return Figure(name, strip(rows), caption)


def heads(store: Store, chosen: Chosen, *, active: Active = "image") -> Section:
    """Show the variance of every head's map, and which are their layer's most active."""
    blocks: list[Block] = [
        text(
            f"{_OVER[active]} of each head's map (mean over the query tokens), mean over keyframes "
            "and then episodes, at the last step, of decode the first. The frame marks the most "
            "active head of its layer, the one with the largest value. Variance grows with the "
            "square of the camera's share, so colours compare heads of one matrix only."
        )
    ]
    rows = []
    weightings = store.weightings("episode_stats", chosen.condition)
    found = {w: active_heads(store, chosen, active=active, weighting=w) for w in weightings}
    for weighting, each in ((w, each) for w, own in found.items() for each in own):
        if each.phase == VISION:
            continue
        carried, ending = described(weighting), "" if weighting == "raw" else f"_{weighting}"
        layers, count = each.variance.shape
        best = [(layer, int(head)) for layer, head in enumerate(each.active) if head != NO_HEAD]
        top = float(np.nanmax(each.variance, initial=0.0)) or 1.0
        blocks.append(
            Figure(
                f"heads_{each.phase}_{each.query_group}_{each.camera}{ending}",
                matrix_chart(
                    f"{carried}{each.phase} → {each.camera}",
                    [known(row) for row in each.variance.tolist()],
                    rows=layer_names(layers),
                    columns=[str(i) for i in range(count)],
                    high=top,
                    framed=frozenset(best),
                    ends=("0", f"variance {top:.2g}"),
                ),
                f"{carried}{each.phase}, {each.query_group} tokens, {each.camera}: rows are layers, "
                "columns heads.",
            )
        )
        rows += [
            (
                each.phase, each.camera, weighting, f"L{layer:02d} H{head:02d}",
                f"{each.variance[layer, head]:.3g}",
                f"{each.first[layer, head]} of {each.episodes}",
            )
            for layer, head in best
        ]  # fmt: skip
    head = ("phase", "camera", "weighting", "head", "variance", "first in")
    blocks.append(
        _without_weighting(
            Table("Most active head of each layer", head, tuple(rows)), weightings or ("raw",)
        )
    )
    if "value" in found and "raw" in found:
        blocks.append(_same_heads(found["raw"], found["value"]))
    blocks.append(
        note(
            "“first in”: in how many episodes the head has its layer's largest variance by itself. One "
            "that is first in all is stable; one that is first in few is one of several."
        )
    )
    return Section("heads", "Which heads are active", tuple(blocks))


def _same_heads(raw: Sequence[ActiveHeads], value: Sequence[ActiveHeads]) -> Paragraph:
    """Say in how many layers both weightings name the same head."""
    others = {(e.phase, e.query_group, e.camera): e.active for e in value if e.phase != VISION}
    pairs = [
        (int(one), int(other))
        for each in raw
        if (at := (each.phase, each.query_group, each.camera)) in others
        for one, other in zip(each.active, others[at], strict=True)
        if NO_HEAD not in (one, other)
    ]
    same = sum(one == other for one, other in pairs)
    return finding(
        f"Raw and value-weighted attention have the same most active head in {same} of {len(pairs)} "
        "layers (each phase and camera by itself)."
    )


def sinks(store: Store, chosen: Chosen) -> Section:
    """List the keys that draw attention in nearly every keyframe, and whether they carry anything."""
    title = "Sinks"
    weightings = store.weightings("episode_stats", chosen.condition)
    rows = store.sql(f"""
SELECT weighting, phase, layer, head, span, text, camera, "row", col, count(DISTINCT episode), avg(mass)
FROM sinks
WHERE {chosen.condition} AND variant = 'base' AND phase <> '{VISION}'
      AND stands_for_phase(run, phase, step)
GROUP BY ALL ORDER BY ALL""").fetchall()
    blocks: list[Block] = [
        text(
            "A sink is a key that draws more than 0.3 of all queries' mean attention of a head in at "
            "least 80 % of an episode's keyframes. At the last step, of decode the first."
        )
    ]
    found: dict[tuple[Any, ...], dict[str, tuple[int, float]]] = {}
    for weighting, *place, episodes, mass in rows:
        found.setdefault(tuple(place), {})[weighting] = (int(episodes), float(mass))
    heads = {w: {place[:3] for place, by in found.items() if w in by} for w in WEIGHTINGS}
    if "value" in weightings:
        kept = sum(1 for by in found.values() if {"raw", "value"} <= set(by))
        both = sum(1 for by in found.values() if "raw" in by)
        said = (
            f" Of raw attention's sinks, {both} in all (a key of a head each), {kept} are there in what is "
            f"carried, too{'; the others take weight and carry less' if kept < both else ''}."
            if both
            else ""
        )
        blocks.append(
            finding(
                f"Heads with a sink: {len(heads['raw'])} of raw attention, {len(heads['value'])} of "
                f"value-weighted attention.{said}"
            )
        )
    else:
        blocks.append(finding(f"Heads with a sink: {len(heads['raw'])}."))
        blocks.append(
            missing(
                "No value norms: whether a sink carries anything is not known. `attnstore ingest` keeps "
                "them where the policy shows its values, unless --no-values."
            )
        )
    order = sorted(found, key=lambda place: -max(mass for _, mass in found[place].values()))
    table = tuple(
        (
            place[0],
            f"L{place[1]:02d} H{place[2]:02d}",
            _key_of(place),
            *(
                f"{percent(by[w][1])}, {by[w][0]} episodes" if w in by else "no sink"
                for w in weightings
            ),
        )
        for place in order[:SINKS_SHOWN]
        for by in (found[place],)
    )
    if table:
        head = ("phase", "head", "key", *(f"{w}: mean share" for w in weightings))
        more = f"{SINKS_SHOWN} of {len(order)}; all: `attnstore sql --named sink-heads`."
        said = more if len(order) > SINKS_SHOWN else ""
        blocks.append(Table("Largest sinks", head, table, said))
    return Section("sinks", title, tuple(blocks))


def _key_of(place: tuple[Any, ...]) -> str:
    *_, span, words, camera, row, col = place
    if camera is not None and row is not None:
        return f"{camera}, patch {row}, {col}"
    return f"{span}: {words!r}" if words is not None else str(span)

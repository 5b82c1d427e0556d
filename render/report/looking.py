"""Sections on where each layer looks, and which heads do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attnstore.query.attention.active_heads import active_heads
from attnstore.query.attention.camera_shares import CameraShare, camera_shares
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.store import Store
from attnstore.store.errors import NotFoundError
from attnstore.store.format.axes import PHASES, VISION
from attnstore.store.format.views import is_current
from attnstore.store.reader.episode import Episode
from attnstore.store.rules import NO_HEAD, Active

from ..charts.matrix import matrix_chart
from ..charts.plots import Series, line_chart
from ..picture import overlay
from ..picture.heatmap import sampler
from ..picture.scale import data_limits
from ..picture.scene import decode_frame
from ..picture.source import describe_query
from .document import Block, Figure, Paragraph, Section, Table, finding, note, text
from .spelling import known, layer_names, percent, with_interval
from .strip import strip

_OVER: dict[Active, str] = {
    "image": "Variance over the patches that show image, weighted by their coverage,",
    "lab": "Variance over the whole patch grid, letterbox included (the lab's rule),",
}
OVERLAY_LAYERS = 4
"""Layers of a phase that are drawn."""


def looking(store: Store, chosen: Chosen) -> Section:
    """Say where each layer looks: camera, letterbox, sharpness, with pictures."""
    blocks: list[Block] = [
        text(
            "Share of a query group's attention that goes to each camera's image and to its letterbox, "
            "mean over heads, keyframes and then episodes, at the last step, of decode the first. What is "
            "missing to 1 goes to words, state and actions. Bars are 95 % intervals over episodes."
        )
    ]
    shares = [s for s in camera_shares(store, chosen) if s.phase != VISION]
    shares.sort(key=lambda s: PHASES.index(s.phase))
    for phase, group in dict.fromkeys((s.phase, s.query_group) for s in shares):
        own = [s for s in shares if (s.phase, s.query_group) == (phase, group)]
        blocks.append(_sum(phase, group, own))
        blocks += _charts(phase, group, own)
        blocks.append(_table(phase, group, own))
    blocks += overlays(store, chosen)
    return Section("looking", "Where each layer looks", tuple(blocks))


def _sum(phase: str, group: str, shares: Sequence[CameraShare]) -> Paragraph:
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
        f"{phase}: of the {group} tokens' attention, mean over layers, {', '.join(said)}{padding}."
    )


def _charts(phase: str, group: str, shares: Sequence[CameraShare]) -> list[Block]:
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
    title = f"{phase}: {group} tokens"
    return [
        Figure(
            f"shares_{phase}_{group}",
            line_chart(f"{title} → cameras", "layer", "share of attention", on),
            f"{phase}: share of the {group} tokens' attention on each camera"
            + (", and (dashed) on its letterbox." if padded else ", which has no letterbox."),
        ),
        Figure(
            f"entropy_{phase}_{group}",
            line_chart(
                f"{title}: how evenly", "layer", "entropy", sharp, reference=1.0, bottom=None
            ),
            f"{phase}: entropy of the maps over each camera's patches, mean over heads. 1 is even "
            "(dashed); lower is sharper. A head that gives a camera no attention has none there.",
        ),
    ]


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a7a00")


def _table(phase: str, group: str, shares: Sequence[CameraShare]) -> Table:
    rows = tuple(
        (
            f"L{s.layer:02d}",
            s.camera,
            with_interval(s.image),
            with_interval(s.letterbox),
            with_interval(s.entropy) + _of_fewer(s),
            str(s.image.episodes),
        )
        for s in sorted(shares, key=lambda s: (s.layer, s.camera))
    )
    head = ("layer", "camera", "on the camera", "on its letterbox", "entropy", "episodes")
    return Table(f"{phase}, {group} tokens", head, rows)


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
            blocks.append(_overlay(episode, phase, len(episode.frames) // 2))
    return blocks


def _overlay(episode: Episode, phase: str, keyframe: int) -> Block:
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
    name = f"overlay_{phase}_{episode.outcome}"
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
    for each in active_heads(store, chosen, active=active):
        if each.phase == VISION:
            continue
        layers, count = each.variance.shape
        best = [(layer, int(head)) for layer, head in enumerate(each.active) if head != NO_HEAD]
        top = float(np.nanmax(each.variance, initial=0.0)) or 1.0
        blocks.append(
            Figure(
                f"heads_{each.phase}_{each.query_group}_{each.camera}",
                matrix_chart(
                    f"{each.phase} → {each.camera}",
                    [known(row) for row in each.variance.tolist()],
                    rows=layer_names(layers),
                    columns=[str(i) for i in range(count)],
                    high=top,
                    framed=frozenset(best),
                    ends=("0", f"variance {top:.2g}"),
                ),
                f"{each.phase}, {each.query_group} tokens, {each.camera}: rows are layers, columns heads.",
            )
        )
        rows += [
            (
                each.phase, each.camera, f"L{layer:02d} H{head:02d}",
                f"{each.variance[layer, head]:.3g}",
                f"{each.first[layer, head]} of {each.episodes}",
            )
            for layer, head in best
        ]  # fmt: skip
    head = ("phase", "camera", "head", "variance", "first in")
    blocks.append(Table("Most active head of each layer", head, tuple(rows)))
    blocks.append(
        note(
            "“first in”: in how many episodes the head has its layer's largest variance by itself. One "
            "that is first in all is stable; one that is first in few is one of several."
        )
    )
    return Section("heads", "Which heads are active", tuple(blocks))

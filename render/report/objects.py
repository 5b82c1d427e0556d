"""Sections on objects: lift per layer and head, and how it shifts over an episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from attnstore.query.objects.episode_timelines import (
    Timelines,
    cameras_with_objects,
    timelines,
)
from attnstore.query.objects.role_lift import (
    ROLES,
    LayerLift,
    RoleLifts,
    role_lifts,
)
from attnstore.query.objects.timeline import ALL
from attnstore.query.sql.chosen import Chosen
from attnstore.query.sql.store import Store
from attnstore.query.statistics import Estimate, estimate
from attnstore.store.format.axes import VISION
from attnstore.store.format.weighting import Weighting, described

from ..charts.plots import Series, line_chart
from ..charts.timeline import COLOURS, NAMES, aligned_charts, episode_chart, step_chart
from .document import Block, Figure, Paragraph, Section, Table, finding, missing, note, text
from .spelling import percent, points, with_interval

_ABSENT = (
    "No object masks. `attnstore objects add --masks DATASET` compares the maps with a detector's masks "
    "and the projected gripper; it needs no policy."
)


def objects(store: Store, chosen: Chosen) -> Section:
    """Say which layers and heads look at what the instruction names."""
    found = role_lifts(store, chosen)
    if found is None:
        return Section("objects", "What it looks at: objects", (missing(_ABSENT),))
    blocks: list[Block] = [
        text(
            "`lift` is the share of a camera's attention on an object over the object's share of the image: "
            "1 is chance. The target is the object that the instruction names first, the goal the last "
            "other one it names; objects that it does not name are the control that matters."
        ),
        note(
            f"{found.episodes} episodes have object masks; in {found.named} the instruction names one of "
            "the objects. Each episode counts once. A lift above 1 may also be the place where that kind "
            "of object always is; compare with the objects that are not named."
        ),
    ]
    by: dict[Weighting, RoleLifts] = {"raw": found}
    carried = role_lifts(store, chosen, weighting="value")
    if carried is not None:
        by["value"] = carried
    for where in dict.fromkeys(each.where for each in found.layers):
        for weighting, lifts in by.items():
            own = [e for e in lifts.layers if e.where == where]
            if where[0] != VISION and own:
                blocks.append(_layers(where, own, weighting))
    blocks += _heads(by)
    return Section("objects", "What it looks at: objects", tuple(blocks))


def _layers(
    where: tuple[str, str, str], lifts: Sequence[LayerLift], weighting: Weighting
) -> Figure:
    phase, group, camera = where
    lines = []
    for role in (r for r in ROLES if any(e.role == r for e in lifts)):
        own = [e for e in lifts if e.role == role]
        x = [float(e.layer) for e in own]
        lines.append(Series.of(NAMES.get(role, role), x, [e.lift for e in own], COLOURS[role]))
    said, ending = described(weighting), "" if weighting == "raw" else f"_{weighting}"
    return Figure(
        f"lift_{phase}_{group}_{camera}{ending}",
        line_chart(
            f"{said}{phase} → {camera}: lift", "layer", "lift, mean of heads", lines, reference=1.0
        ),
        f"{phase}, {group} tokens, {camera}: lift of the {said}map averaged over heads, by the role of the "
        "object; 1 (dashed) is chance.",
    )


def _heads(by: Mapping[Weighting, RoleLifts]) -> list[Block]:
    found = by["raw"]
    rows = tuple(
        (
            f"{e.where[0]} → {e.where[2]}",
            e.role,
            *((weighting,) if len(by) > 1 else ()),
            f"L{e.layer:02d} H{e.head:02d}",
            with_interval(e.lift),
            with_interval(e.other),
            with_interval(e.hit),
            str(e.lift.episodes),
        )
        for weighting, lifts in by.items()
        for e in lifts.heads
        if e.where[0] != VISION
    )
    if not rows:
        return [note("No instruction names an object, so there is no target to look for.")]
    most = max(e.heads for e in found.heads)
    if all(e.held_out for e in found.heads):
        said = (
            f"Of {most} heads the one with the largest lift in every other episode is chosen; the numbers "
            "are of the episodes in between, so that choosing does not make them larger."
        )
    else:
        said = (
            f"The largest of {most} heads, chosen and measured in the same episodes, because there "
            "are fewer than 8: choosing alone makes the lift larger. Do not quote it without that."
        )
    named = ("weighting",) if len(by) > 1 else ()
    head = ("map", "role", *named, "best head", "lift", "other", "pointing_hit", "episodes")
    targets = [e for e in found.heads if e.role == "target" and e.where[0] != VISION]
    best = max(targets, key=lambda e: e.lift.value, default=None)
    table = Table("Best head for target and goal", head, rows, said)
    if best is None:
        return [table]
    chosen = "measured on other episodes" if best.held_out else "in the same episodes"
    return [
        finding(
            f"The head that looks most at the target is L{best.layer:02d} H{best.head:02d} of {best.where[0]} "
            f"→ {best.where[2]}: lift {with_interval(best.lift)}, and {with_interval(best.other)} on objects "
            f"that are not named. Chosen from {most} heads, {chosen}."
        ),
        table,
    ]


def temporal(store: Store, chosen: Chosen) -> Section:
    """Show how the shares of target, goal, gripper and background move over an episode."""
    title = "How it shifts over an episode"
    cameras = cameras_with_objects(store, chosen)
    if not cameras:
        return Section("shift", title, (missing(_ABSENT),))
    first = store.episode(chosen.episodes[0], run=chosen.run)
    phases = [p for p in first.phases if p != VISION]
    blocks: list[Block] = [
        text(
            "Share of all of a query group's raw attention on disjoint regions of one camera, mean over layers "
            "and heads, at the last step. Regions, letterbox, other cameras, words and the group's own "
            "tokens sum to 1. Episodes are brought to equal progress, linearly between keyframes."
        )
    ]
    if "value" in store.weightings("episode_stats", chosen.condition):
        blocks.append(
            note(
                "Of value-weighted attention, which takes reading all weights: `attnstore objects timeline "
                "STORE --weighting value --out DIRECTORY`."
            )
        )
    drawn = False
    for phase in phases:
        for camera in cameras:
            if camera not in first.phase(phase, camera).cameras:
                continue
            found = timelines(store, chosen, phase, camera)
            changes = _changes(found)
            if not drawn and phase == phases[-1]:
                blocks.append(_sum(found, changes))
            blocks += _charts(found)
            blocks.append(_table(found, changes))
            if not drawn and phase == phases[-1]:
                ended = {e.episode.outcome: e for e in reversed(found.episodes)}
                example = ended.get("success", found.episodes[0])
                caption = (
                    f"One episode: {example.episode.name}, “{example.episode.instruction.strip()}”. "
                    "`attnstore objects timeline` draws every episode."
                )
                blocks.append(Figure("timeline_example", episode_chart(example), caption))
                drawn = True
            if found.without:
                blocks.append(note("Left out: " + "; ".join(found.without.values())))
    return Section("shift", title, tuple(blocks))


def _charts(found: Timelines) -> list[Block]:
    name = f"{found.phase}_{found.camera}"
    blocks: list[Block] = [
        Figure(
            f"aligned_{name}_{index}",
            chart,
            f"{found.phase}, {found.query} tokens → {found.camera}. Bands are 95 % intervals over "
            "episodes; there is none below 4.",
        )
        for index, chart in enumerate(aligned_charts(found))
    ]
    steps = step_chart(found)
    if steps is not None:
        caption = f"{found.phase}: the same over denoising steps, mean over keyframes and episodes."
        blocks.append(Figure(f"steps_{name}", steps, caption))
    return blocks


_Change = tuple[float, float, Estimate]
"""First third, last third, and their difference."""


def _changes(found: Timelines) -> dict[str, _Change]:
    """Shares in the first and last third of the episodes, by region."""
    names = [e.episode.id for e in found.episodes]
    changes = {}
    for region in (*found.regions, "letterbox"):
        at = ALL.index(region)
        thirds = []
        for each in found.episodes:
            progress, values = each.last["progress"].values, each.last.values[:, at]
            parts = (values[progress <= 1 / 3], values[progress >= 2 / 3])
            thirds.append(
                [p[np.isfinite(p)].mean() if np.isfinite(p).any() else np.nan for p in parts]
            )
        early, late = np.array(thirds, np.float64).T
        changes[region] = (
            estimate(early, names).value, estimate(late, names).value, estimate(late - early, names),
        )  # fmt: skip
    return changes


def _sum(found: Timelines, changes: Mapping[str, _Change]) -> Paragraph:
    moved = ", ".join(
        f"{role} {points(changes[role][2])}"
        for role in ("target", "goal", "gripper")
        if role in changes
    )
    return finding(
        f"{found.phase}, {found.query} tokens → {found.camera}: from the first to the last third of an "
        f"episode the share of attention changes, in points: {moved or 'no object is named'}."
    )


def _table(found: Timelines, changes: Mapping[str, _Change]) -> Table:
    names = NAMES if "gripper" in changes else NAMES | {"background": "background and gripper"}
    rows = tuple(
        (
            names.get(region, region),
            percent(early),
            percent(late),
            points(change),
            str(change.episodes),
        )
        for region, (early, late, change) in changes.items()
    )
    title = f"{found.phase} → {found.camera}: first and last third"
    head = ("region", "first third", "last third", "change, points", "episodes")
    return Table(title, head, rows)

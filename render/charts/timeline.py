"""Pictures of a timeline: one episode's shares, and the mean over episodes at equal progress."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np

from attnstore.query.groups.alignment import Aligned
from attnstore.query.objects.episode_timelines import EpisodeTimeline, Timelines
from attnstore.query.objects.timeline import ALL, REGIONS
from attnstore.query.statistics import estimate
from attnstore.store.format.views import is_current
from attnstore.store.format.weighting import described

from ..picture import image_file
from .plot_axes import LEFT, RIGHT
from .plots import Series, area_chart, line_chart
from .svg import Chart, stack, text

COLOURS = {
    "target": "#d55e00", "goal": "#0072b2", "other": "#e0a100", "gripper": "#cc79a7",
    "background": "#7a8794", "letterbox": "#3f454c", "cameras": "#56b4e9", "words": "#009e73",
    "own": "#b9c0c8",
}  # fmt: skip
NAMES = {
    "other": "other objects", "letterbox": "letterbox", "cameras": "other cameras",
    "own": "state and action tokens",
}  # fmt: skip
WIDE = 760
THUMBNAILS = 7


def episode_chart(found: EpisodeTimeline) -> Chart:
    """Draw one episode: all shares, stacked to 1; those of the objects on their own scale; pictures."""
    last, info = found.last, found.shares.attrs
    frames = [float(f) for f in last["frame"].values]
    names = _names(found)
    values = np.asarray(last.values)
    shares = {names[r]: _known(values[:, i].tolist()) for i, r in enumerate(ALL)}
    colours = {names[r]: COLOURS[r] for r in ALL}
    carried = described(info["weighting"])
    title = (
        f"{found.episode.name}: {carried}{info['phase']} → {info['camera']}, {info['query']} tokens"
    )
    whole = area_chart(title, "frame", frames, shares, colours, width=WIDE)
    named = [r for r in REGIONS if r != "background"]
    lines = [
        Series(names[r], frames, _known(values[:, ALL.index(r)].tolist()), colour=COLOURS[r])
        for r in named
        if r != "gripper" or info["gripper"]
    ]
    objects = line_chart(
        "on objects", "frame", "share of attention", lines, whole=False, width=WIDE
    )
    return stack([whole, objects, _thumbnails(found, info["camera"])], columns=1)


def _names(found: EpisodeTimeline) -> dict[str, str]:
    info = found.shares.attrs
    names = {r: NAMES.get(r, r) for r in ALL}
    for role in ("target", "goal"):
        names[role] = f"{role}: {info[role]}" if info[role] else f"{role}: not named"
    if not info["gripper"]:
        names["gripper"] = "gripper: no masks"
        names["background"] = "background and gripper"
    return names


def _thumbnails(found: EpisodeTimeline, camera: str) -> Chart:
    """Draw what the camera showed, below the frames that it is of."""
    frames = [int(f) for f in found.last["frame"].values]
    count = min(THUMBNAILS, len(frames))
    picked = sorted({round(i) for i in np.linspace(0, len(frames) - 1, count)})
    room = (WIDE - LEFT - RIGHT) / max(1, len(picked))
    parts, height = [], 0.0
    for place, keyframe in enumerate(picked):
        if not is_current(camera):
            break
        data = found.episode.image_bytes(keyframe, camera)
        image = image_file.decode(data, found.episode.name, f"{camera} of keyframe {keyframe}")
        wide = min(104.0, room - 6)
        tall = wide * image.shape[0] / image.shape[1]
        small = cv2.resize(
            image, (round(2 * wide), max(1, round(2 * tall))), interpolation=cv2.INTER_AREA
        )
        jpeg = base64.b64encode(image_file.encode(np.asarray(small, np.uint8), "jpg", 80)).decode()
        x = LEFT + room * place + (room - wide) / 2
        parts.append(
            f'<image x="{x:.1f}" y="4" width="{wide:.1f}" height="{tall:.1f}" '
            f'href="data:image/jpeg;base64,{jpeg}"/>'
        )
        parts.append(text(x + wide / 2, tall + 18, f"frame {frames[keyframe]}", "tick middle"))
        height = max(height, tall + 26)
    return Chart(WIDE, max(1.0, height), "".join(parts))


def aligned_charts(found: Timelines) -> list[Chart]:
    """Draw the mean over episodes at equal progress, successes and failures apart.

    Bands are 95 % intervals over episodes; there is none below 4 episodes.
    """
    charts = []
    groups = [(o, found.aligned(o)) for o in ("success", "failure", "unknown")]
    present = [(outcome, each) for outcome, each in groups if each is not None]
    regions = [r for r in found.regions if r != "background"]
    top = max(
        (
            float(np.nanmax(v[:, [ALL.index(r) for r in regions]], initial=0.0))
            for _, each in present
            for v in (each.mean, each.high)
        ),
        default=0.0,
    )
    for outcome, each in present:
        count = f"{each.episodes} episode{'s' if each.episodes != 1 else ''}"
        carried = described(found.weighting)
        title = f"{carried}{found.phase} → {found.camera}, {outcome}: {count}"
        charts.append(_aligned_chart(title, each, regions, top))
    return charts


def _aligned_chart(title: str, found: Aligned, regions: Sequence[str], top: float) -> Chart:
    x = found.progress.tolist()
    lines = []
    for region in regions:
        at = ALL.index(region)
        low, high = (_known(v[:, at].tolist()) for v in (found.low, found.high))
        name = NAMES.get(region, region)
        lines.append(
            Series(name, x, _known(found.mean[:, at].tolist()), low, high, COLOURS[region])
        )
    label = "progress: 0 is the first keyframe, 1 the last"
    # Both outcomes get one scale.
    return line_chart(title, label, "share of attention", lines, whole=False, top=top)


def step_chart(found: Timelines) -> Chart | None:
    """Draw the shares over denoising steps, mean over keyframes and episodes; None if one-pass."""
    values = found.by_step()
    if values is None:
        return None
    ids = [f"{i:06d}" for i in range(len(values))]
    steps = [float(s) for s in range(values.shape[1])]
    lines = []
    for region in (r for r in found.regions if r != "background"):
        each = [estimate(values[:, s, ALL.index(region)], ids) for s in range(values.shape[1])]
        lines.append(Series.of(NAMES.get(region, region), steps, each, COLOURS[region]))
    title = f"{described(found.weighting)}{found.phase} → {found.camera}: over denoising steps"
    return line_chart(title, "step (0 is the noisiest)", "share of attention", lines)


def _known(values: Sequence[float]) -> list[float | None]:
    return [v if np.isfinite(v) else None for v in values]

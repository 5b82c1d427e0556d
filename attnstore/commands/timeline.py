"""``attnstore objects timeline``: how attention on target, goal and gripper shifts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import PartialError, UsageError

from .options import (
    EpisodeChoice,
    StoreCommand,
    StoreName,
    episode_options,
    json_option,
    layers_option,
    out_directory,
    phase_option,
    query_option,
    store_to_read,
    weighting_option,
)
from .output import print_json, progress_of, say_made

if TYPE_CHECKING:
    from attnstore.query.objects.episode_timelines import EpisodeTimeline, Timelines
    from attnstore.store.format.weighting import Weighting


@click.command(cls=StoreCommand)
@store_to_read
@out_directory(
    "Write a picture of every episode, and of their mean, below this directory.", required=False
)
@episode_options
@click.option("--camera", metavar="NAME", default="hand_camera", show_default=True,
              help="Camera whose object masks they are.")  # fmt: skip
@phase_option
@query_option
@layers_option
@click.option("--target", help="Object that is the target.  [default: the first that is named]")
@click.option("--goal", help="Object that is the goal.  [default: the last other that is named]")
@weighting_option
@json_option
def timeline(
    store: StoreName,
    out: Path | None,
    episodes: EpisodeChoice,
    camera: str,
    phase: str | None,
    query: str | None,
    layers: tuple[int, ...] | None,
    target: str | None,
    goal: str | None,
    weighting: Weighting,
    as_json: bool,
) -> None:
    """Follow the attention over keyframes: target, goal, gripper, background, and the rest.

    Needs the masks that `attnstore objects add` keeps. The shares of a keyframe sum to 1: five
    regions of the camera's image, its letterbox, other cameras, words, and the group's own tokens.
    --json prints them; --out draws every episode, and the mean over episodes at equal progress,
    successes and failures apart. Layers are averaged.

    Examples
    --------
    attnstore objects timeline lab.attn --out timelines
    attnstore objects timeline lab.attn --json --phase suffix --layers 5-9
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.objects.episode_timelines import timelines

    if out is None and not as_json:
        raise UsageError("nothing to do: name a directory with --out, or print with --json")
    opened = open_for_reading(store)
    chosen = episodes.of_one_run(opened)
    if phase is None:
        first = opened.episode(chosen.episodes[0], run=chosen.run)
        phase = "suffix" if "suffix" in first.phases else first.phases[0]
    with progress_of("timeline") as advance:
        found = timelines(
            opened, chosen, phase, camera, query=query, layers=layers, target=target, goal=goal,
            weighting=weighting, progress=advance,
        )  # fmt: skip
    if as_json:
        print_json(row for each in found.episodes for row in _rows(each))
    if out is not None:
        written = _draw(found, out)
        say_made(f"timelines: {len(written)} files below {out}", f"open {written[-1]} in a browser")
    if found.without:
        lines = "".join(f"\n  {reason}" for reason in found.without.values())
        raise PartialError(f"no timeline of {len(found.without)} episodes:{lines}")


def _rows(found: EpisodeTimeline) -> Iterator[dict[str, Any]]:
    shares, info = found.shares, found.shares.attrs
    stepped = shares if "step" in shares.dims else shares.expand_dims(step=[None], axis=1)
    for keyframe, of_keyframe in enumerate(stepped.values.tolist()):
        for step, of_step in enumerate(of_keyframe):
            yield {
                "episode": found.episode.name,
                "outcome": found.episode.outcome,
                "phase": info["phase"],
                "camera": info["camera"],
                "weighting": info["weighting"],
                "target_object": info["target"] or None,
                "goal_object": info["goal"] or None,
                "keyframe": keyframe,
                "frame": int(shares["frame"].values[keyframe]),
                "step": step if "step" in shares.dims else None,
                **{
                    region: share
                    if share == share and (region != "gripper" or info[region])
                    else None
                    for region, share in zip(shares["region"].values.tolist(), of_step, strict=True)
                },
            }


def _draw(found: Timelines, out: Path) -> list[Path]:
    from attnstore.render.charts.svg import stack
    from attnstore.render.charts.timeline import aligned_charts, episode_chart, step_chart
    from attnstore.render.files.lab_folders import EpisodeFolder
    from attnstore.render.picture.image_file import write_text

    carried = "" if found.weighting == "raw" else f"_{found.weighting}"
    name = f"timeline_{found.phase}_{found.camera}{carried}.svg"
    written = []
    for each in found.episodes:
        episode = each.episode
        folder = EpisodeFolder.of(out, episode.name, episode.outcome, episode.date).path
        written.append(write_text(folder / name, episode_chart(each).svg + "\n"))
    steps = step_chart(found)
    charts = [*aligned_charts(found), *([] if steps is None else [steps])]
    written.append(write_text(out / name, stack(charts).svg + "\n"))
    return written

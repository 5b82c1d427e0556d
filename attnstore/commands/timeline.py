"""``attnstore objects timeline``: how attention on target, goal and gripper shifts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import PartialError, UsageError

from .options import StoreName, console, json_option, print_json, store_option, store_to_read

if TYPE_CHECKING:
    from attnstore.query.timelines import EpisodeTimeline, Timelines


@click.command()
@store_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Write a picture of every episode, and of their mean, below this directory.")  # fmt: skip
@click.option("--camera", default="hand_camera", show_default=True, help="Whose object masks.")
@click.option("--phase", help="Phase.  [default: suffix, or what the policy has]")
@click.option("--query", help="Query group.  [default: the phase's first]")
@click.option("--layers", metavar="LIST", help="Averaged over: 1,4,5 or 0-17.  [default: all]")
@click.option("--target", help="Object that is the target.  [default: the first that is named]")
@click.option("--goal", help="Object that is the goal.  [default: the last other that is named]")
@click.option("--run", help="Only this run.")
@click.option("--where", metavar="SQL", help="Only episodes for which this holds.")
@json_option
def timeline(
    store: StoreName | None,
    out: Path | None,
    camera: str,
    phase: str | None,
    query: str | None,
    layers: str | None,
    target: str | None,
    goal: str | None,
    run: str | None,
    where: str | None,
    as_json: bool,
) -> None:
    """Follow the attention over keyframes: target, goal, gripper, background, and the rest.

    Needs the masks that `attnstore objects add` keeps. The shares of a keyframe sum to 1: five
    regions of the camera's image, its letterbox, other cameras, words, and the group's own tokens.
    --json prints them; --out draws every episode, and the mean over episodes at equal progress,
    successes and failures apart.
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.chosen import choose
    from attnstore.query.timelines import timelines

    from .render import parse_layers

    if out is None and not as_json:
        raise UsageError("nothing to do: name a directory with --out, or print with --json")
    opened = open_for_reading(store_to_read(store))
    chosen = choose(opened, run, where)
    if len(chosen) > 1:
        listed = ", ".join(each.run for each in chosen)
        raise UsageError(f"{len(chosen)} runs; choose one with --run: {listed}")
    if phase is None:
        first = opened.episode(chosen[0].episodes[0], run=chosen[0].run)
        phase = "suffix" if "suffix" in first.phases else first.phases[0]
    with console().status("reading"):
        found = timelines(
            opened, chosen[0], phase, camera,
            query=query, layers=parse_layers(layers), target=target, goal=goal,
        )  # fmt: skip
    if as_json:
        print_json(row for each in found.episodes for row in _rows(each))
    if out is not None:
        written = _draw(found, out)
        console().print(f"{len(written)} files below {out}", markup=False, soft_wrap=True)
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
                "target_object": info["target"] or None,
                "goal_object": info["goal"] or None,
                "keyframe": keyframe,
                "frame": int(shares["frame"].values[keyframe]),
                "step": step if "step" in shares.dims else None,
                **{
                    region: None if share != share else share
                    for region, share in zip(shares["region"].values.tolist(), of_step, strict=True)
                },
            }


def _draw(found: Timelines, out: Path) -> list[Path]:
    from attnstore.render.image_file import write_text
    from attnstore.render.labtree import EpisodeFolder
    from attnstore.render.svg import stack
    from attnstore.render.timeline_plot import aligned_charts, episode_chart, step_chart

    name = f"timeline_{found.phase}_{found.camera}.svg"
    written = []
    for each in found.episodes:
        episode = each.episode
        folder = EpisodeFolder.of(out, episode.name, episode.outcome, episode.date).path
        written.append(write_text(folder / name, episode_chart(each).svg + "\n"))
    steps = step_chart(found)
    charts = [*aligned_charts(found), *([] if steps is None else [steps])]
    written.append(write_text(out / name, stack(charts).svg + "\n"))
    return written

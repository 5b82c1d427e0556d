"""``attnstore render``: images and videos in the lab's folder layout, from the store alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import NotFoundError, UsageError

from .options import console, json_option, need_store, print_json, store_option

if TYPE_CHECKING:
    from attnstore.query import Episode, Store


@click.group()
def render() -> None:
    """Draw attention on the camera images, without the policy and without torch."""


def _shared(function: Any) -> Any:
    for option in reversed(
        [
            store_option,
            click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True,
                         help="Directory to write below."),
            click.option("--episode", "episodes", multiple=True, help="Only this episode; repeatable."),
            click.option("--run", help="Only this run."),
            click.option("--where", metavar="SQL", help="Only episodes for which this holds, e.g. \"outcome = 'failure'\"."),
            click.option("--layers", metavar="LIST", help="Layers: 1,4,5,7,10 or 0-17.  [default: all]"),
            click.option("--phase", "phases", multiple=True, help="Only this phase; repeatable."),
            click.option("--camera", "cameras", multiple=True, help="Only this camera; repeatable."),
            click.option("--reduce", type=click.Choice(["max", "mean"]), default="max", show_default=True,
                         help="Over the query tokens."),
            click.option("--step", type=int, default=-1, show_default=True, help="Denoising step of the suffix."),
            click.option("--heads/--no-heads", default=True, show_default=True, help="Draw every head too."),
            click.option("--cmap", default="inferno", show_default=True, help="Colour map; jet is the lab's."),
            click.option("--vmax", type=click.FloatRange(min=0, min_open=True), help="Fixed end of the colour scale."),
            click.option("--interpolation", type=click.Choice(["bilinear", "nearest"]), default="bilinear",
                         show_default=True, help="Between patches."),
            click.option("--alpha", type=click.FloatRange(0, 1), default=0.6, show_default=True,
                         help="Opacity of the heat."),
            click.option("--sink-corrected", is_flag=True, help="Take attention sinks out of the maps, and say so."),
            json_option,
        ]
    ):  # fmt: skip
        function = option(function)
    return function


@render.command()
@_shared
@click.option("--scale", type=click.Choice(["frame", "video"]), default="frame", show_default=True,
              help="Colour scale per image, or shared by the episode's keyframes.")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="Of the JPEGs.")
def images(
    store: Path | None, out: Path, episodes: tuple[str, ...], run: str | None, where: str | None,
    as_json: bool, quality: int, **options: Any,
) -> None:  # fmt: skip
    """Draw every keyframe: the most active head of each layer, and every head."""
    from attnstore.render.images import render_images

    style = _style(options)
    for episode, layers, phases in _each(store, episodes, run, where, options):
        written = render_images(
            episode, out, layers=layers, phases=phases, cameras=options["cameras"] or None,
            heads=options["heads"], step=options["step"], style=style, quality=quality,
        )  # fmt: skip
        _said(episode, written, out, as_json)


@render.command()
@_shared
@click.option("--scale", type=click.Choice(["frame", "video"]), default="video", show_default=True,
              help="Colour scale per frame, or shared by the video (no flicker).")  # fmt: skip
@click.option("--codec", type=click.Choice(["vp9", "av1", "h264", "mjpeg"]), default="vp9", show_default=True,
              help="vp9 and av1 in .webm, h264 in .mp4, mjpeg in .avi.")  # fmt: skip
@click.option("--fps", type=click.FloatRange(min=0.1), default=4.0, show_default=True, help="Keyframes a second.")
def video(
    store: Path | None, out: Path, episodes: tuple[str, ...], run: str | None, where: str | None,
    as_json: bool, codec: str, fps: float, **options: Any,
) -> None:  # fmt: skip
    """Draw an episode's keyframes as videos: the active head of each layer, and every head."""
    from attnstore.render.videos import render_videos

    style = _style(options)
    for episode, layers, phases in _each(store, episodes, run, where, options):
        written = render_videos(
            episode, out, layers=layers, phases=phases, cameras=options["cameras"] or None,
            heads=options["heads"], step=options["step"], style=style, codec=codec, fps=fps,
        )  # fmt: skip
        _said(episode, written, out, as_json)


def _style(options: dict[str, Any]) -> Any:
    from attnstore.render.style import Style

    return Style(
        cmap=options["cmap"], scale=options["scale"], vmax=options["vmax"], alpha=options["alpha"],
        interpolation=options["interpolation"], reduce=options["reduce"],
        sink_corrected=options["sink_corrected"],
    )  # fmt: skip


def _each(
    store: Path | None,
    names: tuple[str, ...],
    run: str | None,
    where: str | None,
    options: dict[str, Any],
) -> Iterable[tuple[Episode, list[int] | None, list[str] | None]]:
    from attnstore.query import open as open_for_reading

    opened = open_for_reading(need_store(store))
    for episode in select_episodes(opened, names, run, where):
        phases = list(options["phases"]) or None
        for phase in phases or []:
            episode.phase(phase)
        yield episode, parse_layers(options["layers"]), phases


def select_episodes(
    store: Store, names: tuple[str, ...], run: str | None, where: str | None
) -> list[Episode]:
    """Return the episodes named, or all of a run, that a SQL condition on ``episodes`` holds for.

    Raises
    ------
    NotFoundError
        If there is none.
    """
    if names:
        chosen = [store.episode(name, run=run) for name in names]
    else:
        chosen = [store.from_commit(c) for c in store.episodes(run)]
    if where is not None:
        relation = store.sql(f"select run, episode from episodes where ({where})")
        kept = set(relation.fetchall())
        chosen = [e for e in chosen if (e.run, e.id) in kept]
    if not chosen:
        raise NotFoundError(f"no episode to draw in {store.paths.root}" + (f" where {where}" if where else ""))
    return chosen


def parse_layers(text: str | None) -> list[int] | None:
    """Parse ``1,4,5`` and ``0-17``.

    Examples
    --------
    >>> parse_layers("1,4-6"), parse_layers(None)
    ([1, 4, 5, 6], None)
    """
    if text is None:
        return None
    layers: set[int] = set()
    for piece in text.split(","):
        low, dash, high = piece.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise UsageError(f"--layers takes numbers and ranges such as 1,4,5 or 0-17; got {text!r}")
        layers |= set(range(int(low), int(high if dash else low) + 1))
    return sorted(layers)


def _said(episode: Episode, written: list[Path], out: Path, as_json: bool) -> None:
    if as_json:
        print_json([{"episode": episode.name, "run": episode.run, "files": [str(p) for p in written]}])
    else:
        console().print(f"{episode.name}: {len(written)} files below {out}", markup=False)

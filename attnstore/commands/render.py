"""``attnstore render``: images and videos in the lab's folder layout, from the store alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import NotFoundError, PartialError, UsageError
from attnstore.store.tokens import WORD

from .options import (
    StoreName,
    active_option,
    console,
    json_option,
    print_json,
    store_option,
    store_to_read,
)

if TYPE_CHECKING:
    from attnstore.query import Episode, Store


@click.group()
def render() -> None:
    """Draw attention on the camera images, without the policy and without torch."""


_OPTIONS = (
    store_option,
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        help="Directory to write below.",
    ),
    click.option("--episode", "episodes", multiple=True, help="Only this episode; repeatable."),
    click.option("--run", help="Only this run."),
    click.option(
        "--where",
        metavar="SQL",
        help="Only episodes for which this holds, e.g. \"outcome = 'failure'\".",
    ),
    click.option("--layers", metavar="LIST", help="1,4,5,7,10 or 0-17.  [default: all]"),
    click.option("--phase", "phases", multiple=True, help="Only this phase; repeatable."),
    click.option("--camera", "cameras", multiple=True, help="Only this camera; repeatable."),
    click.option(
        "--query",
        metavar="GROUP",
        help="Whose attention: a group of tokens or a word, such as task, text, state, action:0:5 or "
        "word:cube, in the phases that have it.  [default: task, of a suffix action]",
    ),
    click.option(
        "--reduce",
        type=click.Choice(["max", "mean"]),
        default="max",
        show_default=True,
        help="Over the query tokens.",
    ),
    click.option(
        "--step", type=int,
        help="Step: of denoising, or the generated token.  [default: last of suffix, first of decode]",
    ),
    click.option(
        "--heads/--no-heads", default=True, show_default=True, help="Draw every head too."
    ),
    click.option(
        "--summary/--no-summary",
        default=True,
        show_default=True,
        help="Draw the most active head of each layer.",
    ),
    active_option,
    click.option("--cmap", help="Colour map: inferno, viridis, turbo, ..., or the lab's jet."),
    click.option(
        "--scale",
        metavar="frame|video|LOW:HIGH",
        help="Ends of the colours: per frame, per video, or fixed.  "
        "[default: frame for images, video for videos]",
    ),
    click.option(
        "--interpolation",
        type=click.Choice(["bilinear", "nearest"]),
        default="bilinear",
        show_default=True,
        help="Between patches.",
    ),
    click.option("--alpha", type=click.FloatRange(0, 1), help="Opacity of the strongest heat."),
    click.option(
        "--blend",
        type=click.Choice(["spotlight", "proportional", "constant"]),
        default="spotlight",
        show_default=True,
        help="How opacity follows heat.",
    ),
    click.option(
        "--width", type=click.IntRange(64, 4096), default=640, show_default=True,
        help="Width of one image in the picture, in pixels, also of a portrait; one more than twice as "
        "tall as wide is narrower.",
    ),
    click.option(
        "--layout",
        type=click.Choice(["lab", "octo"]),
        default="lab",
        show_default=True,
        help="Names of files: octo gives step_{t}_layer_{l}.png and attention_video.mp4.",
    ),
    click.option(
        "--sink-corrected", is_flag=True, help="Take attention sinks out of the maps, and say so."
    ),
    json_option,
)  # fmt: skip


def _shared(function: Any) -> Any:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@render.command()
@_shared
@click.option(
    "--format",
    type=click.Choice(["jpg", "png", "webp"]),
    help="Of the pictures; the lab's scripts expect jpg.  [default: jpg; png in Octo's layout]",
)
@click.option("--quality", type=click.IntRange(1, 100), help="Of JPEG and WebP.")
def images(format: str | None, quality: int | None, **options: Any) -> None:
    """Draw every keyframe: the most active head of each layer, and every head."""
    from attnstore.render.images import render_images

    octo = options["layout"] == "octo"
    extra: dict[str, Any] = {"format": format or ("png" if octo else "jpg")}
    if octo:
        extra["marker"] = "octo.md"
    if quality is not None:
        extra["quality"] = quality
    _draw(render_images, "frame", extra, options)


@render.command()
@_shared
@click.option(
    "--codec",
    type=click.Choice(["vp9", "av1", "h264", "mjpeg"]),
    help="vp9 and av1 in .webm, h264 in .mp4, mjpeg in .avi.  [default: vp9; h264 in Octo's layout]",
)
@click.option("--fps", type=click.FloatRange(min=0.1), help="Keyframes a second.")
def video(codec: str | None, fps: float | None, **options: Any) -> None:
    """Draw an episode's keyframes as videos: the active head of each layer, and every head."""
    from attnstore.render.videos import render_videos

    usual = "h264" if options["layout"] == "octo" else "vp9"
    extra: dict[str, Any] = {"codec": codec or usual}
    if fps is not None:
        extra["fps"] = fps
    _draw(render_videos, "video", extra, options)


def _draw(
    function: Callable[..., list[Path]],
    scope: str,
    extra: dict[str, Any],
    options: dict[str, Any],
) -> None:
    from attnstore.render.look import Look
    from attnstore.render.scale import ColorScale

    changed = {"alpha": options["alpha"], "cmap": options["cmap"]}
    look = Look(
        blend=options["blend"],
        interpolation=options["interpolation"],
        pane_width=options["width"],
        **{k: v for k, v in changed.items() if v is not None},
    )
    scale = ColorScale.parse(options["scale"] or scope)
    root = store_to_read(options["store"])
    layers = parse_layers(options["layers"])
    chosen, lacking = _with_query(_episodes(root, options), options["query"], options["phases"])
    with _progress(chosen) as progress:
        for episode in chosen:
            written = function(
                episode,
                options["out"],
                layers=layers,
                phases=list(options["phases"]) or None,
                summary=options["summary"],
                heads=options["heads"],
                cameras=list(options["cameras"]) or None,
                step=options["step"],
                reduce=options["reduce"],
                sink_corrected=options["sink_corrected"],
                query=options["query"],
                active=options["active"],
                layout=options["layout"],
                look=look,
                scale=scale,
                progress=progress(episode.name),
                **extra,
            )
            _said(episode, written, options["out"], options["as_json"])
    if lacking:
        names = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if lacking[3:] else "")
        raise PartialError(f"not drawn, for they have no {options['query']!r}: {names}")


def _with_query(
    episodes: list[Episode], query: str | None, phases: Sequence[str]
) -> tuple[list[Episode], list[str]]:
    """Episodes that have a word, and the names of the others: prompts differ."""
    if query is None or not WORD.fullmatch(query):
        return episodes, []
    having = [e for e in episodes if any(e.has_query(phase, query) for phase in phases or e.phases)]
    if not having:
        return episodes[:1], []  # which says what words there are
    return having, [e.name for e in episodes if e not in having]


def _episodes(root: StoreName, options: dict[str, Any]) -> list[Episode]:
    from attnstore.query import open as open_for_reading

    opened = open_for_reading(root)
    chosen = select_episodes(opened, options["episodes"], options["run"], options["where"])
    for episode in chosen:
        for phase in options["phases"]:
            episode.layers(phase)
    return chosen


@contextlib.contextmanager
def _progress(
    episodes: list[Episode],
) -> Iterator[Callable[[str], Callable[[int, int, Path], None]]]:
    from rich.progress import Progress

    out = console()
    with Progress(console=out, disable=not out.is_terminal, transient=True) as bar:
        task = bar.add_task("render", total=None)

        def begin(name: str) -> Callable[[int, int, Path], None]:
            def advance(done: int, total: int, path: Path) -> None:
                bar.update(task, description=name, completed=done, total=total)

            return advance

        yield begin


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
        raise NotFoundError(
            f"no episode to draw in {store.paths.name}" + (f" where {where}" if where else "")
        )
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
            raise UsageError(
                f"--layers takes numbers and ranges such as 1,4,5 or 0-17; got {text!r}"
            )
        layers |= set(range(int(low), int(high if dash else low) + 1))
    return sorted(layers)


def _said(episode: Episode, written: list[Path], out: Path, as_json: bool) -> None:
    if as_json:
        print_json(
            [{"episode": episode.name, "run": episode.run, "files": [str(p) for p in written]}]
        )
    else:
        console().print(
            f"{episode.name}: {len(written)} files below {out}", markup=False, soft_wrap=True
        )

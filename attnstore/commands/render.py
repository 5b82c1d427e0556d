"""``attnstore render``: images and videos in the lab's folder layout, from the store alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import PartialError
from attnstore.store.format.tokens import WORD

from .options import (
    EpisodeChoice,
    FiniteNumber,
    NumberList,
    StoreGroup,
    StoreName,
    active_option,
    add_options,
    cameras_option,
    episode_options,
    grouped,
    json_option,
    layers_option,
    out_directory,
    phases_option,
    step_option,
    store_to_read,
    weighting_option,
)
from .output import progress_of, say_made, say_written

if TYPE_CHECKING:
    from attnstore.query import Episode
    from attnstore.render.picture.heatmap import Interpolation
    from attnstore.render.picture.look import Look
    from attnstore.render.picture.overlay import Blend
    from attnstore.render.picture.scale import ColorScale


@click.group(cls=StoreGroup)
def render() -> None:
    """Draw attention on the camera images, without the policy and without torch."""


class HeadsDrawn(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """``active``, ``all``, numbers: a list of any of them."""

    name = "heads"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[bool, tuple[int, ...] | bool]:
        """Parse the text into (the most active head, the others)."""
        words = [part.strip() for part in str(value).split(",")]
        numbers = ",".join(word for word in words if word not in ("active", "all"))
        drawn = NumberList().convert(numbers, param, ctx) if numbers else False
        return "active" in words, True if "all" in words else drawn


@dataclass(frozen=True, slots=True)
class DrawingChoice:
    """What is drawn of an episode, and how it looks."""

    layers: tuple[int, ...] | None
    phases: tuple[str, ...]
    cameras: tuple[str, ...]
    query: str | None
    heads: tuple[bool, tuple[int, ...] | bool]
    reduce: str
    step: int | None
    active: str
    sink_corrected: bool
    weighting: str
    cmap: str | None
    scale: str | None
    interpolation: Interpolation
    alpha: float | None
    blend: Blend
    width: int
    layout: str

    @property
    def look(self) -> Look:
        """How heat is laid over an image."""
        from attnstore.render.picture.look import Look

        given = {"alpha": self.alpha, "cmap": self.cmap}
        return Look(
            blend=self.blend,
            interpolation=self.interpolation,
            pane_width=self.width,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )

    def colors(self, default: str) -> ColorScale:
        """Ends of the colours."""
        from attnstore.render.picture.scale import ColorScale

        return ColorScale.parse(self.scale or default)

    def arguments(self) -> dict[str, Any]:
        """What `render_images` and `render_videos` share."""
        active, heads = self.heads
        return {
            "layers": None if self.layers is None else list(self.layers),
            "phases": list(self.phases) or None,
            "cameras": list(self.cameras) or None,
            "query": self.query,
            "active": self.active,
            "summary": active, "heads": heads, "step": self.step, "reduce": self.reduce,
            "sink_corrected": self.sink_corrected, "weighting": self.weighting,
            "layout": self.layout, "look": self.look,
        }  # fmt: skip


_DRAWING = grouped(
    "drawing",
    DrawingChoice,
    layers_option,
    phases_option,
    cameras_option,
    click.option(
        "--query",
        metavar="GROUP",
        help="Whose attention: a group of tokens or a word, such as task, text, state, action:0:5 or "
        "word:cube, in the phases that have it.  [default: task, of a suffix action]",
    ),
    click.option(
        "--heads",
        metavar="active|all|LIST",
        type=HeadsDrawn(),
        default="active,all",
        show_default=True,
        help="Heads: each layer's most active one, all, or numbers; several joined by commas.",
    ),
    click.option(
        "--reduce",
        type=click.Choice(["max", "mean"]),
        default="max",
        show_default=True,
        help="Over the query tokens.",
    ),
    step_option,
    active_option,
    click.option(
        "--sink-corrected", is_flag=True, help="Take attention sinks out of the maps, and say so."
    ),
    weighting_option,
    click.option(
        "--cmap", metavar="NAME", help="Colour map: inferno, viridis, turbo, ..., or the lab's jet."
    ),
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
    click.option("--alpha", type=FiniteNumber(0, 1), help="Opacity of the strongest heat."),
    click.option(
        "--blend",
        type=click.Choice(["auto", "spotlight", "proportional", "constant"]),
        default="spotlight",
        show_default=True,
        help="How opacity follows heat.",
    ),
    click.option(
        "--width", type=click.IntRange(64, 4096), default=640, show_default=True, metavar="PIXELS",
        help="Width of one image in the picture, also of a portrait; one more than twice as tall as "
        "wide is narrower.",
    ),
    click.option(
        "--layout",
        type=click.Choice(["lab", "octo"]),
        default="lab",
        show_default=True,
        help="Names of files: octo gives step_{t}_layer_{l}.png and attention_video.mp4.",
    ),
)  # fmt: skip
_SHARED = (
    store_to_read,
    out_directory("Directory to write below."),
    episode_options,
    _DRAWING,
    json_option,
)


@render.command()
@add_options(_SHARED)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jpg", "png", "webp"]),
    help="Of the pictures; the lab's scripts expect jpg.  [default: jpg; png in Octo's layout]",
)
@click.option("--quality", type=click.IntRange(1, 100), help="Of JPEG and WebP.")
def images(
    store: StoreName,
    out: Path,
    episodes: EpisodeChoice,
    drawing: DrawingChoice,
    form: str | None,
    quality: int | None,
    as_json: bool,
) -> None:
    """Draw every keyframe: the most active head of each layer, and every head.

    Examples
    --------
    attnstore render images lab.attn --out pictures --layers 1,4,5,7,10
    attnstore render images lab.attn --out pictures --episode 'success/*' --heads active
    """
    from attnstore.render.files.episode_images import render_images

    octo = drawing.layout == "octo"
    extra: dict[str, Any] = {"format": form or ("png" if octo else "jpg")}
    if octo:
        extra["marker"] = "octo.md"
    if quality is not None:
        extra["quality"] = quality
    extra["scale"] = drawing.colors("frame")
    _draw(render_images, store, out, episodes, drawing, extra, as_json)


@render.command()
@add_options(_SHARED)
@click.option(
    "--codec",
    type=click.Choice(["vp9", "av1", "h264", "mjpeg"]),
    help="vp9 and av1 in .webm, h264 in .mp4, mjpeg in .avi.  [default: vp9; h264 in Octo's layout]",
)
@click.option("--fps", type=FiniteNumber(min=0.1), help="Keyframes a second.")
def videos(
    store: StoreName,
    out: Path,
    episodes: EpisodeChoice,
    drawing: DrawingChoice,
    codec: str | None,
    fps: float | None,
    as_json: bool,
) -> None:
    """Draw an episode's keyframes as videos: the active head of each layer, and every head.

    Examples
    --------
    attnstore render videos lab.attn --out pictures --layers 5,10 --heads active
    """
    from attnstore.render.files.episode_videos import render_videos

    extra: dict[str, Any] = {"codec": codec or ("h264" if drawing.layout == "octo" else "vp9")}
    if fps is not None:
        extra["fps"] = fps
    extra["scale"] = drawing.colors("video")
    _draw(render_videos, store, out, episodes, drawing, extra, as_json)


def _draw(
    function: Callable[..., list[Path]],
    store: StoreName,
    out: Path,
    episodes: EpisodeChoice,
    drawing: DrawingChoice,
    extra: dict[str, Any],
    as_json: bool,
) -> None:
    from attnstore.query import open as open_for_reading

    arguments = drawing.arguments() | extra
    chosen = episodes.open(open_for_reading(store))
    for episode in chosen:
        for phase in drawing.phases:
            episode.layers(phase)
    chosen, lacking = _with_query(chosen, drawing.query, drawing.phases)
    files = 0
    with progress_of("render") as advance:
        for number, episode in enumerate(chosen):

            def drawn(done: int, total: int, path: Path, number: int = number) -> None:
                advance((number + done / total) / len(chosen), chosen[number].name)

            written = function(episode, out, progress=drawn, **arguments)
            files += len(written)
            row = {"episode": episode.name, "run": episode.run}
            say_written(written, out, episode.name, as_json, **row)
    if not as_json and chosen:
        count = f"{len(chosen)} episode{'s' if len(chosen) > 1 else ''}"
        say_made(f"{count}: {files} files below {out}", f"attnstore serve {store} --open")
    if lacking:
        names = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if lacking[3:] else "")
        raise PartialError(f"not drawn, for they have no {drawing.query!r}: {names}")


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

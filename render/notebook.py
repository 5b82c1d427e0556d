"""An episode in a notebook: a still, and a player that needs nothing but the page it is in."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.views import is_current
from attnstore.store.format.weighting import Weighting
from attnstore.store.reader import Episode
from attnstore.store.reader.pictures import PictureRequest
from attnstore.store.rules import standing_step

from .files.video import CODECS, VideoWriter
from .picture import image_file
from .picture.look import Look
from .picture.panel import Picture
from .picture.scale import ColorScale
from .picture.scene import Scene
from .picture.source import check_cameras, check_drawings, check_heads
from .picture.track import LayerMaps, Track

FASTEST = 60
"""Keyframes a second."""
MOVING = ("gif", "webp")
"""Pictures that move."""
VIDEOS = tuple(sorted({c for codec in CODECS.values() for c in codec.containers}))
_QUALITY = 80
_MARGIN = 44
"""Height of the player's row of buttons, pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """One picture; a notebook shows it."""

    pixels: NDArray[np.uint8]
    """(height, width, 3) uint8 RGB."""
    texts: tuple[str, ...]
    """What is written in it."""

    def __repr__(self) -> str:
        height, width = self.pixels.shape[:2]
        return f"<picture of {width} x {height} pixels: {'; '.join(filter(None, self.texts))}>"

    def _repr_jpeg_(self) -> bytes:
        return image_file.encode(self.pixels, "jpg")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as ``.png``, ``.jpg`` or ``.webp``; raises UsageError for another name."""
        return image_file.write(Path(path), self.pixels)


@dataclass(frozen=True, eq=False)
class Player:
    """Pictures in a row; a notebook shows them with a slider, and a button that plays them."""

    pictures: tuple[Picture, ...]
    places: tuple[str, ...]
    """What each shows, such as ``frame 8, keyframe 2 of 5``."""
    title: str
    fps: float
    """Pictures a second."""

    def __repr__(self) -> str:
        height, width = self.pictures[0].pixels.shape[:2]
        return f"<player of {len(self.pictures)} pictures, {width} x {height} pixels: {self.title}>"

    def _repr_html_(self) -> str:
        height, width = self.pictures[0].pixels.shape[:2]
        return (
            f'<iframe srcdoc="{escape(self.page, quote=True)}" title="{escape(self.title, quote=True)}" '
            f'sandbox="allow-scripts" style="width:100%;max-width:{width}px;'
            f'aspect-ratio:{width}/{height + _MARGIN};border:0;display:block"></iframe>'
        )

    @cached_property
    def page(self) -> str:
        """HTML page that plays them, whole: it requests nothing."""
        sources = [
            "data:image/webp;base64,"
            + base64.b64encode(image_file.encode(p.pixels, "webp", _QUALITY)).decode()
            for p in self.pictures
        ]
        height, width = self.pictures[0].pixels.shape[:2]
        # `<` alone could end the script early
        data = json.dumps({"sources": sources, "places": self.places, "fps": self.fps})
        return (
            _PAGE.replace("{width}", str(width))
            .replace("{height}", str(height))
            .replace("{last}", str(len(sources) - 1))
            .replace("{title}", escape(self.title))
            .replace("{first}", sources[0])
            .replace("{data}", data.replace("<", "\\u003c"))
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as ``.html``, as ``.gif`` or ``.webp`` that moves, or as a video: ``.webm``, ``.mp4``.

        Raises
        ------
        UsageError
            For another name.
        """
        path = Path(path)
        kind = path.suffix[1:].lower()
        if kind == "html":
            return image_file.write_text(path, self.page)
        if kind in MOVING:
            with image_file.complete(path) as temporary:
                temporary.write_bytes(self._moving(kind))
            return path
        if kind not in VIDEOS:
            known = ", ".join(f".{name}" for name in ("html", *MOVING, *VIDEOS))
            raise UsageError(f"{path.name}: a player is written as {known}")
        with VideoWriter(path, fps=self.fps) as video:
            for picture in self.pictures:
                video.write(picture.pixels)
        return path

    def _moving(self, kind: str) -> bytes:
        images = [Image.fromarray(p.pixels) for p in self.pictures]
        if kind == "gif":
            # one palette for all, or what stands still flickers
            palette = _together(images).quantize(256, Image.Quantize.MEDIANCUT)
            images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        out = io.BytesIO()
        images[0].save(
            out, format=kind, save_all=True, append_images=images[1:], loop=0,
            duration=round(1000 / self.fps), **({"quality": _QUALITY} if kind == "webp" else {}),
        )  # fmt: skip
        return out.getvalue()


def show(episode: Episode, request: PictureRequest, keyframe: int) -> Still:
    """Draw a keyframe; `Episode.show`."""
    scale = ColorScale("frame")
    scene, maps = _load(episode, request, scale)
    track = _track(maps, request, at_each=True)
    picture = scene.picture(track, keyframe, track.limits(scale, scene.geometries)[keyframe])
    return Still(picture.pixels, picture.texts)


def animate(episode: Episode, request: PictureRequest, fps: float) -> Player:
    """Draw all keyframes; `Episode.animate`."""
    if not 0 < fps <= FASTEST:
        raise UsageError(f"keyframes a second are more than 0 and at most {FASTEST}; got {fps}")
    scale = ColorScale("video")
    scene, maps = _load(episode, request, scale)
    track = _track(maps, request, at_each=False)
    limits = track.limits(scale, scene.geometries)
    count = len(episode.frames)
    places = tuple(
        f"frame {frame}, keyframe {number} of {count}"
        for number, frame in enumerate(episode.frames.tolist(), 1)
    )
    pictures = tuple(scene.picture(track, k, limits[k]) for k in range(count))
    return Player(pictures, places, f"{episode.name}: {episode.instruction}", fps)


def _load(episode: Episode, request: PictureRequest, scale: ColorScale) -> tuple[Scene, LayerMaps]:
    """What draws the pictures, and the maps of the layer that is asked for."""
    cameras = check_cameras(episode, request.cameras)
    if isinstance(request.head, str) and request.head != "active":
        raise SelectionError(f"a head is a number or 'active'; got {request.head!r}")
    phase = request.phase or ("prefix" if "prefix" in episode.phases else episode.phases[0])
    step = {"first": 0, "last": -1}.get(request.step, request.step)  # type: ignore[arg-type]
    layer = request.layer
    if layer is None:
        layer = _liveliest_layer(episode, phase, cameras, request.weighting)
    _, steps, drawings = check_drawings(
        episode, [phase], [layer], request.query, step, request.reduce, request.sink_corrected,
        request.weighting,
    )  # fmt: skip
    if request.head != "active":
        check_heads(episode, phase, [request.head])
    drawing = drawings[phase]
    look = Look(pane_width=request.width)
    scene = Scene(episode, drawing, cameras, look=look, scale=scale, active=request.active)
    maps = LayerMaps.load(
        episode, phase, layer, cameras, step=steps[phase], reduce=request.reduce,
        sink_corrected=request.sink_corrected, query=drawing.query, active=request.active,
        weighting=request.weighting,
    )  # fmt: skip
    return scene, maps


def _track(maps: LayerMaps, request: PictureRequest, *, at_each: bool) -> Track:
    if request.head == "active":
        return maps.most_active(at_each=at_each)
    return maps.track(request.head)


def _liveliest_layer(
    episode: Episode, phase: str, cameras: Sequence[str], weighting: Weighting
) -> int:
    """Layer with the head of the largest variance, mean over keyframes; 0 where none has any."""
    step = standing_step(phase, episode.steps(phase))
    best = [
        np.nanmax(np.nan_to_num(values.mean("keyframe").values, nan=0.0), axis=-1)
        for camera in cameras
        if is_current(camera)
        for values in [episode.stats(phase, camera, "variance", step=step, weighting=weighting)]
    ]
    return int(np.max(best, axis=0).argmax()) if best else 0


def _together(images: Sequence[Image.Image]) -> Image.Image:
    """Some of the pictures under one another, to choose colours from."""
    some = list(_spread(images, 6))
    sheet = Image.new("RGB", (some[0].width, some[0].height * len(some)))
    for number, image in enumerate(some):
        sheet.paste(image, (0, number * image.height))
    return sheet


def _spread(images: Sequence[Image.Image], most: int) -> Iterator[Image.Image]:
    for at in sorted({round(i) for i in np.linspace(0, len(images) - 1, most)}):
        yield images[at]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body { margin: 0; font: 14px system-ui, sans-serif; color: #1b1b1b; background: #fff; }
img { display: block; width: 100%; max-width: {width}px; height: auto; }
div { display: flex; gap: 8px; align-items: center; max-width: {width}px; height: 40px; padding: 2px 4px;
 box-sizing: border-box; }
button { font: inherit; min-width: 64px; height: 30px; }
input { flex: 1; min-width: 40px; }
output { white-space: nowrap; font-variant-numeric: tabular-nums; }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #111; } }
</style></head><body>
<img width="{width}" height="{height}" alt="" src="{first}">
<div><button type="button">Play</button>
<input type="range" min="0" max="{last}" value="0" aria-label="keyframe"><output></output></div>
<script>
const data = {data};
const image = document.querySelector("img"), button = document.querySelector("button");
const slider = document.querySelector("input"), place = document.querySelector("output");
let timer = null;
function turn(at) {
  slider.value = at;
  image.src = data.sources[at];
  place.value = image.alt = data.places[at];
  slider.setAttribute("aria-valuetext", data.places[at]);
}
function stop() { clearInterval(timer); timer = null; button.textContent = "Play"; }
button.onclick = () => {
  if (timer !== null) return stop();
  button.textContent = "Pause";
  timer = setInterval(() => turn((+slider.value + 1) % data.sources.length), 1000 / data.fps);
};
slider.oninput = () => { stop(); turn(+slider.value); };
turn(0);
</script></body></html>
"""

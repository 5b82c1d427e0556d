"""One phase of an episode as pictures: what all layers and heads share is drawn once."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError, NotFoundError
from attnstore.store.format.geometry import Geometry
from attnstore.store.rules import Active, describe_active

from .drawing import Drawing
from .image_file import decode
from .label import printable
from .look import Look
from .panel import Base, Panel, Picture
from .scale import ColorScale, Limits
from .source import EpisodeMaps, describe_query
from .track import Track

BUDGET = 256 << 20
"""Bytes of drawn bases that are kept; those of further keyframes are drawn again when needed."""


class Scene:
    """Draws the pictures of one phase of an episode.

    The episode is read only while the scene is made; afterwards several threads may draw.
    """

    def __init__(
        self,
        episode: EpisodeMaps,
        drawing: Drawing,
        cameras: tuple[str, ...],
        *,
        look: Look,
        scale: ColorScale,
        active: Active = "image",
    ) -> None:
        self.name = episode.name
        self.frames = [int(frame) for frame in episode.frames]
        self.cameras = cameras
        self.geometries = {camera: episode.geometry(camera) for camera in cameras}
        # what was removed goes onto a second line; one line for all would be too small to read
        self.panel = Panel(self.geometries, look, lines=2 if drawing.sink_corrected else None)
        self._title = episode.instruction
        self._chosen = [_chosen(episode, drawing, k) for k in range(len(self.frames))]
        self._detail = _detail(episode, drawing, scale, active)
        self._encoded = [
            {camera: _bytes(episode, k, camera) for camera in cameras}
            for k in range(len(self.frames))
        ]
        self._bases: dict[int, Base] = {}
        self._room = BUDGET
        self._lock = Lock()

    def picture(self, track: Track, keyframe: int, limits: Mapping[str, Limits]) -> Picture:
        """Draw a keyframe."""
        return self.panel.compose(self._base(keyframe), track.panes(keyframe, limits))

    def _base(self, keyframe: int) -> Base:
        kept = self._bases.get(keyframe)
        if kept is not None:
            return kept
        base = self._draw_base(keyframe)
        size = base.canvas.nbytes + sum(image.nbytes for image in base.images.values())
        # first come, first kept: videos pass through the keyframes in a circle, where dropping
        # the least recently used one would keep none
        with self._lock:
            if keyframe not in self._bases and size <= self._room:
                self._bases[keyframe] = base
                self._room -= size
        return base

    def _draw_base(self, keyframe: int) -> Base:
        images = {
            camera: np.zeros((*self.geometries[camera].source, 3), np.uint8)
            if data is None
            else decode_frame(
                data, self.geometries[camera], self.name, f"{camera} at keyframe {keyframe}"
            )
            for camera, data in self._encoded[keyframe].items()
        }
        place = f"frame {self.frames[keyframe]}, keyframe {keyframe + 1}/{len(self.frames)}"
        place += self._chosen[keyframe]
        return self.panel.base(self._title, self._detail, images, place)


def _bytes(episode: EpisodeMaps, keyframe: int, camera: str) -> bytes | None:
    """Encoded image; None where the keyframe lacks the camera."""
    try:
        return episode.image_bytes(keyframe, camera)
    except NotFoundError:
        return None


def decode_frame(data: bytes, geometry: Geometry, episode: str, what: str) -> NDArray[np.uint8]:
    """Decode a camera's image, (height, width, 3) uint8 RGB, of its geometry's size.

    Raises
    ------
    EpisodeError
        If it is no image, or of another size.
    """
    image = decode(data, episode, what)
    height, width = geometry.source
    if image.shape[:2] != (height, width):
        got = image.shape
        raise EpisodeError(
            episode, f"{what} is {got[1]}x{got[0]} pixels; its geometry says {width}x{height}"
        )
    return image


def describe(episode: EpisodeMaps, drawing: Drawing) -> str:
    """Text for titles: the phase, what its maps are over, and the step."""
    tokens = describe_query(episode, drawing.phase, drawing.query)
    carried = "" if drawing.weighting == "raw" else f"{drawing.weighting}-weighted, "
    what = f"{drawing.phase}: {carried}{drawing.reduce} over {tokens}"
    steps = episode.steps(drawing.phase)
    if steps is not None:
        step = steps - 1 if drawing.step is None else drawing.step
        what += f", step {step} (0 to {steps - 1})"
    return what


def _chosen(episode: EpisodeMaps, drawing: Drawing, keyframe: int) -> str:
    """Text that says which token a step of phase decode chose."""
    if drawing.phase != "decode":
        return ""
    tokens = episode.generated(keyframe)
    steps = episode.steps(drawing.phase) or 0
    step = steps - 1 if drawing.step is None else drawing.step
    if step >= len(tokens):
        return f", ended after {len(tokens)} tokens"
    return f", chose “{printable(tokens[step])}”"


def short_name(episode: EpisodeMaps) -> str:
    """Last part of an episode's name, for titles."""
    return episode.name.rstrip("/").rpartition("/")[2]


def _detail(episode: EpisodeMaps, drawing: Drawing, scale: ColorScale, active: Active) -> str:
    what = describe(episode, drawing)
    parts = (
        episode.outcome,
        short_name(episode),
        episode.policy,
        what,
        scale.describe(),
        f"most active by {describe_active(active)}",
    )
    return "  ·  ".join(part for part in parts if part)

"""Attention and the outlines of objects on the camera's image: pictures and videos of layers.

Beside `attnstore.render.files.lab_folders`'s files, in the same folders::

    {frame:05d}/{phase}_L{layer}_objects.jpg      mean over heads of one keyframe
    L{layer:02d}_{phase}_objects.webm             the same over the episode's keyframes

Maps are means over query tokens and heads: the map whose numbers have ``head_kind`` "mean". The
suffix shows its last denoising step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.query.objects.results import KeptMask
from attnstore.store.errors import EpisodeError
from attnstore.store.reader.episode import Episode

from ..picture import image_file, label, overlay
from ..picture.heatmap import sampler
from ..picture.label import Color
from ..picture.look import BACKGROUND, MUTED, TEXT, Look
from ..picture.scale import Limits, data_limits
from . import video
from .lab_folders import EpisodeFolder

Image = NDArray[np.uint8]

PALETTE: tuple[Color, ...] = (
    (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (230, 230, 230),
)  # fmt: skip
"""Okabe and Ito's colours, which every common colour vision tells apart, and a light grey."""
WIDTH = 560
"""Width of one pane."""
LINE = 26
"""Height of a line of text."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjectScene:
    """What all pictures of one keyframe share."""

    keyframe: int
    frame: int
    image: Image
    """(height, width, 3) RGB at the size of a pane."""
    outlines: Mapping[str, list[NDArray[np.int32]]]
    """Contours by object, in pixels of the pane."""


def object_colours(objects: Sequence[str]) -> dict[str, Color]:
    """Give every object a colour, the same in all pictures of a report."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(sorted(set(objects)))}


def object_scenes(episode: Episode, camera: str, masks: Sequence[KeptMask]) -> list[ObjectScene]:
    """Decode the images of the keyframes that have masks, and trace these."""
    found = []
    for keyframe in sorted({m.keyframe for m in masks}):
        data = episode.image_bytes(keyframe, camera)
        image = image_file.decode(data, episode.name, f"{camera} of keyframe {keyframe}")
        height, width = image.shape[:2]
        if (height, width) != tuple(episode.geometry(camera).source):
            raise EpisodeError(episode.name, f"{camera}: image and geometry differ in size")
        scale = WIDTH / width
        outlines = {}
        for mask in (m for m in masks if m.keyframe == keyframe):
            traced, _ = cv2.findContours(
                mask.pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            outlines[mask.object] = [
                np.rint((np.asarray(c) + 0.5) * scale - 0.5).astype(np.int32) for c in traced
            ]
        size = (WIDTH, max(1, round(height * scale)))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        small = np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)
        found.append(ObjectScene(keyframe, int(episode.frames[keyframe]), small, outlines))
    return found


def draw_objects(
    episode: Episode,
    camera: str,
    scene: ObjectScene,
    values: NDArray[np.floating],
    limits: Limits,
    colours: Mapping[str, Color],
    title: str,
) -> Image:
    """Draw one keyframe: the camera's image and its attention, both with the objects' outlines.

    Parameters
    ----------
    values
        Map, (row, col).
    limits
        Attention at the ends of the colour map.

    Returns
    -------
    (height, width, 3) uint8 RGB.
    """
    look = Look()
    height, width = scene.image.shape[:2]
    heat = sampler(episode.geometry(camera), look.interpolation, (height, width)).draw(values)
    hot = overlay.blend(
        scene.image, heat, limits, cmap=look.cmap, alpha=look.alpha, style=look.blend
    )
    canvas = np.empty((height + 3 * LINE, 2 * width + 8, 3), np.uint8)
    canvas[:] = BACKGROUND
    top = 2 * LINE
    for left, pane in ((0, scene.image), (width + 8, hot)):
        shown = pane.copy()
        for name, contours in scene.outlines.items():
            # A dark line under the bright one: visible on any image.
            cv2.drawContours(shown, contours, -1, (0, 0, 0), 4, cv2.LINE_AA)
            cv2.drawContours(shown, contours, -1, colours[name], 2, cv2.LINE_AA)
        canvas[top : top + height, left : left + width] = shown
    room = canvas.shape[1] - 16
    label.write(canvas, episode.instruction, 8, LINE // 2, size=19, color=TEXT, room=room)
    detail = f"{episode.name}, {camera}, frame {scene.frame}"
    label.write(canvas, detail, 8, LINE + LINE // 2, size=15, color=MUTED, room=width - 16)
    text = f"{title}, 0 to {limits.vmax:.3g}"
    label.write(canvas, text, width + 16, LINE + LINE // 2, size=15, color=MUTED, room=width - 16)
    x = 8
    for name in scene.outlines:
        wide = label.width(label.printable(name), 16) + 34
        y = top + height + LINE // 2
        cv2.rectangle(canvas, (x, y - 6), (x + 14, y + 6), colours[name], -1)
        label.write(canvas, name, x + 20, y, size=16, color=TEXT, room=max(1, room - x))
        x += wide
    return canvas


def draw_episode(
    episode: Episode,
    camera: str,
    masks: Sequence[KeptMask],
    out: Path,
    colours: Mapping[str, Color],
    phases: Sequence[str],
) -> Iterator[Path]:
    """Write an episode's pictures and videos; yield every file as it is complete.

    Parameters
    ----------
    out
        Root of the folders.
    colours
        By object.
    phases
        Phases to draw, all layers each.

    Raises
    ------
    EpisodeError
        If a stored image is broken.
    """
    folder = EpisodeFolder.of(out, episode.name, episode.outcome, episode.date).path
    scenes = object_scenes(episode, camera, masks)
    keyframes = [scene.keyframe for scene in scenes]
    for phase in phases:
        for layer in range(episode.layers(phase)):
            maps = episode.maps(
                phase, camera, layer=layer, reduce="mean", keyframe=keyframes
            ).values
            mean = maps.mean(1)
            # One scale for the layer, so that the video does not flicker.
            limits = data_limits(mean[..., episode.geometry(camera).coverage() > 0])
            title = f"{phase} L{layer:02d}, mean of heads"
            with video.VideoWriter(folder / f"L{layer:02d}_{phase}_objects.webm") as writer:
                for scene, values in zip(scenes, mean, strict=True):
                    drawn = draw_objects(episode, camera, scene, values, limits, colours, title)
                    writer.write(drawn)
                    name = f"{phase}_L{layer}_objects.jpg"
                    yield image_file.write(folder / f"{scene.frame:05d}" / name, drawn)
            yield folder / f"L{layer:02d}_{phase}_objects.webm"

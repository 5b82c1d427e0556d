"""Two runs of one episode beside each other: another checkpoint or another prompt, frame by frame.

Both columns show the same layer and head, and have one colour scale, so that a colour is the same
attention left and right. The divergence that is printed at each keyframe is that of the two maps
shown (`attnstore.query.groups.run_diff`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attnstore.query.groups.run_diff import diff_episodes
from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.weighting import Weighting
from attnstore.store.processes import cores
from attnstore.store.reader.episode import Episode
from attnstore.store.rules import Active, describe_active

from ..picture import heatmap
from ..picture.drawing import Drawing, Reduction
from ..picture.layout import arrange_pair
from ..picture.look import Look
from ..picture.panel import Pane, Picture
from ..picture.scale import ColorScale, Limits
from ..picture.scene import decode_frame, describe, short_name
from ..picture.sheet import Image, Sheet, fit_image
from ..picture.source import check_cameras, check_layers, check_step
from ..picture.track import LayerMaps, Track
from . import pool, video
from .lab_folders import EpisodeFolder

SCALE = ColorScale("video")
MARKS = ("a", "b")


def render_side_by_side(
    a: Episode,
    b: Episode,
    out: Path,
    *,
    layers: Sequence[int] | None,
    phase: str,
    cameras: Sequence[str] | None = None,
    heads: Literal["active"] | int = "active",
    step: int | None = None,
    reduce: Reduction = "max",
    active: Active = "image",
    weighting: Weighting = "raw",
    look: Look | None = None,
    codec: str = "vp9",
    fps: float = video.DEFAULT_FPS,
) -> list[Path]:
    """Draw one video for every layer: the overlays of two runs, a frame for every keyframe of both.

    Parameters
    ----------
    a, b
        The same episode in two runs; `a` is on the left.
    out
        Root of the lab's tree; see `attnstore.render.files.lab_folders`.
    layers
        Layers to draw, 0-based; None for all.
    cameras
        By default all that both runs have.
    heads
        A head, or for each camera the one that is most active in `a` over its whole episode.
        Either way both columns show the same one.
    step
        Denoising step, negative from the end; ignored in one-pass phases.
    reduce
        ``max`` or ``mean`` over the query tokens, for the overlays and their divergence.
    active
        What makes a head the most active one: see `attnstore.store.rules`.
    weighting
        ``raw``, or ``value``: attention times what each key would add through the head.
    codec
        See `attnstore.render.files.video.CODECS`.
    fps
        Keyframes a second.

    Returns
    -------
    The videos, in order of the layers.

    Raises
    ------
    SelectionError
        If these are different episodes, no frame is a keyframe of both runs, a phase, layer, head,
        step or camera is not in both, or the runs see a camera differently.
    EpisodeError
        If an image cannot be drawn on.
    """
    ending = video.extension_for(codec)
    if a.run == b.run:
        raise UsageError(f"two runs are drawn beside each other; got {a.run} twice")
    if a.name != b.name:
        raise SelectionError(f"two runs of one episode are drawn; got {a.name} and {b.name}")
    for episode in (a, b):
        chosen = check_layers(episode, [phase], layers)[phase]
        check_cameras(episode, cameras)
    drawing = Drawing(phase, reduce, check_step(a, phase, step), weighting=weighting)
    count = a.heads(phase)
    if heads != "active" and not 0 <= heads < count:
        raise SelectionError(f"{a.name}: {phase} has heads 0 to {count - 1}; there is no {heads}")
    divergence = diff_episodes(
        a, b, phase=phase, cameras=None if cameras is None else list(dict.fromkeys(cameras)),
        step="last" if a.steps(phase) is None or step is None else step, reduce=reduce,
        weighting=weighting,
    ).squeeze("step")  # fmt: skip
    scene = PairScene(a, b, drawing, divergence, look or Look(), active)
    folder = EpisodeFolder.of(out, a.name, a.outcome, a.date)
    workers = cores()
    threads = max(1, workers // len(chosen))

    def tasks() -> Iterator[Callable[[], Path]]:
        head = None if heads == "active" else heads
        for layer in chosen:
            path = folder.pair_video(drawing, layer, head, (a.run, b.run), ending)
            yield partial(_film, scene, scene.load(layer, head), path, codec, fps, threads)

    return list(pool.run(tasks(), workers))


def _film(scene: PairScene, pair: Pair, path: Path, codec: str, fps: float, threads: int) -> Path:
    frames = (scene.picture(pair, keyframe).pixels for keyframe in range(len(scene.frames)))
    return video.encode(path, frames, codec=codec, fps=fps, threads=threads)


@dataclass(frozen=True, slots=True)
class Pair:
    """One head of one layer in both runs, at the keyframes that both have."""

    tracks: tuple[Track, Track]
    limits: Mapping[str, Limits]
    """One colour scale for both, by camera."""
    divergence: Mapping[str, NDArray[np.float64]]
    """In bits, by camera, (keyframe,)."""

    def pane(self, side: int, camera: str, keyframe: int, head: str) -> Pane:
        """Give one overlay."""
        track = self.tracks[side]
        notes = track.notes[camera][keyframe]
        return Pane(track.maps[camera][keyframe], self.limits[camera], head, notes)


class PairScene:
    """Draws the pictures of one phase of an episode in two runs.

    The episodes are read only in the constructor and in `load`; several threads may draw.

    Parameters
    ----------
    divergence
        (camera, keyframe, layer, head) of what is drawn; its cameras and frames are drawn.
    active
        What makes a head the most active one.
    """

    def __init__(
        self,
        a: Episode,
        b: Episode,
        drawing: Drawing,
        divergence: xr.DataArray,
        look: Look,
        active: Active = "image",
    ) -> None:
        self.episodes = (a, b)
        self.active = active
        self.drawing = drawing
        self.divergence = divergence
        self.cameras = tuple(str(camera) for camera in divergence["camera"].values)
        self.frames = [int(frame) for frame in divergence["frame"].values]
        self._at = [[e.frames.tolist().index(f) for f in self.frames] for e in self.episodes]
        self._geometries = [{c: e.geometry(c) for c in self.cameras} for e in self.episodes]
        self._check_sizes()
        same = a.instruction == b.instruction
        self._title = a.instruction if same else short_name(a)
        self._headings = [
            (f"{mark}: {e.run}", (e.policy,) if same else (e.policy, e.instruction))
            for mark, e in zip(MARKS, self.episodes, strict=True)
        ]
        self._detail = self._describe(same)
        sources = [geometry.source for geometry in self._geometries[0].values()]
        # an instruction needs a line of its own
        self._lines = 1 if same else 2
        self.layout = arrange_pair(sources, look.pane_width, self._lines)
        self.sheet = Sheet(self.layout, look)
        self.blocks = dict(zip(self.cameras, self.layout.blocks, strict=True))
        self._samplers = [
            {c: self._sampler(look, c, geometry) for c, geometry in geometries.items()}
            for geometries in self._geometries
        ]
        self._encoded = [
            [{c: e.image_bytes(k, c) for c in self.cameras} for k in at]
            for e, at in zip(self.episodes, self._at, strict=True)
        ]

    def load(self, layer: int, head: int | None) -> Pair:
        """Read what is drawn of a layer: one head, or (None) each camera's most active in `a`."""
        first = self.episodes[0]
        phase, step = self.drawing.phase, self.drawing.step
        reduce = self.drawing.reduce
        shown = {
            c: first.active_head(
                phase,
                c,
                layer=layer,
                step=step,
                reduce=reduce,
                active=self.active,
                weighting=self.drawing.weighting,
            )
            if head is None
            else head
            for c in self.cameras
        }
        tracks = []
        for episode, at in zip(self.episodes, self._at, strict=True):
            maps = LayerMaps.load(
                episode, phase, layer, self.cameras, step=step, reduce=reduce,
                weighting=self.drawing.weighting,
            )  # fmt: skip
            every = {c: np.full(len(episode.frames), h, np.intp) for c, h in shown.items()}
            track = maps.active(every) if head is None else maps.track(head)
            tracks.append(track.at(at))
        together = {c: np.stack([t.maps[c] for t in tracks]) for c in self.cameras}
        divergence = {
            c: self.divergence.sel(camera=c, layer=layer, head=h).values for c, h in shown.items()
        }
        limits = SCALE.limits(together, self._geometries[0])
        return Pair((tracks[0], tracks[1]), limits, divergence)

    def picture(self, pair: Pair, keyframe: int) -> Picture:
        """Draw a keyframe, counted among those of both runs."""
        sheet = self.sheet
        canvas = sheet.copy()
        texts = sheet.draw_title(canvas, self._title, self._detail)
        for box, (name, notes) in zip(self.layout.headings, self._headings, strict=True):
            texts += sheet.draw_label(canvas, box, self._lines, name, notes)
        place = f"frame {self.frames[keyframe]}, keyframe {keyframe + 1}/{len(self.frames)}"
        for camera, block in self.blocks.items():
            layer, head = pair.tracks[0].layer, int(pair.tracks[0].heads[camera][keyframe])
            chosen = ", most active in a" if pair.tracks[0].head is None else ""
            names = (
                f"{camera}  ·  L{layer:02d} H{head:02d}{chosen}",
                f"{place}  ·  {_apart(float(pair.divergence[camera][keyframe]))}",
            )
            slots = (
                (block.original, block.original_label),
                (block.overlay, block.overlay_label),
            )
            for side, (box, label_box) in enumerate(slots):
                pane = pair.pane(side, camera, keyframe, names[side])
                image = fit_image(self._image(side, camera, keyframe), box)
                heat = self._samplers[side][camera].draw(pane.map)
                sheet.draw_heat(canvas, box, image, heat, pane.limits)
                texts += sheet.draw_label(canvas, label_box, block.lines, pane.head, pane.said)
            texts += sheet.draw_numbers(canvas, block.bar, pair.limits[camera])
        return Picture(canvas, tuple(texts))

    def _image(self, side: int, camera: str, keyframe: int) -> Image:
        episode = self.episodes[side]
        what = f"{camera} at keyframe {self._at[side][keyframe]} of run {episode.run}"
        data = self._encoded[side][keyframe][camera]
        return decode_frame(data, self._geometries[side][camera], episode.name, what)

    def _sampler(self, look: Look, camera: str, geometry: Geometry) -> heatmap.HeatSampler:
        box = self.blocks[camera].overlay
        return heatmap.sampler(geometry, look.interpolation, (box.height, box.width))

    def _check_sizes(self) -> None:
        for camera in self.cameras:
            sizes = [geometries[camera].source for geometries in self._geometries]
            if sizes[0] != sizes[1]:
                shown = " and ".join(f"{width}x{height}" for height, width in sizes)
                raise SelectionError(
                    f"{self.episodes[0].name}: the runs' images of {camera} are of different "
                    f"size, {shown} pixels"
                )

    def _describe(self, same_instruction: bool) -> str:
        first, second = self.episodes
        parts = [
            first.outcome,
            describe(first, self.drawing),
            "one scale for both runs",
            f"most active by {describe_active(self.active)}",
        ]
        if same_instruction:
            parts.insert(1, short_name(first))
        if not len(self.frames) == len(first.frames) == len(second.frames):
            parts.append(
                f"{len(self.frames)} keyframes in common of {len(first.frames)} and "
                f"{len(second.frames)}"
            )
        return "  ·  ".join(part for part in parts if part)


def _apart(divergence: float) -> str:
    if not np.isfinite(divergence):
        return "no divergence"
    return f"Jensen-Shannon {divergence:.3f} bits"

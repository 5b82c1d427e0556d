"""An episode's overlays as videos in the lab's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from attnstore.store.errors import UsageError
from attnstore.store.format.weighting import Weighting
from attnstore.store.processes import cores
from attnstore.store.rules import Active

from ..picture import image_file
from ..picture.drawing import Reduction
from ..picture.look import Look
from ..picture.scale import ColorScale
from ..picture.scene import Scene
from ..picture.source import (
    EpisodeMaps,
    check_cameras,
    check_drawings,
    check_heads,
)
from ..picture.track import LayerMaps, Track
from . import pool, video
from .episode_images import Progress
from .folders import LAB, folder_type

PER_VIDEO = ColorScale("video")


def render_videos(
    episode: EpisodeMaps,
    out: Path,
    *,
    layers: Sequence[int] | None = None,
    phases: Sequence[str] | None = None,
    summary: bool = True,
    heads: bool | Sequence[int] = True,
    cameras: Sequence[str] | None = None,
    step: int | None = None,
    reduce: Reduction = "max",
    sink_corrected: bool = False,
    weighting: Weighting = "raw",
    query: str | None = None,
    active: Active = "image",
    look: Look | None = None,
    scale: ColorScale = PER_VIDEO,
    codec: str = "vp9",
    extension: str | None = None,
    fps: float = video.DEFAULT_FPS,
    layout: str = LAB,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Draw one video for every layer and head, a frame for every keyframe.

    The summary video of a layer shows, for each camera, the head that is most active over the
    whole episode, so that it does not jump.

    Parameters
    ----------
    out
        Root of the lab's tree; see `attnstore.render.files.lab_folders`.
    layers
        Layers to draw, 0-based; by default all.
    phases
        By default all that the episode has.
    summary, heads
        Draw the most active head; draw every head.
    cameras
        By default all.
    step
        Step, negative from the end; ignored in one-pass phases. By default the last of the
        suffix and the first of decode.
    reduce
        ``max`` or ``mean`` over the query tokens.
    sink_corrected
        Take attention sinks out; see `attnstore.store.reader.sinks`.
    weighting
        ``raw``, or ``value``: of what is carried, which needs the full attention; see
        `attnstore.store.format.weighting`.
    query
        Query group or word, such as ``text`` or ``word:cube``, in the phases whose queries have it;
        None is each phase's own. Of one without overview maps the full attention is read.
    active
        What makes a head the most active one of the maps that are drawn: see
        `attnstore.store.rules.Active`.
    scale
        With scope ``video`` (the default) colours do not flicker.
    codec, extension
        See `attnstore.render.files.video.CODECS`; each codec has a usual extension.
    fps
        Keyframes a second.
    layout
        ``lab`` or ``octo``: names of folders and files.
    workers
        Threads; by default one a core.

    Returns
    -------
    The files written, in order: the videos, then ``instruction.txt``.

    Raises
    ------
    SelectionError
        If the episode has no such phase, layer, step, camera or query group.
    EpisodeError
        If an image cannot be drawn on.
    """
    if not (summary or heads):
        raise UsageError("nothing to draw: neither the summary nor the heads were asked for")
    ending = video.extension_for(codec, extension)
    shown = check_cameras(episode, cameras)
    chosen, steps, drawings = check_drawings(
        episode, phases, layers, query, step, reduce, sink_corrected, weighting
    )
    folder = folder_type(layout).of(out, episode.name, episode.outcome, episode.date)
    drawn = {phase: check_heads(episode, phase, heads) for phase in chosen}
    clips = sum(
        len(phase_layers) * (summary + len(drawn[phase])) for phase, phase_layers in chosen.items()
    )
    workers = workers or cores()
    threads = max(1, workers // clips)

    def tasks() -> Iterator[Callable[[], Path]]:
        for phase, phase_layers in chosen.items():
            drawing = drawings[phase]
            scene = Scene(episode, drawing, shown, look=look or Look(), scale=scale, active=active)
            for layer in phase_layers:
                maps = LayerMaps.load(
                    episode, phase, layer, shown,
                    step=steps[phase], reduce=reduce, sink_corrected=sink_corrected,
                    query=drawings[phase].query, active=active, weighting=weighting,
                )  # fmt: skip
                if summary:
                    track = maps.most_active(at_each=False)
                    last = layer == phase_layers[-1]
                    path = folder.summary_video(drawing, layer, ending, last=last)
                    yield partial(_film, scene, track, scale, path, codec, fps, threads)
                for head in drawn[phase]:
                    path = folder.head_video(drawing, layer, head, ending)
                    yield partial(_film, scene, maps.track(head), scale, path, codec, fps, threads)

    written: list[Path] = []
    for path in pool.run(tasks(), workers):
        written.append(path)
        if progress is not None:
            progress(len(written), clips + 1, path)
    written.append(image_file.write_text(folder.instruction, episode.instruction))
    if progress is not None:
        progress(len(written), clips + 1, folder.instruction)
    return written


def _film(
    scene: Scene,
    track: Track,
    scale: ColorScale,
    path: Path,
    codec: str,
    fps: float,
    threads: int,
) -> Path:
    limits = track.limits(scale, scene.geometries)
    frames = (scene.picture(track, k, limits[k]).pixels for k in range(len(scene.frames)))
    return video.encode(path, frames, codec=codec, fps=fps, threads=threads)

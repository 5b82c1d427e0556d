"""An episode's overlays as image files in the lab's layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from attnstore.store.errors import UsageError
from attnstore.store.format.weighting import Weighting
from attnstore.store.processes import cores
from attnstore.store.rules import Active

from ..picture import image_file
from ..picture.drawing import Drawing, Reduction
from ..picture.look import Look
from ..picture.scale import ColorScale, Limits
from ..picture.scene import Scene
from ..picture.source import (
    EpisodeMaps,
    check_cameras,
    check_drawings,
    check_heads,
)
from ..picture.track import LayerMaps, Track
from . import pool
from .folders import LAB, folder_type
from .lab_folders import MARKER, EpisodeFolder
from .marker import describe

Progress = Callable[[int, int, Path], None]
"""Called after each file with the number done, the number in all, and the file."""
PER_FRAME = ColorScale("frame")


def render_images(
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
    scale: ColorScale = PER_FRAME,
    format: str = "jpg",
    quality: int = image_file.DEFAULT_QUALITY,
    marker: str = MARKER,
    layout: str = LAB,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Draw the overlays of every keyframe.

    The summary picture of a layer shows, for each camera, that keyframe's most active head.

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
        With scope ``video``, all keyframes of a head share a scale.
    format, quality
        ``jpg``, ``png`` or ``webp``; 1 to 100.
    marker
        Name of the file that is written last.
    layout
        ``lab`` or ``octo``: names of folders and files.
    workers
        Threads; by default one a core.

    Returns
    -------
    The files written, in order.

    Raises
    ------
    SelectionError
        If the episode has no such phase, layer, step, camera or query group.
    EpisodeError
        If an image cannot be drawn on.
    """
    if format not in image_file.FORMATS:
        known = ", ".join(image_file.FORMATS)
        raise UsageError(f"a picture's format is one of {known}; got {format!r}")
    if not (summary or heads):
        raise UsageError("nothing to draw: neither the summary nor the heads were asked for")
    shown = check_cameras(episode, cameras)
    chosen, steps, drawings = check_drawings(
        episode, phases, layers, query, step, reduce, sink_corrected, weighting
    )
    folder = folder_type(layout).of(out, episode.name, episode.outcome, episode.date)
    end = folder.marker(marker)
    # the marker says that the pictures are complete: until they are, there is none
    end.unlink(missing_ok=True)

    drawn = {phase: check_heads(episode, phase, heads) for phase in chosen}
    per_keyframe = {phase: summary + len(drawn[phase]) for phase in chosen}
    total = 1 + len(episode.frames) * sum(
        len(phase_layers) * per_keyframe[phase] for phase, phase_layers in chosen.items()
    )

    def tasks() -> Iterator[Callable[[], list[Path]]]:
        for phase, phase_layers in chosen.items():
            drawing = drawings[phase]
            scene = Scene(episode, drawing, shown, look=look or Look(), scale=scale, active=active)
            for layer in phase_layers:
                maps = LayerMaps.load(
                    episode, phase, layer, shown,
                    step=steps[phase], reduce=reduce, sink_corrected=sink_corrected,
                    query=drawings[phase].query, active=active, weighting=weighting,
                )  # fmt: skip
                tracks = [maps.track(head) for head in drawn[phase]]
                if summary:
                    tracks.insert(0, maps.most_active(at_each=True))
                limits = [track.limits(scale, scene.geometries) for track in tracks]
                for keyframe, frame in enumerate(scene.frames):
                    yield partial(
                        _draw,
                        scene,
                        keyframe,
                        [
                            (track, at[keyframe], _path(folder, frame, drawing, track, format))
                            for track, at in zip(tracks, limits, strict=True)
                        ],
                        quality,
                    )

    written: list[Path] = []
    for paths in pool.run(tasks(), workers or cores()):
        for path in paths:
            written.append(path)
            if progress is not None:
                progress(len(written), total, path)
    text = describe(episode, chosen, shown, drawings, scale, active)
    written.append(image_file.write_text(end, text))
    if progress is not None:
        progress(len(written), total, end)
    return written


def _path(folder: EpisodeFolder, frame: int, drawing: Drawing, track: Track, format: str) -> Path:
    if track.head is None:
        return folder.summary_image(frame, drawing, track.layer, format)
    return folder.head_image(frame, drawing, track.layer, track.head, format)


def _draw(
    scene: Scene,
    keyframe: int,
    series: Sequence[tuple[Track, Mapping[str, Limits], Path]],
    quality: int,
) -> list[Path]:
    return [
        image_file.write(path, scene.picture(track, keyframe, limits).pixels, quality)
        for track, limits, path in series
    ]

"""An episode as a recording of Rerun (https://rerun.io): one ``.rrd`` file with its own timelines.

::

    instruction                          text, static
    camera/<camera>                      the keyframe's image, as it was read
    camera/<camera>/heat/<phase>/L05     heat of the active head at the image's pixels; index = level
    maps/<phase>/<camera>                tensor (layer, head, row, col) of attention
    metrics/<metric>/<phase>/<camera>/L05    a scalar per head
    policy/{actions,actions_recorded,state}  a scalar per component; of a chunk the first action

Timelines: ``keyframe``, ``frame``, ``time`` where the dataset has times, and for every phase with
steps ``<phase>_step``, which counts steps through the whole episode: keyframe * steps + step.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from attnstore.store.errors import MissingExtraError, NotFoundError
from attnstore.store.image import read_header
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.reads import Reduction
from attnstore.store.rules import Active

from ..picture import colormap, heatmap
from ..picture.image_file import complete
from ..picture.overlay import DEFAULT_ALPHA
from ..picture.scale import ColorScale, Limits
from ..picture.source import check_cameras, check_layers, default_step

APPLICATION = "attnstore"
METRICS = ("entropy", "camera_mass")
SHARED = ColorScale("video")
"""One scale for all keyframes: the same attention has the same colour throughout."""
POLICY = ("actions", "actions_recorded", "state")


@dataclass(frozen=True, slots=True)
class Recorded:
    """What goes into a recording; None: all."""

    phases: Sequence[str] | None = None
    cameras: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    metrics: Sequence[str] = METRICS
    """Columns of ``head_stats``."""
    reduce: Reduction = "max"
    """Of maps, over the query tokens."""
    all_steps: bool = False
    """Heat and maps of every step; else of the one that pictures show."""
    cmap: str = colormap.DEFAULT
    scale: ColorScale = SHARED
    active: Active = "image"
    """What makes a head the most active one, whose heat is shown: see `attnstore.store.rules`."""


def write_recording(
    episode: Episode,
    out: Path,
    what: Recorded | None = None,
    progress: Callable[[float, str], None] = lambda share, what: None,
) -> Path:
    """Write an episode as a recording; the file appears when it is complete.

    It is made in memory, where Rerun's viewer will hold it, too.

    Parameters
    ----------
    progress
        Called with the share that is done, and what is at its turn.

    Raises
    ------
    MissingExtraError
        If rerun-sdk is not installed.
    SelectionError
        If the episode has no such phase, camera, layer or metric.
    OSError
        If the file cannot be written, as on a full disk.
    """
    writer = _Writer(load_rerun("attnstore export rerun"), episode, what or Recorded())
    data = writer.write(progress)
    with complete(out) as temporary:
        temporary.write_bytes(data)
    return out


class Entities:
    """An episode's entities in a stream of Rerun's: of one that is stored, and of one that is being recorded.

    Parameters
    ----------
    rr
        The module ``rerun``.
    recording
        Id of the recording: the same one is continued.
    cmap
        Colour map of the heat.
    """

    def __init__(self, rr: Any, recording: str, cmap: str = colormap.DEFAULT) -> None:
        self.rr, self._cmap = rr, cmap
        self.stream = rr.RecordingStream(APPLICATION, recording_id=recording, send_properties=False)

    def name(self, name: str) -> None:
        """Name the recording; its times are ours and not the log's."""
        self.rr.set_log_time_enabled(False, recording=self.stream)
        self.rr.set_log_tick_enabled(False, recording=self.stream)
        self.stream.send_recording_name(name)

    def log(self, entity: str, what: Any, *, static: bool = False) -> None:
        """Log to an entity."""
        # Strictly: rerun only warns otherwise, and leaves out what it does not like.
        self.stream.log(entity, what, static=static, strict=True)

    def path(self, *parts: str) -> str:
        """Path of an entity; names of cameras are the dataset's own."""
        return str(self.rr.new_entity_path(list(parts))).removeprefix("/")

    def text(self, entity: str, lines: Sequence[str], *, static: bool = False) -> None:
        """Log lines of text."""
        text = self.rr.TextDocument("\n".join(lines), media_type="text/plain")
        self.log(entity, text, static=static)

    def image(self, camera: str, data: bytes) -> None:
        """Log a camera's image, as it is kept."""
        image = self.rr.EncodedImage(contents=data, media_type=read_header(data).media_type)
        self.log(self.path("camera", camera), image)

    def maps(self, phase: str, camera: str, maps: NDArray[np.float32]) -> None:
        """Log maps, (layer, head, row, col)."""
        tensor = self.rr.Tensor(maps, dim_names=("layer", "head", "row", "col"))
        self.log(self.path("maps", phase, camera), tensor)

    def heat(
        self, phase: str, camera: str, layer: int, heat: NDArray[np.float32], limits: Limits
    ) -> None:
        """Log the heat of a layer's active head, (height, width) of the image."""
        data = heat_png(heat, limits, self._cmap)
        image = self.rr.EncodedImage(contents=data, media_type="image/png", draw_order=10.0)
        self.log(self.path("camera", camera, "heat", phase, layer_name(layer)), image)

    def series(self, entity: str, names: Sequence[str]) -> None:
        """Name the components of an entity's scalars."""
        self.log(entity, self.rr.SeriesLines(names=list(names)), static=True)

    def scalars(self, entity: str, values: NDArray[Any]) -> None:
        """Log an entity's scalars."""
        self.log(entity, self.rr.Scalars(values))

    def heads(self, metric: str, phase: str, camera: str, layer: int, count: int) -> str:
        """Name the heads of a metric of a layer; return its entity."""
        entity = self.path("metrics", metric, phase, camera, layer_name(layer))
        self.series(entity, [f"H{head:02d}" for head in range(count)])
        return entity

    def components(self, name: str, count: int) -> str:
        """Name the components of the policy's actions or states; return their entity."""
        entity = f"policy/{name}"
        self.series(entity, [f"{name}[{i}]" for i in range(count)])
        return entity

    def blueprint(
        self,
        cameras: Sequence[str],
        heat: tuple[str, int] | None,
        series: Mapping[str, Sequence[str]],
        *documents: str,
    ) -> Any:
        """How the viewer opens: cameras above, scalars and texts below; its own panels are folded.

        Parameters
        ----------
        heat
            Phase and layer whose heat is shown at first; the others are in the tree to be chosen.
        series
            Entities of the scalars that are shown together, by the name of their view: a few lines each,
            since all heads of all layers would be hundreds.
        documents
            Entities of texts.
        """
        views = import_module("rerun.blueprint")
        above = []
        for camera in cameras:
            contents, name = [self.path("camera", camera)], camera
            if heat is not None:
                phase, layer = heat
                contents.append(self.path("camera", camera, "heat", phase, layer_name(layer)))
                name = f"{camera}, heat of {phase} {layer_name(layer)}"
            above.append(views.Spatial2DView(origin=contents[0], contents=contents, name=name))
        below = [
            views.TimeSeriesView(contents=list(entities), name=name)
            for name, entities in series.items()
        ]
        policy = views.TimeSeriesView(
            origin="policy", name="actions and state", plot_legend=views.PlotLegend(visible=False)
        )
        texts = [views.TextDocumentView(origin=d, name=d) for d in documents]
        return views.Blueprint(
            views.Vertical(
                views.Horizontal(*above),
                views.Horizontal(*below, policy, views.Vertical(*texts)),
                row_shares=[3, 2],
            ),
            views.BlueprintPanel(state="collapsed"),
            views.SelectionPanel(state="collapsed"),
            views.TimePanel(timeline="keyframe", state="collapsed"),
        )


class _Writer:
    """Everything that is checked is checked before the first byte is written."""

    def __init__(self, rr: Any, episode: Episode, what: Recorded) -> None:
        self.episode, self.what = episode, what
        self.cameras = check_cameras(episode, what.cameras)
        self.layers = check_layers(episode, what.phases, what.layers)
        self.metrics = [
            (metric, phase, camera, episode.stats(phase, camera, metric))
            for metric in what.metrics
            for phase in self.layers
            for camera in self.cameras
        ]
        self.entities = Entities(rr, f"{episode.run}/{episode.id}", self.what.cmap)
        self.stream = self.entities.stream

    def write(self, progress: Callable[[float, str], None]) -> bytes:
        """Return the whole recording, as a file holds it."""
        # Not Rerun's own file: after a write that failed, as on a full disk, its flush never returns.
        encoded = self.stream.binary_stream()
        try:
            self.stream.send_blueprint(self.blueprint(), make_active=False, make_default=True)
            self._log_all(progress)
            # Once: each read is a stream with a footer of its own.
            return bytes(encoded.read() or b"")
        finally:
            self.stream.disconnect()

    def _log_all(self, progress: Callable[[float, str], None]) -> None:
        self.entities.name(self.episode.name)
        self.entities.text("instruction", self._text(), static=True)
        pieces = self._pieces()
        # by layers: a metric's line takes a small part of the time of a map
        total = sum(weight for weight, _, _ in pieces)
        done = 0.0
        for weight, what, log in pieces:
            progress(done / total, what)
            log()
            done += weight
        progress(1.0, "writing")

    def _pieces(self) -> list[tuple[float, str, Callable[[], None]]]:
        """What is logged, in order: how much of the work it is, its name, what does it."""
        found: list[tuple[float, str, Callable[[], None]]] = [(1.0, "images", self._images)]
        for camera in self.cameras:
            for phase, layers in self.layers.items():
                log = partial(self._maps, phase, camera, layers)
                found.append((10.0 * len(layers), f"{phase}, {camera}", log))
        for metric, phase, camera, values in self.metrics:
            for layer in self.layers[phase]:
                log = partial(self._metric, metric, phase, camera, layer, values.sel(layer=layer))
                found.append((1.0, f"{metric}, {phase}", log))
        return [*found, *((1.0, name, partial(self._policy, name)) for name in POLICY)]

    def blueprint(self) -> Any:
        """How the viewer opens: with the heat of a layer in the middle."""
        phase, layers = next(iter(self.layers.items()))
        layer = layers[len(layers) // 2]
        shown = {
            f"{metric}, {phase} {layer_name(layer)}, {camera}": [
                self.entities.path("metrics", metric, phase, camera, layer_name(layer))
            ]
            for metric in self.what.metrics
            for camera in self.cameras
        }
        return self.entities.blueprint(self.cameras, (phase, layer), shown, "instruction")

    @cached_property
    def _times(self) -> list[float] | None:
        rows = self.episode.part.table("keyframes", ["keyframe", "timestamp"])
        times = rows.sort_by("keyframe")["timestamp"].to_pylist()
        return None if None in times else times

    def _at(self, keyframe: int, phase: str | None = None, step: int = 0) -> None:
        """Set every timeline, so that what is logged next is found on each."""
        stream = self.stream
        stream.set_time("keyframe", sequence=keyframe)
        stream.set_time("frame", sequence=int(self.episode.frames[keyframe]))
        if self._times is not None:
            stream.set_time("time", duration=self._times[keyframe])
        for other in self.layers:
            steps = self.episode.steps(other)
            if steps is not None:
                at = step if other == phase else 0
                stream.set_time(f"{other}_step", sequence=keyframe * steps + at)

    def _text(self) -> list[str]:
        episode = self.episode
        return [
            episode.instruction or "(no instruction)", "", f"episode {episode.name}",
            f"outcome {episode.outcome}", f"policy {episode.policy}", f"run {episode.run}",
        ]  # fmt: skip

    def _images(self) -> None:
        for keyframe in range(len(self.episode.frames)):
            for camera in self.cameras:
                try:
                    data = self.episode.image_bytes(keyframe, camera)
                except NotFoundError:
                    continue  # what a camera showed before the episode began
                self._at(keyframe)
                self.entities.image(camera, data)

    def _maps(self, phase: str, camera: str, layers: Sequence[int]) -> None:
        episode, what = self.episode, self.what
        steps = episode.steps(phase)
        shown = 0 if steps is None else default_step(episode, phase, None)
        for step in range(steps or 1) if what.all_steps else (shown,):
            maps = episode.maps(
                phase, camera, layer=list(layers), step=step, reduce=what.reduce
            ).values
            heads = [
                episode.active_head(
                    phase, camera, layer=n, step=step, reduce=what.reduce, active=what.active
                )
                for n in layers
            ]
            active = maps[:, np.arange(len(layers)), heads]
            ends = self._limits(camera, active)
            for keyframe in range(len(maps)):
                if np.isnan(maps[keyframe]).all():
                    continue
                self._at(keyframe, phase, step)
                self.entities.maps(phase, camera, maps[keyframe])
                self._heat(phase, camera, layers, active[keyframe], ends[keyframe])

    def _limits(self, camera: str, maps: NDArray[np.float32]) -> list[list[Limits]]:
        """Ends of the colours, by keyframe and layer, of maps (keyframe, layer, row, col)."""
        geometries = {camera: self.episode.geometry(camera)}

        def ends(values: NDArray[np.float32]) -> Limits:
            return self.what.scale.limits({camera: values}, geometries)[camera]

        if self.what.scale.scope == "video":
            return [[ends(maps[:, at]) for at in range(maps.shape[1])]] * len(maps)
        return [[ends(one) for one in keyframe] for keyframe in maps]

    def _heat(
        self, phase: str, camera: str, layers: Sequence[int], maps: NDArray[np.float32],
        ends: Sequence[Limits],
    ) -> None:  # fmt: skip
        """Log the heat of every layer's map, (layer, row, col)."""
        draw = heatmap.sampler(self.episode.geometry(camera)).draw
        for layer, one, limits in zip(layers, maps, ends, strict=True):
            self.entities.heat(phase, camera, layer, draw(one), limits)

    def _metric(
        self, metric: str, phase: str, camera: str, layer: int, stats: xr.DataArray
    ) -> None:
        """Log one metric of a layer's heads, (keyframe, [step], head)."""
        values = (stats if "step" in stats.dims else stats.expand_dims("step", 1)).values
        entity = self.entities.heads(metric, phase, camera, layer, values.shape[-1])
        for keyframe, steps in enumerate(values):
            for step, heads in enumerate(steps):
                if not np.isnan(heads).all():
                    self._at(keyframe, phase, step)
                    self.entities.scalars(entity, heads)

    def _policy(self, name: str) -> None:
        try:
            values = self.episode.policy_array(name)
        except NotFoundError:
            return  # the dataset records none
        if values.ndim == 3:
            values = values[:, 0]
        entity = self.entities.components(name, values.shape[-1])
        for keyframe, row in enumerate(values):
            self._at(keyframe)
            self.entities.scalars(entity, row)


def heat_png(heat: NDArray[np.float32], limits: Limits, cmap: str) -> bytes:
    """Encode heat as a PNG whose palette index is the level, 0..255, transparent where it is low.

    Parameters
    ----------
    heat
        (height, width); NaN has level 0.
    """
    picture = Image.fromarray(colormap.levels(heat, *limits))
    picture.putpalette(np.ascontiguousarray(colormap.table(cmap)).tobytes())
    opacity = 255 * DEFAULT_ALPHA * np.sqrt(np.linspace(0, 1, 256))
    data = io.BytesIO()
    picture.save(data, "PNG", transparency=opacity.round().astype(np.uint8).tobytes())
    return data.getvalue()


def layer_name(number: int) -> str:
    """Name of a layer in the path of an entity."""
    return f"L{number:02d}"


def load_rerun(what: str) -> Any:
    """Import rerun, or say what needs it and how to install it."""
    try:
        return import_module("rerun")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rerun":
            raise
        raise MissingExtraError(
            f"{what} needs rerun-sdk: pip install 'attnstore[rerun]'"
        ) from error

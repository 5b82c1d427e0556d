"""Episodes as a dataset of FiftyOne (https://docs.voxel51.com): images, heat, objects.

::

    metadata.json                                   what the dataset is of
    samples.json                                    a sample for each image of each keyframe
    data/<run>/<episode>/0003_<camera>.jpg          the image, as it was read
    fields/heat_<phase>_L05/<run>/<episode>/0003_<camera>.png    heat at the image's pixels, 8 bits
    fields/objects.detections/<run>/<episode>/0003_<camera>_00.png    an object's mask, its box alone

The dictionaries are those of ``fiftyone.Sample.from_dict``. There is no ``version`` in the metadata: by that
``fiftyone.types.FiftyOneDataset`` tells files like these from a copy of its own database, whose layout is
another one in every release.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import NotFoundError, UsageError
from attnstore.store.format.weighting import Weighting
from attnstore.store.image import read_header
from attnstore.store.reader.episode import Episode
from attnstore.store.reader.reads import Reduction
from attnstore.store.rules import Active

from ..picture import colormap, heatmap
from ..picture.drawing import component
from ..picture.scale import ColorScale, Limits
from ..picture.source import check_cameras, check_layers, default_step

SHARED = ColorScale("video")
"""One scale for all keyframes of an episode."""
SUFFIXES = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
METRICS = ("camera_mass", "entropy")
"""Of the head whose heat is shown; beside it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What goes into a dataset; None: all."""

    phases: Sequence[str] | None = None
    cameras: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    reduce: Reduction = "max"
    """Of maps, over the query tokens."""
    scale: ColorScale = SHARED
    """What the largest value of a heat map, 255, is."""
    active: Active = "image"
    """What makes a head the most active one, whose heat is shown."""
    weighting: Weighting = "raw"


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_dataset` wrote."""

    samples: int
    fields: tuple[str, ...]
    """Names of the fields with heat."""


def write_dataset(
    episodes: Sequence[Episode],
    target: Path,
    shown: Shown,
    store: str,
    progress: Callable[[float, str], None] = lambda share, name: None,
) -> Written:
    """Write episodes as a dataset of FiftyOne; the folder appears when it is complete.

    FiftyOne is not needed: ``fiftyone.Dataset.from_dir(dataset_dir=target,
    dataset_type=fiftyone.types.FiftyOneDataset)`` reads it.

    Parameters
    ----------
    target
        Folder to make.
    store
        Name of the store, to be shown.
    progress
        Called before each keyframe with the share of episodes that are done, and the episode.

    Raises
    ------
    UsageError
        If the target exists.
    SelectionError
        If an episode has no such phase, camera or layer.
    NotFoundError
        If there are no value norms to weight with.
    """
    target = target.absolute()
    if target.exists():
        raise UsageError(f"{target} exists; name a folder that does not")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    fields: dict[str, None] = {}
    count = 0
    try:
        partial.mkdir(parents=True)
        with (partial / "samples.json").open("w", encoding="utf-8") as file:
            file.write('{"samples": [')
            for number, episode in enumerate(episodes):

                def at(share: float, number: int = number, name: str = episode.name) -> None:
                    progress((number + share) / len(episodes), name)

                for sample in _Samples(episode, partial, shown).write(at):
                    fields |= dict.fromkeys(name for name in sample if name.startswith("heat_"))
                    file.write((",\n" if count else "\n") + json.dumps(sample, ensure_ascii=False))
                    count += 1
            file.write("\n]}\n")
        info = {
            "store": store, "weighting": shown.weighting, "reduce": shown.reduce,
            "heat": "0 to 255; 255 is the attention that attribute `top` says, on one patch",
        }  # fmt: skip
        text = json.dumps({"media_type": "image", "info": info}, indent=1)
        (partial / "metadata.json").write_text(text, encoding="utf-8")
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Written(count, tuple(fields))


class _Samples:
    """The samples of one episode, and their files."""

    def __init__(self, episode: Episode, root: Path, shown: Shown) -> None:
        self.episode, self.root, self.shown = episode, root, shown
        self.place = Path(component(episode.run), component(episode.id))
        self.heat: dict[str, dict[str, _Heat]] = {}
        for camera in check_cameras(episode, shown.cameras):
            of_camera = self.heat.setdefault(camera, {})
            for phase, layers in check_layers(episode, shown.phases, shown.layers).items():
                if camera in episode.phase(phase, camera).cameras:
                    for layer in layers:
                        of_camera[f"heat_{phase}_L{layer:02d}"] = _heat(
                            episode, phase, camera, layer, shown
                        )
        self.masks = episode.object_masks()

    def write(self, at: Callable[[float], None]) -> Iterator[dict[str, Any]]:
        """Write the files of each image, and yield its sample."""
        episode = self.episode
        for keyframe in range(len(episode.frames)):
            at(keyframe / len(episode.frames))
            for camera, heat in self.heat.items():
                try:
                    data = episode.image_bytes(keyframe, camera)
                except NotFoundError:
                    continue  # what a camera showed before the episode began
                header = read_header(data)
                name = f"{keyframe:04d}_{component(camera)}"
                path = Path("data", self.place, f"{name}.{SUFFIXES[header.media_type]}")
                self._put(path, data)
                yield {
                    "filepath": path.as_posix(), "_media_type": "image", "tags": [episode.outcome],
                    "episode": episode.name, "run": episode.run, "outcome": episode.outcome,
                    "task": episode.spec.task, "instruction": episode.instruction, "camera": camera,
                    "keyframe": keyframe, "frame": int(episode.frames[keyframe]),
                    **self._labels(keyframe, camera, name, heat),
                }  # fmt: skip

    def _labels(
        self, keyframe: int, camera: str, name: str, heat: Mapping[str, _Heat]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field, each in heat.items():
            if np.isnan(each.maps[keyframe]).all():
                continue
            path = Path("fields", field, self.place, f"{name}.png")
            limits = each.limits[keyframe]
            self._put(path, _png(colormap.levels(each.draw(each.maps[keyframe]), *limits)))
            found[field] = {
                "_cls": "Heatmap", "tags": [], "map_path": path.as_posix(), "range": [0.0, 255.0],
                "head": each.head, "top": float(limits.vmax),
                **{metric: _known(values[keyframe]) for metric, values in each.metrics.items()},
            }  # fmt: skip
        boxes: list[dict[str, Any]] = []
        for label, mask in sorted(self.masks.get((keyframe, camera), {}).items()):
            if mask.any():
                # FiftyOne completes paths below fields/ of the field that the folder names
                path = Path("fields/objects.detections", self.place, f"{name}_{len(boxes):02d}.png")
                box, cut = _box(mask)
                self._put(path, _png(cut * np.uint8(255)))
                boxes.append(
                    {"_cls": "Detection", "tags": [], "label": label, "bounding_box": box,
                     "mask_path": path.as_posix()}
                )  # fmt: skip
        if boxes:
            found["objects"] = {"_cls": "Detections", "detections": boxes}
        return found

    def _put(self, path: Path, data: bytes) -> None:
        whole = self.root / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(data)


@dataclass(frozen=True, slots=True, eq=False)
class _Heat:
    """Maps of one layer's most active head."""

    maps: NDArray[np.float32]
    """(keyframe, row, col)."""
    head: int
    limits: Sequence[Limits]
    """By keyframe."""
    metrics: Mapping[str, NDArray[np.floating]]
    """(keyframe,) each."""
    draw: Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _heat(episode: Episode, phase: str, camera: str, layer: int, shown: Shown) -> _Heat:
    stepped = episode.steps(phase) is not None
    step = default_step(episode, phase, None) if stepped else None
    head = episode.active_head(
        phase, camera, layer=layer, step=step, reduce=shown.reduce, active=shown.active,
        weighting=shown.weighting,
    )  # fmt: skip
    maps = episode.maps(
        phase, camera, layer=layer, head=head, step=step, reduce=shown.reduce,
        weighting=shown.weighting,
    ).values  # fmt: skip
    geometries = {camera: episode.geometry(camera)}
    if shown.scale.scope == "video":
        limits = [shown.scale.limits({camera: maps}, geometries)[camera]] * len(maps)
    else:
        limits = [shown.scale.limits({camera: one}, geometries)[camera] for one in maps]
    metrics = {
        metric: episode.stats(
            phase, camera, metric, layer=layer, head=head, step=step, weighting=shown.weighting
        ).values
        for metric in METRICS
    }
    return _Heat(maps, head, limits, metrics, heatmap.sampler(geometries[camera]).draw)


def _png(levels: NDArray[np.uint8]) -> bytes:
    ok, data = cv2.imencode(".png", levels)
    assert ok
    return data.tobytes()


def _box(mask: NDArray[np.bool_]) -> tuple[list[float], NDArray[np.bool_]]:
    """Left, top, width and height of a mask, as shares of the image; and the mask in that box."""
    rows, cols = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    height, width = mask.shape
    cut = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    shares = [cols[0] / width, rows[0] / height, cut.shape[1] / width, cut.shape[0] / height]
    return [float(share) for share in shares], cut


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None

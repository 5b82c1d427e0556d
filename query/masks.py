"""Object masks that a detector left beside an episode, read one frame at a time.

Two files are understood, in the episode's directory; for a camera other than ``hand_camera`` its
name is appended (``dinox_info_varied_camera_2.json``, masks under ``masks/varied_camera_2/``):

``dinox_info.json``
    ``{"25": [{"bbox": ..., "mask_file": "00025_cube_0.npy", "category": "cube", "score": 0.9}]}``.
    The key is the frame; ``mask_file`` is a bool array of the image's size under ``masks/``. An
    entry may hold ``"segmentation": {"size": [height, width], "counts": ...}`` instead of
    ``mask_file``: COCO's run lengths, as a list or as its string.
``coco_masks.json``
    A COCO data set: ``images`` (``id``, ``file_name``; the digits that end its stem are the
    frame), ``categories`` (``id``, ``name``) and ``annotations`` (``image_id``, ``category_id``,
    ``segmentation`` in run lengths, ``score`` if there is one). Polygons are refused.

``white_list.json``, if there, lists the frames whose masks were checked by a person: only they are
trusted, for every camera.

A detector numbers its detections per frame, without tracking. So all detections of a category in a
frame are one object: the union of their masks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from attnstore.store.errors import EpisodeError

from .rle import Mask, decode_rle

HAND_CAMERA = "hand_camera"
Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjectMask:
    """The pixels of one object at one frame."""

    category: str
    """What it is, in the detector's words: ``green cube``; or ``gripper``."""
    pixels: Mask
    """(height, width) of the camera's image."""
    instances: int = 1
    """Number of detections that were united."""
    score: float | None = None
    """The detector's confidence, the lowest of the detections; None if it gives none."""


class MaskSource(Protocol):
    """Where an episode's masks of one camera come from; read from one thread at a time."""

    @property
    def frames(self) -> Sequence[int]:
        """Frames with trusted masks, ascending; at some of them no object may be in view."""
        ...

    def read(self, frame: int, size: Size) -> list[ObjectMask]:
        """Masks of a frame's objects, one per category, sorted by it.

        Raises
        ------
        EpisodeError
            If one is missing, broken, or not of the image's size.
        """
        ...

    def digest(self) -> str:
        """SHA-256 over everything that the masks depend on."""
        ...


@dataclass(frozen=True, slots=True)
class _Detection:
    category: str
    score: float | None
    file: Path | None
    segmentation: Any
    where: str
    """Place in the JSON file, for messages."""


class DetectorMasks:
    """Masks of a detector's JSON file; made by `open_detector_masks`."""

    def __init__(
        self, episode: str, file: Path, detections: Mapping[int, Sequence[_Detection]]
    ) -> None:
        self.episode, self.file = episode, file
        self._white_list = file.with_name("white_list.json")
        trusted = _read_white_list(episode, self._white_list)
        self._detections = {
            frame: tuple(found)
            for frame, found in sorted(detections.items())
            if trusted is None or frame in trusted
        }
        if not self._detections:
            reason = f"{file.name} has no frames"
            if detections:
                reason = (
                    f"white_list.json trusts none of the {len(detections)} frames of {file.name}"
                )
            raise EpisodeError(episode, f"no masks: {reason}")

    @property
    def frames(self) -> Sequence[int]:
        """Trusted frames of the file, ascending."""
        return tuple(self._detections)

    def read(self, frame: int, size: Size) -> list[ObjectMask]:
        """Masks of a frame's objects; see `MaskSource.read`."""
        merged: dict[str, ObjectMask] = {}
        for detection in self._detections[frame]:
            pixels = self._pixels(detection, size)
            known = merged.get(detection.category)
            scores = [detection.score]
            count = 1
            if known is not None:
                pixels = pixels | known.pixels
                scores.append(known.score)
                count += known.instances
            lowest = min((s for s in scores if s is not None), default=None)
            merged[detection.category] = ObjectMask(detection.category, pixels, count, lowest)
        return [merged[category] for category in sorted(merged)]

    def digest(self) -> str:
        """SHA-256 over the JSON files and the mask files of the trusted frames."""
        whole = hashlib.sha256()
        files = {self.file, self._white_list}
        files.update(d.file for found in self._detections.values() for d in found if d.file)
        for file in sorted(files):
            # A missing mask is an error once it is read, and another digest until then.
            data = file.read_bytes() if file.is_file() else b"missing"
            whole.update(f"{file.name}\0{len(data)}\0".encode() + data)
        return whole.hexdigest()

    def _pixels(self, detection: _Detection, size: Size) -> Mask:
        if detection.file is None:
            pixels = self._run_lengths(detection)
        else:
            pixels = self._array(detection.file, detection.where)
        if pixels.shape != size:
            raise self._error(
                f"{detection.where}: the mask is {_pixels_text(pixels.shape)}, the camera's image "
                f"{_pixels_text(size)}; masks must have the image's resolution"
            )
        return pixels

    def _array(self, file: Path, where: str) -> Mask:
        try:
            # Mapped and not loaded: a header that promises terabytes costs nothing. This reader
            # knows no pickles at all, and np.load is told so as well should that ever change.
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise self._error(f"{where}: {_relative(file, self.file)} is missing") from None
        except (OSError, ValueError, EOFError) as error:
            text = " ".join(str(error).split())
            raise self._error(
                f"{where}: {_relative(file, self.file)} is not a NumPy array file ({text})"
            ) from None
        if not isinstance(array, np.ndarray):
            array.close()
            raise self._error(f"{where}: {_relative(file, self.file)} is an archive, not one array")
        if array.dtype != np.bool_ or array.ndim != 2:
            raise self._error(
                f"{where}: {_relative(file, self.file)} holds {array.dtype} of shape "
                f"{array.shape}; a mask is bool of shape (height, width)"
            )
        if array.shape[0] * array.shape[1] > file.stat().st_size:
            raise self._error(f"{where}: {_relative(file, self.file)} is cut short")
        return np.array(array)

    def _run_lengths(self, detection: _Detection) -> Mask:
        raw = detection.segmentation
        if isinstance(raw, list):
            raise self._error(
                f"{detection.where}: the segmentation is a polygon; run lengths are expected, "
                '{"size": [height, width], "counts": ...}'
            )
        try:
            height, width = (int(n) for n in raw["size"])
            return decode_rle((height, width), raw["counts"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(
                f"{detection.where}: not run lengths of COCO: {error or repr(error)}"
            ) from None

    def _error(self, reason: str) -> EpisodeError:
        return EpisodeError(self.episode, f"{self.file.name}, {reason}")


def open_detector_masks(episode: str, directory: Path, camera: str) -> DetectorMasks:
    """Open the masks of one camera of an episode.

    Parameters
    ----------
    episode
        The episode's name, for messages.
    directory
        The episode's own directory.
    camera
        Camera whose masks are wanted.

    Raises
    ------
    EpisodeError
        If there are none, or a JSON file is not what this module's text says.
    """
    suffix = "" if camera == HAND_CAMERA else f"_{camera}"
    folder = directory / "masks"
    if suffix:
        folder /= camera
    detector, coco = directory / f"dinox_info{suffix}.json", directory / f"coco_masks{suffix}.json"
    if detector.is_file():
        return DetectorMasks(episode, detector, _read_detector(episode, detector, folder))
    if coco.is_file():
        return DetectorMasks(episode, coco, _read_coco(episode, coco))
    raise EpisodeError(
        episode, f"no masks of {camera}: neither {detector.name} nor {coco.name} is there"
    )


def _read_detector(episode: str, file: Path, folder: Path) -> dict[int, list[_Detection]]:
    raw = _read_json(episode, file)
    if not isinstance(raw, dict):
        raise EpisodeError(episode, f"{file.name} is not an object of frames")
    found: dict[int, list[_Detection]] = {}
    for key, entries in raw.items():
        if not re.fullmatch("[0-9]{1,9}", key):
            raise EpisodeError(episode, f"{file.name}: {key!r} is not a frame index")
        if not isinstance(entries, list):
            raise EpisodeError(episode, f"{file.name}, frame {key}: not a list of detections")
        detections = found.setdefault(int(key), [])
        for index, entry in enumerate(entries):
            where = f"frame {key}, detection {index}"
            if not isinstance(entry, dict):
                raise EpisodeError(episode, f"{file.name}, {where}: not an object")
            path = None
            if "mask_file" in entry:
                path = _mask_path(episode, file, folder, entry["mask_file"], where)
            elif "segmentation" not in entry:
                raise EpisodeError(
                    episode, f"{file.name}, {where}: has neither mask_file nor segmentation"
                )
            category = _category(episode, file, entry.get("category"), where)
            score = _score(episode, file, entry.get("score"), where)
            detections.append(_Detection(category, score, path, entry.get("segmentation"), where))
    return found


def _read_coco(episode: str, file: Path) -> dict[int, list[_Detection]]:
    raw = _read_json(episode, file)
    try:
        images = {image["id"]: str(image["file_name"]) for image in raw["images"]}
        names = {c["id"]: c["name"] for c in raw["categories"]}
        annotations = [
            (a["image_id"], a["category_id"], a["segmentation"], a.get("score"))
            for a in raw["annotations"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise EpisodeError(
            episode, f"{file.name} is not a COCO data set with run lengths ({error!r})"
        ) from None
    frames: dict[Any, int] = {}
    for image, name in images.items():
        digits = re.search("[0-9]{1,9}$", PurePosixPath(name).stem)
        if digits is None:
            raise EpisodeError(
                episode, f"{file.name}: image {name!r} does not end with its frame's number"
            )
        frames[image] = int(digits[0])
    found: dict[int, list[_Detection]] = {frame: [] for frame in frames.values()}
    for index, (image, category, segmentation, score) in enumerate(annotations):
        where = f"annotation {index}"
        if image not in frames:
            raise EpisodeError(episode, f"{file.name}, {where}: no image {image!r}")
        if category not in names:
            known = ", ".join(f"{i} {n}" for i, n in names.items()) or "none"
            raise EpisodeError(
                episode, f"{file.name}, {where}: no category {category!r}; there are: {known}"
            )
        found[frames[image]].append(
            _Detection(
                _category(episode, file, names[category], where),
                _score(episode, file, score, where),
                None,
                segmentation,
                f"frame {frames[image]}, {where}",
            )
        )
    return found


def _mask_path(episode: str, file: Path, folder: Path, name: Any, where: str) -> Path:
    pure = PurePosixPath(name) if isinstance(name, str) else PurePosixPath()
    inside = pure.parts and not pure.is_absolute() and ".." not in pure.parts
    if not inside or "\\" in name or "\0" in name:
        raise EpisodeError(
            episode, f"{file.name}, {where}: mask_file {name!r} is not a path below {folder.name}/"
        )
    path = folder / pure
    # A link may lead out as well as a name.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise EpisodeError(episode, f"{file.name}, {where}: mask_file {name!r} leaves its folder")
    return path


def _category(episode: str, file: Path, value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise EpisodeError(
            episode, f"{file.name}, {where}: the category is text that is not empty; got {value!r}"
        )
    return " ".join(value.split())


def _score(episode: str, file: Path, value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EpisodeError(episode, f"{file.name}, {where}: score is a number; got {value!r}")
    return float(value)


def _read_white_list(episode: str, file: Path) -> set[int] | None:
    if not file.is_file():
        return None
    raw = _read_json(episode, file)
    whole = isinstance(raw, list) and all(isinstance(n, int) and n >= 0 for n in raw)
    if not whole:
        raise EpisodeError(episode, f"{file.name} is not a list of frame indices")
    return set(raw)


def _read_json(episode: str, file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise EpisodeError(episode, f"{file.name} is not readable as JSON ({text})") from None


def _relative(file: Path, beside: Path) -> str:
    return file.relative_to(beside.parent).as_posix()


def _pixels_text(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} pixels"

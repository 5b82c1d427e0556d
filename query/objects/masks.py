"""Object masks of an episode, one camera at a time: the seam to whatever makes them.

A detector leaves its masks in the episode's directory, as `attnstore.query.objects.detections` describes:
``dinox_info.json`` with ``masks/*.npy``, or ``coco_masks.json``; for a camera other than
``hand_camera`` its name is appended (``dinox_info_varied_camera_2.json``, and the arrays lie under
``masks/varied_camera_2/``). ``white_list.json`` counts for all cameras.

A detector numbers what it finds frame by frame, without tracking. So all detections of a category
at a frame are one object: the union of their masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Protocol

import numpy as np

from attnstore.store.errors import EpisodeError
from attnstore.store.format.orientation import Orientation
from attnstore.store.format.rle import Mask, decode_rle

from .detections import Detection, Detections, read_coco_file, read_detector_file, read_white_list

HAND_CAMERA = "hand_camera"
WHITE_LIST = "white_list.json"
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
    """Where an episode's masks of one camera come from; used from one thread at a time."""

    @property
    def frames(self) -> Sequence[int]:
        """Frames with trusted masks, ascending; at some of them no object may be in view."""
        ...

    def read(self, frame: int, size: Size) -> list[ObjectMask]:
        """Masks of one of `frames`, one per object, sorted by category.

        Parameters
        ----------
        size
            Of the camera's image.

        Raises
        ------
        EpisodeError
            If a mask is missing, broken, or not of the image's size.
        """
        ...

    def digest(self) -> str:
        """SHA-256 over everything that the masks depend on."""
        ...


class DetectorMasks:
    """Masks that a detector left in files; made by `open_detector_masks`."""

    def __init__(
        self, episode: str, file: Path, detections: Detections, trusted: frozenset[int] | None
    ) -> None:
        self.episode, self.file = episode, file
        self._detections = {
            frame: tuple(found)
            for frame, found in sorted(detections.items())
            if trusted is None or frame in trusted
        }
        if not self._detections:
            reason = "it has no frames"
            if detections:
                reason = f"{WHITE_LIST} trusts none of its {len(detections)} frames"
            raise self._error(reason)

    @property
    def frames(self) -> Sequence[int]:
        """Trusted frames of the file, ascending."""
        return tuple(self._detections)

    def read(self, frame: int, size: Size) -> list[ObjectMask]:
        """Masks of a frame's objects; see `MaskSource.read`."""
        united: dict[str, ObjectMask] = {}
        for detection in self._detections[frame]:
            found = ObjectMask(
                detection.category, self._pixels(detection, size), 1, detection.score
            )
            known = united.get(detection.category)
            united[detection.category] = found if known is None else _unite(known, found)
        return [united[category] for category in sorted(united)]

    def digest(self) -> str:
        """SHA-256 over the JSON files and the mask files of the trusted frames."""
        whole = hashlib.sha256()
        files = {self.file, self.file.with_name(WHITE_LIST)}
        files.update(d.file for found in self._detections.values() for d in found if d.file)
        for file in sorted(files):
            # A missing mask is an error once it is read; until then it is one more state.
            data = file.read_bytes() if file.is_file() else b"missing"
            whole.update(f"{file.name}\0{len(data)}\0".encode() + data)
        return whole.hexdigest()

    def _pixels(self, detection: Detection, size: Size) -> Mask:
        if detection.file is not None:
            pixels = self._array(detection.file, detection.where)
        else:
            pixels = self._run_lengths(detection)
        if pixels.shape != tuple(size):
            height, width = pixels.shape
            raise self._error(
                f"{detection.where}: the mask is {width}x{height} pixels, the camera's image "
                f"{size[1]}x{size[0]}; masks have the image's resolution"
            )
        return pixels

    def _array(self, file: Path, where: str) -> Mask:
        name = file.relative_to(self.file.parent).as_posix()
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise self._error(f"{where}: {name} is not a file")
        try:
            # Mapped and not loaded: a header that promises terabytes costs nothing.
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise self._error(f"{where}: {name} is missing") from None
        except (OSError, ValueError, EOFError, TokenError) as error:
            text = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise self._error(f"{where}: {name} is not a NumPy array file ({text})") from None
        if not isinstance(array, np.ndarray):
            array.close()
            raise self._error(f"{where}: {name} is an archive; one array is expected")
        if array.dtype != np.bool_ or array.ndim != 2:
            raise self._error(
                f"{where}: {name} holds {array.dtype} of shape {array.shape}; a mask is bool of "
                "shape (height, width)"
            )
        pixels = np.array(array)
        if (pixels.view(np.uint8) > 1).any():
            raise self._error(
                f"{where}: {name} holds bytes that are neither 0 nor 1; copy the file again"
            )
        return pixels

    def _run_lengths(self, detection: Detection) -> Mask:
        raw, where = detection.segmentation, detection.where
        expected = 'run lengths are expected: {"size": [height, width], "counts": ...}'
        if raw is None or raw in ([], {}, "", [[]]):
            raise self._error(
                f"{where}: the segmentation is empty ({raw!r}), a box without a mask; {expected}, "
                "or leave the detection out"
            )
        if isinstance(raw, list):
            raise self._error(f"{where}: the segmentation is a polygon; {expected}")
        try:
            height, width = raw["size"]
            return decode_rle((height, width), raw["counts"])
        except (KeyError, TypeError, ValueError) as error:
            text = str(error) if isinstance(error, ValueError) else repr(error)
            raise self._error(f"{where}: the segmentation is not COCO's: {text}") from None

    def _error(self, reason: str) -> EpisodeError:
        return EpisodeError(self.episode, f"{self.file.name}: {reason}")


class OrientedMasks:
    """Masks of the recorded image, turned as its run turned the image.

    Parameters
    ----------
    source
        Masks of the image as it was recorded.
    orientation
        How the run turned it.
    """

    def __init__(self, source: MaskSource, orientation: Orientation) -> None:
        self._source, self._orientation = source, orientation

    @property
    def frames(self) -> Sequence[int]:
        """See `MaskSource.frames`."""
        return self._source.frames

    def read(self, frame: int, size: Size) -> list[ObjectMask]:
        """See `MaskSource.read`; `size` is that of the turned image."""
        return [
            replace(mask, pixels=self._orientation.apply(mask.pixels))
            for mask in self._source.read(frame, self._orientation.recorded(size))
        ]

    def digest(self) -> str:
        """See `MaskSource.digest`: a run's orientation is its own, and no input beside it."""
        return self._source.digest()


def detector_files(directory: Path, camera: str) -> tuple[Path, Path]:
    """Files that may hold a camera's detections: in the lab's form, and in COCO's."""
    suffix = "" if camera == HAND_CAMERA else f"_{camera}"
    return directory / f"dinox_info{suffix}.json", directory / f"coco_masks{suffix}.json"


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
        If there are none, or a JSON file is not what it should be.
    """
    folder = directory / "masks"
    if camera != HAND_CAMERA:
        folder /= camera
    detector, coco = detector_files(directory, camera)
    file = next((f for f in (detector, coco) if f.is_file()), None)
    if file is None:
        raise EpisodeError(
            episode, f"no masks of {camera}: neither {detector.name} nor {coco.name} is there"
        )
    reading = file
    try:
        found = (
            read_detector_file(file, folder) if file == detector else read_coco_file(file, camera)
        )
        reading = directory / WHITE_LIST
        trusted = read_white_list(reading)
    except ValueError as error:
        raise EpisodeError(episode, f"{reading.name}: {error}") from None
    return DetectorMasks(episode, file, found, trusted)


def _unite(one: ObjectMask, other: ObjectMask) -> ObjectMask:
    scores = [s for s in (one.score, other.score) if s is not None]
    return ObjectMask(
        one.category,
        one.pixels | other.pixels,
        one.instances + other.instances,
        min(scores, default=None),
    )

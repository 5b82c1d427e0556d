"""What an HDF5 file of a recording holds: numbers, a row a step, and stacks of pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError
from attnstore.store.image import MOST_PIXELS, PNG, encode_png

from ..optional import require
from .base import CameraFrame, copy_again

LARGEST = 1 << 28
"""Numbers of a dataset that is read at all: days at 1000 steps a second."""


@contextmanager
def reading(episode: str, path: Path) -> Iterator[Any]:
    """Open a file; whatever HDF5 finds wrong with it meanwhile is the episode's error.

    Raises
    ------
    EpisodeError
        If it is not readable.
    MissingExtraError
        If h5py is not installed.
    """
    h5py = require("h5py", "ingest", f"reading {path.name}")
    try:
        # no lock: read-only and network file systems refuse one, and nobody writes a recording
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).replace(str(path), path.name).split())[:200]
        size = path.stat().st_size if path.is_file() else 0
        raise EpisodeError(
            episode,
            f"{path.name} ({size} bytes) is not readable as HDF5: {reason}; {copy_again(path)}",
        ) from error


def rows(episode: str, file: Any, key: str, ndim: int | None = None) -> NDArray[Any]:
    """Read numbers, one row a step.

    Parameters
    ----------
    file
        An open file or a group of one.
    ndim
        1: a number a step, which exporters also write as (step, 1). 2: a vector a step. None: either,
        made (step, component).

    Raises
    ------
    EpisodeError
        If there is no such dataset, or it holds anything else.
    """
    name = Path(file.file.filename).name
    dataset = _dataset(episode, file, key)
    shape = tuple(dataset.shape or ())
    if math.prod(shape) > LARGEST:
        raise EpisodeError(
            episode,
            f"{key} in {name} has shape {shape}, more than any recording; copy the file again",
        )
    values = np.asarray(dataset[()])
    if ndim == 1 and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if ndim is None and values.ndim == 1:
        values = values[:, None]
    if values.ndim != (ndim or 2) or values.dtype.kind not in "fiub":
        expected = "(step,)" if ndim == 1 else "(step, joint)"
        raise EpisodeError(
            episode,
            f"{key} in {name} must hold numbers of shape {expected}; it has shape {shape} and type "
            f"{values.dtype}; export the file again",
        )
    return values


def joined(episode: str, file: Any, keys: Sequence[str], steps: int) -> NDArray[np.float32]:
    """Read columns of numbers and join them, (step, component).

    Raises
    ------
    EpisodeError
        If one is missing, is no numbers, or has not `steps` rows.
    """
    found = [rows(episode, file, key) for key in keys]
    for key, values in zip(keys, found, strict=True):
        if len(values) != steps:
            name = Path(file.file.filename).name
            raise EpisodeError(
                episode,
                f"all datasets of an episode have one row a step: {key} in {name} has {len(values)}, the "
                f"first camera {steps}; export the file again",
            )
    if not found:
        return np.empty((steps, 0), np.float32)
    with np.errstate(over="ignore"):  # becomes infinite, which `check_finite` reports
        return np.concatenate(found, axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class StackedImages:
    """One camera's frames as an array of an open file, (step, height, width, 3) uint8."""

    episode: str
    camera: str
    key: str
    dataset: Any

    def __len__(self) -> int:
        return int(self.dataset.shape[0])

    def check(self) -> None:
        """Check that these are pictures of 8 bits a channel.

        Raises
        ------
        EpisodeError
            If they are not.
        """
        shape, kind = tuple(self.dataset.shape or ()), self.dataset.dtype
        if kind != np.uint8 or len(shape) != 4 or shape[-1] not in (3, 4):
            raise EpisodeError(
                self.episode,
                f"a camera's pictures are (step, height, width, 3) of uint8; {self.key} is {shape} of "
                f"{kind}: leave the camera out if it is depth, else store it so",
            )
        if not 0 < shape[1] * shape[2] <= MOST_PIXELS:
            raise EpisodeError(
                self.episode,
                f"{self.key} has pictures of {shape[2]}x{shape[1]} pixels; store it smaller",
            )

    def read(self, step: int) -> CameraFrame:
        """Return one frame; what is kept of it are its exact pixels. Alpha is left out."""
        rgb = np.ascontiguousarray(self.dataset[step][..., :3])
        return CameraFrame(self.camera, encode_png(rgb), PNG, rgb)


class EncodedRows(Sequence[bytes]):
    """Encoded images of an open file, one a step: rows that zeros fill up, or of any length."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return int(self._dataset.shape[0])

    def __getitem__(self, step: Any) -> Any:
        value = self._dataset[step]
        # no encoded image ends with a zero: JPEG in FF D9, PNG in its checksum's AE 42 60 82
        data = value if isinstance(value, bytes) else np.asarray(value, np.uint8).tobytes()
        return data.rstrip(b"\0")


def holds_encoded(dataset: Any) -> bool:
    """Whether a dataset holds an encoded image a step: rows of bytes, vectors of bytes, or byte strings."""
    shape, kind = tuple(dataset.shape or ()), dataset.dtype
    if len(shape) == 2:
        return bool(kind == np.uint8)
    h5py = require("h5py", "ingest", "reading HDF5")
    return len(shape) == 1 and (
        kind.kind == "S"
        or h5py.check_vlen_dtype(kind) == np.uint8
        or h5py.check_string_dtype(kind) is not None
    )


def _dataset(episode: str, file: Any, key: str) -> Any:
    dataset = file.get(key)
    if not hasattr(dataset, "shape"):
        name = Path(file.file.filename).name
        raise EpisodeError(
            episode, f"{name} has no dataset {key}; export the file again with its keys"
        )
    return dataset


def texts(value: Any) -> str:
    """Return a text of an attribute or a dataset: of bytes, and of a list the parts together."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return "".join(map(texts, value))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

"""One episode of an RLDS dataset: the flat values of its record, cut into steps."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError

from ..stills import EncodedImages
from .description import STEPS, Feature
from .records import Values


@dataclass(frozen=True, slots=True)
class Record:
    """A parsed record, and how its features are to be read."""

    episode: str
    values: Mapping[str, Values]
    features: Mapping[str, Feature]
    """Of the steps, by path without ``steps/``."""

    def column(self, path: str, steps: int | None = None) -> NDArray[np.float32]:
        """Return a column of numbers, (step, dof).

        Raises
        ------
        EpisodeError
            If it is missing, or has not `steps` rows.
        """
        feature = self.features[path]
        width = int(np.prod([n or 1 for n in feature.shape], dtype=np.int64))
        found = self._found(path)
        if isinstance(found, list):
            flat = self._decoded(path, feature, found)
        else:
            flat = np.asarray(found)
        if width == 0 or flat.size % width:
            raise EpisodeError(
                self.episode, f"{STEPS}/{path} has {width} numbers a step; {flat.size} are recorded"
            )
        with np.errstate(over="ignore"):  # becomes infinite, which `check_finite` reports
            rows: NDArray[np.float32] = flat.reshape(-1, width).astype(np.float32)
        self._check_rows(path, len(rows), steps)
        return rows

    def texts(self, path: str, steps: int | None = None) -> list[str]:
        """Return a column of texts, one a step.

        Raises
        ------
        EpisodeError
            If it is missing, has not `steps` rows, or is no UTF-8.
        """
        found = self._found(path)
        if not isinstance(found, list):
            raise EpisodeError(self.episode, f"{STEPS}/{path} is a text; numbers are recorded")
        self._check_rows(path, len(found), steps)
        try:
            return [text.decode() for text in found]
        except UnicodeDecodeError as error:
            raise EpisodeError(
                self.episode, f"{STEPS}/{path} is no UTF-8 ({error.reason} at {error.start})"
            ) from None

    def images(self, path: str, steps: int | None = None) -> EncodedImages:
        """Return a camera's encoded images, one a step.

        Raises
        ------
        EpisodeError
            If it is missing or has not `steps` rows.
        """
        found = self._found(path)
        if not isinstance(found, list):
            raise EpisodeError(self.episode, f"{STEPS}/{path} is images; numbers are recorded")
        self._check_rows(path, len(found), steps)
        return EncodedImages(self.episode, camera_name(path), f"{STEPS}/{path}", found)

    def metadata(self) -> dict[str, Any]:
        """Return what the record says of the episode as a whole: single numbers and texts."""
        return {
            path: _plain(values[0])
            for path, values in self.values.items()
            if not path.startswith(f"{STEPS}/") and len(values) == 1
        }

    def _found(self, path: str) -> Values:
        found = self.values.get(f"{STEPS}/{path}")
        if found is None:
            raise EpisodeError(self.episode, f"its record has no {STEPS}/{path}")
        return found

    def _check_rows(self, path: str, rows: int, steps: int | None) -> None:
        if steps is not None and rows != steps:
            raise EpisodeError(
                self.episode,
                f"all columns have a row a step: {STEPS}/{path} has {rows}, the first camera "
                f"{steps}; export the episode again",
            )

    def _decoded(self, path: str, feature: Feature, found: Sequence[bytes]) -> NDArray[Any]:
        try:
            packed = [zlib.decompress(b) if feature.encoding == "zlib" else b for b in found]
            return np.frombuffer(b"".join(packed), np.dtype(feature.dtype).newbyteorder("<"))
        except (TypeError, ValueError, zlib.error) as error:
            raise EpisodeError(
                self.episode, f"{STEPS}/{path} is no {feature.encoding} of {feature.dtype}: {error}"
            ) from None


def camera_name(path: str) -> str:
    """Return what a camera is called: ``observation/image_0`` is ``image_0``."""
    return path.removeprefix("observation/").replace("/", ".")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value

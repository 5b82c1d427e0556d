"""A camera recorded as numbered image files, and decoding that refuses truncated ones."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnstore.store.errors import EpisodeError

from .base import CameraFrame

MEDIA_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}

_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class Stills:
    """One camera's frames as image files, ``00000.jpg`` first, without gaps."""

    episode: str
    camera: str
    paths: tuple[Path, ...]
    """One file a frame; the position is the frame's index."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def source(self) -> str:
        """Directory or kind of file under ``recordings/``."""
        return "frames"

    @property
    def rate(self) -> None:
        """Image files don't record a frame rate."""
        return None

    def check_sizes(self) -> None:
        """Read every file's header: all frames of a camera have one size.

        Raises
        ------
        EpisodeError
            If a header is unreadable or a size differs from the first frame's.
        """
        first: tuple[int, int] | None = None
        for path in self.paths:
            try:
                with Image.open(path) as image:
                    size = image.size
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise self._undecodable(path, str(error)) from error
            first = first or size
            if size != first:
                raise self._resized(path, size, first)

    def read(self, indices: Sequence[int]) -> Iterator[CameraFrame]:
        """Yield the asked frames in the given order; ``data`` is the file's own bytes.

        Raises
        ------
        EpisodeError
            If a file cannot be read, is cut short, or differs in size from those before it.
        """
        first: tuple[int, int] | None = None
        for index in indices:
            path = self.paths[index]
            try:
                data = path.read_bytes()
                rgb = decode(data)
            except (OSError, ValueError) as error:
                raise self._undecodable(path, str(error)) from error
            size = (rgb.shape[1], rgb.shape[0])
            first = first or size
            if size != first:
                raise self._resized(path, size, first)
            yield CameraFrame(self.camera, data, MEDIA_TYPES[path.suffix.lower()], rgb)

    def _undecodable(self, path: Path, reason: str) -> EpisodeError:
        # Pillow's reasons may carry the absolute path or the buffer's address
        brief = reason.partition(" '")[0].partition(" <")[0].rstrip(":")
        size = path.stat().st_size if path.exists() else 0  # a dangling link does not exist
        return EpisodeError(
            self.episode,
            f"recordings/frames/{self.camera}/{path.name} ({size} bytes) is not a "
            f"complete image: {brief}; copy the file again",
        )

    def _resized(self, path: Path, size: tuple[int, int], first: tuple[int, int]) -> EpisodeError:
        return EpisodeError(
            self.episode,
            f"all frames of a camera have one size: recordings/frames/{self.camera}/{path.name} is "
            f"{size[0]}x{size[1]}, the frames before it are {first[0]}x{first[1]}; "
            "re-export the camera's frames at one size",
        )


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG to RGB, (height, width, 3), as stored (no EXIF rotation).

    Raises
    ------
    ValueError
        If the bytes are not an image, or are cut short.
    """
    # OpenCV fills a truncated image with grey and says nothing. Pillow refuses a short file, but
    # not one whose tail was lost to zeros (a crash after preallocation): hence the marker. It is
    # looked for after the last scan, since an EXIF thumbnail has an end marker of its own.
    if data.startswith(b"\xff\xd8") and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
        raise ValueError("truncated: no JPEG end-of-image marker")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error

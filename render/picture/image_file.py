"""Pictures as files: encoded by OpenCV, and present under their name only when complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.boundary import is_full
from attnstore.store.errors import EpisodeError, UsageError
from attnstore.store.image import ImageError
from attnstore.store.image import decode as decode_image

FORMATS = ("jpg", "png", "webp")
DEFAULT_QUALITY = 90


def encode(image: NDArray[np.uint8], format: str, quality: int = DEFAULT_QUALITY) -> bytes:
    """Encode a picture.

    Parameters
    ----------
    image
        (height, width, 3) uint8 RGB.
    format
        ``jpg``, ``png`` or ``webp``.
    quality
        1 to 100, for JPEG and WebP.
    """
    if format not in FORMATS:
        raise UsageError(f"a picture's format is one of {', '.join(FORMATS)}; got {format!r}")
    if not 1 <= quality <= 100:
        raise UsageError(f"quality is between 1 and 100; got {quality}")
    parameters = {
        "jpg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        # level 1 is 3 times faster than OpenCV's default and 10 % larger on overlays
        "png": [cv2.IMWRITE_PNG_COMPRESSION, 1],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, quality],
    }[format]
    ok, data = cv2.imencode(f".{format}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), parameters)
    if not ok:
        raise UsageError(f"OpenCV cannot encode {format} of shape {image.shape}")
    return data.tobytes()


def decode(data: bytes, episode: str, what: str) -> NDArray[np.uint8]:
    """Decode a stored image, as `attnstore.store.image.decode` does for the policy.

    Parameters
    ----------
    episode, what
        Name of the episode and of the image in it, for the error's text.

    Returns
    -------
    (height, width, 3) uint8 RGB, the pixels as stored: an EXIF orientation is not applied, since
    the geometry refers to stored pixels.

    Raises
    ------
    EpisodeError
        If the bytes are no image, or one that no store holds.
    """
    try:
        return decode_image(data)
    except ImageError as error:
        raise EpisodeError(
            episode, f"{what} is not a readable image ({len(data)} bytes): {error}"
        ) from error


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its name when the block ends well.

    If the block raises, nothing is left. A killed process leaves at most a hidden ``.part`` file,
    never half a picture under the final name.

    Raises
    ------
    OSError
        Of the block, about ``path``: a full disk names no file, and the temporary name is nobody's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # the token keeps apart two processes that draw the same episode
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105  # atomic on every platform, unlike rename
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError) and (
            (error.filename is None and is_full(error))  # what only writing meets
            or str(error.filename) == str(temporary)
        ):
            # PyAV's own errors cannot be renamed.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write(path: Path, image: NDArray[np.uint8], quality: int = DEFAULT_QUALITY) -> Path:
    """Write a picture in the format that the name's extension says; see `encode`."""
    data = encode(image, path.suffix[1:].lower().replace("jpeg", "jpg"), quality)
    with complete(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file that goes with pictures, in UTF-8."""
    with complete(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path

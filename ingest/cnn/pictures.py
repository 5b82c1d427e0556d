"""The pictures that a network is shown, and how they become its input."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.commits import slug
from attnstore.store.errors import EpisodeError, NotFoundError, UsageError
from attnstore.store.image import ImageError, decode

from .base import ConvNetwork, Images

Pixels = NDArray[np.uint8]
"""(height, width, 3) RGB."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Encoded pictures of one camera, or one file, and where in a store their results belong."""

    run: str | None
    """Of the episode; None: the network's own run."""
    episode: str
    """Id in the store."""
    name: str
    """The episode's own name, or the file's."""
    images: tuple[bytes, ...]
    """JPEG, PNG or WebP."""
    inputs: str
    """Digest of what the pictures are."""
    keyframes: tuple[int, ...] = (0,)
    frames: tuple[int, ...] = ()
    """Frame of each keyframe; none for a file."""
    camera: str | None = None


def picture_file(file: Path) -> Pictures:
    """Take one picture from a file.

    Raises
    ------
    NotFoundError
        If there is no such file.
    """
    if not file.is_file():
        raise NotFoundError(f"no picture {file}")
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    readable = slug(file.name).rpartition("-")[0]
    return Pictures(None, f"{readable}-{digest[:8]}", file.name, (data,), digest)


def as_input(network: ConvNetwork, pictures: Pictures, at: int, size: int) -> tuple[Pixels, Images]:
    """Decode a picture, scale it, and normalise it.

    Parameters
    ----------
    at
        Which one.
    size
        Length of the shorter side in pixels; the aspect stays, nothing is cut off.

    Returns
    -------
    The scaled picture, and (1, channel, row, col) in the network's units. A network of 6 channels
    (a camera and its goal, as Octo's) gets black for the goal.

    Raises
    ------
    EpisodeError
        If it is no picture.
    UsageError
        If the network takes neither grey, nor colour, nor two colour pictures.
    """
    data = pictures.images[at]
    try:
        pixels = decode(data)
    except ImageError as error:
        raise EpisodeError(
            pictures.name, f"picture {at} ({len(data)} bytes) cannot be decoded: {error}"
        ) from error
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    if scale != 1:
        shape = max(1, round(width * scale)), max(1, round(height * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        pixels = np.asarray(cv2.resize(pixels, shape, interpolation=method), np.uint8)
    planes = _planes(network, pixels).astype(np.float32) / np.float32(255)
    mean, std = (
        np.asarray(v, np.float32)[:, None, None] for v in (network.mean, network.std)
    )  # fmt: skip
    return pixels, np.asarray((planes - mean) / std, np.float32)[None]


def _planes(network: ConvNetwork, pixels: Pixels) -> Pixels:
    """Channels of the input, (channel, row, col)."""
    colours = np.moveaxis(pixels, -1, 0)
    if network.channels == 3:
        return np.asarray(colours)
    if network.channels == 1:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)[None]
    if network.channels == 6:
        return np.concatenate([colours, np.zeros_like(colours)])
    raise UsageError(
        f"{network.name} takes {network.channels} channels; a picture gives 1, 3, or 6 with a goal"
    )


def check_sizes(sizes: Sequence[tuple[int, int]], name: str) -> None:
    """Raise `EpisodeError` if pictures of one camera differ in (height, width)."""
    if len(set(sizes)) > 1:
        raise EpisodeError(name, f"its pictures differ in size: {sorted(set(sizes))}")

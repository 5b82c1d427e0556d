"""From values of a convolutional network to pixels: learned inputs, gradients, feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ..picture import colormap

Image = NDArray[np.uint8]
CONTRAST = 0.2
"""Share of the range of brightness that one standard deviation of an image gets."""
OUTLIERS = 99.5
"""Percentile of a gradient's sizes above 0 that is drawn at full strength."""


def learned(
    image: NDArray[np.floating], std: Sequence[float], like: NDArray[np.floating] | None = None
) -> list[Image]:
    """Draw the input that an ascent ended at.

    It has no bounds: its own mean is drawn grey, and its standard deviation sets the contrast.

    Parameters
    ----------
    image
        (channel, row, col) in the network's units.
    std
        Per channel: unit of the network in pixels 0..1.
    like
        Image whose mean and contrast to use, such as the last one in a video.

    Returns
    -------
    A picture (row, col, 3) for every three channels; of one channel, grey.
    """
    scale = np.asarray(std, np.float32)[:, None, None]
    values = np.asarray(image, np.float32) * scale
    measure = values if like is None else np.asarray(like, np.float32) * scale
    spread = float(np.nanstd(measure)) or 1.0
    shown = 0.5 + CONTRAST * (values - np.nanmean(measure)) / spread
    return _pictures(shown)


def gradient(values: NDArray[np.floating]) -> list[Image]:
    """Draw a gradient of the input, (channel, row, col): grey is 0, brighter is positive."""
    sizes = np.abs(np.asarray(values, np.float32))
    # Of one position's gradient most is 0: outside its receptive field, and behind closed ReLUs.
    sizes = sizes[sizes > 0]
    size = float(np.percentile(sizes, OUTLIERS)) if sizes.size else 1.0
    return _pictures(0.5 + 0.5 * np.asarray(values, np.float32) / size)


def feature_map(values: NDArray[np.floating], top: float, cmap: str) -> Image:
    """Draw what a ReLU would let through of a feature map, (row, col), from 0 to `top`."""
    return colormap.apply(np.asarray(values, np.float32), 0.0, top if top > 0 else 1.0, cmap)


def scaled(image: Image, height: int) -> Image:
    """Scale a picture to a height; small ones keep their pixels' edges."""
    if image.shape[0] == height:
        return image
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_NEAREST
    if image.shape[0] < height < 3 * image.shape[0]:
        method = cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def _pictures(shown: NDArray[np.float32]) -> list[Image]:
    bytes_ = np.nan_to_num(shown * 255, nan=0).clip(0, 255).round().astype(np.uint8)
    pictures = []
    for start in range(0, len(bytes_), 3):
        some = bytes_[start : start + 3]
        if len(some) < 3:  # one channel is grey; of two, the first
            some = np.repeat(some[:1], 3, axis=0)
        pictures.append(np.ascontiguousarray(np.moveaxis(some, 0, -1)))
    return pictures

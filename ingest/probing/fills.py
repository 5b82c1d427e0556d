"""What masked pixels are replaced by."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Fill = Literal["black", "mean", "blur", "noise"]
FILLS: tuple[Fill, ...] = get_args(Fill)
BLUR = 0.1
"""Standard deviation of the blur, as a share of the image's shorter side."""


def check_fill(fill: str) -> None:
    """Raise `UsageError` if there is no such fill."""
    if fill not in FILLS:
        raise UsageError(f"a fill is one of {', '.join(FILLS)}; got {fill!r}")


def filled(image: Image, mask: Mask, fill: Fill, seen: Mask, random: np.random.Generator) -> Image:
    """Replace the masked pixels of an image.

    Parameters
    ----------
    image
        RGB, (height, width, 3); not changed.
    mask
        Pixels to replace, (height, width).
    fill
        ``black``; ``mean``: the mean colour of the seen pixels; ``blur``: the image under a
        Gaussian of `BLUR`; ``noise``: uniform in every colour of every pixel.
    seen
        Pixels that the policy sees, (height, width).

    Raises
    ------
    UsageError
        If there is no such fill.
    """
    check_fill(fill)
    if fill == "black":
        new = np.zeros_like(image)
    elif fill == "mean":
        colour = image[seen].mean(0) if seen.any() else np.zeros(3)
        new = np.broadcast_to(np.round(colour).astype(np.uint8), image.shape)
    elif fill == "blur":
        sigma = BLUR * min(image.shape[:2])
        new = np.asarray(
            cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), np.uint8
        )
    else:
        new = random.integers(0, 256, image.shape, dtype=np.uint8)
    return np.where(mask[..., None], new, image)

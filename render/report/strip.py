"""Small pictures beside each other, each with a line of text above it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ..picture import image_file, label

Image = NDArray[np.uint8]
PAPER, INK = (255, 255, 255), (45, 50, 58)
PANE, GAP, LINE = 236, 8, 22
QUALITY = 82


def strip(rows: Sequence[Sequence[tuple[str, Image]]], *, pane: int = PANE) -> bytes:
    """Compose rows of captioned pictures.

    Parameters
    ----------
    rows
        Text and picture, (height, width, 3) RGB; pictures of a row may differ in shape.
    pane
        Width of one picture.

    Returns
    -------
    A JPEG.
    """
    sized = [[(words, _resized(image, pane)) for words, image in row] for row in rows]
    heights = [LINE + max(image.shape[0] for _, image in row) for row in sized]
    width = max(len(row) for row in sized) * (pane + GAP) + GAP
    canvas = np.full((sum(heights) + GAP * (len(rows) + 1), width, 3), PAPER, np.uint8)
    top = GAP
    for row, height in zip(sized, heights, strict=True):
        for column, (words, image) in enumerate(row):
            left = GAP + column * (pane + GAP)
            label.write(canvas, words, left, top + LINE // 2, size=14, color=INK, room=pane)
            canvas[top + LINE : top + LINE + image.shape[0], left : left + pane] = image
        top += height + GAP
    return image_file.encode(canvas, "jpg", QUALITY)


def _resized(image: Image, width: int) -> Image:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    smaller = width < image.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)

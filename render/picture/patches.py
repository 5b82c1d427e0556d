"""A camera's image with the patches of the policy that looks at it: as recorded, and as prepared."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.geometry import Geometry

from .label import write

Image = NDArray[np.uint8]
HEIGHT = 480
"""Pixels of both panes."""
STRIP = 40
GAP = 16
LINE = (255, 210, 0)


def prepared(image: Image, geometry: Geometry) -> Image:
    """Return what the encoder sees of an image, (input height, input width, 3), as the geometry says it.

    What lies outside the image is black; a policy may fill it otherwise, and resize by another filter.

    Examples
    --------
    >>> image = np.full((4, 8, 3), 255, np.uint8)
    >>> prepared(image, Geometry.letterbox((4, 8), (8, 8), (2, 2)))[:, 0, 0].tolist()
    [0, 0, 255, 255, 255, 255, 0, 0]
    """
    top, left, height, width = geometry.crop or (0.0, 0.0, *image.shape[:2])
    down, across = (
        (np.arange(geometry.input[axis]) + 0.5 - geometry.offset[axis]) / geometry.resized[axis]
        for axis in (0, 1)
    )
    inside = ((down >= 0) & (down <= 1))[:, None] & ((across >= 0) & (across <= 1))
    if geometry.flip_vertical:
        down = 1 - down
    if geometry.flip_horizontal:
        across = 1 - across
    xs, ys = np.meshgrid(left + across * width - 0.5, top + down * height - 0.5)
    shown = cv2.remap(
        image,
        xs.astype(np.float32),
        ys.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.where(inside[..., None], shown, np.uint8(0))


def patch_sheet(camera: str, image: Image, geometry: Geometry) -> Image:
    """Draw a camera's image beside what the encoder sees of it, both with the borders of the patches.

    Parameters
    ----------
    image
        (height, width, 3), of the size that the geometry is of.

    Raises
    ------
    ValueError
        If it is of another size.
    """
    if image.shape[:2] != tuple(geometry.source):
        raise ValueError(
            f"{camera}: the geometry is of {geometry.source}, the image {image.shape[:2]}"
        )
    rows, cols = (np.arange(n + 1.0) for n in geometry.grid)
    ys, _ = geometry.grid_to_source(rows, np.zeros_like(rows))
    _, xs = geometry.grid_to_source(np.zeros_like(cols), cols)
    inside = (
        rows * geometry.patch[0] + geometry.patch_origin[0],
        cols * geometry.patch[1] + geometry.patch_origin[1],
    )
    panes = [
        _grid(image, np.asarray(ys), np.asarray(xs)),
        _grid(prepared(image, geometry), *inside),
    ]
    titles = (
        f"{camera}: recorded, {image.shape[1]}x{image.shape[0]}",
        f"prepared, {geometry.input[1]}x{geometry.input[0]}: {geometry.grid[0]} rows x "
        f"{geometry.grid[1]} columns of patches",
    )
    width = sum(p.shape[1] for p in panes) + GAP
    sheet = np.full((HEIGHT + STRIP, width, 3), 255, np.uint8)
    left = 0
    for pane, title in zip(panes, titles, strict=True):
        sheet[STRIP:, left : left + pane.shape[1]] = pane
        write(
            sheet, title, left + 6, STRIP // 2, size=17, color=(20, 20, 20), room=pane.shape[1] - 12
        )
        left += pane.shape[1] + GAP
    return sheet


def _grid(image: Image, ys: NDArray[np.float64], xs: NDArray[np.float64]) -> Image:
    """Enlarge an image to the sheet's height, and draw lines at these pixels of it."""
    scale = HEIGHT / image.shape[0]
    size = (max(1, round(image.shape[1] * scale)), HEIGHT)
    filter = cv2.INTER_NEAREST if scale > 2 else cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pane = np.ascontiguousarray(cv2.resize(image, size, interpolation=filter))
    lines = pane.copy()
    for y in ys * scale:
        if -1 <= y <= HEIGHT:
            lines[int(np.clip(round(y), 0, HEIGHT - 1))] = LINE
    for x in xs * scale:
        if -1 <= x <= size[0]:
            lines[:, int(np.clip(round(x), 0, size[0] - 1))] = LINE
    blended = cv2.addWeighted(pane, 0.45, lines, 0.55, 0)
    return np.asarray(blended, np.uint8)

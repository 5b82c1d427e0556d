"""From a camera's image to OpenVLA's patches: its processor's resizing, as geometry."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.geometry import Geometry

from ..base import PolicyError

STRATEGIES = ("resize-naive", "resize-crop", "letterbox")
EVALUATED = 224
"""Side of the image that OpenVLA's evaluation scripts crop to."""
CROP_AREA = 0.9
"""Share of the area that they keep of policies that were trained with random crops."""


def patch_grid(config: Any, image_processor: Any) -> tuple[tuple[int, int], float, int]:
    """Return the grid of patches, their side, and the side of the encoder's input.

    Where two towers are fused, a token is of the patches of both, so their grids must be equal; the
    first one's pixels are taken.

    Raises
    ------
    PolicyError
        If they are not, or not known.
    """
    grids = []
    for name, (_, height, width) in zip(
        config.timm_model_ids, image_processor.input_sizes, strict=True
    ):
        found = re.search(r"_patch(\d+)_", str(name))
        if found is None or height != width or height % int(found[1]):
            raise PolicyError(
                f"vision tower {name} on {height}x{width} pixels: its grid of patches is not known"
            )
        side = int(height) // int(found[1])
        grids.append(((side, side), float(found[1]), int(height)))
    if len({grid for grid, _, _ in grids}) != 1:
        raise PolicyError(
            f"the fused vision towers have grids {[grid for grid, _, _ in grids]}: a token that is of "
            "two places cannot be drawn"
        )
    return grids[0]


def image_geometry(
    source: tuple[int, int],
    strategy: str,
    grid: tuple[int, int],
    patch: float,
    side: int,
    *,
    center_crop: bool = False,
) -> Geometry:
    """Geometry of an image that OpenVLA's processor was given.

    Parameters
    ----------
    source
        (height, width) of the camera's image.
    strategy
        The processor's ``image_resize_strategy``.
    center_crop
        Whether it is cropped before, see `center_cropped`.

    Raises
    ------
    PolicyError
        If the strategy is not known.
    """
    if strategy not in STRATEGIES:
        raise PolicyError(
            f"image_resize_strategy {strategy!r} is not understood; known are {', '.join(STRATEGIES)}"
        )
    crop = None
    if center_crop:
        # Then a square, which every strategy only scales.
        tops, sizes = zip(*(_crop_along(length) for length in source), strict=True)
        crop = (tops[0], tops[1], sizes[0], sizes[1])
        resized, offset = (float(side), float(side)), (0.0, 0.0)
    elif strategy == "resize-naive":
        resized, offset = (float(side), float(side)), (0.0, 0.0)
    else:
        margin = (0, 0)
        if strategy == "letterbox":
            margin = ((max(source) - source[0]) // 2, (max(source) - source[1]) // 2)
        padded = (source[0] + 2 * margin[0], source[1] + 2 * margin[1])
        # As torchvision resizes to a shorter side, then crops the middle.
        longer = int(side * max(padded) / min(padded))
        whole = (longer, side) if padded[0] > padded[1] else (side, longer)
        axes = [
            _visible(source[i], margin[i], whole[i] / padded[i], round((whole[i] - side) / 2), side)
            for i in (0, 1)
        ]
        (top, tall, first, high), (left, wide, second, broad) = axes
        resized, offset = (high, broad), (first, second)
        if (tall, wide) != (float(source[0]), float(source[1])):
            crop = (top, left, tall, wide)
    return Geometry(
        source=source,
        input=(side, side),
        resized=resized,
        offset=offset,
        grid=grid,
        patch=(patch, patch),
        crop=crop,
    )


def _visible(
    length: int, margin: int, scale: float, cut: int, side: int
) -> tuple[float, float, float, float]:
    """One axis of a padded, scaled and cropped image: (start, length) in the source and in the input."""
    begin, end = margin * scale - cut, (margin + length) * scale - cut
    low, high = max(begin, 0.0), min(end, float(side))
    shown = float(length) if (low, high) == (begin, end) else (high - low) / scale
    return (low - begin) / scale, shown, low, high - low


def evaluated(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stretch an image to 224 pixels, as OpenVLA's evaluation scripts do before all else.

    They do it by TensorFlow, after JPEG; here it is done by Pillow.

    Returns
    -------
    (224, 224, 3).
    """
    from PIL import Image

    size = (EVALUATED, EVALUATED)
    if image.shape[:2] == size:
        return np.ascontiguousarray(image)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def center_cropped(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crop the middle nine tenths of an image's area, as OpenVLA's evaluation on LIBERO does.

    It is `evaluated` first, then ``tf.image.crop_and_resize`` samples it bilinearly between its corner
    pixels.

    Returns
    -------
    (224, 224, 3).
    """
    image = evaluated(image)
    start, step = _corners()
    at = (start + np.arange(EVALUATED, dtype=np.float32) * np.float32(step)).astype(np.float32)
    low = np.floor(at).astype(np.int64)
    high = np.ceil(at).astype(np.int64)
    share = (at - low).astype(np.float32)
    pixels = image.astype(np.float32) * np.float32(1 / 255)
    across, down = share[None, :, None], share[:, None, None]
    rows = pixels[:, low] + (pixels[:, high] - pixels[:, low]) * across
    mixed = rows[low] + (rows[high] - rows[low]) * down
    scaled = np.clip(mixed, 0, 1) * np.float32(255.5)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _corners() -> tuple[float, float]:
    """Where the crop's first pixel is sampled, and how far apart its pixels are, of 224 pixels."""
    kept = math.sqrt(CROP_AREA)
    return (1 - kept) / 2 * (EVALUATED - 1), kept


def _crop_along(length: int) -> tuple[float, float]:
    """Start and length of what the crop shows, in pixels of an image of that length."""
    start, step = _corners()
    # A sample is a pixel's centre, and covers half a step to both sides.
    return (start + 0.5 - step / 2) * length / EVALUATED, step * length


def pick_camera(cameras: Sequence[str], asked: str | None) -> str | None:
    """Return the camera that the policy sees; None if it is not there, or several are."""
    if asked is not None:
        return asked if asked in cameras else None
    return cameras[0] if len(cameras) == 1 else None

"""Heat blended onto a camera's image.

All styles keep the image recognisable under the strongest heat:

- ``spotlight`` (default): the more heat, the more opaque its colour, and the less heat, the
  darker the image beneath, down to a floor. The bright spots pop out on a projector, and what
  they lie on stays visible.
- ``auto``: a spotlight that goes by the picture. A bright one is darkened as far as heat needs, a dim
  one not at all: it is made brighter, up to `MOST_GAIN` times, so that what is looked at can be seen.
- ``constant``: the same opacity everywhere, as OpenCV's ``addWeighted`` does in most published
  overlays.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

from . import colormap
from .scale import Limits

Blend = Literal["auto", "spotlight", "proportional", "constant"]
Image = NDArray[np.uint8]

DEFAULT_ALPHA = 0.75
UNSEEN = 0.3
"""Brightness left to pixels that the policy never sees."""
FLOOR = 0.5
"""Brightness left to the image where a spotlight overlay has no heat."""
TARGET = 0.35
"""Brightness that ``auto`` leaves to a picture where it has no heat, 0..1."""
MOST_GAIN = 3.0
"""How much brighter ``auto`` makes a dim picture at most."""


def blend(
    image: Image,
    heat: NDArray[np.float32],
    limits: Limits,
    *,
    cmap: str = colormap.DEFAULT,
    alpha: float = DEFAULT_ALPHA,
    style: Blend = "spotlight",
) -> Image:
    """Draw heat onto an image.

    Parameters
    ----------
    image
        (height, width, 3) uint8 RGB.
    heat
        (height, width); where it is NaN the image is dimmed and gets no colour.
    limits
        Heat at the ends of the colour map.
    alpha
        Opacity of the strongest heat (``constant``: of all heat), 0..1.

    Returns
    -------
    (height, width, 3) uint8 RGB.
    """
    if image.shape[:2] != heat.shape:
        raise UsageError(f"image is {image.shape[:2]} pixels and its heat {heat.shape}")
    floor = FLOOR
    if style == "auto":
        floor, gain = light(image)
        image = np.asarray(cv2.convertScaleAbs(image, alpha=gain), np.uint8)
    colour, keep = _tables(cmap, float(alpha), style, floor)
    level = colormap.levels(heat, *limits)
    kept = cv2.multiply(image, cv2.applyColorMap(level, keep), scale=1 / 255)
    drawn = cv2.add(kept, cv2.applyColorMap(level, colour))
    unseen = np.isnan(heat)
    if unseen.any():
        drawn[unseen] = cv2.convertScaleAbs(image, alpha=UNSEEN)[unseen]
    return np.asarray(drawn, np.uint8)


def light(image: Image) -> tuple[float, float]:
    """What ``auto`` does to a picture, by its mean luma.

    Returns
    -------
    Brightness left where there is no heat, `FLOOR` to 1, and how much brighter the picture is made, 1 to
    `MOST_GAIN`; to hundredths.

    Examples
    --------
    >>> bright, dim = np.full((2, 2, 3), 204, np.uint8), np.full((2, 2, 3), 51, np.uint8)
    >>> light(bright), light(dim)
    ((0.5, 1.0), (1.0, 1.75))
    """
    mean = float(image.reshape(-1, 3).mean(0) @ (0.299, 0.587, 0.114)) / 255
    share = TARGET / max(mean, 1e-3)
    return round(min(1.0, max(FLOOR, share)), 2), round(min(MOST_GAIN, max(1.0, share)), 2)


@lru_cache(maxsize=128)
def _tables(cmap: str, alpha: float, style: str, floor: float) -> tuple[Image, Image]:
    """Per level: the colour times its opacity, and what is kept of the image (255 = all)."""
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is between 0 and 1; got {alpha}")
    level = np.linspace(0, 1, 256)[:, None]
    if style == "constant":
        opacity, keep = np.full_like(level, alpha), np.full_like(level, 1 - alpha)
    elif style == "proportional":
        opacity = alpha * level
        keep = 1 - opacity
    elif style in ("spotlight", "auto"):
        # the square root lifts faint heat above what a projector's black swallows
        opacity = alpha * np.sqrt(level)
        keep = (1 - opacity) * (floor + (1 - floor) * level)
    else:
        raise UsageError(f"blend is auto, spotlight, proportional or constant; got {style!r}")
    colour = np.rint(colormap.table(cmap) * opacity).astype(np.uint8)
    kept = np.repeat(np.rint(255 * keep).astype(np.uint8), 3, axis=1)
    return colour.reshape(256, 1, 3), kept.reshape(256, 1, 3)

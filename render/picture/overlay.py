"""Heat blended onto a camera's image.

Both styles keep the image recognisable under the strongest heat:

- ``spotlight`` (default): the more heat, the more opaque its colour, and the less heat, the
  darker the image beneath, down to a floor. The bright spots pop out on a projector, and what
  they lie on stays visible.
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

Blend = Literal["spotlight", "proportional", "constant"]
Image = NDArray[np.uint8]

DEFAULT_ALPHA = 0.75
UNSEEN = 0.3
"""Brightness left to pixels that the policy never sees."""
FLOOR = 0.5
"""Brightness left to the image where a spotlight overlay has no heat."""


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
    colour, keep = _tables(cmap, float(alpha), style)
    level = colormap.levels(heat, *limits)
    kept = cv2.multiply(image, cv2.applyColorMap(level, keep), scale=1 / 255)
    drawn = cv2.add(kept, cv2.applyColorMap(level, colour))
    unseen = np.isnan(heat)
    if unseen.any():
        drawn[unseen] = cv2.convertScaleAbs(image, alpha=UNSEEN)[unseen]
    return np.asarray(drawn, np.uint8)


@lru_cache(maxsize=32)
def _tables(cmap: str, alpha: float, style: str) -> tuple[Image, Image]:
    """Per level: the colour times its opacity, and what is kept of the image (255 = all)."""
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is between 0 and 1; got {alpha}")
    level = np.linspace(0, 1, 256)[:, None]
    if style == "constant":
        opacity, keep = np.full_like(level, alpha), np.full_like(level, 1 - alpha)
    elif style == "proportional":
        opacity = alpha * level
        keep = 1 - opacity
    elif style == "spotlight":
        # the square root lifts faint heat above what a projector's black swallows
        opacity = alpha * np.sqrt(level)
        keep = (1 - opacity) * (FLOOR + (1 - FLOOR) * level)
    else:
        raise UsageError(f"blend is spotlight, proportional or constant; got {style!r}")
    colour = np.rint(colormap.table(cmap) * opacity).astype(np.uint8)
    kept = np.repeat(np.rint(255 * keep).astype(np.uint8), 3, axis=1)
    return colour.reshape(256, 1, 3), kept.reshape(256, 1, 3)

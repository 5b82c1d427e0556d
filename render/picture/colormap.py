"""Colour maps: frozen tables of 256 RGB colours, from low to high.

``inferno`` is the default: it is perceptually uniform, readable with every common colour-vision
deficiency, and starts at black, so that an overlay dims what gets no attention instead of
tinting it. ``jet`` is here because published figures use it; its bands of equal brightness show
edges that the data does not have.

Examples
--------
>>> table("inferno").shape, table("inferno").dtype
((256, 3), dtype('uint8'))
>>> table("jet")[[0, 255]].tolist()
[[0, 0, 128], [128, 0, 0]]
"""

from __future__ import annotations

from functools import cache
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

Table = NDArray[np.uint8]

DEFAULT = "inferno"
CODES = MappingProxyType(
    {
        "cividis": cv2.COLORMAP_CIVIDIS,
        "inferno": cv2.COLORMAP_INFERNO,
        "jet": cv2.COLORMAP_JET,
        "magma": cv2.COLORMAP_MAGMA,
        "plasma": cv2.COLORMAP_PLASMA,
        "turbo": cv2.COLORMAP_TURBO,
        "viridis": cv2.COLORMAP_VIRIDIS,
    }
)
"""OpenCV's code of every colour map, by name."""
PERCEPTUALLY_UNIFORM = frozenset({"cividis", "inferno", "magma", "plasma", "viridis"})


@cache
def table(name: str) -> Table:
    """Colours of a map.

    Returns
    -------
    (256, 3) uint8 RGB, read-only.

    Raises
    ------
    UsageError
        If there is no colour map of that name.
    """
    if name not in CODES:
        raise UsageError(f"a colour map is one of {', '.join(CODES)}; got {name!r}")
    ramp = np.arange(256, dtype=np.uint8).reshape(256, 1)
    colours = np.ascontiguousarray(cv2.applyColorMap(ramp, CODES[name])[:, 0, ::-1])
    colours.setflags(write=False)
    return np.asarray(colours, np.uint8)


def levels(values: NDArray[np.floating], vmin: float, vmax: float) -> NDArray[np.uint8]:
    """Index of each value's colour: ``vmin`` and below give 0, ``vmax`` and above 255, NaN 0.

    Parameters
    ----------
    values
        (height, width), in the unit of the limits.
    """
    if not vmax > vmin:
        raise UsageError(f"a colour scale needs vmin < vmax; got {vmin} and {vmax}")
    gain = 255.0 / (vmax - vmin)
    scaled = np.asarray(values, np.float32) * np.float32(gain)
    scaled -= np.float32(vmin * gain)
    np.rint(scaled, out=scaled)
    # fmax and fmin, unlike clip, turn NaN into the bound
    np.fmax(scaled, 0.0, out=scaled)
    np.fmin(scaled, 255.0, out=scaled)
    return scaled.astype(np.uint8)


def apply(
    values: NDArray[np.floating], vmin: float, vmax: float, name: str = DEFAULT
) -> NDArray[np.uint8]:
    """Colour a heat image.

    Parameters
    ----------
    values
        (height, width), in the unit of the limits.

    Returns
    -------
    (height, width, 3) uint8 RGB.
    """
    colours = table(name)
    return np.asarray(colours[levels(values, vmin, vmax)])

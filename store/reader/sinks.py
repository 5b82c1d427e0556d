"""Maps without their attention sinks.

A sink is a key that takes a large, constant share of all queries' attention whatever the image
shows (Gu et al. 2024, "When Attention Sink Emerges in Language Models"); on a map it outshines
everything else. Its patch is set to the median of the camera's other patches: what a patch of no
interest has. Interpolating from the neighbours would instead invent heat wherever a sink lies
beside an object. How much attention was taken away is printed on the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import SelectionError
from ..format.geometry import Geometry


def remove(
    maps: NDArray[np.float32], geometry: Geometry, patches: Sequence[tuple[int, int]]
) -> NDArray[np.float32]:
    """Set sinks to the median of the other patches that show image, map by map.

    Parameters
    ----------
    maps
        (..., row, col).
    geometry
        Of the camera.
    patches
        (row, col) of each sink.

    Returns
    -------
    A corrected copy, same shape; the maps themselves if there are no sinks.

    Raises
    ------
    SelectionError
        If a sink lies outside the grid.
    """
    if not patches:
        return maps
    rest = geometry.coverage() > 0
    for row, col in patches:
        if not (0 <= row < geometry.grid[0] and 0 <= col < geometry.grid[1]):
            raise SelectionError(
                f"sink at patch ({row}, {col}) is outside the grid {geometry.grid}"
            )
        rest[row, col] = False
    corrected = maps.copy()
    others = maps[..., rest]
    typical = np.zeros(maps.shape[:-2], np.float32)
    if others.shape[-1]:
        # NaN stays NaN: a camera that was absent has no typical patch
        typical = np.asarray(np.median(others, axis=-1), np.float32)
    for row, col in patches:
        corrected[..., row, col] = typical
    return corrected

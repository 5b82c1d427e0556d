"""Where the tokens of a convolutional stem look: from its convolutions alone.

Octo's ``SmallStem16`` is four convolutions of 3 pixels and stride 2, padded by 1, and an embedding
of 1: token (r, c) is centred on pixel (16 r, 16 c) and reaches 15 pixels to every side. A box of
16 pixels from (16 r, 16 c) would be 8 pixels off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnstore.store.format.geometry import Geometry

SEQUENTIAL = ("SmallStem", "SmallStem16", "SmallStem32", "PatchEncoder")
"""Encoders whose convolutions follow one another, without branches, by class name."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution, the same along an axis: sizes are (height, width), in its input's pixels."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    """Padding at the top and at the left."""


def stem_geometry(
    source: tuple[int, int],
    input: tuple[int, int],
    grid: tuple[int, int],
    convolutions: Sequence[Convolution],
) -> Geometry:
    """Geometry of an image that is stretched to `input` and goes through convolutions in a row.

    Parameters
    ----------
    source, input
        (height, width) of the camera's image and of what the stem sees.
    grid
        Rows and columns of its output.

    Notes
    -----
    The recurrences for the distance of neighbours, the receptive field and its centre are those
    of Araujo, Norris and Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks".
    """
    distance, extent, origin = [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]
    for axis in (0, 1):
        centre = 0.5  # of pixel 0, in continuous coordinates
        for conv in convolutions:
            reach = (conv.kernel[axis] - 1) / 2
            centre += (reach - conv.before[axis]) * distance[axis]
            extent[axis] += (conv.kernel[axis] - 1) * distance[axis]
            distance[axis] *= conv.stride[axis]
        origin[axis] = centre - distance[axis] / 2
    return Geometry(
        source=source,
        input=input,
        resized=input,
        offset=(0, 0),
        grid=grid,
        patch=(distance[0], distance[1]),
        patch_origin=(origin[0], origin[1]),
        receptive=(extent[0], extent[1]),
    )

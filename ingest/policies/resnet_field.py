"""What a cell of a ResNet's last feature map is computed from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from attnstore.store.format.geometry import Geometry

from ..optional import require
from .convolution import Convolution, stem_geometry


@lru_cache(
    maxsize=256
)  # asked for at every call of a policy, which a network need not be built for
def resnet_geometry(source: tuple[int, int], name: str, dilated: bool) -> Geometry:
    """Geometry of the last feature map of one of torchvision's ResNets, the image not resized.

    Every kernel is odd and padded by its half, so cell (r, c) is centred on pixel (32 r, 32 c). Its
    receptive field is that of the path through all convolutions, 435 pixels of a ResNet-18.

    Parameters
    ----------
    source
        (height, width) of the image.
    name
        ``resnet18``.
    dilated
        The last stage is dilated instead of strided.

    Examples
    --------
    >>> shape = resnet_geometry((480, 640), "resnet18", False)
    >>> shape.grid, shape.patch_origin, shape.receptive
    ((15, 20), (-15.5, -15.5), (435.0, 435.0))
    """
    torch = require("torch", "ingest", f"an encoder {name}")
    models = require("torchvision.models", "ingest", f"an encoder {name}")
    with torch.device("meta"):
        net = models.get_model(
            name, weights=None, replace_stride_with_dilation=[False, False, dilated]
        )
    parts = [net.conv1, net.maxpool]
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in stage:
            # The way around a block is a convolution of 1 pixel: it reaches no further.
            parts += [getattr(block, f"conv{i}") for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
    convolutions = [_convolution(part) for part in parts]
    rows, cols = source
    for conv in convolutions:
        rows, cols = (
            (size + 2 * conv.before[axis] - conv.kernel[axis]) // conv.stride[axis] + 1
            for axis, size in enumerate((rows, cols))
        )
    return stem_geometry(source, source, (rows, cols), convolutions)


def _convolution(part: Any) -> Convolution:
    kernel, stride, padding, dilation = (
        _pair(getattr(part, n)) for n in ("kernel_size", "stride", "padding", "dilation")
    )
    reach = (dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1)
    return Convolution(reach, stride, padding)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])

"""From a camera's image to the grid of image tokens, exactly as the checkpoint's processor does it.

Understood are the resize and centre crop of CLIP's and SigLIP's processors, and Qwen-VL's dynamic
resolution. Whatever else a processor does (tiles, pan and scan, padding) is refused: a map at the
wrong place is worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnstore.store.format.geometry import Geometry

from ..base import PolicyError
from ..vision import pair

PLAIN = ("CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor")
"""Resize, centre crop, normalise, in this order, each if the configuration says so."""
DYNAMIC = ("Qwen2VLImageProcessor",)
"""Resize to a multiple of the merged patch; the processor says the size in ``image_grid_thw``."""


def is_dynamic(image_processor: Any) -> bool:
    """Whether an image's number of tokens depends on its size.

    Raises
    ------
    PolicyError
        If the processor is not understood.
    """
    name = type(image_processor).__name__.removesuffix("Fast").removesuffix("Pil")
    if name not in PLAIN + DYNAMIC:
        raise PolicyError(
            f"image processor {type(image_processor).__name__}: its geometry is not understood, so "
            f"maps could not be drawn; understood are {', '.join(PLAIN + DYNAMIC)}"
        )
    return name in DYNAMIC


def plain_geometry(
    image_processor: Any, patch_size: Any, source: tuple[int, int], pixels: tuple[int, int]
) -> Geometry:
    """Geometry of an image that is resized and perhaps cropped to one size.

    Parameters
    ----------
    patch_size
        Of the vision encoder: a number, or (height, width).
    source
        (height, width) of the camera's image.
    pixels
        (height, width) of what the processor made of it, which must agree.

    Raises
    ------
    PolicyError
        If the configuration is not understood.
    """
    if getattr(image_processor, "do_pad", None):
        raise PolicyError(f"{type(image_processor).__name__} pads: its geometry is not understood")
    resized = _resized(image_processor, source)
    used, crop = resized, None
    if getattr(image_processor, "do_center_crop", None):
        wanted = _size(image_processor.crop_size)
        used = int(wanted["height"]), int(wanted["width"])
        if used[0] > resized[0] or used[1] > resized[1]:
            raise PolicyError(
                f"the image processor crops {resized[0]}x{resized[1]} to {used[0]}x{used[1]}: "
                "padding in a crop is not understood"
            )
        if used != resized:
            top, left = ((resized[i] - used[i]) // 2 for i in (0, 1))
            tall, wide = source[0] / resized[0], source[1] / resized[1]
            crop = (top * tall, left * wide, used[0] * tall, used[1] * wide)
    if used != pixels:
        raise PolicyError(
            f"the image processor made {pixels[0]}x{pixels[1]} of {source[0]}x{source[1]}, its "
            f"configuration says {used[0]}x{used[1]}: its geometry is not understood"
        )
    return _grid(source, used, pair(patch_size), crop)


def dynamic_geometry(
    image_processor: Any, source: tuple[int, int], grid: Sequence[int]
) -> Geometry:
    """Geometry of an image at dynamic resolution.

    Parameters
    ----------
    grid
        The image's row of ``image_grid_thw``: one moment, then rows and columns of patches, of
        which ``merge_size`` by ``merge_size`` become one token.

    Raises
    ------
    PolicyError
        If it is of more than one moment.
    """
    moments, rows, cols = (int(n) for n in grid)
    if moments != 1:
        raise PolicyError(f"image_grid_thw is {[moments, rows, cols]}: one moment is expected")
    patch, merge = int(image_processor.patch_size), int(image_processor.merge_size)
    return _grid(source, (rows * patch, cols * patch), (patch * merge, patch * merge), None)


def _grid(
    source: tuple[int, int],
    used: tuple[int, int],
    patch: tuple[int, int],
    crop: tuple[float, float, float, float] | None,
) -> Geometry:
    if used[0] % patch[0] or used[1] % patch[1]:
        raise PolicyError(
            f"patches of {patch[0]}x{patch[1]} do not divide the encoder's input of "
            f"{used[0]}x{used[1]}: its geometry is not understood"
        )
    return Geometry(
        source=source,
        input=used,
        resized=used,
        offset=(0, 0),
        grid=(used[0] // patch[0], used[1] // patch[1]),
        patch=(float(patch[0]), float(patch[1])),
        crop=crop,
    )


def _resized(image_processor: Any, source: tuple[int, int]) -> tuple[int, int]:
    if not image_processor.do_resize:
        return source
    size = _size(image_processor.size)
    if set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    if set(size) == {"shortest_edge"}:
        edge = int(size["shortest_edge"])
        short, long = min(source), max(source)
        other = int(edge * long / short)
        return (edge, other) if source[0] <= source[1] else (other, edge)
    raise PolicyError(
        f"the image processor's size {size} is not understood; its geometry is unknown"
    )


def _size(size: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(size).items() if value is not None}

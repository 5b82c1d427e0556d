"""The exact transform between a camera's pixels and its patch grid.

Coordinates are continuous: pixel ``(i, j)`` covers ``[i, i + 1) x [j, j + 1)``, its centre is
``(i + 0.5, j + 0.5)``. A point goes from the *source* (the camera's image) through crop, flip and
resize into the *input* (what the vision encoder sees, letterbox included), and from there onto
the *grid* in units of patches: patch ``(r, c)`` covers ``[r, r + 1) x [c, c + 1)``.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError
from .documents import check

Float = NDArray[np.float64]


def _finite(values: tuple[float, ...]) -> bool:
    # Python's own comparison: a driving policy has a geometry made at every call, by NumPy in 0.1 ms.
    return all(-math.inf < value < math.inf for value in values)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a camera's image became a grid of patches.

    Every pair is ``(height, width)`` or ``(top, left)``, in pixels.

    Examples
    --------
    A 1280x720 camera letterboxed into 224x224, patches of 14 pixels:

    >>> g = Geometry.letterbox((720, 1280), (224, 224), (14, 14))
    >>> g.resized, g.offset
    ((126, 224), (49, 0))
    >>> float(g.coverage()[3, 0]), float(g.coverage()[4, 0]), float(g.coverage()[2, 0])
    (0.5, 1.0, 0.0)
    """

    source: tuple[int, int]
    """Size of the camera's image."""
    input: tuple[int, int]
    """Size of what the vision encoder sees, padding included."""
    resized: tuple[float, float]
    """Size of the cropped image after the resize, inside the input; fractions of a pixel where it was
    padded before."""
    offset: tuple[float, float]
    """Top-left corner of the resized image inside the input."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    patch: tuple[float, float]
    """Distance between neighbouring patches, in input pixels."""
    crop: tuple[float, float, float, float] | None = None
    """(top, left, height, width) of the source that is used; None is all of it. Fractions of a pixel
    where the crop is taken after a resize."""
    flip_vertical: bool = False
    flip_horizontal: bool = False
    patch_origin: tuple[float, float] = (0.0, 0.0)
    """Top-left corner of patch (0, 0) in input pixels; (-7.5, -7.5) if centred on pixel (0, 0)."""
    receptive: tuple[float, float] | None = None
    """Size of what a patch is computed from, centred on the patch; None: of the patch itself."""

    def __post_init__(self) -> None:
        for name in ("source", "input", "resized", "offset", "grid", "patch", "patch_origin"):
            pair = getattr(self, name)
            if len(pair) != 2 or not _finite(pair):
                raise ValueError(f"geometry: {name} must be two finite numbers; got {pair}")
            if name not in ("offset", "patch_origin") and min(pair) <= 0:
                raise ValueError(f"geometry: {name} must be positive; got {pair}")
        if self.receptive is not None:
            self._check_receptive(self.receptive)
        for axis, label in ((0, "height"), (1, "width")):
            end = self.offset[axis] + self.resized[axis]
            if self.offset[axis] < 0 or end > self.input[axis]:
                raise ValueError(
                    f"geometry: resized image [{self.offset[axis]}, {end}) leaves the input's "
                    f"{label} {self.input[axis]}"
                )
        if self.crop is not None:
            if len(self.crop) != 4:
                raise ValueError(f"geometry: crop is (top, left, height, width); got {self.crop}")
            top, left, height, width = self.crop
            if top < 0 or left < 0 or height <= 0 or width <= 0:
                raise ValueError(f"geometry: crop {self.crop} is empty or negative")
            if top + height > self.source[0] or left + width > self.source[1]:
                raise ValueError(f"geometry: crop {self.crop} leaves the source {self.source}")

    def _check_receptive(self, receptive: tuple[float, float]) -> None:
        if len(receptive) != 2 or not _finite(receptive) or min(receptive) <= 0:
            raise ValueError(f"geometry: receptive must be two positive numbers; got {receptive}")
        for axis in (0, 1):
            first = self.patch_origin[axis] + self.patch[axis] / 2
            last = first + (self.grid[axis] - 1) * self.patch[axis]
            if first < 0 or last > self.input[axis]:
                raise ValueError(
                    f"geometry: patches are centred on {first} to {last}, "
                    f"outside the input of {self.input[axis]}"
                )

    @classmethod
    def letterbox(
        cls,
        source: tuple[int, int],
        input: tuple[int, int],
        patch: tuple[int, int],
        *,
        anchor: str = "center",
        resized: tuple[int, int] | None = None,
    ) -> Geometry:
        """Aspect-preserving resize with padding.

        Parameters
        ----------
        source, input
            (height, width) of the camera's image and of the encoder's input.
        patch
            (height, width) of a patch in input pixels; must divide the input.
        anchor
            ``"center"`` (openpi's ``resize_with_pad``) or ``"top-left"`` (transformers' Pi0, which
            pads bottom and right).
        resized
            Size after the resize when the policy's own code computed it; otherwise each side is
            the source's side times the common scale, truncated.
        """
        if input[0] % patch[0] or input[1] % patch[1]:
            raise ValueError(f"geometry: patch {patch} does not divide the input {input}")
        if resized is None:
            ratio = max(source[0] / input[0], source[1] / input[1])
            resized = (max(1, int(source[0] / ratio)), max(1, int(source[1] / ratio)))
        if anchor == "center":
            offset = ((input[0] - resized[0]) // 2, (input[1] - resized[1]) // 2)
        elif anchor == "top-left":
            offset = (0, 0)
        else:
            raise ValueError(f"anchor is 'center' or 'top-left'; got {anchor!r}")
        return cls(
            source=source,
            input=input,
            resized=resized,
            offset=offset,
            grid=(input[0] // patch[0], input[1] // patch[1]),
            patch=(float(patch[0]), float(patch[1])),
        )

    def source_to_grid(self, y: Float, x: Float) -> tuple[Float, Float]:
        """Map source points to grid coordinates (in patches)."""
        top, left, height, width = self._crop
        u = (np.asarray(y, np.float64) - top) / height
        v = (np.asarray(x, np.float64) - left) / width
        if self.flip_vertical:
            u = 1.0 - u
        if self.flip_horizontal:
            v = 1.0 - v
        rows = (u * self.resized[0] + self.offset[0] - self.patch_origin[0]) / self.patch[0]
        cols = (v * self.resized[1] + self.offset[1] - self.patch_origin[1]) / self.patch[1]
        return rows, cols

    def grid_to_source(self, row: Float, col: Float) -> tuple[Float, Float]:
        """Map grid coordinates (in patches) to source points: the inverse of `source_to_grid`."""
        top, left, height, width = self._crop
        u = np.asarray(row, np.float64) * self.patch[0] + self.patch_origin[0] - self.offset[0]
        v = np.asarray(col, np.float64) * self.patch[1] + self.patch_origin[1] - self.offset[1]
        u, v = u / self.resized[0], v / self.resized[1]
        if self.flip_vertical:
            u = 1.0 - u
        if self.flip_horizontal:
            v = 1.0 - v
        return u * height + top, v * width + left

    def coverage(self) -> NDArray[np.float32]:
        """Fraction of each patch that shows source image, ``(rows, cols)``, 0 for letterbox."""
        per_axis = []
        for axis in (0, 1):
            edges = self.edges(axis) * self.patch[axis] + self.patch_origin[axis]
            low = np.maximum(edges[:-1], self.offset[axis])
            high = np.minimum(edges[1:], self.offset[axis] + self.resized[axis])
            per_axis.append(np.clip(high - low, 0, None) / np.diff(edges))
        return np.outer(per_axis[0], per_axis[1]).astype(np.float32)

    def edges(self, axis: int) -> Float:
        """Where patches begin and end along an axis, in patches, (patches + 1,).

        Where patches see beyond their boxes (`receptive`), the outermost ones are cut at the input's
        edges, and reach to them if they see as far: what lies between an edge and the nearest box
        is seen by that patch.
        """
        count, size = self.grid[axis], self.patch[axis]
        edges = np.arange(count + 1.0)
        if self.receptive is None:
            return edges
        first = -self.patch_origin[axis] / size
        last = (self.input[axis] - self.patch_origin[axis]) / size
        reach = self.receptive[axis] / size / 2
        edges[0] = max(first, min(0.0, 0.5 - reach))
        edges[-1] = min(last, max(count, count - 0.5 + reach))
        return edges

    def receptive_field(self, row: int, col: int) -> tuple[slice, slice]:
        """Input pixels, (rows, columns), that a patch is computed from, cut at the input's edges.

        Examples
        --------
        Four convolutions of 3 pixels and stride 2, each padded by 1: patch (r, c) is centred on
        pixel (16 r, 16 c) and reaches 15 pixels to every side.

        >>> g = Geometry((256, 256), (256, 256), (256, 256), (0, 0), (16, 16), (16.0, 16.0),
        ...              patch_origin=(-7.5, -7.5), receptive=(31.0, 31.0))
        >>> g.receptive_field(2, 0)
        (slice(17, 48, None), slice(0, 16, None))
        """
        extent = self.receptive or self.patch
        sides = []
        for axis, index in ((0, row), (1, col)):
            middle = self.patch_origin[axis] + (index + 0.5) * self.patch[axis]
            low, high = middle - extent[axis] / 2, middle + extent[axis] / 2
            sides.append(slice(max(0, round(low)), min(self.input[axis], round(high))))
        return sides[0], sides[1]

    def covered(self) -> tuple[slice, slice]:
        """Rows and columns of the grid that show any source image (coverage > 0)."""
        cover = self.coverage()
        rows, cols = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)

    def to_json(self) -> str:
        """Serialise; `from_json` restores an equal value."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Geometry:
        """Restore what `to_json` wrote.

        Raises
        ------
        ValueError
            If a field is missing, unknown or out of range.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            values: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()
            }
            found = cls(**values)
            check(raw, "geometry", "geometry")  # afterwards: the messages above say more
        except (TypeError, AttributeError, IntegrityError) as error:
            raise ValueError(f"not a geometry: {text[:80]!r} ({error})") from None
        return found

    @property
    def _crop(self) -> tuple[float, float, float, float]:
        return self.crop if self.crop is not None else (0, 0, *self.source)

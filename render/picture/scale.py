"""Colour scale: which attention gets the last colour of the map.

The scale starts at 0, not at the smallest value: attention is a share, so that equal attention
everywhere must look equal everywhere, and not like the noise in its last digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry

Scope = Literal["frame", "video", "fixed"]


class Limits(NamedTuple):
    """Attention at the ends of the colour map."""

    vmin: float
    vmax: float


EMPTY = Limits(0.0, 1.0)
"""The scale of maps that have no positive value: a weight is at most 1."""


def data_limits(values: NDArray[np.floating]) -> Limits:
    """Limits that show every value: from 0 (or the smallest, if negative) to the largest.

    NaN and infinities are ignored. Where nothing is left, or all is zero, the scale is 0 to 1.

    Examples
    --------
    >>> data_limits(np.array([0.02, np.nan, 0.3]))
    Limits(vmin=0.0, vmax=0.3)
    >>> data_limits(np.zeros(4))
    Limits(vmin=0.0, vmax=1.0)
    """
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return EMPTY
    low, high = min(0.0, float(finite.min())), float(finite.max())
    # below the smallest normal float32 the division by the range would overflow
    return Limits(low, high) if high - low > 1.2e-38 else EMPTY


@dataclass(frozen=True, slots=True)
class ColorScale:
    """What the colours of a picture are relative to.

    Examples
    --------
    >>> ColorScale.parse("video").scope, ColorScale.parse("0:0.05").vmax
    ('video', 0.05)
    """

    scope: Scope = "frame"
    """``frame``: each picture's own maximum; ``video``: that of all frames of the video, so that
    the same attention has the same colour throughout; ``fixed``: ``vmin`` to ``vmax``."""
    vmin: float = 0.0
    """Lower limit of a fixed scale."""
    vmax: float = 1.0
    """Upper limit of a fixed scale."""
    shared: bool = False
    """One scale for all cameras of a picture, instead of one (and a colour bar) each."""

    def __post_init__(self) -> None:
        if self.scope not in ("frame", "video", "fixed"):
            raise UsageError(f"a colour scale is frame, video or fixed; got {self.scope!r}")
        finite = np.isfinite(self.vmin) and np.isfinite(self.vmax)
        if self.scope == "fixed" and not (finite and self.vmax > self.vmin):
            raise UsageError(f"a fixed colour scale needs vmin < vmax; got {self.vmin}:{self.vmax}")

    @classmethod
    def parse(cls, text: str, *, shared: bool = False) -> ColorScale:
        """Read ``frame``, ``video`` or ``VMIN:VMAX``.

        Raises
        ------
        UsageError
            If the text is none of these.
        """
        if text in ("frame", "video"):
            return cls(text, shared=shared)  # type: ignore[arg-type]  # narrowed by the test above
        low, colon, high = text.partition(":")
        try:
            if not colon:
                raise ValueError
            return cls("fixed", float(low), float(high), shared)
        except UsageError:
            raise
        except ValueError:
            raise UsageError(
                f"a colour scale is 'frame', 'video' or VMIN:VMAX such as 0:0.05; got {text!r}"
            ) from None

    def limits(
        self, maps: Mapping[str, NDArray[np.floating]], geometries: Mapping[str, Geometry]
    ) -> dict[str, Limits]:
        """Limits of each camera's colours.

        Parameters
        ----------
        maps
            By camera, (..., row, col): one frame's map, or all of a video's. Patches that show
            no image are ignored: a sink in the letterbox must not darken the picture.
        geometries
            By camera.
        """
        if self.scope == "fixed":
            return dict.fromkeys(maps, Limits(self.vmin, self.vmax))
        shown = {c: m[..., geometries[c].coverage() > 0].reshape(-1) for c, m in maps.items()}
        if self.shared and shown:
            return dict.fromkeys(maps, data_limits(np.concatenate(list(shown.values()))))
        return {camera: data_limits(values) for camera, values in shown.items()}

    def describe(self) -> str:
        """Short text for a picture's title."""
        scope = {
            "frame": "scale of this frame",
            "video": "scale of the whole video",
            "fixed": "fixed scale",
        }[self.scope]
        return f"{scope}, shared by the cameras" if self.shared else scope

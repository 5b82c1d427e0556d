"""How pictures look: everything that changes pixels but not what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from attnstore.store.errors import UsageError

from . import colormap, overlay
from .heatmap import Interpolation
from .label import Color

BACKGROUND: Color = (16, 17, 20)
TEXT: Color = (244, 244, 240)
MUTED: Color = (176, 180, 188)
NARROWEST, WIDEST = 64, 4096


@dataclass(frozen=True, slots=True)
class Look:
    """Appearance of pictures and videos.

    Examples
    --------
    >>> Look(cmap="jet", blend="constant", alpha=0.4).cmap
    'jet'
    """

    cmap: str = colormap.DEFAULT
    """Colour map; see `attnstore.render.picture.colormap`."""
    alpha: float = overlay.DEFAULT_ALPHA
    """Opacity of the strongest heat, 0..1."""
    blend: overlay.Blend = "spotlight"
    """How opacity follows heat; see `attnstore.render.picture.overlay`."""
    interpolation: Interpolation = "bilinear"
    """Between patches."""
    pane_width: int = 640
    """Width in pixels of one image in the picture; text grows and shrinks with it. An image more
    than twice as tall as wide is narrower: `attnstore.render.picture.layout.TALLEST`."""
    font: str | None = None
    """Font file to write with; see `attnstore.render.picture.label`."""

    def __post_init__(self) -> None:
        colormap.table(self.cmap)
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha is between 0 and 1; got {self.alpha}")
        if self.blend not in get_args(overlay.Blend):
            raise UsageError(
                f"blend is one of {', '.join(get_args(overlay.Blend))}; got {self.blend!r}"
            )
        if self.interpolation not in ("bilinear", "nearest"):
            raise UsageError(f"interpolation is bilinear or nearest; got {self.interpolation!r}")
        if not NARROWEST <= self.pane_width <= WIDEST:
            raise UsageError(f"pane width is {NARROWEST} to {WIDEST} pixels; got {self.pane_width}")
        if self.font is not None and not Path(self.font).is_file():
            raise UsageError(f"no font file {self.font}")

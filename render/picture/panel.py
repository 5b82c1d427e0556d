"""The composed picture of one keyframe: every camera's original and overlay, labelled.

A picture is made in two steps, because most of it is shared. `Panel.base` draws what all layers
and heads of a keyframe have in common (title, originals); `Panel.compose` copies that and adds
the overlays, their labels and the numbers of the colour bars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry

from . import heatmap
from .layout import Block, Layout, arrange
from .look import Look
from .scale import Limits
from .sheet import Image, Sheet, fit_image


@dataclass(frozen=True, slots=True, eq=False)
class Pane:
    """What one camera's overlay shows."""

    map: NDArray[np.floating]
    """Attention, (row, col)."""
    limits: Limits
    """Attention at the ends of the colour map."""
    head: str
    """Which layer and head, such as ``L05 H03``."""
    notes: Sequence[str] = ()
    """Facts about the map, such as its mass on padding."""

    @property
    def said(self) -> Sequence[str]:
        """The notes, or that there is no map."""
        return self.notes if np.isfinite(self.map).any() else ["no attention stored"]


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """What all pictures of a keyframe share."""

    canvas: Image
    """(height, width, 3) RGB with the title and the originals."""
    images: Mapping[str, Image]
    """Each camera's image at the size of its pane."""
    texts: tuple[str, ...]
    """Every text as it was drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A finished picture."""

    pixels: Image
    """(height, width, 3) uint8 RGB."""
    texts: tuple[str, ...]
    """Every text as it was drawn, shortened where the room was short."""


class Panel:
    """Composes the pictures of one set of cameras.

    Safe to use from several threads: nothing is changed after it is made.

    Parameters
    ----------
    geometries
        By camera, in the order of the picture.
    look
        Appearance.
    lines
        Lines of text above each pane; by default one, or two where panes are narrow.
    """

    def __init__(
        self,
        geometries: Mapping[str, Geometry],
        look: Look | None = None,
        lines: int | None = None,
    ) -> None:
        if not geometries:
            raise UsageError("a picture needs at least one camera")
        self.geometries = dict(geometries)
        self.look = look or Look()
        self.layout: Layout = arrange(
            [g.source for g in self.geometries.values()], self.look.pane_width, lines
        )
        self.blocks: dict[str, Block] = dict(zip(self.geometries, self.layout.blocks, strict=True))
        self.sheet = Sheet(self.layout, self.look)
        self._samplers = {}
        for camera, geometry in self.geometries.items():
            block = self.blocks[camera]
            size = (block.overlay.height, block.overlay.width)
            self._samplers[camera] = heatmap.sampler(geometry, self.look.interpolation, size)

    def base(self, title: str, detail: str, images: Mapping[str, Image], place: str) -> Base:
        """Draw what all pictures of a keyframe share.

        Parameters
        ----------
        title
            The instruction.
        detail
            Smaller line below it: episode, phase, scale.
        images
            By camera, (height, width, 3) uint8 RGB, of the geometry's source size.
        place
            Where in the episode, such as ``frame 32, keyframe 5/23``.
        """
        canvas = self.sheet.copy()
        texts = self.sheet.draw_title(canvas, title, detail)
        shown = {}
        for camera, geometry in self.geometries.items():
            image, block = images[camera], self.blocks[camera]
            if image.shape != (*geometry.source, 3):
                raise UsageError(
                    f"{camera}: image is {image.shape[1]}x{image.shape[0]} pixels, "
                    f"its geometry {geometry.source[1]}x{geometry.source[0]}"
                )
            shown[camera] = fit_image(image, block.original)
            canvas[block.original.slices] = shown[camera]
            texts += self.sheet.draw_label(
                canvas, block.original_label, block.lines, camera, [place]
            )
        return Base(canvas, shown, tuple(texts))

    def compose(self, base: Base, panes: Mapping[str, Pane]) -> Picture:
        """Draw the overlays of a keyframe onto a copy of its base.

        Parameters
        ----------
        panes
            By camera; a camera without one keeps an empty space.
        """
        canvas = base.canvas.copy()
        texts = list(base.texts)
        for camera, pane in panes.items():
            block = self.blocks[camera]
            heat = self._samplers[camera].draw(pane.map)
            self.sheet.draw_heat(canvas, block.overlay, base.images[camera], heat, pane.limits)
            texts += self.sheet.draw_label(
                canvas, block.overlay_label, block.lines, pane.head, pane.said
            )
            texts += self.sheet.draw_numbers(canvas, block.bar, pane.limits)
        return Picture(canvas, tuple(texts))


def percent(share: float) -> str:
    """Write a share for a picture's label.

    Examples
    --------
    >>> percent(0.1234), percent(0.004), percent(0.0004), percent(0.0)
    ('12 %', '0.4 %', '<0.1 %', '0 %')
    """
    if share <= 0:
        return "0 %"
    if share < 0.001:
        return "<0.1 %"
    return f"{share:.1%}".replace("%", " %") if share < 0.095 else f"{share:.0%}".replace("%", " %")

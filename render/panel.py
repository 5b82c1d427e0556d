"""The composed picture of one keyframe: every camera's original and overlay, labelled.

A picture is made in two steps, because most of it is shared. `Panel.base` draws what all layers
and heads of a keyframe have in common (title, originals); `Panel.compose` copies that and adds
the overlays, their labels and the numbers of the colour bars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.geometry import Geometry

from . import colormap, heatmap, label, overlay
from .layout import Block, Box, Layout, Metrics, arrange
from .look import BACKGROUND, MUTED, TEXT, Look
from .scale import Limits

Image = NDArray[np.uint8]


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
        self.metrics = Metrics(self.look.pane_width)
        self.layout: Layout = arrange(
            [g.source for g in self.geometries.values()], self.look.pane_width, lines
        )
        self.blocks: dict[str, Block] = dict(zip(self.geometries, self.layout.blocks, strict=True))
        self._blank = np.empty((self.layout.height, self.layout.width, 3), np.uint8)
        self._blank[:] = BACKGROUND
        self._samplers = {}
        for camera, geometry in self.geometries.items():
            block = self.blocks[camera]
            size = (block.overlay.height, block.overlay.width)
            self._samplers[camera] = heatmap.sampler(geometry, self.look.interpolation, size)
            self._draw_bar(block.bar)

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
        canvas = self._blank.copy()
        texts = self._draw_title(canvas, title, detail)
        shown = {}
        for camera, geometry in self.geometries.items():
            image, block = images[camera], self.blocks[camera]
            if image.shape != (*geometry.source, 3):
                raise UsageError(
                    f"{camera}: image is {image.shape[1]}x{image.shape[0]} pixels, "
                    f"its geometry {geometry.source[1]}x{geometry.source[0]}"
                )
            box = block.original
            shrinks = box.width < image.shape[1]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            small: NDArray[Any] = image
            if image.shape[:2] != (box.height, box.width):
                small = cv2.resize(image, (box.width, box.height), interpolation=method)
            shown[camera] = np.asarray(small, np.uint8)
            canvas[box.slices] = small
            texts += self._draw_label(canvas, block.original_label, block.lines, camera, [place])
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
        look = self.look
        for camera, pane in panes.items():
            block = self.blocks[camera]
            heat = self._samplers[camera].draw(pane.map)
            canvas[block.overlay.slices] = overlay.blend(
                base.images[camera], heat, pane.limits,
                cmap=look.cmap, alpha=look.alpha, style=look.blend,
            )  # fmt: skip
            notes = list(pane.notes)
            if not np.isfinite(pane.map).any():
                notes = ["no attention stored"]
            texts += self._draw_label(canvas, block.overlay_label, block.lines, pane.head, notes)
            texts += self._draw_numbers(canvas, block.bar, pane.limits)
        return Picture(canvas, tuple(texts))

    def _draw_title(self, canvas: Image, title: str, detail: str) -> list[str]:
        box, m = self.layout.title, self.metrics
        first = round(m.title_font * 1.35)
        written = label.write(
            canvas, title, box.x, box.y + first // 2, size=m.title_font, color=TEXT,
            room=box.width, smallest=round(m.title_font * 0.6), font=self.look.font,
        )  # fmt: skip
        below = label.write(
            canvas, detail, box.x, box.y + first + round(m.detail_font * 0.6), size=m.detail_font,
            color=MUTED, room=box.width, smallest=round(m.detail_font * 0.7), font=self.look.font,
        )  # fmt: skip
        return [written, below]

    def _draw_label(
        self, canvas: Image, box: Box, lines: int, name: str, notes: Sequence[str]
    ) -> list[str]:
        m, font = self.metrics, self.look.font
        smallest = round(m.label_font * 0.7)
        middle = box.y + m.strip // 2
        said = "  ·  ".join(notes)
        if lines == 1 and said:
            # the name keeps its size: what shrinks first is the notes
            room = box.width // 2
        else:
            room = box.width
        written = label.write(
            canvas, name, box.x, middle, size=m.label_font, color=TEXT,
            room=room, smallest=smallest, font=font,
        )  # fmt: skip
        if not said:
            return [written]
        if lines == 1:
            _, size = label.fit(label.printable(name), room, m.label_font, smallest, font)
            x = box.x + label.width(written, size, font) + m.at(22)
        else:
            x, middle = box.x, middle + m.strip
        noted = label.write(
            canvas, said, x, middle, size=m.label_font, color=MUTED,
            room=box.x + box.width - x, smallest=smallest, font=font,
        )  # fmt: skip
        return [written, noted]

    def _draw_bar(self, box: Box) -> None:
        ramp = np.linspace(255, 0, box.height).round().astype(np.uint8)
        self._blank[box.slices] = colormap.table(self.look.cmap)[ramp][:, None]
        # a frame, since the colour map may end in the background's colour
        corner, opposite = (box.x - 1, box.y - 1), (box.x + box.width, box.y + box.height)
        cv2.rectangle(self._blank, corner, opposite, MUTED, 1)

    def _draw_numbers(self, canvas: Image, box: Box, limits: Limits) -> list[str]:
        m = self.metrics
        half = m.label_font // 2
        x, written = box.x + box.width + m.at(6), []
        for share in (1.0, 0.5, 0.0):
            value = limits.vmin + share * (limits.vmax - limits.vmin)
            y = round(box.y + (1 - share) * (box.height - 1))
            y = min(max(y, box.y + half), box.y + box.height - half)
            written.append(
                label.write(
                    canvas, number(value), x, y, size=m.label_font, color=TEXT, room=m.numbers
                )
            )
        return written


def number(value: float) -> str:
    """Write a weight in few characters.

    Examples
    --------
    >>> number(0.03125), number(0.0), number(1.0), number(3.1e-05), number(1234.0)
    ('0.031', '0', '1', '3.1e-5', '1.2e3')
    """
    if value == 0 or 0.001 <= abs(value) < 100:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


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

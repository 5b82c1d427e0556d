"""The paper that pictures are drawn on: colour bars, and the texts and heat put onto copies of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from . import colormap, label, overlay
from .layout import Box, Layout, Metrics
from .look import BACKGROUND, MUTED, TEXT, Look
from .scale import Limits

Image = NDArray[np.uint8]


class Sheet:
    """An empty picture of a layout, and what is written on its copies.

    Safe to use from several threads: nothing is changed after it is made. What writes returns
    the texts as they were drawn, shortened where the room was short.
    """

    def __init__(self, layout: Layout, look: Look) -> None:
        self.layout = layout
        self.look = look
        self.metrics = Metrics(look.pane_width)
        self._blank: Image = np.empty((layout.height, layout.width, 3), np.uint8)
        self._blank[:] = BACKGROUND
        for block in layout.blocks:
            self._draw_bar(block.bar)

    def copy(self) -> Image:
        """Give an empty canvas, (height, width, 3) RGB."""
        return self._blank.copy()

    def draw_title(self, canvas: Image, title: str, detail: str) -> list[str]:
        """Write the two lines above everything."""
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

    def draw_label(
        self, canvas: Image, box: Box, lines: int, name: str, notes: Sequence[str]
    ) -> list[str]:
        """Write a name and, beside or below it, what is to be noted."""
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

    def draw_heat(
        self, canvas: Image, box: Box, image: Image, heat: NDArray[np.float32], limits: Limits
    ) -> None:
        """Draw heat on an image, both of the box's size, into the box."""
        canvas[box.slices] = overlay.blend(
            image, heat, limits,
            cmap=self.look.cmap, alpha=self.look.alpha, style=self.look.blend,
        )  # fmt: skip

    def draw_numbers(self, canvas: Image, box: Box, limits: Limits) -> list[str]:
        """Write the numbers beside a colour bar: as many as are apart from each other."""
        m = self.metrics
        half = m.label_font // 2
        x, written = box.x + box.width + m.at(6), []
        fitting = box.height // m.label_font
        if fitting < 2:
            ends = f"{number(limits.vmin)}–{number(limits.vmax)}"
            middle = box.y + box.height // 2
            return [
                label.write(canvas, ends, x, middle, size=m.label_font, color=TEXT, room=m.numbers)
            ]
        for share in (1.0, 0.5, 0.0) if fitting > 2 else (1.0, 0.0):
            value = limits.vmin + share * (limits.vmax - limits.vmin)
            y = round(box.y + (1 - share) * (box.height - 1))
            y = min(max(y, box.y + half), box.y + box.height - half)
            written.append(
                label.write(
                    canvas, number(value), x, y, size=m.label_font, color=TEXT, room=m.numbers
                )
            )
        return written

    def _draw_bar(self, box: Box) -> None:
        ramp = np.linspace(255, 0, box.height).round().astype(np.uint8)
        self._blank[box.slices] = colormap.table(self.look.cmap)[ramp][:, None]
        # a frame, since the colour map may end in the background's colour
        corner, opposite = (box.x - 1, box.y - 1), (box.x + box.width, box.y + box.height)
        cv2.rectangle(self._blank, corner, opposite, MUTED, 1)


def fit_image(image: Image, box: Box) -> Image:
    """Scale an image to a box, which has its aspect."""
    shrinks = box.width < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    small: NDArray[Any] = image
    if image.shape[:2] != (box.height, box.width):
        small = cv2.resize(image, (box.width, box.height), interpolation=method)
    return np.asarray(small, np.uint8)


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

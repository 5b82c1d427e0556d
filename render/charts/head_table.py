"""A table of layers × heads, a coloured cell each, and the bar that explains its colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..picture import label
from ..picture.label import Color
from ..picture.look import BACKGROUND, MUTED, TEXT

Image = NDArray[np.uint8]

LOW: Color = (96, 165, 250)
HIGH: Color = (255, 158, 74)
"""Ends of the diverging colours: a blue and an orange that every common colour vision tells apart."""
NEUTRAL: Color = (38, 40, 46)
RULE: Color = (64, 68, 76)
LINE = 26
"""Height of a line of text."""
WIDE, NARROW = (36, 28), (12, 28)
"""Width and height of a cell, with room for a number or for many steps."""
NAMES = 48
"""Width of the layers' names."""
BETWEEN = 20
"""Space between two blocks."""


def diverging(values: NDArray[np.floating]) -> Image:
    """Colours of -1 (`LOW`) over 0 (neutral) to 1 (`HIGH`); NaN is neutral.

    Returns
    -------
    (..., 3) uint8 RGB.
    """
    share = np.nan_to_num(np.clip(values, -1, 1))[..., None]
    end = np.where(share >= 0, np.array(HIGH, np.float64), np.array(LOW, np.float64))
    mixed = np.array(NEUTRAL) * (1 - np.abs(share)) + end * np.abs(share)
    return np.asarray(np.rint(mixed), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class HeadTable:
    """Blocks of layers × heads side by side: a block per step or camera."""

    blocks: Sequence[str]
    """Title of each; empty for none."""
    layers: NDArray[np.integer]
    heads: NDArray[np.integer]
    """Numbers; -1 for the mean over heads."""
    cell: tuple[int, int] = WIDE

    @property
    def width(self) -> int:
        """Width in pixels."""
        return NAMES + len(self.blocks) * (self._block + BETWEEN) - BETWEEN

    @property
    def height(self) -> int:
        """Height in pixels."""
        return 2 * LINE + len(self.layers) * self.cell[1]

    @property
    def _block(self) -> int:
        return len(self.heads) * self.cell[0]

    def _corner(self, block: int, layer: int, head: int) -> tuple[int, int]:
        left = NAMES + block * (self._block + BETWEEN) + head * self.cell[0]
        return left, 2 * LINE + layer * self.cell[1]

    def draw(
        self, canvas: Image, x: int, y: int, colours: Image, absent: NDArray[np.bool_]
    ) -> None:
        """Draw the table with its top left corner at (x, y), in place.

        Parameters
        ----------
        colours
            (block, layer, head, 3) RGB.
        absent
            (block, layer, head): hatched, which is unlike the neutral colour of no difference.
        """
        wide, high = self.cell
        for at in np.ndindex(*absent.shape):
            left, top = self._corner(*at)
            area = canvas[y + top : y + top + high - 2, x + left : x + left + wide - 2]
            if absent[at]:
                rows, cols = np.indices(area.shape[:2])
                area[(rows + cols) % 6 < 1] = RULE
            else:
                area[:] = colours[at]
        for block, name in enumerate(self.blocks):
            left, _ = self._corner(block, 0, 0)
            at_line = y + LINE // 2
            label.write(canvas, name, x + left, at_line, size=16, color=TEXT, room=self._block)
            if wide < WIDE[0] or self.heads[0] < 0:
                continue
            for number, head in enumerate(self.heads):
                middle = x + left + number * wide + wide // 2 - 1
                text, at_line = f"H{head:02d}", y + 3 * LINE // 2
                label.write(canvas, text, middle, at_line, size=14, color=MUTED, anchor="center")
        for row, layer in enumerate(self.layers):
            middle = y + self._corner(0, row, 0)[1] + high // 2 - 1
            label.write(canvas, f"L{layer:02d}", x, middle, size=14, color=MUTED)

    def mark(
        self,
        canvas: Image,
        x: int,
        y: int,
        colours: Image,
        framed: NDArray[np.bool_],
        numbers: NDArray[np.intp],
    ) -> None:
        """Frame cells, and write the positive ``numbers`` into theirs; (block, layer, head) each."""
        wide, high = self.cell
        for block, layer, head in np.argwhere(framed | (numbers > 0)).tolist():
            left, top = self._corner(block, layer, head)
            left, top = x + left, y + top
            if framed[block, layer, head]:
                corner = (left + wide - 3, top + high - 3)
                cv2.rectangle(canvas, (left, top), corner, TEXT, 2)
            if number := int(numbers[block, layer, head]):
                bright = int(colours[block, layer, head].sum()) > 400
                label.write(
                    canvas, str(number), left + wide // 2 - 1, top + high // 2 - 1, size=14,
                    color=BACKGROUND if bright else TEXT, anchor="center",
                )  # fmt: skip


def draw_bar(
    canvas: Image, x: int, y: int, width: int, colours: Image, ends: tuple[str, str, str]
) -> None:
    """Draw a colour bar, ``colours`` (256, 3), with text below its start, middle and end."""
    canvas[y : y + 12, x : x + width] = colours[np.linspace(0, 255, width).astype(np.intp)]
    places: tuple[tuple[int, label.Anchor], ...] = (
        (x, "left"), (x + width // 2, "center"), (x + width, "right"),
    )  # fmt: skip
    for text, (at, anchor) in zip(ends, places, strict=True):
        label.write(canvas, text, at, y + LINE, size=14, color=MUTED, anchor=anchor)

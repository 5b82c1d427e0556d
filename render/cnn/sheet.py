"""A sheet of small pictures under captions, in rows: how results of a network are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..picture import label
from ..picture.label import Color
from ..picture.look import BACKGROUND, MUTED, TEXT
from .values import Image, scaled

WARNING: Color = (255, 176, 66)
"""Of the line that says that weights are random."""
MARGIN, GAP, FONT = 14, 10, 14
STRIP = 20
"""Height of a caption."""
TRACE = 28
"""Height of the curve below a picture."""


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One small picture."""

    image: Image
    caption: str
    note: str = ""
    trace: NDArray[np.floating] | None = None
    """Values of a curve below the picture."""
    until: int | None = None
    """Index in `trace` up to which it is bright, in a video."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Cells beside each other, with a heading above them."""

    cells: Sequence[Cell]
    heading: str = ""


def sheet(title: str, detail: str, rows: Sequence[Row], *, height: int, warning: str = "") -> Image:
    """Compose a sheet.

    Parameters
    ----------
    title, detail
        Lines above the pictures.
    height
        Of each picture in pixels.
    warning
        A further line, in a colour that is seen.

    Returns
    -------
    (height, width, 3) RGB, both even.
    """
    images = [[scaled(cell.image, height) for cell in row.cells] for row in rows]
    traced = any(cell.trace is not None for row in rows for cell in row.cells)
    deep = STRIP + height + (TRACE if traced else 0)
    # Room for a caption, however narrow the picture is.
    slots = [[max(image.shape[1], 120) for image in row] for row in images]
    wide = max((sum(s) + GAP * (len(s) - 1) for s in slots), default=0)
    wide = max(wide, 420) + 2 * MARGIN
    top = MARGIN + 26 + 20 + (22 if warning else 0) + GAP // 2
    tall = top + sum(deep + GAP + (STRIP if row.heading else 0) for row in rows) + MARGIN - GAP
    canvas: Image = np.empty((tall + tall % 2, wide + wide % 2, 3), np.uint8)
    canvas[:] = BACKGROUND
    room = wide - 2 * MARGIN
    label.write(canvas, title, MARGIN, MARGIN + 10, size=19, color=TEXT, room=room)
    label.write(canvas, detail, MARGIN, MARGIN + 34, size=FONT, color=MUTED, room=room)
    if warning:
        label.write(canvas, warning, MARGIN, MARGIN + 56, size=16, color=WARNING, room=room)
    y = top
    for row, pictures, widths in zip(rows, images, slots, strict=True):
        if row.heading:
            label.write(
                canvas, row.heading, MARGIN, y + STRIP // 2, size=FONT + 2, color=TEXT, room=room
            )
            y += STRIP
        x = MARGIN
        for cell, picture, width in zip(row.cells, pictures, widths, strict=True):
            _draw(canvas, cell, picture, x, y, width)
            x += width + GAP
        y += deep + GAP
    return canvas


def in_rows(cells: Sequence[Cell], columns: int) -> list[Row]:
    """Break cells into rows."""
    return [Row(cells[i : i + columns]) for i in range(0, len(cells), columns)]


def _draw(canvas: Image, cell: Cell, picture: Image, x: int, y: int, width: int) -> None:
    written = label.write(
        canvas, cell.caption, x, y + STRIP // 2, size=FONT, color=TEXT, room=width, smallest=10
    )
    used = label.width(written, FONT) + 8
    if cell.note and width - used > 30:
        label.write(
            canvas, cell.note, x + width, y + STRIP // 2, size=FONT - 2, color=MUTED,
            room=width - used, anchor="right", smallest=9,
        )  # fmt: skip
    tall, wide = picture.shape[:2]
    canvas[y + STRIP : y + STRIP + tall, x : x + wide] = picture
    if cell.trace is not None and len(cell.trace) > 1:
        _curve(canvas, cell.trace, cell.until, x, y + STRIP + tall + 3, wide, TRACE - 6)


def _curve(
    canvas: Image, values: NDArray[np.floating], until: int | None, x: int, y: int,
    width: int, height: int,
) -> None:  # fmt: skip
    low, high = float(np.min(values)), float(np.max(values))
    across = x + np.linspace(0, width - 1, len(values))
    down = y + (height - 1) * (1 - (np.asarray(values) - low) / ((high - low) or 1.0))
    points = np.stack([across, down], 1).round().astype(np.int32)
    cv2.polylines(canvas, [points], False, MUTED if until is None else (70, 73, 80), 1, cv2.LINE_AA)
    if until is not None:
        cv2.polylines(canvas, [points[: until + 1]], False, WARNING, 1, cv2.LINE_AA)
        cv2.circle(canvas, points[until].tolist(), 2, WARNING, -1, cv2.LINE_AA)

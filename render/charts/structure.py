"""A picture of a phase's token matrix: a block for every pair of spans, and what attends to what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.query.attention.structure import Relation, SpanTokens, TokenMatrix

from ..picture import label
from ..picture.colormap import table
from ..picture.look import BACKGROUND, MUTED, TEXT

Image = NDArray[np.uint8]

MARGIN, LINE = 24, 22
NARROWEST = 34
"""Pixels of a span of one token; a longer one grows with the logarithm of its tokens."""
GROWTH = 9
EDGE = (64, 68, 76)
NONE = (24, 25, 29)
FAINTEST = 0.12
"""Of the colours, for a block that gets next to nothing: it must not look like one that is masked."""
LEGEND = (
    "Rows attend to columns. Filled: every pair has a weight; triangle: causal; hatched: a part of "
    "the pairs; dark with a dot: none, in any layer, head or step."
)
MASSES = "Number and colour: the share of a row's attention that goes there, mean over all heads."


def draw_structure(matrices: Sequence[TokenMatrix], title: str) -> Image:
    """Draw token matrices below one another.

    Returns
    -------
    (height, width, 3) uint8 RGB.
    """
    parts = [_Matrix(matrix) for matrix in matrices]
    width = max(*(part.width for part in parts), label.width(LEGEND, 14)) + 2 * MARGIN
    height = 2 * MARGIN + 3 * LINE + sum(part.height + LINE for part in parts)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = BACKGROUND
    room = width - 2 * MARGIN
    for row, (text, size, color) in enumerate(
        ((label.printable(title), 18, TEXT), (LEGEND, 14, MUTED), (MASSES, 14, MUTED))
    ):
        middle = MARGIN + row * LINE + LINE // 2
        label.write(canvas, text, MARGIN, middle, size=size, color=color, room=room)
    top = MARGIN + 4 * LINE
    for part in parts:
        part.draw(canvas, MARGIN, top)
        top += part.height + LINE
    return canvas


class _Matrix:
    """One phase's blocks, with the spans' names on the left and their numbers above."""

    def __init__(self, matrix: TokenMatrix) -> None:
        self._matrix = matrix
        self._rows, self._cols = _edges(matrix.queries), _edges(matrix.keys)
        names = [_name(i, s) for i, s in enumerate(matrix.queries)]
        keys = [_name(i, s) for i, s in enumerate(matrix.keys)]
        self._names = max(label.width(name, 14) for name in names) + 12
        self._keys = 0 if matrix.square else max(label.width(key, 14) for key in keys) + 24
        self._lines = 0 if matrix.square else len(keys) * LINE

    @property
    def width(self) -> int:
        return self._names + self._cols[-1] + self._keys

    @property
    def height(self) -> int:
        return 2 * LINE + max(self._rows[-1], self._lines)

    def draw(self, canvas: Image, x: int, y: int) -> None:
        matrix = self._matrix
        queries, keys = (sum(map(len, spans)) for spans in (matrix.queries, matrix.keys))
        steps = f" x {matrix.steps} steps" if matrix.steps is not None else ""
        said = (
            f"{matrix.phase}: {queries} x {keys} tokens, "
            f"{matrix.layers} layers x {matrix.heads} heads{steps}, keyframe {matrix.keyframe}"
        )
        label.write(canvas, said, x, y + LINE // 2, size=16, color=TEXT)
        left, top = x + self._names, y + 2 * LINE
        for i, (low, high) in enumerate(zip(self._cols, self._cols[1:], strict=False)):
            middle = left + (low + high) // 2
            label.write(canvas, str(i), middle, top - 10, size=14, color=MUTED, anchor="center")
        for i, (low, high) in enumerate(zip(self._rows, self._rows[1:], strict=False)):
            name = _name(i, matrix.queries[i])
            label.write(canvas, name, x, top + (low + high) // 2, size=14, color=MUTED)
            for k, relation in enumerate(matrix.relations[i]):
                area = canvas[
                    top + low : top + high, left + self._cols[k] : left + self._cols[k + 1]
                ]
                _block(area, relation)
        if not matrix.square:
            beside = left + self._cols[-1] + 16
            for i, span in enumerate(matrix.keys):
                middle = top + i * LINE + LINE // 2
                label.write(canvas, _name(i, span), beside, middle, size=14, color=MUTED)


def _block(area: Image, relation: Relation) -> None:
    height, width = area.shape[:2]
    inner = area[1:-1, 1:-1]
    area[:] = EDGE
    inner[:] = NONE
    middle = (width // 2, height // 2)
    if relation.pattern == "none":
        cv2.circle(area, middle, 2, EDGE, -1)
        return
    rows, cols = np.indices(inner.shape[:2])
    color = _color(relation.mass)
    if relation.pattern == "causal":
        inner[cols * inner.shape[0] <= rows * inner.shape[1]] = color
    elif relation.pattern == "part":
        inner[(rows + cols) % 8 < 4] = color
    else:
        inner[:] = color
    # Percent, where it is not next to nothing.
    text = f"{100 * relation.mass:.0f}"
    if relation.mass >= 0.005:
        bright = relation.pattern == "all" and sum(color) > 380
        label.write(
            area, text, middle[0], middle[1], size=13,
            color=BACKGROUND if bright else TEXT, anchor="center",
        )  # fmt: skip


def _color(mass: float) -> tuple[int, int, int]:
    share = FAINTEST + (1 - FAINTEST) * float(np.sqrt(np.clip(mass, 0, 1)))
    red, green, blue = table("viridis")[round(255 * share)]
    return int(red), int(green), int(blue)


def _edges(spans: Sequence[SpanTokens]) -> list[int]:
    sizes = [NARROWEST + round(GROWTH * np.log2(len(span))) for span in spans]
    return list(accumulate(sizes, initial=0))


def _name(number: int, span: SpanTokens) -> str:
    return f"{number}  {label.printable(span.name)} ({len(span)})"

"""What charts with two axes share: the frame, its ticks and labels, and the legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .svg import COLOURS, line, text, text_width, ticks

LEFT, TOP, RIGHT, BOTTOM = 62, 50, 16, 42
WIDTH = 520
ROW = 18
"""Height of a row of the legend."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a legend."""

    name: str
    colour: str | None = None
    """By default that of its place in the order."""
    dashed: bool = False


class Axes:
    """A frame of two axes below a title and a legend.

    Parameters
    ----------
    height
        Of the chart with a legend of one row; each further row adds to it.
    x, y
        Values at the ends of the axes.
    """

    def __init__(
        self,
        legend: Sequence[Entry],
        *,
        width: float,
        height: float,
        x: tuple[float, float],
        y: tuple[float, float],
    ) -> None:
        self._legend = list(legend)
        self._rows = _wrapped([entry.name for entry in legend], width - LEFT)
        more = ROW * (len(self._rows) - 1)
        self.width, self.height, self._top = width, height + more, TOP + more
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        """Return where a value of the x axis lies, in pixels."""
        low, high = self._x
        return LEFT + (self.width - LEFT - RIGHT) * (value - low) / ((high - low) or 1.0)

    def y(self, value: float) -> float:
        """Return where a value of the y axis lies, in pixels."""
        low, high = self._y
        tall = self.height - self._top - BOTTOM
        return self.height - BOTTOM - tall * (value - low) / ((high - low) or 1.0)

    def frame(
        self,
        title: str,
        labels: tuple[str, str],
        *,
        x_ticks: Sequence[float] | None = None,
        upright: bool = False,
    ) -> list[str]:
        """Draw title, legend, ticks and labels.

        Parameters
        ----------
        x_ticks
            By default round values.
        upright
            Draw the x axis's grid too.
        """
        parts = [text(8, 18, title, "title"), *self._entries()]
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for tick in ticks(*self._y):
            parts.append(line(LEFT, self.y(tick), right, self.y(tick), "grid"))
            parts.append(text(LEFT - 6, self.y(tick) + 4, f"{tick:g}", "tick end"))
        low, high = self._x
        shown = x_ticks if x_ticks is not None else ticks(low, high) if high > low else [low]
        for tick in shown:
            if upright:
                parts.append(line(self.x(tick), self._top, self.x(tick), bottom, "grid"))
            parts.append(text(self.x(tick), bottom + 16, f"{tick:g}", "tick middle"))
        parts.append(text((self.width + LEFT) / 2, self.height - 8, labels[0], "tick middle"))
        middle = (self._top + bottom) / 2
        parts.append(
            f'<g transform="translate(14.0,{middle:.1f}) rotate(-90)">'
            f"{text(0, 0, labels[1], 'tick middle')}</g>"
        )
        return parts

    def level(self, value: float) -> str:
        """Draw a dashed line at a value of the y axis."""
        return line(LEFT, self.y(value), self.width - RIGHT, self.y(value), "reference")

    def upright(self, value: float) -> str:
        """Draw a dashed line at a value of the x axis."""
        return line(self.x(value), self._top, self.x(value), self.height - BOTTOM, "reference")

    def _entries(self) -> list[str]:
        parts = []
        for number, row in enumerate(self._rows):
            x, y = float(LEFT), 36 + ROW * number
            for index in row:
                entry = self._legend[index]
                colour = entry.colour or COLOURS[index % len(COLOURS)]
                dash = ' stroke-dasharray="5 3"' if entry.dashed else ""
                parts.append(
                    f'<line x1="{x:.1f}" x2="{x + 16:.1f}" y1="{y - 4}" y2="{y - 4}" '
                    f'stroke="{colour}" stroke-width="4"{dash}/>'
                )
                parts.append(text(x + 21, y, entry.name, "label"))
                x += 30 + text_width(entry.name)
        return parts


def span(values: Sequence[float | None]) -> tuple[float, float]:
    """Find ends of an axis that has room for every value.

    Examples
    --------
    >>> span([0.0, None, 1.0])
    (0.0, 1.04)
    """
    known = [v for v in values if v is not None and math.isfinite(v)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if high - low < 1e-12:
        high = low + (abs(low) or 1.0)
    margin = 0.04 * (high - low)
    return low - (margin if low < 0 else 0.0), high + margin


def _wrapped(names: Sequence[str], room: float) -> list[list[int]]:
    """Break a legend into rows that fit."""
    rows: list[list[int]] = [[]]
    used = 0.0
    for index, name in enumerate(names):
        wide = 30 + text_width(name)
        if rows[-1] and used + wide > room:
            rows.append([])
            used = 0.0
        rows[-1].append(index)
        used += wide
    return rows

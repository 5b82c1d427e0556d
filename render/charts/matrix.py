"""A matrix as coloured cells: layers × heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .svg import Chart, text, text_width

COOL, WARM = (59, 110, 196), (214, 102, 30)
"""Ends of the diverging colours, which every common colour vision tells apart."""
Numbers = Sequence[float | None]


def matrix_chart(
    title: str,
    values: Sequence[Numbers],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    high: float,
    diverging: bool = False,
    framed: frozenset[tuple[int, int]] = frozenset(),
    ends: tuple[str, str] = ("0", ""),
) -> Chart:
    """Draw a matrix as coloured cells: layers × heads.

    Parameters
    ----------
    values
        By row and column; None where there is no number.
    high
        Value of the full colour; of both full colours, ± it, if diverging.
    framed
        Cells with a frame, (row, column).
    ends
        Words at the ends of the colour bar.
    """
    cell_w, cell_h = max(14, min(34, 420 // max(1, len(columns)))), 17
    left, top = 46, 46
    bar = 140
    room = left + bar + 14 + text_width(ends[1])
    width = max(left + cell_w * len(columns) + 12, 60 + text_width(title, 14), room)
    height = top + cell_h * len(rows) + 44
    parts = [text(8, 18, title, "title")]
    every = math.ceil(len(columns) / 16)
    for c, name in enumerate(columns):
        if c % every == 0:
            parts.append(text(left + cell_w * (c + 0.5), top - 6, name, "tick middle"))
    for r, name in enumerate(rows):
        parts.append(text(left - 6, top + cell_h * r + 12, name, "tick end"))
        for c, value in enumerate(values[r]):
            x, y = left + cell_w * c, top + cell_h * r
            known = value is not None and math.isfinite(value)
            fill = _heat(value / high, diverging) if known and value is not None else "none"
            style = ' class="frame"' if (r, c) in framed else ""
            paint = f'fill="{fill}"' if not style else f'style="fill:{fill}"'
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{cell_w - 1.5:.1f}" height="{cell_h - 1.5}" '
                f"{paint}{style}/>"
            )
    y = top + cell_h * len(rows) + 12
    for i in range(28):
        share = i / 27 * (2 if diverging else 1) - (1 if diverging else 0)
        parts.append(
            f'<rect x="{left + i * bar / 28:.1f}" y="{y}" width="{bar / 28 + 0.5:.1f}" height="9" '
            f'fill="{_heat(share, diverging)}"/>'
        )
    parts.append(text(left, y + 22, ends[0], "tick"))
    parts.append(text(left + bar + 6, y + 9, ends[1], "tick"))
    return Chart(width, height, "".join(parts))


def _heat(share: float, diverging: bool) -> str:
    strength = max(-1.0, min(1.0, share)) if diverging else max(0.0, min(1.0, share))
    end = WARM if strength >= 0 else COOL
    # Not from white but from a light grey: a cell must be seen on white paper too.
    red, green, blue = (round(238 + (v - 238) * abs(strength)) for v in end)
    return f"rgb({red},{green},{blue})"

"""Charts as SVG: a drawing of known size, and the few elements that all charts are made of.

SVG and not pixels: they go into a self-contained page and scale for print. Fonts are the reader's.
Ink and paper are CSS variables, so that a page may set them for the dark; alone, a chart is black
on white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#8a7a00", "#56b4e9", "#777777")
"""Okabe and Ito's colours, darkened where white paper needs it."""
SUCCESS, FAILURE, UNKNOWN = "#0072b2", "#d55e00", "#777777"
OUTCOMES = {"success": SUCCESS, "failure": FAILURE, "unknown": UNKNOWN}

STYLE = (
    ".chart text{font:12px system-ui,sans-serif;fill:var(--ink,#222)}"
    ".chart .paper{fill:var(--paper,#fff)}"
    ".chart .title{font-size:14px;font-weight:600}"
    ".chart .tick{font-size:11px;fill:var(--muted,#555)}.chart .cell{font-size:11px;fill:#222}"
    ".chart .middle{text-anchor:middle}.chart .end{text-anchor:end}"
    ".chart .grid{stroke:var(--rule,#e4e4e4)}"
    ".chart .reference{stroke:var(--muted,#777);stroke-dasharray:5 4}"
    ".chart .frame{fill:none;stroke:var(--ink,#222);stroke-width:1.6}"
)
"""Of every chart; a page with several needs it once."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing of known size."""

    width: float
    """In pixels of the SVG."""
    height: float
    body: str
    """SVG elements."""

    @property
    def svg(self) -> str:
        """The whole SVG document."""
        return self._svg(f"<style>{STYLE}</style>")

    @property
    def inline(self) -> str:
        """The element for a page that has `STYLE` already."""
        return self._svg("")

    def _svg(self, style: str) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{self.width:g}" '
            f'height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}">'
            f'{style}<rect width="100%" height="100%" class="paper"/>{self.body}</svg>'
        )


def stack(charts: Sequence[Chart], columns: int = 2) -> Chart:
    """Put charts into one, row by row."""
    parts, y, width = [], 0.0, 1.0
    for start in range(0, len(charts), columns):
        row, x = charts[start : start + columns], 0.0
        for chart in row:
            parts.append(f'<g transform="translate({x:g},{y:g})">{chart.body}</g>')
            x += chart.width + 10
        width = max(width, x)
        y += max(chart.height for chart in row) + 10
    return Chart(width, max(1.0, y), "".join(parts))


def ticks(low: float, high: float) -> list[float]:
    """Round values on an axis, about five of them."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def text(x: float, y: float, words: str, style: str) -> str:
    """Write words; `style` is classes of `STYLE`."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """Draw a line; `style` is classes of `STYLE`."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def text_width(words: str, size: float = 12) -> float:
    """Estimate the width of words in a sans-serif font, in pixels."""
    return 0.59 * size * len(words)

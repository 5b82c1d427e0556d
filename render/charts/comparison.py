"""Which heads differ, as one picture: a table of layers × heads, and the episodes of the first ones.

The table's colour is Cliff's δ on a fixed scale of -1 to 1, so that pictures of two metrics can be
compared; a frame marks what the test calls significant, and numbers lead to the rows beside it,
which show every episode and the difference with its interval.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.format.weighting import described

from ..picture import colormap, label
from ..picture.label import Color
from ..picture.look import BACKGROUND, MUTED, TEXT
from .head_table import (
    HIGH,
    LINE,
    LOW,
    NARROW,
    RULE,
    WIDE,
    HeadTable,
    diverging,
    draw_bar,
)

if TYPE_CHECKING:
    import xarray as xr

    from attnstore.query.groups.comparison import Comparison

Image = NDArray[np.uint8]
Float = NDArray[np.float64]

FIRST = 10
"""Heads whose episodes are shown."""
FAINT = 0.3
"""Strength of the colours of a comparison that cannot conclude anything."""
MARGIN, GAP = 32, 40
ROW = 50
"""Height of a head's row of episodes."""
NAME, STRIP, FOREST, NUMBERS = 116, 330, 300, 150
"""Widths of a row's columns."""
ROWS = NAME + STRIP + FOREST + NUMBERS + 2 * GAP
_SHIFT = 4
"""Fractional bits of the coordinates given to OpenCV, so that marks are not moved to whole pixels."""


class _Axis(NamedTuple):
    """A horizontal axis: values from ``low`` to ``high`` at pixels from ``left`` on."""

    left: int
    width: int
    low: float
    high: float

    def at(self, value: float) -> float:
        return self.left + self.width * (value - self.low) / (self.high - self.low)


def draw_comparison(comparison: Comparison, first: int = FIRST) -> Image:
    """Draw a comparison of two groups.

    Returns
    -------
    (height, width, 3) uint8 RGB.
    """
    keys, groups = comparison.values, comparison.groups
    known = [np.unique(values) for values in (keys.step, keys.layer, keys.head)]
    at = tuple(
        np.searchsorted(axis, values)
        for axis, values in zip(known, (keys.step, keys.layer, keys.head), strict=True)
    )
    shape = tuple(len(axis) for axis in known)
    delta, framed = np.full(shape, np.nan), np.zeros(shape, bool)
    delta[at], framed[at] = comparison.results["cliffs_delta"], comparison.significant
    shown = [t for t in comparison.ranked if not np.isnan(comparison.results["p"][t])][:first]
    rank = np.zeros(shape, np.intp)
    rank[tuple(axis[shown] for axis in at)] = np.arange(1, len(shown) + 1)

    many = shape[0] > 1
    blocks = [f"step {s}" for s in known[0]] if many else [""]
    table = HeadTable(blocks, known[1], known[2], NARROW if many else WIDE)
    beside = table.width < 2 * ROWS // 3
    left = max(table.width, 340)
    width = 2 * MARGIN + (left + GAP + ROWS if beside else max(left, ROWS))
    notes = [line for note in comparison.notes for line in textwrap.wrap(note, width // 9)]
    top = MARGIN + 3 * LINE + LINE * len(notes)
    below = top + table.height + 4 * LINE
    rows_top = top if beside else below + GAP
    height = max(below, rows_top + 3 * LINE + ROW * len(shown)) + MARGIN
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)

    a, b = groups.sizes
    found = f"{framed.sum()} significant at q ≤ {comparison.attainable.alpha:g}"
    title = f"{keys.metric}: {a} against {b} episodes"
    _draw_title(canvas, title, (f"{comparison.family}; {found}",), notes)
    # where nothing can be concluded, chance alone gives the brightest colours
    strength = 1.0 if comparison.attainable.conclusive else FAINT
    colours = diverging(strength * delta)
    table.draw(canvas, MARGIN, top, colours, np.isnan(delta))
    table.mark(canvas, MARGIN, top, colours, framed, rank if not many else np.zeros_like(rank))
    bar = top + table.height + LINE // 2
    ends = ("−1", "Cliff's δ", "+1")
    draw_bar(canvas, MARGIN, bar, left, diverging(strength * np.linspace(-1, 1, 256)), ends)
    half = left // 2 - 8
    y = bar + 2 * LINE
    for text, x, anchor, color in (
        (f"larger in {groups.b}", MARGIN, "left", LOW),
        (f"larger in {groups.a}", MARGIN + left, "right", HIGH),
    ):
        side: label.Anchor = "left" if anchor == "left" else "right"
        label.write(canvas, text, x, y, size=15, color=color, anchor=side, room=half)
    _draw_rows(canvas, MARGIN + left + GAP if beside else MARGIN, rows_top, comparison, shown)
    return canvas


def draw_divergence(divergences: Sequence[xr.DataArray]) -> Image:
    """Draw the mean divergence of each camera's heads over all keyframes of the episodes.

    Parameters
    ----------
    divergences
        One or more of `attnstore.query.groups.run_diff.diff_runs`, of the same runs.

    Returns
    -------
    (height, width, 3) uint8 RGB.
    """
    if not divergences:
        raise UsageError("a picture needs at least one episode")
    one = divergences[0]
    keyframes = np.concatenate([d.values for d in divergences], axis=1)
    counted = (~np.isnan(keyframes)).sum(1)
    total = np.nansum(keyframes, axis=1)
    mean = np.divide(total, counted, out=np.full(total.shape, np.nan), where=counted > 0)
    mean = mean.reshape(-1, *mean.shape[2:])  # (camera and step, layer, head)
    limit = float(np.nanmax(mean, initial=0.0)) or 1.0
    steps = one["step"].values
    many = len(steps) > 1
    blocks = [f"{c} step {s}" if many else str(c) for c in one["camera"].values for s in steps]
    table = HeadTable(blocks, one["layer"].values, one["head"].values, NARROW if many else WIDE)
    left = max(table.width, 640)
    top = MARGIN + 3 * LINE
    height = top + table.height + 2 * LINE + MARGIN
    canvas = np.full((height, left + 2 * MARGIN, 3), BACKGROUND, np.uint8)
    info = one.attrs
    text = (
        f"{info['phase']} × {info['query_group']}: divergence of "
        f"{described(info['weighting'])}maps, mean over "
        f"{keyframes.shape[1]} keyframes of {len(divergences)} episodes"
    )
    _draw_title(canvas, f"{info['run_a']} against {info['run_b']}", (text,), ())
    colours = np.stack([colormap.apply(block, 0.0, limit) for block in mean])
    table.draw(canvas, MARGIN, top, colours, np.isnan(mean))
    ends = ("0: equal", "Jensen-Shannon divergence, bits", f"{limit:.3g}")
    bar = colormap.table(colormap.DEFAULT)
    draw_bar(canvas, MARGIN, top + table.height + LINE // 2, left, bar, ends)
    return canvas


def _draw_title(canvas: Image, title: str, facts: Sequence[str], notes: Sequence[str]) -> None:
    room, y = canvas.shape[1] - 2 * MARGIN, MARGIN + LINE // 2
    label.write(canvas, title, MARGIN, y, size=26, color=TEXT, room=room)
    for number, text in enumerate((*facts, *notes)):
        y = MARGIN + 2 * LINE + number * LINE
        color = MUTED if number < len(facts) else HIGH
        label.write(canvas, text, MARGIN, y, size=17, color=color, room=room)


def _draw_rows(
    canvas: Image, x: int, y: int, comparison: Comparison, shown: Sequence[np.intp]
) -> None:
    """Draw the first heads: a dot for every episode, the difference and its interval."""
    if not shown:
        return
    results, keys, in_a = comparison.results, comparison.values, comparison.groups.in_a
    bottom = y + 2 * LINE + ROW * len(shown)
    strip = _axis(x + NAME, STRIP, keys.values[:, shown])
    ends = np.stack([results[f"within{end}"][shown] for end in ("", "_low", "_high")])
    reach = float(np.nanmax(np.abs(ends), initial=0.0))
    forest = _axis(x + NAME + STRIP + GAP, FOREST, np.array([-reach, reach]))
    within = " within strata" if len(set(comparison.stratum.tolist())) > 1 else ""
    titles = ("episodes and their mean", f"difference of means{within}, 95 % interval")
    for axis, title in zip((strip, forest), titles, strict=True):
        label.write(canvas, title, axis.left, y + LINE // 2, size=16, color=TEXT, room=axis.width)
        for value in _ticks(axis):
            at = round(axis.at(value))
            color = MUTED if axis is forest and value == 0 else RULE
            cv2.line(canvas, (at, y + 3 * LINE // 2), (at, bottom), color, 1)
            text, line = f"{value:g}", bottom + LINE // 2
            label.write(canvas, text, at, line, size=14, color=MUTED, anchor="center")
    numbers = forest.left + FOREST + GAP
    for text, at in (("p", numbers), ("q", numbers + NUMBERS // 2)):
        label.write(canvas, text, at, y + LINE // 2, size=16, color=TEXT)
    for number, test in enumerate(shown):
        middle = y + 2 * LINE + ROW * number + ROW // 2
        head = f" H{keys.head[test]:02d}" if keys.head[test] >= 0 else ""
        step = f" s{keys.step[test]}" if len(np.unique(keys.step)) > 1 else ""
        name = f"{number + 1}  L{keys.layer[test]:02d}{head}{step}"
        label.write(canvas, name, x, middle, size=16, color=TEXT, room=NAME - 8)
        for inside, color, offset in ((in_a, HIGH, -9), (~in_a, LOW, 9)):
            values = keys.values[inside, test]
            _dots(canvas, strip, values[~np.isnan(values)], middle + offset, color)
        difference, low, high = ends[:, number]
        color = HIGH if difference > 0 else LOW
        if not np.isnan(low):
            _line(canvas, forest.at(low), middle, forest.at(high), middle, color)
        if not np.isnan(difference):
            _disc(canvas, forest.at(difference), middle, 5, color)
        color = TEXT if comparison.significant[test] else MUTED
        for value, at in (
            (results["p"][test], numbers),
            (comparison.q[test], numbers + NUMBERS // 2),
        ):
            label.write(canvas, f"{value:.2g}", at, middle, size=15, color=color)


def _axis(left: int, width: int, values: Float) -> _Axis:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    pad = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return _Axis(left, width, low - pad, high + pad)


def _ticks(axis: _Axis) -> list[float]:
    """Round values on an axis, three to six of them."""
    rough = (axis.high - axis.low) / 4
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * next(f for f in (1, 2, 5, 10) if f * power >= rough * 0.99)
    first, last = int(np.ceil(axis.low / step)), int(np.floor(axis.high / step))
    return [float(f"{k * step:.6g}") for k in range(first, last + 1)]


def _dots(canvas: Image, axis: _Axis, values: Float, y: float, color: Color) -> None:
    """Draw a dot for each value, and the mean as a line through them."""
    radius = 4 if len(values) <= 60 else 3
    faint = tuple((3 * c + b) // 4 for c, b in zip(color, BACKGROUND, strict=True))
    for value in values:
        _disc(canvas, axis.at(value), y, radius, faint)
    if len(values):
        at = axis.at(float(values.mean()))
        _line(canvas, at, y - 9, at, y + 9, TEXT)


def _line(canvas: Image, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
    cv2.line(canvas, _point(x0, y0), _point(x1, y1), color, 2, cv2.LINE_AA, _SHIFT)


def _point(x: float, y: float) -> tuple[int, int]:
    return round(x * (1 << _SHIFT)), round(y * (1 << _SHIFT))


def _disc(canvas: Image, x: float, y: float, radius: int, color: Sequence[int]) -> None:
    cv2.circle(canvas, _point(x, y), radius << _SHIFT, color, cv2.FILLED, cv2.LINE_AA, _SHIFT)

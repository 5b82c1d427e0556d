"""Charts of a report: lines with intervals, shares over time, a scatter.

Every chart says its units on its axes and carries its own legend, so that it can be cut out and
sent on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from attnstore.query.statistics import Estimate

from .plot_axes import WIDTH, Axes, Entry, span
from .svg import COLOURS, Chart

Numbers = Sequence[float | None]
Point = tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Series:
    """One line: values with their intervals."""

    name: str
    x: Sequence[float]
    y: Numbers
    """None where there is no number."""
    low: Numbers = ()
    high: Numbers = ()
    """Ends of intervals; empty if there are none."""
    colour: str | None = None
    dashed: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        x: Sequence[float],
        estimates: Sequence[Estimate],
        colour: str | None = None,
        dashed: bool = False,
    ) -> Self:
        """Make a line of means with their intervals."""
        y, low, high = (
            [v if math.isfinite(v := getattr(e, part)) else None for e in estimates]
            for part in ("value", "low", "high")
        )
        return cls(name, x, y, low, high, colour, dashed)


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    reference: float | None = None,
    whole: bool = True,
    bottom: float | None = 0.0,
    top: float | None = None,
    width: float = WIDTH,
) -> Chart:
    """Draw lines with the intervals of their values.

    Parameters
    ----------
    reference
        Value of a dashed line, such as chance.
    whole
        The x axis counts things, as layers: whole ticks, dots, and whiskers instead of bands.
    bottom, top
        The y axis begins and ends here at the latest; None: where the data do.
    """
    every = [v for s in series for values in (s.y, s.low, s.high) for v in values]
    xs = [v for s in series for v in s.x] or [0.0]
    first, last = min(xs), max(xs)
    pad = 0.5 if whole else 0.0
    axes = Axes(
        [Entry(s.name, s.colour, s.dashed) for s in series],
        width=width,
        height=290,
        x=(first - pad, last + pad),
        y=span([*every, reference, bottom, top]),
    )
    shown = _whole_ticks(first, last) if whole else None
    parts = axes.frame(title, (x_label, y_label), x_ticks=shown)
    if reference is not None:
        parts.append(axes.level(reference))
    for index, each in enumerate(series):
        colour = each.colour or COLOURS[index % len(COLOURS)]
        # Whiskers of several series at one layer stand beside each other.
        shift = (index - (len(series) - 1) / 2) * min(5.0, 16 / len(series)) if whole else 0.0
        points: list[Point] = [
            (axes.x(x) + shift, axes.y(y)) if _known(y) and y is not None else None
            for x, y in zip(each.x, each.y, strict=True)
        ]
        ends: list[Point] = [
            (axes.y(a), axes.y(b))
            if _known(a) and _known(b) and a is not None and b is not None
            else None
            for a, b in zip(each.low, each.high, strict=True)
        ] or [None] * len(points)
        if not whole:
            parts += _bands(points, ends, colour)
        parts += _lines(points, colour, each.dashed)
        if whole:
            parts += _dots(points, ends, colour)
    return Chart(axes.width, axes.height, "".join(parts))


def area_chart(
    title: str,
    x_label: str,
    x: Sequence[float],
    shares: Mapping[str, Numbers],
    colours: Mapping[str, str],
    *,
    width: float = WIDTH,
) -> Chart:
    """Draw shares of a whole, stacked, over x; gaps where a keyframe has none.

    Parameters
    ----------
    shares
        Name to one share per x, 0..1, from the bottom on.
    """
    axes = Axes(
        [Entry(name, colours[name]) for name in shares],
        width=width,
        height=250,
        x=(min(x, default=0.0), max(x, default=1.0)),
        y=(0.0, 1.0),
    )
    parts = []
    base = [0.0] * len(x)
    for name, values in shares.items():
        there = [_known(v) for v in values]
        upper = [
            b + (v or 0.0) if known else b for b, v, known in zip(base, values, there, strict=True)
        ]
        for run in _runs(there):
            edge = [f"{axes.x(x[i]):.1f},{axes.y(upper[i]):.1f}" for i in run]
            edge += [f"{axes.x(x[i]):.1f},{axes.y(base[i]):.1f}" for i in reversed(run)]
            parts.append(
                f'<polygon points="{" ".join(edge)}" fill="{colours[name]}" opacity="0.85"/>'
            )
        base = upper
    parts += axes.frame(title, (x_label, "share of attention"))
    return Chart(axes.width, axes.height, "".join(parts))


def scatter_chart(
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[tuple[float, float, str]],
    names: Sequence[str],
    *,
    crossing: tuple[float, float],
) -> Chart:
    """Draw points of several kinds, with a dashed cross.

    Parameters
    ----------
    points
        (x, y, kind).
    names
        Kinds, in the order of their colours.
    crossing
        Where the dashed lines cross.
    """
    axes = Axes(
        [Entry(name) for name in names],
        width=WIDTH,
        height=340,
        x=span([0.0, crossing[0], *(p[0] for p in points)]),
        y=span([0.0, crossing[1], *(p[1] for p in points)]),
    )
    parts = axes.frame(title, (x_label, y_label), upright=True)
    parts += [axes.upright(crossing[0]), axes.level(crossing[1])]
    for x, y, kind in points:
        colour = COLOURS[list(names).index(kind) % len(COLOURS)]
        parts.append(
            f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3.4" fill="{colour}" opacity="0.6"/>'
        )
    return Chart(axes.width, axes.height, "".join(parts))


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _whole_ticks(first: float, last: float) -> list[float]:
    step = max(1, math.ceil((last - first + 1) / 12))
    return [float(i) for i in range(math.ceil(first), math.floor(last) + 1, step)]


def _runs(there: Sequence[bool]) -> list[list[int]]:
    """Indices of unbroken stretches."""
    runs: list[list[int]] = []
    for index, known in enumerate(there):
        if known and index and there[index - 1]:
            runs[-1].append(index)
        elif known:
            runs.append([index])
    return runs


def _lines(points: Sequence[Point], colour: str, dashed: bool) -> list[str]:
    dash = ' stroke-dasharray="5 3"' if dashed else ""
    parts = []
    for run in _runs([p is not None for p in points]):
        path = " ".join(f"{p[0]:.1f},{p[1]:.1f}" for i in run if (p := points[i]) is not None)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'
        )
    return parts


def _bands(points: Sequence[Point], ends: Sequence[Point], colour: str) -> list[str]:
    both = [
        None if point is None or end is None else (point[0], *end)
        for point, end in zip(points, ends, strict=True)
    ]
    parts = []
    for run in _runs([b is not None for b in both]):
        known = [b for i in run if (b := both[i]) is not None]
        edge = [f"{x:.1f},{low:.1f}" for x, low, _ in known]
        edge += [f"{x:.1f},{high:.1f}" for x, _, high in reversed(known)]
        parts.append(f'<polygon points="{" ".join(edge)}" fill="{colour}" opacity="0.15"/>')
    return parts


def _dots(points: Sequence[Point], ends: Sequence[Point], colour: str) -> list[str]:
    parts = []
    for point, end in zip(points, ends, strict=True):
        if point is None:
            continue
        x, y = point
        if end is not None:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{end[0]:.1f}" y2="{end[1]:.1f}" '
                f'stroke="{colour}" stroke-width="1.6" opacity="0.8"/>'
            )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    return parts

"""Charts of object overlap as SVG: layers, success against failure, and a table of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .head_table import HIGH, LOW
from .svg import COLOURS, OUTCOMES, UNKNOWN, Chart, line, text, ticks

_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 30, 14, 40


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart: a mean and its deviation per layer."""

    name: str
    mean: Sequence[float | None]
    """By layer; None where there is no number."""
    sd: Sequence[float | None]


def layer_chart(
    title: str, unit: str, curves: Sequence[Curve], reference: float | None = None
) -> Chart:
    """Draw mean and band of ± one standard deviation over layers.

    Parameters
    ----------
    reference
        Value of a dashed line, such as chance.
    """
    width, height = 460, 260
    bounds = [reference] if reference is not None else []
    for curve in curves:
        for mean, sd in zip(curve.mean, curve.sd, strict=True):
            if mean is not None:
                bounds += [mean - (sd or 0), mean + (sd or 0)]
    low, high = min([0.0, *bounds]), max([*bounds, 1e-9])
    layers = max((len(c.mean) for c in curves), default=1)

    def x(layer: float) -> float:
        return _LEFT + (width - _LEFT - _RIGHT) * (layer / max(1, layers - 1))

    def y(value: float) -> float:
        return height - _BOTTOM - (height - _TOP - _BOTTOM) * (value - low) / (high - low)

    parts = [text(_LEFT, 18, title, "title")]
    for tick in ticks(low, high):
        parts.append(line(_LEFT, y(tick), width - _RIGHT, y(tick), "grid"))
        parts.append(text(_LEFT - 6, y(tick) + 4, f"{tick:g}", "tick end"))
    for layer in range(0, layers, max(1, math.ceil(layers / 9))):
        parts.append(text(x(layer), height - _BOTTOM + 16, str(layer), "tick middle"))
    parts.append(text((width + _LEFT) / 2, height - 6, f"layer; {unit}", "tick middle"))
    if reference is not None:
        parts.append(line(_LEFT, y(reference), width - _RIGHT, y(reference), "reference"))
    for index, curve in enumerate(curves):
        colour = COLOURS[index % len(COLOURS)]
        known = [
            (x(i), m, s or 0.0)
            for i, (m, s) in enumerate(zip(curve.mean, curve.sd, strict=True))
            if m is not None
        ]
        if not known:
            continue
        band = [f"{a:.1f},{y(m + s):.1f}" for a, m, s in known]
        band += [f"{a:.1f},{y(m - s):.1f}" for a, m, s in reversed(known)]
        parts.append(f'<polygon points="{" ".join(band)}" fill="{colour}" opacity="0.15"/>')
        path = " ".join(f"{a:.1f},{y(m):.1f}" for a, m, _ in known)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return Chart(width, height, "".join(parts))


def legend(names: Sequence[str]) -> Chart:
    """Draw the colours of `layer_chart`'s curves."""
    parts, x = [], 4
    for index, name in enumerate(names):
        parts.append(
            f'<rect x="{x}" y="5" width="14" height="10" fill="{COLOURS[index % len(COLOURS)]}"/>'
        )
        parts.append(text(x + 19, 14, name, "label"))
        x += 34 + 8 * len(name)
    return Chart(max(x, 40), 20, "".join(parts))


def outcome_chart(
    title: str, values: Mapping[str, Mapping[str, Sequence[float]]], reference: float | None = None
) -> Chart:
    """Draw every episode's value as a dot, by object and outcome, with the mean as a bar.

    Parameters
    ----------
    values
        Object to outcome to one value per episode.
    """
    every = [v for by in values.values() for vs in by.values() for v in vs]
    every += [] if reference is None else [reference]
    low, high = min([0.0, *every]), max([*every, 1e-9])
    row, left, width = 22, 190, 620
    groups = [(o, name, vs) for o, by in values.items() for name, vs in by.items()]
    height = _TOP + row * len(groups) + _BOTTOM

    def x(value: float) -> float:
        return left + (width - left - _RIGHT) * (value - low) / (high - low)

    parts = [text(8, 18, title, "title")]
    bottom = height - _BOTTOM
    for tick in ticks(low, high):
        parts.append(line(x(tick), _TOP, x(tick), bottom, "grid"))
        parts.append(text(x(tick), bottom + 16, f"{tick:g}", "tick middle"))
    if reference is not None:
        parts.append(line(x(reference), _TOP, x(reference), bottom, "reference"))
    seen = ""
    for index, (name, outcome, numbers) in enumerate(groups):
        y = _TOP + row * (index + 0.5)
        if name != seen:
            parts.append(text(8, y + 4, name, "label"))
            seen = name
        parts.append(text(left - 8, y + 4, f"{outcome}, {len(numbers)}", "tick end"))
        colour = OUTCOMES.get(outcome, UNKNOWN)
        for order, value in enumerate(numbers):
            # Spread a little, by position and not at random: the same data is the same file.
            jitter = ((order * 5) % 7 - 3) * 1.6
            parts.append(
                f'<circle cx="{x(value):.1f}" cy="{y + jitter:.1f}" r="3.2" fill="{colour}" '
                'opacity="0.65"/>'
            )
        if numbers:
            mean = x(sum(numbers) / len(numbers))
            parts.append(
                f'<line x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - 9:.1f}" y2="{y + 9:.1f}" '
                f'stroke="{colour}" stroke-width="3"/>'
            )
    return Chart(width, height, "".join(parts))


def heat_table(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    centre: float,
    reach: float,
) -> Chart:
    """Draw a table of numbers with coloured cells.

    Parameters
    ----------
    values
        By row and column; None where there is no number.
    centre, reach
        Value without colour, and the distance from it that has the full colour.
    """
    cell_w, cell_h, left = 78, 20, 60
    longest = max((len(c) for c in columns), default=0)
    top = _TOP + 16 * (2 if longest > 12 else 1) + 6
    width, height = left + cell_w * len(columns) + 8, top + cell_h * len(rows) + 8
    parts = [text(8, 18, title, "title")]
    for c, name in enumerate(columns):
        first, _, rest = name.partition("\n")
        x = left + cell_w * (c + 0.5)
        parts.append(text(x, top - (20 if rest else 6), first[:14], "tick middle"))
        parts.append(text(x, top - 6, rest[:14], "tick middle") if rest else "")
    for r, name in enumerate(rows):
        y = top + cell_h * r
        parts.append(text(left - 6, y + 14, name, "tick end"))
        for c, value in enumerate(values[r]):
            x = left + cell_w * c
            if value is None:
                parts.append(text(x + cell_w / 2, y + 14, "·", "tick middle"))
                continue
            share = max(-1.0, min(1.0, (value - centre) / reach))
            end = HIGH if share > 0 else LOW
            red, green, blue = (round(255 + (v - 255) * abs(share)) for v in end)
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell_w - 1}" height="{cell_h - 1}" '
                f'fill="rgb({red},{green},{blue})"/>'
            )
            parts.append(text(x + cell_w / 2, y + 14, f"{value:.2f}", "cell middle"))
    return Chart(width, height, "".join(parts))

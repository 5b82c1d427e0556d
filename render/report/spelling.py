"""How numbers are spelt."""

from __future__ import annotations

import math

from attnstore.query.statistics import Estimate


def number(value: float | None) -> str:
    """Spell a number with three significant digits.

    Examples
    --------
    >>> number(0.12345), number(1234.5), number(float("nan")), number(-0.0)
    ('0.123', '1234', '–', '0')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    text = f"{value:.3g}"
    return f"{value:.1e}" if "e" in text else text.replace("-0", "0") if float(text) == 0 else text


def interval(low: float, high: float) -> str:
    """Spell an interval: ``0.1 to 0.2``; nothing where there is none."""
    return f"{number(low)} to {number(high)}" if math.isfinite(low) else ""


def with_interval(value: Estimate) -> str:
    """Spell a mean with its interval: ``0.12 (0.1 to 0.2)``."""
    ends = interval(value.low, value.high)
    return number(value.value) + (f" ({ends})" if ends else "")


def percent(value: float | None) -> str:
    """Spell a share.

    Examples
    --------
    >>> percent(0.1234), percent(0.0004), percent(None)
    ('12 %', '0.04 %', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.0f} %" if value >= 0.095 or value == 0 else f"{100 * value:.2g} %"


def points(value: Estimate) -> str:
    """Spell a change of a share in percentage points, with its interval.

    Examples
    --------
    >>> points(Estimate(0.0123, 0.004, 0.0211, 8)), points(Estimate(-0.001, float("nan"), 0.0, 2))
    ('+1.2 (+0.4 to +2.1)', '-0.1')
    """
    ends = [f"{100 * v:+.2g}" for v in (value.value, value.low, value.high)]
    if not math.isfinite(value.value):
        return "–"
    return ends[0] + (f" ({ends[1]} to {ends[2]})" if math.isfinite(value.low) else "")


def size(count: float) -> str:
    """Spell bytes.

    Examples
    --------
    >>> size(63_296_758), size(12)
    ('63.3 MB', '12 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def layer_names(count: int) -> list[str]:
    """Names of layers: ``L00``, ``L01``."""
    return [f"L{i:02d}" for i in range(count)]


def known(values: list[float]) -> list[float | None]:
    """Replace NaN, which no chart draws."""
    return [v if math.isfinite(v) else None for v in values]

"""Axis names and their order, stated once.

An attention array is ``keyframe [step] layer head query key``; an overview map is
``keyframe [step] layer head row col``.

Examples
--------
>>> attention_dims("suffix")
('keyframe', 'step', 'layer', 'head', 'query', 'key')
>>> map_dims("prefix")
('keyframe', 'layer', 'head', 'row', 'col')
"""

from __future__ import annotations

from typing import Literal, get_args

Phase = Literal["prefix", "suffix", "joint", "decode", "vision"]
PHASES: tuple[Phase, ...] = get_args(Phase)
STEPPED_PHASES: frozenset[str] = frozenset({"suffix", "decode"})
"""Phases that run several times for one keyframe, hence have a ``step`` axis."""


def attention_dims(phase: str) -> tuple[str, ...]:
    """Dimension names of a phase's attention array."""
    return (*_leading(phase), "layer", "head", "query", "key")


def map_dims(phase: str) -> tuple[str, ...]:
    """Dimension names of a phase's overview maps."""
    return (*_leading(phase), "layer", "head", "row", "col")


def _leading(phase: str) -> tuple[str, ...]:
    if phase not in PHASES:
        raise ValueError(f"a phase is one of {', '.join(PHASES)}; got {phase!r}")
    return ("keyframe", "step") if phase in STEPPED_PHASES else ("keyframe",)

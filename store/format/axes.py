"""Axis names and their order, stated once.

An attention array is ``keyframe [step] layer head query key``; an overview map is
``keyframe [step] layer head row col``. The phase ``vision`` has one array per camera, because each
camera's image encoder has a token layout of its own: its path is ``vision/<camera>``.

Examples
--------
>>> attention_dims("suffix")
('keyframe', 'step', 'layer', 'head', 'query', 'key')
>>> map_dims("prefix")
('keyframe', 'layer', 'head', 'row', 'col')
>>> phase_path("prefix"), phase_path("vision", "hand_camera")
('prefix', 'vision/hand_camera')
"""

from __future__ import annotations

from typing import Literal, get_args

Phase = Literal["prefix", "suffix", "joint", "decode", "vision"]
PHASES: tuple[Phase, ...] = get_args(Phase)
STEPPED_PHASES: frozenset[str] = frozenset({"suffix", "decode"})
"""Phases that run several times for one keyframe, hence have a ``step`` axis."""
VISION: Phase = "vision"
"""The phase inside the image encoders, the only one that is stored once per camera."""


def phase_path(phase: str, camera: str | None = None) -> str:
    """Group of a phase's attention in ``attention.zarr``, and its key in an episode's description.

    Raises
    ------
    ValueError
        If phase and camera do not go together.
    """
    if (phase == VISION) != (camera is not None):
        raise ValueError(f"phase vision, and only it, is of one camera; got {phase!r}, {camera!r}")
    return phase if camera is None else f"{phase}/{camera}"


def split_path(path: str) -> tuple[str, str | None]:
    """Return phase and camera of a `phase_path`."""
    phase, _, camera = path.partition("/")
    return phase, camera or None


def attention_dims(phase: str) -> tuple[str, ...]:
    """Dimension names of a phase's attention array."""
    return (*leading_dims(phase), "layer", "head", "query", "key")


def norm_dims(phase: str) -> tuple[str, ...]:
    """Dimension names of a phase's value norms."""
    return (*leading_dims(phase), "layer", "head", "key")


def map_dims(phase: str) -> tuple[str, ...]:
    """Dimension names of a phase's overview maps."""
    return (*leading_dims(phase), "layer", "head", "row", "col")


def leading_dims(phase: str) -> tuple[str, ...]:
    """First dimension names of a phase's arrays: keyframe, and step where it has steps."""
    if phase not in PHASES:
        raise ValueError(f"a phase is one of {', '.join(PHASES)}; got {phase!r}")
    return ("keyframe", "step") if phase in STEPPED_PHASES else ("keyframe",)

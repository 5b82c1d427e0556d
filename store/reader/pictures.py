"""What draws an episode: whatever is registered as such, since `store` knows no pictures.

docs/decisions/041-site-and-package.md
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import UsageError
from ..format.weighting import Weighting
from ..rules import Active

ENTRY_POINTS = "attnstore.pictures"


class Shown(Protocol):
    """What a notebook shows: a still or a player."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a file, in the format that its name says; raises UsageError if it has none such."""


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """What is to be drawn of an episode; `Episode.show` says what is what."""

    phase: str | None
    layer: int | None
    head: int | Literal["active"]
    cameras: Sequence[str] | None
    step: int | Literal["first", "last"] | None
    query: str | None
    reduce: Literal["max", "mean"]
    sink_corrected: bool
    active: Active
    weighting: Weighting
    width: int


@cache
def drawn_by(name: Literal["show", "animate"]) -> Callable[..., Shown]:
    """Return what draws a still, ``show(episode, request, keyframe)``, or ``animate(episode, request, fps)``.

    Raises
    ------
    UsageError
        If nothing is registered.
    """
    for point in entry_points(group=ENTRY_POINTS, name=name):
        found: Any = point.load()
        return found  # type: ignore[no-any-return]
    raise UsageError(
        f"nothing is registered as {ENTRY_POINTS} {name!r}: install attnstore again, whole"
    )

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

from ..errors import SelectionError, UsageError
from ..format.weighting import Weighting
from ..rules import Active
from .description import EpisodeDescription
from .reads import Reduction
from .selection import check_index

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
    reduce: Reduction
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


class EpisodePictures(EpisodeDescription):
    """An episode that draws itself, by `drawn_by`."""

    def show(
        self,
        phase: str | None = None,
        *,
        layer: int | None = None,
        head: int | Literal["active"] = "active",
        keyframe: int | None = None,
        frame: int | None = None,
        cameras: Sequence[str] | None = None,
        step: int | Literal["first", "last"] | None = None,
        query: str | None = None,
        reduce: Reduction = "max",
        sink_corrected: bool = False,
        active: Active = "image",
        weighting: Weighting = "raw",
        width: int = 420,
    ) -> Shown:
        """Draw a keyframe: each camera's image, and beside it the attention of one layer as heat.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...; by default ``prefix``, or the first that the episode has.
        layer
            From 0; by default the one whose most active head is the most active of all.
        head
            From 0; or ``active``: each camera's most active one at this keyframe, as `active_head`.
        keyframe, frame
            One of them, from 0, negative keyframes from the end; by default the first keyframe.
        cameras
            By default all.
        step, query, reduce, sink_corrected, active, weighting
            As for `maps`.
        width
            Pixels of one camera's image, 64 to 4096.

        Returns
        -------
        A still: shown by a notebook; ``save("x.png")`` (``.jpg``, ``.webp``) writes it, ``pixels`` are
        (height, width, 3) uint8 RGB, ``texts`` what is written in it.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing.
        NotFoundError
            If there are no value norms to weight with.
        """
        if frame is not None:
            if keyframe is not None:
                raise SelectionError(f"give keyframe or frame; got {keyframe} and {frame}")
            keyframe = self.keyframe_of(frame)
        at = check_index(keyframe or 0, len(self.frames), "keyframe")
        request = PictureRequest(
            phase, layer, head, cameras, step, query, reduce, sink_corrected, active, weighting,
            width,
        )  # fmt: skip
        return drawn_by("show")(self, request, at)

    def animate(
        self,
        phase: str | None = None,
        *,
        layer: int | None = None,
        head: int | Literal["active"] = "active",
        cameras: Sequence[str] | None = None,
        step: int | Literal["first", "last"] | None = None,
        query: str | None = None,
        reduce: Reduction = "max",
        sink_corrected: bool = False,
        active: Active = "image",
        weighting: Weighting = "raw",
        width: int = 320,
        fps: float = 3.0,
    ) -> Shown:
        """Draw all keyframes as a player: play, pause, a slider, arrow keys; on one colour scale.

        Parameters
        ----------
        phase, layer, cameras, step, query, reduce, sink_corrected, active, weighting, width
            As for `show`.
        head
            As for `show`; but ``active`` is the head of the whole episode, which does not jump.
        fps
            Keyframes a second, above 0, at most 60.

        Returns
        -------
        A player: shown by a notebook, needs nothing but the page that it is in; ``save("x.html")`` writes
        it as a page of its own, ``save("x.gif")``, ``.webp``, ``.webm`` or ``.mp4`` as a picture or video
        that moves.

        Raises
        ------
        SelectionError, NotFoundError
            As `show`.
        UsageError
            If `fps` is out of range.
        """
        request = PictureRequest(
            phase, layer, head, cameras, step, query, reduce, sink_corrected, active, weighting,
            width,
        )  # fmt: skip
        return drawn_by("animate")(self, request, fps)

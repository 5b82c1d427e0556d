"""What is drawn: the part of an episode's interface that pictures need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.generated import DECODE
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import WORD
from attnstore.store.format.views import is_current
from attnstore.store.format.weighting import Weighting
from attnstore.store.rules import Active, standing_step

from .drawing import Drawing, Reduction


class EpisodeMaps(Protocol):
    """One episode, as `attnstore.query` gives it.

    Everything is called from one thread at a time. Values are the caller's to keep; they are not
    changed. An index is literal; a bad one raises `attnstore.store.errors.SelectionError`.
    """

    @property
    def run(self) -> str:
        """Run id."""

    @property
    def name(self) -> str:
        """The dataset's own name, such as ``success/2025-12-10/2025-12-10_09-00-39``."""

    @property
    def outcome(self) -> str:
        """``success``, ``failure`` or ``unknown``."""

    @property
    def date(self) -> str | None:
        """Recording date, if known."""

    @property
    def instruction(self) -> str:
        """The prompt."""

    @property
    def policy(self) -> str:
        """Name of the policy."""

    @property
    def frames(self) -> NDArray[np.int32]:
        """Frame index of each keyframe, (keyframe,)."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names."""

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases with attention."""

    def geometry(self, camera: str) -> Geometry:
        """Return the transform between a camera's pixels and its patches."""

    def layers(self, phase: str) -> int:
        """Count the layers of a phase."""

    def heads(self, phase: str) -> int:
        """Count the heads of a phase."""

    def steps(self, phase: str) -> int | None:
        """Count the denoising steps; None in a one-pass phase."""

    def query_groups(self, phase: str) -> tuple[str, ...]:
        """Return the query groups with overview maps; the first is drawn by default."""

    def has_query(self, phase: str, group: str) -> bool:
        """Whether a phase's queries have a group, stored or not."""

    def check_query(self, phase: str, group: str) -> None:
        """Refuse a group that a phase's queries have not; the message says what there is."""

    def generated(self, keyframe: int) -> tuple[str, ...]:
        """Return the tokens that the policy generated, one a step of phase decode; none if none."""

    def image_bytes(self, keyframe: int, camera: str) -> bytes:
        """Return an encoded image, as it was read from the dataset."""

    def maps(
        self,
        phase: str,
        camera: str,
        *,
        layer: int,
        step: int | None = None,
        reduce: Literal["max", "mean"] = "max",
        query: str | None = None,
        sink_corrected: bool = False,
        weighting: Weighting = "raw",
    ) -> xr.DataArray:
        """Load the maps of one layer, (keyframe, head, row, col)."""

    def map_variance(
        self,
        phase: str,
        camera: str,
        *,
        layer: int,
        step: int | None = None,
        reduce: Literal["max", "mean"] = "max",
        query: str | None = None,
        sink_corrected: bool = False,
        active: Active = "image",
        weighting: Weighting = "raw",
        maps: NDArray[np.float32] | None = None,
    ) -> NDArray[np.floating[Any]]:
        """Return what makes a head of these maps the active one, (keyframe, head)."""

    def mass(
        self,
        phase: str,
        camera: str,
        *,
        layer: int,
        step: int | None = None,
        query: str | None = None,
        weighting: Weighting = "raw",
    ) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
        """Load attention on a camera's image and on its letterbox, each (keyframe, head)."""

    def sink_keys(
        self,
        phase: str,
        *,
        layer: int,
        head: int,
        step: int | None = None,
        weighting: Weighting = "raw",
    ) -> list[tuple[str, int, int, float]]:
        """List sinks that lie on an image patch: camera, row, col, mean mass."""


def check_cameras(episode: EpisodeMaps, cameras: Sequence[str] | None) -> tuple[str, ...]:
    """Cameras to draw: those asked for, or all; earlier views (``hand_camera@-1``) only if asked for.

    Raises
    ------
    SelectionError
        If the episode has no such camera.
    """
    usual = [camera for camera in episode.cameras if is_current(camera)]
    chosen = tuple(dict.fromkeys(usual if cameras is None else cameras))
    for camera in chosen:
        if camera not in episode.cameras:
            raise SelectionError(
                f"{episode.name}: no camera {camera!r}; there are {', '.join(episode.cameras)}"
            )
    if not chosen:
        raise UsageError("no cameras to draw")
    return chosen


def check_layers(
    episode: EpisodeMaps, phases: Sequence[str] | None, layers: Sequence[int] | None
) -> dict[str, tuple[int, ...]]:
    """Layers to draw, each once, by phase: those asked for, or all.

    Raises
    ------
    SelectionError
        If the episode has no such phase or layer.
    """
    if layers is not None and not len(layers):
        raise UsageError("no layers to draw")
    chosen = tuple(dict.fromkeys(episode.phases if phases is None else phases))
    for phase in chosen:
        if phase not in episode.phases:
            raise SelectionError(
                f"{episode.name}: no phase {phase!r}; there are {', '.join(episode.phases)}"
            )
        last = episode.layers(phase) - 1
        for layer in layers or ():
            if not 0 <= layer <= last:
                raise SelectionError(
                    f"{episode.name}: {phase} has layers 0 to {last}; there is no {layer}"
                )
    if not chosen:
        raise UsageError(f"{episode.name}: no phases to draw")
    return {
        phase: tuple(dict.fromkeys(range(episode.layers(phase)) if layers is None else layers))
        for phase in chosen
    }


def check_query(
    episode: EpisodeMaps,
    chosen: Mapping[str, tuple[int, ...]],
    query: str | None,
    *,
    named: bool,
) -> dict[str, tuple[int, ...]]:
    """Keep the phases whose queries have a group.

    Parameters
    ----------
    chosen
        Layers by phase.
    query
        None is each phase's own.
    named
        The phases were asked for: each must have it.

    Raises
    ------
    SelectionError
        If a phase that was asked for has not, or none has.
    """
    if query is None:
        return dict(chosen)
    kept = {p: layers for p, layers in chosen.items() if episode.has_query(p, query)}
    for phase in chosen:
        if phase not in kept and (named or not kept):
            episode.check_query(phase, query)
    return kept


def describe_query(episode: EpisodeMaps, phase: str, query: str | None = None) -> str:
    """Whose attention is drawn, for titles: ``task tokens``, ``the word “cube”``."""
    groups = episode.query_groups(phase)
    group = query or (groups[0] if groups else "all")
    if phase == "decode" and group in groups:
        return "the step's one query"
    if phase == "vision" and group == "image":
        return "patches"
    if word := WORD.fullmatch(group):
        return f"the word “{word['word']}”" + (f" of {word['owner']}" if word["owner"] else "")
    return f"{group} tokens"


def check_heads(episode: EpisodeMaps, phase: str, heads: bool | Sequence[int]) -> tuple[int, ...]:
    """Heads to draw one by one: all, none, or those asked for.

    Raises
    ------
    SelectionError
        If the phase has no such head.
    """
    last = episode.heads(phase) - 1
    if isinstance(heads, bool):
        return tuple(range(last + 1)) if heads else ()
    for head in heads:
        if not 0 <= head <= last:
            raise SelectionError(
                f"{episode.name}: {phase} has heads 0 to {last}; there is no {head}"
            )
    return tuple(dict.fromkeys(heads))


def check_drawings(
    episode: EpisodeMaps,
    phases: Sequence[str] | None,
    layers: Sequence[int] | None,
    query: str | None,
    step: int | None,
    reduce: Reduction,
    sink_corrected: bool,
    weighting: Weighting,
) -> tuple[dict[str, tuple[int, ...]], dict[str, int], dict[str, Drawing]]:
    """What of an episode is drawn: by phase its layers, its step, and what file names say of it.

    Raises
    ------
    SelectionError
        If the episode has no such phase, layer, step or query group.
    """
    chosen = check_layers(episode, phases, layers)
    chosen = check_query(episode, chosen, query, named=phases is not None)
    steps = {phase: default_step(episode, phase, step) for phase in chosen}
    drawings = {
        phase: Drawing(
            phase, reduce, check_step(episode, phase, steps[phase]), sink_corrected,
            None if query == episode.query_groups(phase)[0] else query, weighting,
        )
        for phase in chosen
    }  # fmt: skip
    return chosen, steps, drawings


def default_step(episode: EpisodeMaps, phase: str, step: int | None) -> int:
    """Step to draw: the one asked for, else the one that stands for the phase.

    Which step is a text's last differs from keyframe to keyframe; one that is counted from the end
    is that of the longest text, so that all pictures are of the same step.
    """
    steps = episode.steps(phase)
    if step is None:
        return standing_step(phase, steps) or 0
    return step + steps if steps is not None and -steps <= step < 0 else step


def check_step(episode: EpisodeMaps, phase: str, step: int | None) -> int | None:
    """Step for file names and titles: None for the last one of a suffix and in one-pass phases.

    Raises
    ------
    SelectionError
        If the episode has no such step.
    """
    steps = episode.steps(phase)
    if steps is None:
        return None
    step = default_step(episode, phase, step)
    if not -steps <= step < steps:
        raise SelectionError(
            f"{episode.name}: {phase} has steps 0 to {steps - 1}; there is no {step}"
        )
    # The names of the lab have no step where it is the one that stands for the suffix.
    standing = step % steps == standing_step(phase, steps) and phase != DECODE
    return None if standing else step % steps

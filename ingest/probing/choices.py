"""What a probe may choose from in an episode, with errors that say what there is."""

from __future__ import annotations

from collections.abc import Sequence

from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.episode import EpisodeSpec
from attnstore.store.format.generated import DECODE
from attnstore.store.rules import standing_step

from .keyframe import ACTIVE

TOGETHER, EACH = "all", "each"


def camera_sets(spec: EpisodeSpec, asked: Sequence[str]) -> list[tuple[str, ...]]:
    """Sets of cameras that are changed at once.

    Parameters
    ----------
    asked
        ``all`` (one set), ``each`` (every camera alone), or names joined by ``+``.

    Raises
    ------
    SelectionError
        If the episode has no such camera.
    """
    known = tuple(spec.geometry)
    found: list[tuple[str, ...]] = []
    for text in asked:
        if text == TOGETHER:
            found.append(known)
        elif text == EACH:
            found += [(camera,) for camera in known]
        else:
            names = tuple(text.split("+"))
            for name in names:
                if name not in known:
                    raise SelectionError(
                        f"{spec.name} has no camera {name!r}; it has: {', '.join(known)}"
                    )
            found.append(names)
    return list(dict.fromkeys(found))


def camera_label(spec: EpisodeSpec, cameras: Sequence[str]) -> str:
    """Name of a set of cameras, as `camera_sets` takes it."""
    whole = len(spec.geometry) > 1 and tuple(cameras) == tuple(spec.geometry)
    return TOGETHER if whole else "+".join(cameras)


def check_map(spec: EpisodeSpec, phase: str, group: str, heads: str, step: int | None) -> None:
    """Check that overview maps of a phase and query group are stored.

    Raises
    ------
    SelectionError
        If there is no such phase, group, head or step.
    """
    if phase not in spec.phases:
        raise SelectionError(
            f"{spec.name} has no phase {phase!r} with maps of all cameras; it has: "
            f"{', '.join(p for p in spec.phases if spec.phases[p].camera is None)}"
        )
    shape = spec.phases[phase]
    if group not in shape.query_groups:
        raise SelectionError(
            f"{spec.name}: phase {phase} has maps of {', '.join(shape.query_groups)}, not of "
            f"{group!r}"
        )
    if heads not in ("mean", "max", ACTIVE) and not (
        heads.isdecimal() and int(heads) < shape.heads
    ):
        raise SelectionError(
            f"heads is mean, max, active or a number below {shape.heads}; got {heads!r}"
        )
    if step is None or shape.steps is None:
        return
    if phase == DECODE and step < 0:
        raise SelectionError(
            f"step {step}: which step of {phase} is the last differs from keyframe to keyframe; "
            f"give one of 0 to {shape.steps - 1}"
        )
    if not -shape.steps <= step < shape.steps:
        raise SelectionError(f"step {step}: phase {phase} has {shape.steps} steps")


def chosen_layers(spec: EpisodeSpec, phase: str, layers: Sequence[int] | None) -> list[int]:
    """Layers of a phase; None is all of them.

    Raises
    ------
    SelectionError
        If the phase has no such layer.
    """
    count = spec.phases[phase].layers
    if layers is None:
        return list(range(count))
    if wrong := [layer for layer in layers if not 0 <= layer < count]:
        raise SelectionError(f"layer {wrong[0]}: phase {phase} has layers 0 to {count - 1}")
    return list(dict.fromkeys(layers))


def step_number(spec: EpisodeSpec, phase: str, step: int | None) -> int | None:
    """Return a step as a column has it: counted from 0; None in one-pass phases."""
    steps = spec.phases[phase].steps
    if steps is None or step is None:
        return standing_step(phase, steps)
    return step % steps


def check_share(share: float) -> None:
    """Raise `UsageError` if it is no share of pixels that leaves room for a control."""
    if not 0 < share <= 0.5:
        raise UsageError(
            f"a share of pixels is more than 0 and at most 0.5, so that a control fits; got {share}"
        )

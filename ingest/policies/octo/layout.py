"""Octo's token groups as spans: plain values, no jax.

A sequence is the prefix groups, then for each timestep its groups: observations, the repeated task
tokens, readouts. What the model masks as a key (a timestep before the episode, an image or an
instruction that is not given) is padding and has no span. The keyframe's own timestep has the plain
names, earlier ones ``@-1``, ``@-2``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.tokens import (
    AGAIN,
    PADDING,
    REPEATED,
    TASK,
    TEMPLATE,
    Axis,
    Kind,
    Span,
    Token,
    TokenLayout,
)
from attnstore.store.format.views import earlier

from ..base import PolicyError

PHASE = "joint"


@dataclass(frozen=True, slots=True)
class Group:
    """A group of tokens as the model's block transformer gets it."""

    name: str
    """The model's own: ``task_language``, ``obs_primary``, ``readout_action``."""
    tokens: int
    """In each timestep."""
    timesteps: int | None
    """None for a prefix group."""
    kind: str
    """Class of the tokenizer that made it (``ImageTokenizer``), or ``readout``."""
    slot: str | None = None
    """For images: the model's name of the one camera that is in it (``primary``)."""
    grid: tuple[int, int] | None = None
    """For images of `slot`: rows and columns."""


@dataclass(frozen=True, slots=True)
class Word:
    """One token of the instruction."""

    token: Token
    part: str
    """``task``, ``eos`` or ``padding``."""


_PARTS: Mapping[str, tuple[str, Kind, str]] = {
    TASK: ("", "text", TASK),
    "eos": ("_eos", "text", TEMPLATE),
    PADDING: ("_pad", "other", PADDING),
}
"""Of the instruction's tokens: ending of the span's name, kind and role. Padding is of kind
``other``, so that ``text`` selects words alone."""


def joint_layout(
    groups: Sequence[Group],
    masks: Sequence[NDArray[np.bool_]],
    cameras: Mapping[str, str],
    words: Sequence[Word],
) -> TokenLayout:
    """Lay out one sample's sequence.

    Parameters
    ----------
    groups
        In the model's order.
    masks
        Per group, whether a token may be attended to: (tokens,), or (timestep, tokens).
    cameras
        Camera per slot.
    words
        The instruction's tokens; empty if the model gets an embedding of the whole.

    Raises
    ------
    PolicyError
        If a group is masked in part.
    """
    spans: list[Span] = []
    position = 0
    for group, mask, back in _sequence(groups, masks):
        if mask.any():
            if not mask.all():
                raise PolicyError(
                    f"token group {group.name}: {int(mask.sum())} of {mask.size} tokens are masked; "
                    "all or none are expected"
                )
            start = spans[-1].stop if spans else 0
            spans += _spans(group, start, position, back, cameras, words)
        position += group.tokens
    axis = Axis(tuple(spans))
    return TokenLayout(PHASE, axis, axis)


def sequence_length(groups: Sequence[Group]) -> int:
    """Count the tokens of the whole sequence, padding included."""
    return sum(g.tokens * (g.timesteps or 1) for g in groups)


def query_groups(groups: Sequence[Group], *, language: bool) -> tuple[str, ...]:
    """Query groups with statistics and maps: the instruction if it sees images, and readouts.

    The prefix's instruction sees only itself; where it is repeated at each timestep, it sees the
    images of that timestep and earlier ones.
    """
    readouts = [g.name for g in groups if g.kind == "readout"]
    return (AGAIN, *readouts) if language and _repeats(groups) else tuple(readouts)


def _repeats(groups: Sequence[Group]) -> bool:
    return any(g.kind == "LanguageTokenizer" and g.timesteps is not None for g in groups)


def _sequence(
    groups: Sequence[Group], masks: Sequence[NDArray[np.bool_]]
) -> Iterator[tuple[Group, NDArray[np.bool_], int]]:
    """Yield (group, its mask, frames before the keyframe) in the order of the sequence."""
    pairs = list(zip(groups, masks, strict=True))
    for group, mask in pairs:
        if group.timesteps is None:
            yield group, mask, 0
    timed = [(g, m) for g, m in pairs if g.timesteps is not None]
    horizon = timed[0][0].timesteps or 0 if timed else 0
    for step in range(horizon):
        for group, mask in timed:
            yield group, mask[step], horizon - 1 - step


def _spans(
    group: Group,
    start: int,
    model_start: int,
    back: int,
    cameras: Mapping[str, str],
    words: Sequence[Word],
) -> list[Span]:
    stop = start + group.tokens
    if group.kind == "LanguageTokenizer":
        base, role = (TASK, TASK) if group.timesteps is None else (AGAIN, REPEATED)
        if len(words) == group.tokens:
            return _text(base, role, words, start, model_start, back)
        return [Span(earlier(base, back), "other", start, stop, model_start, role=role)]
    if group.slot is not None:
        view = earlier(cameras[group.slot], back)
        return [
            Span(f"image:{view}", "image", start, stop, model_start, camera=view, grid=group.grid)
        ]
    kinds: Mapping[str, Kind] = {"readout": "readout", "LowdimObsTokenizer": "state"}
    kind = kinds.get(group.kind, "other")
    name = "state" if kind == "state" else group.name
    return [Span(earlier(name, back), kind, start, stop, model_start)]


def _text(
    base: str, task: str, words: Sequence[Word], start: int, model_start: int, back: int
) -> list[Span]:
    spans, done = [], 0
    for part, run in groupby(words, key=lambda word: word.part):
        tokens = tuple(word.token for word in run)
        ending, kind, role = _PARTS[part]
        role = task if part == TASK else role
        spans.append(
            Span(
                earlier(base + ending, back), kind, start + done, start + done + len(tokens),
                model_start + done, role=role, tokens=tokens,
            )
        )  # fmt: skip
        done += len(tokens)
    return spans

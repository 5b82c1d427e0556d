"""Sizes of checkpoints that were released, without their weights: what the table of policies forecasts from.

Layers, heads, steps and grids are those of the released configurations; an observation has two cameras unless
said otherwise, and an instruction of `WORDS` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnstore.store.format.generated import DECODE, reserve
from attnstore.store.format.tokens import TASK, TEMPLATE, Axis, Kind, Span, Token, TokenLayout

from .base import PhaseShape

WORDS = 12
"""Tokens of an instruction of some ten words."""
_KINDS: dict[str, Kind] = {"state": "state", "action": "action", "readout": "readout"}


@dataclass(frozen=True, slots=True)
class Released:
    """A released checkpoint, and how an observation lies in its sequences."""

    name: str
    """What it is called, and what is assumed that it does not say."""
    phases: Mapping[str, PhaseShape]
    layouts: Mapping[str, TokenLayout]
    dtype: str = "bfloat16"
    """In which it is run."""


def tokens(**spans: int | tuple[int, int]) -> Axis:
    """Lay out a sequence by its spans' names: images by their grids, others by how many tokens they are.

    Spans ``state``, ``action`` and ``readout`` are of that kind; others are text, ``task`` the instruction.

    Examples
    --------
    >>> axis = tokens(top=(2, 3), task=4, action=5)
    >>> [(span.name, span.kind, span.start) for span in axis]
    [('image:top', 'image', 0), ('task', 'text', 6), ('action', 'action', 10)]
    """
    found: list[Span] = []
    for name, size in spans.items():
        at = found[-1].stop if found else 0
        if isinstance(size, tuple):
            stop = at + size[0] * size[1]
            found.append(Span(f"image:{name}", "image", at, stop, at, camera=name, grid=size))
        elif name in _KINDS:
            found.append(Span(name, _KINDS[name], at, at + size, at))
        else:
            role = TASK if name == TASK else TEMPLATE
            text = tuple(Token(0, "-") for _ in range(size))
            found.append(Span(name, "text", at, at + size, at, role=role, tokens=text))
    return Axis(tuple(found))


def flow(
    name: str,
    prefix: Axis,
    own: Axis,
    *,
    shape: tuple[int, int, int],
    expert: tuple[int, int, int],
    steps: int,
    sees_itself: bool = True,
    dtype: str = "bfloat16",
) -> Released:
    """A prefix, and a suffix that attends to it, and to itself, at each denoising step.

    Parameters
    ----------
    shape, expert
        Layers, heads and width of the prefix and of the suffix.
    """
    keys = prefix.followed_by(own, model_offset=len(prefix)) if sees_itself else prefix
    return Released(
        name,
        {
            "prefix": PhaseShape(*shape[:2], None, (TASK,), features=shape[2]),
            "suffix": PhaseShape(
                *expert[:2], steps, ("action",), features=expert[2], last="action"
            ),
        },
        {
            "prefix": TokenLayout("prefix", prefix, prefix),
            "suffix": TokenLayout("suffix", own, keys),
        },
        dtype,
    )


def writing(
    name: str,
    prompt: Axis,
    *,
    shape: tuple[int, int, int],
    steps: int,
    dtype: str = "bfloat16",
) -> Released:
    """A prompt, and tokens that are written one after another, at most `steps` of them."""
    prefix = PhaseShape(*shape[:2], None, (TASK,), features=shape[2])
    decode = PhaseShape(*shape[:2], steps, ("readout",), features=shape[2], last="readout")
    return Released(
        name,
        {"prefix": prefix, DECODE: decode},
        {
            "prefix": TokenLayout("prefix", prompt, prompt),
            DECODE: reserve(prompt, length=len(prompt), steps=steps),
        },
        dtype,
    )


def joint(
    name: str,
    whole: Axis,
    groups: tuple[str, ...],
    *,
    shape: tuple[int, int, int],
    dtype: str = "bfloat16",
) -> Released:
    """One pass in which everything may attend to everything."""
    own = PhaseShape(*shape[:2], None, groups, features=shape[2], last=groups[-1])
    return Released(name, {"joint": own}, {"joint": TokenLayout("joint", whole, whole)}, dtype)

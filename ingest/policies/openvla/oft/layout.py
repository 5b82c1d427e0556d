"""What stands in OpenVLA-OFT's sequence, and which of its tokens make the actions.

BOS, the cameras' patches, a token of the robot's state, one of the denoising timestep, the prompt, a
placeholder for each number of the chunk, an end marker. As in a model that writes, a number is read off the
token *before* its placeholder: the first one off the prompt's last token, and the last placeholder is not
read. Spans ``action[0]``, ``action[1]``, ... are the tokens that numbers are read off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import STATE, TEMPLATE, Axis, Kind, Span, TokenLayout

from ...base import PolicyError
from ...prompt import Prompt, prompt_axis
from ..prismatic import IMAGE
from .robot import Robot

JOINT, SUFFIX = "joint", "suffix"
TIMESTEP = "timestep"
_EXTRA = -2
"""Stands for a token among ids that is neither text nor of an image."""


def sequence_axis(
    tokenizer: Any,
    ids: Sequence[int],
    cameras: Mapping[str, Geometry],
    prompt: Prompt,
    extras: Sequence[str],
    robot: Robot,
) -> Axis:
    """Lay out one sample's sequence.

    Parameters
    ----------
    ids
        Of the prompt, BOS and the empty word at its end included.
    cameras
        In the order of their images.
    extras
        Which tokens stand behind the images: ``state``, ``timestep``.

    Raises
    ------
    PolicyError
        If the prompt does not begin with BOS.
    ObservationError
        If the instruction is not found in it.
    """
    if ids[0] != tokenizer.bos_token_id:
        raise PolicyError(
            f"the prompt begins with token {ids[0]}, not with BOS: OpenVLA puts the images behind it"
        )
    patches = sum(g.grid[0] * g.grid[1] for g in cameras.values())
    whole = [ids[0], *[IMAGE] * patches, *[_EXTRA] * len(extras), *ids[1:-1]]
    text = prompt_axis(tokenizer, whole, [i != _EXTRA for i in whole], IMAGE, cameras, prompt)
    before = [span for span in text if span.model_start <= patches]
    spans = list(before)
    for name in extras:
        kind: Kind = "state" if name == STATE else "other"
        _append(spans, Span(name, kind, 0, 1, 0))
    for span in text.spans[len(before) :]:
        _append(spans, span)
    for number in range(robot.chunk):
        _append(spans, Span(f"action[{number}]", "action", 0, robot.action_dof, 0))
    # The last placeholder and the end marker.
    _append(spans, Span("end", "other", 0, 2, 0, role=TEMPLATE))
    return Axis(tuple(spans))


def _append(spans: list[Span], span: Span) -> None:
    """Put a span behind the others; the sequence has no padding."""
    start = spans[-1].stop
    spans.append(replace(span, start=start, stop=start + len(span), model_start=start))


def layouts(axis: Axis, *, diffusion: bool) -> dict[str, TokenLayout]:
    """Return the layout of the one phase.

    A denoising step is a pass of the whole sequence, of which the tokens that make actions are kept.
    """
    if not diffusion:
        return {JOINT: TokenLayout(JOINT, axis, axis)}
    actions = [span for span in axis if span.kind == "action"]
    first = actions[0].start
    query = Axis(tuple(replace(s, start=s.start - first, stop=s.stop - first) for s in actions))
    return {SUFFIX: TokenLayout(SUFFIX, query, axis)}

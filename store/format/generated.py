"""Token layouts of phase ``decode``: their key axis grows with every generated token.

How many tokens a policy generates is known only when it has acted, but arrays have their shape
before. So a layout *reserves* a span for the generated tokens, without strings; a step has those
that were generated before it, and afterwards a keyframe has those that it generated. A step is
the pass that chooses one token: step 0 attends from the prompt's last token and has no generated
key yet, so the token that is chosen last is never a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .tokens import GENERATED, Axis, Span, Token, TokenLayout

DECODE = "decode"
NEXT = "next"
"""The query span of phase ``decode``: the one token from which the next is chosen."""


def reserve(prompt: Axis, *, length: int, steps: int) -> TokenLayout:
    """Lay out a decode phase of at most `steps` generated tokens.

    Parameters
    ----------
    prompt
        The prefix's axis.
    length
        Tokens of the model's own prompt sequence, padding included.

    Examples
    --------
    >>> layout = reserve(Axis((Span("state", "state", 0, 2, 0),)), length=2, steps=4)
    >>> [(s.name, s.start, s.stop) for s in layout.key]
    [('state', 0, 2), ('generated', 2, 5)]
    >>> len(at_step(layout, 0).key), len(at_step(layout, 2).key)
    (2, 4)
    """
    query = Axis((Span(NEXT, "readout", 0, 1, 0),))
    if steps == 1:
        return TokenLayout(DECODE, query, prompt)
    own = Axis((Span(GENERATED, "text", 0, steps - 1, 0, role=GENERATED),))
    return TokenLayout(DECODE, query, prompt.followed_by(own, model_offset=length))


def at_step(layout: TokenLayout, step: int | None) -> TokenLayout:
    """Layout of one step: in phase ``decode`` of the generated tokens only those before it."""
    if layout.phase != DECODE or step is None:
        return layout
    return _cut(layout, step, ())


def with_tokens(layout: TokenLayout, tokens: Sequence[Token]) -> TokenLayout:
    """Layout of a keyframe that has acted: the generated tokens that were keys, with strings."""
    if layout.phase != DECODE:
        return layout
    return _cut(layout, len(tokens) - 1, tuple(tokens[:-1]))


def _cut(layout: TokenLayout, count: int, tokens: tuple[Token, ...]) -> TokenLayout:
    spans = []
    for span in layout.key:
        if span.role == GENERATED:
            if count == 0:
                continue
            span = replace(span, stop=span.start + count, tokens=tokens)
        spans.append(span)
    return replace(layout, key=Axis(tuple(spans)))

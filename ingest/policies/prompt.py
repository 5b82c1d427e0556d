"""Text tokens of a prompt as spans with strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnstore.store.tokens import Span, Token


def token_text(tokenizer: Any, token_id: int) -> str:
    """Return a token's string; SentencePiece's word marker becomes the space it stands for."""
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if piece is None:
        return ""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        byte = bytes([int(piece[3:5], 16)])
        return byte.decode("utf-8", errors="backslashreplace")
    return str(piece).replace("\u2581", " ")


def text_spans(
    tokenizer: Any, ids: Sequence[int], positions: Sequence[int], *, start: int
) -> list[Span]:
    """Split a PaliGemma-style prompt, ``BOS instruction newline``, into spans.

    Parameters
    ----------
    ids
        Token ids of the whole sequence.
    positions
        Indices of the valid text tokens in it, contiguous.
    start
        Index of the first on the compact axis.

    Returns
    -------
    Spans ``bos``, ``task`` and ``newline``, those that are there. BOS and newline have the role
    ``other``.
    """
    tokens = [Token(ids[i], token_text(tokenizer, ids[i])) for i in positions]
    begin = 1 if tokens and ids[positions[0]] == tokenizer.bos_token_id else 0
    end = len(tokens) - (1 if len(tokens) > begin and tokens[-1].text == "\n" else 0)
    spans = []
    for name, role, low, high in (
        ("bos", "other", 0, begin),
        ("task", "task", begin, end),
        ("newline", "other", end, len(tokens)),
    ):
        if low < high:
            spans.append(
                Span(
                    name, "text", start + low, start + high, positions[low],
                    role=role, tokens=tuple(tokens[low:high]),
                )
            )  # fmt: skip
    return spans

"""Text tokens of a prompt as spans with strings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from attnstore.store.format.tokens import STATE, TASK, TEMPLATE, Span, Token

_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {
    chr(256 + i): byte for i, byte in enumerate(_HIDDEN)
}
"""Bytes by the characters that byte-level vocabularies write them with (GPT-2, Qwen, SmolLM)."""


def token_text(tokenizer: Any, token_id: int) -> str:
    """Return a token's string; a word marker becomes the space it stands for."""
    return token_bytes(tokenizer, token_id).decode("utf-8", errors="backslashreplace")


def token_bytes(tokenizer: Any, token_id: int) -> bytes:
    """Return the bytes that a token stands for, UTF-8; it may be a part of a character only."""
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if piece is None:
        return b""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if "ByteLevel" in repr(getattr(backend, "decoder", None)) and BYTE_OF.keys() >= set(piece):
        return bytes(BYTE_OF[c] for c in piece)
    return str(piece).replace("\u2581", " ").encode("utf-8", "surrogatepass")


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
    ``template``.
    """
    tokens = [Token(ids[i], token_text(tokenizer, ids[i])) for i in positions]
    begin = 1 if tokens and ids[positions[0]] == tokenizer.bos_token_id else 0
    end = len(tokens) - (1 if len(tokens) > begin and tokens[-1].text == "\n" else 0)
    spans = []
    for name, role, low, high in (
        ("bos", TEMPLATE, 0, begin),
        (TASK, TASK, begin, end),
        ("newline", TEMPLATE, end, len(tokens)),
    ):
        if low < high:
            spans.append(
                Span(
                    name, "text", start + low, start + high, positions[low],
                    role=role, tokens=tuple(tokens[low:high]),
                )
            )  # fmt: skip
    return spans


_PI05 = re.compile(
    r"(?P<task_label> ?Task:)(?P<task>.*)(?P<state_label>, State:)(?P<values>(?: -?\d+)+)"
    r"(?P<action_label>;\nAction: ?)",
    re.DOTALL,
)


def pi05_spans(
    tokens: Sequence[Token], *, bos: bool, start: int, model_start: int
) -> list[Span] | None:
    r"""Split a Pi0.5 prompt, ``BOS Task: words, State: 12 255;\nAction:``, into spans.

    A token belongs where its first character that is no space does, so that a space goes with the
    word or number it leads.

    Parameters
    ----------
    tokens
        The valid text tokens, in order.
    bos
        Whether the first one is BOS.
    start, model_start
        Index of the first one, on the compact axis and in the model's own sequence.

    Returns
    -------
    Spans ``bos``, ``task_label``, ``task``, ``state_label``, ``state[0]`` ... one a value,
    ``action_label``; the task has the role ``task``, the values ``state``, all others
    ``template``.
    None if the tokens do not spell such a prompt, or one of them reaches over two values.
    """
    rest = tokens[int(bos) :]
    match = _PI05.fullmatch("".join(token.text for token in rest))
    if match is None:
        return None
    stops = [("task_label", TEMPLATE, match.end("task_label")), (TASK, TASK, match.end("task"))]
    stops.append(("state_label", TEMPLATE, match.end("state_label")))
    numbers = re.finditer(r" -?\d+", match["values"])
    first = match.start("values")
    stops += [(f"state[{i}]", STATE, first + n.end()) for i, n in enumerate(numbers)]
    stops.append(("action_label", TEMPLATE, match.end()))
    parts: dict[tuple[str, str], list[Token]] = {("bos", TEMPLATE): list(tokens[: int(bos)])}
    parts |= {(name, role): [] for name, role, _ in stops}
    place = 0
    for token in rest:
        word = place + len(token.text) - len(token.text.lstrip(" "))
        name, role = next((n, r) for n, r, stop in stops if word < stop or stop == match.end())
        parts[name, role].append(token)
        place += len(token.text)
    if any(not held for (_, role), held in parts.items() if role == STATE):
        return None
    spans: list[Span] = []
    at = 0
    for (name, role), held in parts.items():
        if held:
            low, high = start + at, start + at + len(held)
            spans.append(
                Span(name, "text", low, high, model_start + at, role=role, tokens=tuple(held))
            )
            at += len(held)
    return spans

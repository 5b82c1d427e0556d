"""A prompt's text, and its tokens as spans with strings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import STATE, TASK, TEMPLATE, Axis, Span, Token

from .base import ObservationError, PolicyError

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
    r"(?P<action_label>;\n(?:Action: ?)?)",
    re.DOTALL,
)


def pi05_spans(
    tokens: Sequence[Token], *, bos: bool, start: int, model_start: int
) -> list[Span] | None:
    r"""Split a Pi0.5 prompt, ``BOS Task: words, State: 12 255;\nAction:``, into spans.

    Pi0-FAST's ends before ``Action:``, which the policy writes itself.

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
    ``action_label`` (``state_end`` where it has no ``Action:``); the task has the role ``task``, the
    values ``state``, all others ``template``.
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
    last = "action_label" if "Action" in match["action_label"] else "state_end"
    stops.append((last, TEMPLATE, match.end()))
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


INSTRUCTION = "{instruction}"
_IMAGE = b"\xff"
"""Stands for an image token in a search for text: never part of UTF-8."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text that a processor gets."""

    text: str
    instruction: str
    """What stands in it for the task."""
    occurrence: int
    """How many times the instruction's text stands in it before the instruction itself."""


def check_template(template: str) -> str:
    """Return a template that has one place for the instruction.

    Raises
    ------
    UsageError
        If it has none, or several.
    """
    if template.count(INSTRUCTION) != 1:
        raise UsageError(
            f"prompt is a text with {INSTRUCTION} in it, once; got {template!r}: "
            f"--policy-option 'prompt=What should the robot do to {INSTRUCTION}?'"
        )
    return template


def prompt_axis(
    tokenizer: Any,
    ids: Sequence[int],
    valid: Sequence[bool],
    image_id: int,
    cameras: Mapping[str, Geometry],
    prompt: Prompt,
) -> Axis:
    """Read the spans off a prompt's token ids: each camera's image, the task, other text.

    Parameters
    ----------
    ids, valid
        The processor's token ids, and which of them are not padding.
    cameras
        In the order of the images, with their grids.

    Raises
    ------
    PolicyError
        If the image tokens are not the cameras' grids, one after the other.
    ObservationError
        If the instruction is not found among the tokens.
    """
    at = [i for i, shown in enumerate(valid) if shown]
    image_at = [i for i in at if ids[i] == image_id]
    owner = _owners(image_at, cameras)
    task = _task(tokenizer, [ids[i] for i in at], image_id, prompt)
    spans: list[Span] = []
    others = 0
    for compact, i in enumerate(at):
        camera = owner.get(i)
        name = f"image:{camera}" if camera else (TASK if compact in task else TEMPLATE)
        last = spans[-1] if spans else None
        joins = last is not None and last.model_start + len(last) == i
        own = () if camera else (Token(ids[i], token_text(tokenizer, ids[i])),)
        if last is not None and joins and last.name.partition("[")[0] == name and not camera:
            spans[-1] = replace(last, stop=compact + 1, tokens=last.tokens + own)
        elif camera:
            if last is None or last.name != name:
                grid = cameras[camera].grid
                stop = compact + grid[0] * grid[1]
                spans.append(Span(name, "image", compact, stop, i, camera=camera, grid=grid))
        else:
            role = TASK if name == TASK else TEMPLATE
            if role == TEMPLATE:
                name, others = f"{name}[{others}]", others + 1
            spans.append(Span(name, "text", compact, compact + 1, i, role=role, tokens=own))
    return Axis(tuple(spans))


def _owners(image_at: Sequence[int], cameras: Mapping[str, Geometry]) -> dict[int, str]:
    counts = {camera: g.grid[0] * g.grid[1] for camera, g in cameras.items()}
    if len(image_at) != sum(counts.values()):
        raise PolicyError(
            f"the prompt has {len(image_at)} image tokens, the cameras' patches are {counts}: "
            "tiles, pooled patches and class tokens among the image tokens are not understood"
        )
    owner: dict[int, str] = {}
    start = 0
    for camera, count in counts.items():
        run = image_at[start : start + count]
        if run[-1] - run[0] + 1 != count:
            raise PolicyError(
                f"camera {camera}: its {count} image tokens stand at {run[0]}..{run[-1]} with "
                "others between them: such a layout is not understood"
            )
        owner |= dict.fromkeys(run, camera)
        start += count
    return owner


def _task(tokenizer: Any, ids: Sequence[int], image_id: int, prompt: Prompt) -> range:
    """Positions of the instruction's tokens; of a token that it shares with others too; none of an empty one."""
    if not prompt.instruction.strip():
        return range(0)
    pieces = [_IMAGE if i == image_id else token_bytes(tokenizer, i) for i in ids]
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    blob = b"".join(pieces)
    # A normaliser may have changed it: the tokenizer's own round trip is what to look for then.
    own = tokenizer(prompt.instruction, add_special_tokens=False)["input_ids"]
    again = b"".join(token_bytes(tokenizer, i) for i in own).strip()
    for text in (prompt.instruction.encode("utf-8", "surrogatepass"), again):
        start = _find(blob, text, prompt.occurrence)
        if text and start >= 0:
            stop = start + len(text)
            inside = [k for k in range(len(ids)) if ends[k] < stop and ends[k + 1] > start]
            return range(inside[0], inside[-1] + 1)
    raise ObservationError(
        f"the instruction {prompt.instruction!r} is not found among the prompt's tokens "
        f"({blob.replace(_IMAGE, b'').decode('utf-8', 'backslashreplace')[:200]!r})"
    )


def _find(blob: bytes, text: bytes, occurrence: int) -> int:
    start = blob.find(text)
    while start >= 0 and occurrence:
        start, occurrence = blob.find(text, start + 1), occurrence - 1
    return start

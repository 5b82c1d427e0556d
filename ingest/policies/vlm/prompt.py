"""The prompt of a vision-language model: written with its template, found again in its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attnstore.store.errors import UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import TASK, TEMPLATE, Axis, Span, Token

from ..base import ObservationError, PolicyError
from ..prompt import token_bytes, token_text

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


def write_prompt(
    processor: Any, image_token: str, template: str, instruction: str, images: int
) -> Prompt:
    """Put images and instruction into the processor's chat template, if it has one.

    Raises
    ------
    ObservationError
        If the instruction contains the image token.
    PolicyError
        If the chat template leaves the instruction out.
    """
    if image_token in instruction:
        raise ObservationError(f"the instruction {instruction!r} contains {image_token!r}")
    before, after = template.split(INSTRUCTION)

    def render(task: str) -> str:
        request = before + task + after
        if not getattr(processor, "chat_template", None):
            return image_token * images + request
        content: list[dict[str, str]] = [{"type": "image"}] * images
        message = {"role": "user", "content": [*content, {"type": "text", "text": request}]}
        return str(processor.apply_chat_template([message], add_generation_prompt=True))

    text = render(instruction)
    head, mark, _ = render("\ue000").partition("\ue000")
    if not mark or not text.startswith(head + instruction):
        raise PolicyError(
            "the checkpoint's chat template does not write the request as it is; "
            "its tokens cannot be told apart"
        )
    # Among the tokens an image has no text.
    head = head.replace(image_token, "\0")
    earlier = sum((head + instruction).startswith(instruction, i) for i in range(len(head)))
    return Prompt(text, instruction, earlier)


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
    """Positions of the instruction's tokens; of a token that it shares with others too."""
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

"""The prompt of a vision-language model, written with its processor's own template."""

from __future__ import annotations

from typing import Any

from ..base import ObservationError, PolicyError
from ..prompt import INSTRUCTION, Prompt


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

"""What OpenVLA and OpenVLA-OFT do alike: a Prismatic model, and the prompt that it was trained with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from attnstore.store.errors import UsageError

from ..base import EncoderShape
from ..checkpoint import unwrap
from ..pretrained import PretrainedPolicy
from ..prompt import INSTRUCTION, Prompt, check_template

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
VICUNA_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: What action should the robot take to "
    "{instruction}? ASSISTANT:"
)
"""What OpenVLA 0.1 was trained with, whose language model is Vicuna."""
EMPTY = 29871
"""The token of an empty word in Llama's vocabulary. In training it stood before the action; where a
prompt does not end with it, ``predict_action`` adds it."""
IMAGE = -1
"""Stands for an image token among ids: images have embeddings, and no ids."""


def usual_template(config: Any, options: Mapping[str, str]) -> str:
    """Return the prompt's template: the option's, else the one of the checkpoint's training.

    Raises
    ------
    UsageError
        If the option has no place for the instruction, or several.
    """
    usual = VICUNA_PROMPT if "vicuna" in str(config.llm_backbone_id) else PROMPT
    return check_template(options.get("prompt", usual))


def truth(options: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Read an option that is true or false.

    Raises
    ------
    UsageError
        If it is neither.
    """
    given = options.get(name, str(default).lower())
    if given not in ("true", "false"):
        raise UsageError(f"{name} is true or false; got {given!r}")
    return given == "true"


class PrismaticPolicy(PretrainedPolicy):
    """A policy whose model is a Prismatic one: patches behind BOS, then the prompt."""

    model_class = "AutoModelForVision2Seq"
    value_norms = "yes"
    hidden_states = "yes"
    processor: Any
    _options: Mapping[str, str]
    _template: str

    @property
    def dtype(self) -> str:
        """Data type of the weights: as asked, else the checkpoint's."""
        if "model" in self.__dict__:
            return str(next(unwrap(self.model).parameters()).dtype).removeprefix("torch.")
        stored = getattr(self.config, "torch_dtype", None) or "float32"
        return self._requested_dtype or str(stored).removeprefix("torch.")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint directory, or of the weights of a model given in memory.

        The adapter's options are part of it: they decide what the policy sees, and what it says.
        """
        digest = self.weights_digest()
        if not self._options:
            return digest
        said = json.dumps(self._options, sort_keys=True)
        return hashlib.sha256(f"{digest} {said}".encode()).hexdigest()

    @property
    def vocabulary(self) -> int:
        """Rows of the language model's embedding."""
        return int(self.config.text_config.vocab_size)

    def encoder_shape(self) -> EncoderShape:
        """Refuse.

        Raises
        ------
        UsageError
            Always: two towers look at an image, and a phase has one.
        """
        raise UsageError(
            "--vision: OpenVLA joins the features of its vision towers, DINOv2 and SigLIP, and the "
            "attention inside them is not captured; leave --vision out"
        )

    def prompt_of(self, instruction: str) -> Prompt:
        """Return the text that the processor gets for an instruction."""
        before, after = self._template.split(INSTRUCTION)
        # OpenVLA's own scripts write instructions in lower case, as they stood in training.
        task = instruction.lower()
        head = f"{self.processor.tokenizer.bos_token or ''}{before}"
        earlier = sum((head + task).startswith(task, i) for i in range(len(head)))
        return Prompt(before + task + after, task, earlier)

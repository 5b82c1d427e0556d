"""Vision-language models of transformers: any ``AutoModelForImageTextToText`` with such a decoder.

PaliGemma, LLaVA, Qwen-VL and others whose language model takes images and text as one sequence.
They write text instead of actions: the prompt's pass is phase ``prefix``, every generated token a
step of phase ``decode`` (see `attnstore.store.format.generated`). Image tokens are found by their id, the
modules by the model's own structure, and what is not understood is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

from attnstore.store.errors import UsageError
from attnstore.store.format.generated import DECODE, reserve
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import TASK, Token, TokenLayout

from ...optional import require
from ..about import About
from ..base import (
    LAST,
    Batch,
    EncoderShape,
    Generated,
    Observation,
    Observer,
    PhaseShape,
    PolicyError,
    Sample,
)
from ..blocking import Blocked
from ..checkpoint import (
    CheckpointFiles,
    Recognised,
    check_dtype,
    check_options,
    check_variant,
    counted,
    directory_name,
    locate,
    one_line,
    unwrap,
)
from ..decoder import language_model, self_attention, vision_tower
from ..hooks import Shown, Watched
from ..passes import PREFIX, Passes, block_passes
from ..pretrained import PretrainedPolicy
from ..prompt import INSTRUCTION, Prompt, check_template, prompt_axis, token_text
from ..released import WORDS, tokens, writing
from ..values import LEAVE_OUT
from ..vision import vision_shape
from .checkpoint import read_checkpoint
from .generation import generate_ids
from .geometry import is_dynamic
from .inputs import image_geometry, process
from .prompt import write_prompt

OPTIONS = ("max_new_tokens", "prompt")
NEW_TOKENS = 16
CAUSAL = {
    "paligemma": False,  # its prompt's tokens all attend to each other
    "llava": True,
    "qwen2_vl": True,
    "qwen2_5_vl": True,
    "qwen3_vl": True,
}
"""Whether the prompt is masked causally, by ``model_type``; of others it is not known."""


class VlmPolicy(PretrainedPolicy):
    """Adapter of transformers' vision-language models.

    Configuration and processor are read at once; the weights at the first use of `model`.

    Parameters
    ----------
    checkpoint
        Local directory or hub id, with model, processor and tokenizer.
    dtype
        Data type of the weights; None keeps the checkpoint's.
    device
        Torch device: ``cpu``, ``cuda:0``.
    revision
        Hub revision.
    options
        ``prompt=TEMPLATE``: the request, with ``{instruction}`` in it; ``max_new_tokens=N``:
        generated tokens at most, 16 by default.

    Raises
    ------
    UsageError
        If the data type, the variant or an option is not one of this adapter's.
    MissingExtraError
        If torch or transformers is not installed.
    NotFoundError
        If there is no such directory.
    PolicyError
        If the checkpoint is no readable vision-language model, or not one that is understood.
    """

    name = "vlm"
    value_norms = "where v_proj and o_proj are plain"
    hidden_states = "yes"
    about = (
        About(
            "PaliGemma, LLaVA, Qwen2-VL, Qwen2.5-VL, Qwen3-VL of transformers",
            {
                "prefix": "images and text in the prompt's own order; one pass",
                "decode": "the generated token, over all before it; each token",
            },
            "transformers 5.23: tiny random checkpoints of the real classes in every test run",
            "where the image encoder returns its weights",
            released=writing(
                "google/paligemma-3b-pt-224, one camera, 32 tokens written",
                tokens(camera=(16, 16), bos=1, task=WORDS, newline=1),
                shape=(18, 8, 2048),
                steps=32,
            ),
        ),
    )
    model_class = "AutoModelForImageTextToText"
    denoiser_steps = False
    horizon = 0
    action_dof = 0

    @staticmethod
    def recognises(files: CheckpointFiles) -> Recognised | None:
        """Whether a checkpoint is a vision-language model of transformers that writes text."""
        made = files.config.get("architectures")
        names = made if isinstance(made, list) else []
        writes = any(str(name).endswith("ForConditionalGeneration") for name in names)
        robot = files.config.get("model_type") == "pi0"
        return (
            Recognised("vlm") if writes and "vision_config" in files.config and not robot else None
        )

    def __init__(
        self,
        checkpoint: str,
        *,
        variant: str | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        revision: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        check_variant("vlm", variant)
        check_dtype("vlm", dtype)
        given = dict(options or {})
        check_options("vlm", given, OPTIONS)
        template = check_template(given.get("prompt", INSTRUCTION))
        steps = counted(given, "max_new_tokens", "generated tokens") or NEW_TOKENS
        require("torch", "ingest", "policy vlm")
        require("transformers", "ingest", "policy vlm")
        self._directory = locate(checkpoint, revision)
        config, processor = read_checkpoint(checkpoint, self._directory)
        name = directory_name(checkpoint)
        self._describe(name, device, dtype, config, processor, template, steps)

    @classmethod
    def from_model(
        cls,
        model: Any,
        processor: Any,
        *,
        checkpoint: str = "in memory",
        prompt: str = INSTRUCTION,
        max_new_tokens: int = NEW_TOKENS,
    ) -> VlmPolicy:
        """Adapt a model and a processor that are loaded already, compiled or not."""
        policy = cls.__new__(cls)
        inner = unwrap(model)
        device = str(next(inner.parameters()).device)
        policy._describe(
            checkpoint,
            device,
            None,
            inner.config,
            processor,
            check_template(prompt),
            max_new_tokens,
        )
        policy.__dict__["model"] = model
        return policy

    def _describe(
        self,
        checkpoint: str,
        device: str,
        dtype: str | None,
        config: Any,
        processor: Any,
        template: str,
        steps: int,
    ) -> None:
        self.checkpoint, self.device, self._requested_dtype = checkpoint, device, dtype
        self.config, self.processor = config, processor
        self._template, self.steps = template, steps
        self._passes: Passes | None = None
        if getattr(processor, "image_processor", None) is None:
            raise PolicyError(f"{checkpoint}: its processor takes no images")
        self._dynamic = is_dynamic(processor.image_processor)
        image_id = getattr(config, "image_token_id", None)
        if image_id is None:
            raise PolicyError(
                f"{checkpoint}: its configuration has no image_token_id, so image tokens cannot be "
                "told from text"
            )
        self._image_id = int(image_id)
        tokenizer = processor.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint directory, or of the weights of a model given in memory.

        A prompt other than the instruction itself is part of it.
        """
        digest = self.weights_digest()
        if self._template == INSTRUCTION:
            return digest
        return hashlib.sha256(f"{digest} {self._template}".encode()).hexdigest()

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and decode, from the configuration."""
        text = self.config.get_text_config(decoder=True)
        layers, heads = int(text.num_hidden_layers), int(text.num_attention_heads)
        causal, width = CAUSAL.get(self.config.model_type), int(text.hidden_size)
        return {
            PREFIX: PhaseShape(layers, heads, None, (TASK,), causal=causal, features=width),
            DECODE: PhaseShape(
                layers, heads, self.steps, ("readout",), causal=True, features=width, last="readout"
            ),
        }

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Run the checkpoint's own processor, and read the token layout off its output.

        Raises
        ------
        ObservationError
            If the processor cannot take them.
        """
        token = self.processor.tokenizer.convert_ids_to_tokens(self._image_id)
        prompts = [
            write_prompt(self.processor, token, self._template, o.instruction, len(o.images))
            for o in observations
        ]
        inputs = process(self.processor, prompts, observations)
        geometry = image_geometry(self.processor.image_processor, self.config, inputs, observations)
        samples = tuple(
            self._sample(inputs, row, prompt, geometry[row]) for row, prompt in enumerate(prompts)
        )
        tensors = {key: value.to(self.device) for key, value in inputs.items()}
        owners = [(row, c) for row, o in enumerate(observations) for c in o.images]
        return Batch(tensors, samples, encoded=() if self._dynamic else tuple(owners))

    def act(self, batch: Batch) -> Any:
        """Generate text, greedily; what it is goes to the observer.

        Returns
        -------
        No actions: zeros of shape (batch, 0, 0).
        """
        import torch

        written = self.generate(batch)
        if self._passes is not None:
            self._passes.generated(written)
        return torch.zeros(len(batch), self.horizon, self.action_dof)

    def generate(self, batch: Batch) -> list[Generated]:
        """Generate text for every observation of the batch, greedily, with a key-value cache."""
        inputs = dict(batch.inputs)
        if self._passes is not None:
            self._passes.begin(batch, rows=len(inputs["pixel_values"]))
        ids = generate_ids(unwrap(self.model), inputs, self.steps, self._passes)
        return [self._written(row) for row in ids]

    @property
    def vocabulary(self) -> int:
        """Rows of the language model's embedding, from the configuration: a dry run loads no weights."""
        return int(self.config.get_text_config(decoder=True).vocab_size)

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the language model's decoder layers; `Passes` names their phases."""
        layers = self.phases[PREFIX].layers
        modules = self_attention(language_model(unwrap(self.model)), layers)
        return [Watched(PREFIX, i, module) for i, module in enumerate(modules)]

    def check_values(self) -> None:
        """Check the decoder's projections, on a model without weights where none is loaded.

        Raises
        ------
        UsageError
            If a layer's are fused or quantised, or cannot be seen without weights.
        """
        import torch
        import transformers

        if "model" in self.__dict__:
            self.values(self.watched())
            return
        try:
            with torch.device("meta"):
                auto: Any = transformers.AutoModelForImageTextToText
                model = auto.from_config(self.config)
            layers = self_attention(language_model(model), self.phases[PREFIX].layers)
        except Exception as error:
            raise UsageError(
                f"value norms: {self.checkpoint} is not known without its weights "
                f"({one_line(error)}); {LEAVE_OUT}"
            ) from None
        self.values([Watched(PREFIX, i, module) for i, module in enumerate(layers)])

    def projection(self) -> Shown | None:
        """The language model's head, which chooses the next token; `Passes` names the phase."""
        head = unwrap(self.model).get_output_embeddings()
        return None if head is None else Shown(PREFIX, LAST, unwrap(head), entering=True)

    def encoder(self) -> Any:
        """Return the vision tower, if the model says which it is."""
        return vision_tower(unwrap(self.model))

    def encoder_shape(self) -> EncoderShape:
        """Return the shape of the vision tower."""
        return vision_shape(self.config.vision_config)

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """Hook the modules; every pass is shown in its phase."""
        causal = bool(self.phases[PREFIX].causal)
        self._passes = passes = Passes(observer, causal=causal)
        try:
            with super().instrument(passes):
                yield
        finally:
            self._passes = None

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Eager attention in the language model, and only there."""
        decoder = language_model(unwrap(self.model))
        before = decoder.config._attn_implementation
        try:
            decoder.set_attn_implementation("eager")
            yield
        finally:
            decoder.set_attn_implementation(before)

    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> AbstractContextManager[None]:
        """Block attention through the masks of the language model's layers."""
        return block_passes(self.watched(), blocked)

    def _sample(
        self, inputs: Any, row: int, prompt: Prompt, geometry: Mapping[str, Geometry]
    ) -> Sample:
        ids, valid = (
            inputs["input_ids"][row].tolist(),
            inputs["attention_mask"][row].bool().tolist(),
        )
        axis = prompt_axis(self.processor.tokenizer, ids, valid, self._image_id, geometry, prompt)
        layouts = {
            PREFIX: TokenLayout(PREFIX, axis, axis),
            DECODE: reserve(axis, length=len(ids), steps=self.steps),
        }
        return Sample(layouts, geometry)

    def _written(self, ids: Sequence[int]) -> Generated:
        tokenizer = self.processor.tokenizer
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generated(tuple(Token(i, token_text(tokenizer, i)) for i in ids), str(text))

"""Pi0 as transformers implements it: ``PI0ForConditionalGeneration``.

Prefix: ``model.vlm.language_model.layers[i].self_attn``. Suffix, once per denoising step:
``model.dit.layers[i].self_attn``, whose queries are one state token and the action tokens, and
whose keys are the prefix followed by them. Sequence: every camera's image tokens, BOS, the
instruction, a newline, padding on the right. The processor scales an image to fit and pads it at
the bottom and on the right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.tokens import TASK

from ...optional import require
from ..about import About
from ..base import LAST, Batch, EncoderShape, Observation, ObservationError, PhaseShape
from ..blocking import Blocked, block_by_mask
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
from ..hooks import Shown, Watched
from ..prefix import KeptPrefix, keep_prefix, reuse_prefix
from ..pretrained import PretrainedPolicy
from ..released import WORDS, flow, tokens
from ..vision import vision_shape
from .layout import encoded, read_sample
from .loading import apply_stats, processing, read_checkpoint

OPTIONS = ("stats", "steps")


class Pi0Policy(PretrainedPolicy):
    """Adapter of transformers' Pi0.

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
        ``stats=FILE``: JSON with ``state_mean`` and ``state_std`` where the processor has none;
        ``steps=N``: denoising steps other than the checkpoint's.

    Raises
    ------
    UsageError
        If the data type, the variant or an option is not one of pi0's.
    MissingExtraError
        If torch or transformers is not installed, or transformers is too old.
    NotFoundError
        If there is no such directory.
    PolicyError
        If the checkpoint is not a readable Pi0 checkpoint.
    """

    name = "pi0"
    model_class = "PI0ForConditionalGeneration"
    denoiser_steps = True
    value_norms = "yes"
    hidden_states = "yes"
    about = (
        About(
            "Pi0 of transformers",
            {
                "prefix": "the cameras' images, then the instruction; one pass",
                "suffix": "one state token and the action chunk, over the prefix and themselves; each denoising step",
            },
            "transformers 5.23: a tiny configuration in every test run, the default 3.5 B one with random weights",
            released=flow(
                "the default configuration (Pi0, 3.5 B)",
                tokens(front=(16, 16), wrist=(16, 16), bos=1, task=WORDS, newline=1),
                tokens(state=1, action=50),
                shape=(18, 8, 2048),
                expert=(18, 8, 1024),
                steps=10,
            ),
        ),
    )

    @staticmethod
    def recognises(files: CheckpointFiles) -> Recognised | None:
        """Whether a checkpoint is transformers' Pi0."""
        return Recognised("pi0") if files.config.get("model_type") == "pi0" else None

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
        check_variant("pi0", variant)
        check_dtype("pi0", dtype)
        self._options = dict(options or {})
        check_options("pi0", self._options, OPTIONS)
        steps = counted(self._options, "steps", "denoising steps")
        require("torch", "ingest", "policy pi0")
        processing()
        self._directory = locate(checkpoint, revision)
        self.checkpoint = directory_name(checkpoint)
        self.device = device
        self.config, self.processor = read_checkpoint(checkpoint, self._directory)
        apply_stats(self.processor, self._options.get("stats"))
        self._requested_dtype = dtype
        self.steps = int(steps or self.config.num_inference_steps)
        self.horizon = int(self.config.chunk_size)
        self.action_dof = int(self.config.max_action_dim)

    @classmethod
    def from_model(cls, model: Any, processor: Any, *, checkpoint: str = "in memory") -> Pi0Policy:
        """Adapt a model and a processor that are loaded already, compiled or not.

        Raises
        ------
        MissingExtraError
            If transformers is too old.
        """
        processing()
        policy = cls.__new__(cls)
        inner = unwrap(model)
        policy.checkpoint, policy.device = checkpoint, str(next(inner.parameters()).device)
        policy.config, policy.processor, policy._options = inner.config, processor, {}
        policy._requested_dtype = None
        policy.steps = int(inner.config.num_inference_steps)
        policy.horizon = int(inner.config.chunk_size)
        policy.action_dof = int(inner.config.max_action_dim)
        policy.__dict__["model"] = model
        return policy

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint directory, or of the weights of a model given in memory.

        A state normalisation that is not the directory's own is part of it.
        """
        digest = self.weights_digest()
        if not self.in_memory and "stats" not in self._options:
            return digest
        stats = [self.processor.state_mean, self.processor.state_std]
        return hashlib.sha256(f"{digest} {json.dumps(stats)}".encode()).hexdigest()

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and suffix, from the configuration."""
        text, expert = self.config.vlm_config.text_config, self.config.dit_config
        return {
            "prefix": PhaseShape(
                text.num_hidden_layers,
                text.num_attention_heads,
                None,
                (TASK,),
                features=text.hidden_size,
            ),
            "suffix": PhaseShape(
                expert.num_hidden_layers,
                expert.num_attention_heads,
                self.steps,
                ("action",),
                features=expert.hidden_size,
                last="action",
            ),
        }

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Run the checkpoint's own processor, and read the token layout off its output.

        Raises
        ------
        ObservationError
            If the processor cannot take them.
        """
        import torch

        for o in observations:
            self._check_state(o.state)
            self._check_instruction(o.instruction)
        try:
            inputs = self.processor(
                # torch warns about arrays that it cannot write to, which decoders return
                images=[
                    [np.require(i, requirements=["C", "W"]) for i in o.images.values()]
                    for o in observations
                ],
                text=[o.instruction for o in observations],
                state=np.stack([o.state for o in observations]),
            )
        except (ValueError, RuntimeError) as error:
            raise ObservationError(
                f"the Pi0 processor refuses the observation: {one_line(error)}"
            ) from error
        samples = tuple(
            read_sample(self.config, self.processor, inputs, row, o)
            for row, o in enumerate(observations)
        )
        noise = torch.stack([self._noise(o.seed) for o in observations])
        tensors = {key: value.to(self.device) for key, value in inputs.items()}
        return Batch({**tensors, "noise": noise.to(self.device)}, samples, encoded(inputs, samples))

    def act(self, batch: Batch) -> Any:
        """Sample an action chunk for every observation of the batch."""
        import torch

        dtype = next(unwrap(self.model).parameters()).dtype
        cast = {
            key: value.to(dtype) if torch.is_floating_point(value) else value
            for key, value in batch.inputs.items()
        }
        return self.model.sample_actions(**cast, num_steps=self.steps)

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the language model (prefix) and of the expert (suffix)."""
        core = unwrap(unwrap(self.model).model)
        prefix = unwrap(unwrap(core.vlm).language_model).layers
        suffix = unwrap(core.dit).layers
        return [
            *(Watched("prefix", i, unwrap(layer).self_attn) for i, layer in enumerate(prefix)),
            *(Watched("suffix", i, unwrap(layer).self_attn) for i, layer in enumerate(suffix)),
        ]

    @property
    def vocabulary(self) -> int:
        """Rows of the language model's embedding, from the configuration: a dry run loads no weights."""
        return int(self.config.vlm_config.text_config.vocab_size)

    def encoder(self) -> Any:
        """SigLIP's vision tower."""
        return unwrap(unwrap(unwrap(self.model).model).vlm).vision_tower

    def encoder_shape(self) -> EncoderShape:
        """Shape of SigLIP, from the configuration."""
        return vision_shape(self.config.vlm_config.vision_config)

    def denoiser(self) -> tuple[Any, int]:
        """Return the embedding that gets (state, noisy actions, time) at each step."""
        return unwrap(self.model).embed_action_time, 1

    def projection(self) -> Shown:
        """The projection of the action tokens."""
        return Shown("suffix", LAST, unwrap(self.model).action_out_proj, entering=True)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Eager attention in the language model and the expert, and only there."""
        core = unwrap(unwrap(self.model).model)
        parts = [unwrap(unwrap(core.vlm).language_model), unwrap(core.dit)]
        before = [part.config._attn_implementation for part in parts]
        try:
            for part in parts:
                part.set_attn_implementation("eager")
            yield
        finally:
            for part, implementation in zip(parts, before, strict=True):
                part.set_attn_implementation(implementation)

    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> AbstractContextManager[None]:
        """Block attention through the masks that Gemma's layers get."""
        return block_by_mask(self.watched(), blocked)

    def keeping_prefix(self) -> AbstractContextManager[list[Any]]:
        """Keep the language model's key-value cache."""
        return keep_prefix(unwrap(unwrap(unwrap(self.model).model).vlm))

    def reusing_prefix(self, kept: KeptPrefix) -> AbstractContextManager[None]:
        """Give the expert a kept cache; vision tower and language model do not run."""
        core = unwrap(unwrap(self.model).model)
        return reuse_prefix(core, unwrap(core.vlm), kept)

    @property
    def real_dof(self) -> int | None:
        """Components of an action that are not padding, from the processor's statistics."""
        mean = getattr(self.processor, "actions_mean", None)
        return None if mean is None else np.asarray(mean).size

    def _check_state(self, state: NDArray[np.float32]) -> None:
        length, known = state.size, np.asarray(self.processor.state_mean).size
        if length > self.processor.max_state_dim:
            raise ObservationError(
                f"the robot state has {length} components, the policy takes at most "
                f"{self.processor.max_state_dim}"
            )
        if length != known or np.asarray(self.processor.state_std).size != known:
            # torch would stretch statistics of length 1 over any state.
            raise ObservationError(
                f"the robot state has {length} components, the processor's state_mean has {known} "
                f"and its state_std {np.asarray(self.processor.state_std).size}"
            )

    def _check_instruction(self, instruction: str) -> None:
        image = self.processor.tokenizer.convert_ids_to_tokens(
            self.config.vlm_config.image_token_id
        )
        if image in instruction:
            raise ObservationError(
                f"the instruction {instruction!r} contains {image!r}, which the policy reads as a "
                "place for an image; write it otherwise"
            )

    def _noise(self, seed: int) -> Any:
        import torch

        # On the CPU and in float32 whatever the device: the same seed gives the same noise.
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.horizon, self.action_dof, generator=generator)

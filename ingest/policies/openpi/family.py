"""What openpi's policies have in common, in PyTorch and in JAX: observations, tokens, phases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attnstore.store.format.tokens import TASK

from ...datasets.openpi.message import pixels
from ..base import Batch, Observation, PhaseShape
from ..checkpoint import check_options, counted
from .checkpoint import openpi
from .layout import ModelSequence
from .observation import Sight, Slot, stacked
from .robot import ROLES, Asked, Key

DTYPES = ("bfloat16", "float32")
SEEN = (*dict.fromkeys(ROLES.values()), "cameras", "state")
"""Options that say which camera and which part of the state goes where."""
OPTIONS = (*SEEN, "steps")
STEPS = 10
"""openpi's default of ``sample_actions``."""


class OpenpiFamily:
    """Inputs, token layouts and phases of an openpi policy, whatever runs its model."""

    device: str
    """Torch device of the batches."""
    name: str
    _takes: tuple[str, ...] = (
        "image", "image_mask", "state", "tokenized_prompt", "tokenized_prompt_mask",
    )  # fmt: skip
    """What the model gets of the transforms' outputs."""

    def _options(self, options: Mapping[str, str] | None) -> tuple[dict[str, str], int]:
        """Check the options, and return them with the number of denoising steps."""
        given = dict(options or {})
        check_options(self.name, given, OPTIONS)
        return given, counted(given, "steps", "denoising steps") or STEPS

    def _set_up(
        self,
        config: Any,
        transforms: Sequence[Any],
        steps: int,
        options: Mapping[str, str],
        columns: Mapping[Key, str],
    ) -> None:
        self.config, self.steps = config, steps
        self._seen = {name: options[name] for name in SEEN if name in options}
        self.horizon, self.action_dof = int(config.action_horizon), int(config.action_dim)
        keys = self._image_inputs()
        patch = int(self._vision_config().patch_size)
        self._sight = Sight(transforms, keys, patch, asked=Asked.parse(self._seen), columns=columns)
        self._sequence = self._laid_out(keys)

    def _image_inputs(self) -> Sequence[str] | None:
        """The model's image inputs; None: all that the transforms make."""
        keys: Sequence[str] = openpi("models_pytorch.preprocessing_pytorch").IMAGE_KEYS
        return keys

    def _laid_out(self, keys: Sequence[str] | None) -> ModelSequence:
        return ModelSequence(self.config, self._sight.transforms, keys)

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and suffix, from the configuration."""
        gemma = openpi("models.gemma").get_config
        text = gemma(self.config.paligemma_variant)
        expert = gemma(self.config.action_expert_variant)
        return {
            "prefix": PhaseShape(text.depth, text.num_heads, None, (TASK,), features=text.width),
            "suffix": PhaseShape(
                expert.depth,
                expert.num_heads,
                self.steps,
                ("action",),
                features=expert.width,
                last="action",
            ),
        }

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Make the model's inputs with openpi's transforms, and read the token layout off them.

        Raises
        ------
        UsageError
            If it is not clear which of the dataset's cameras the policy sees where.
        ObservationError
            If the robot state does not fit, or the prompt is too long.
        PolicyError
            If openpi takes observations, or does with images, what is not understood.
        """
        made = [self._sight.inputs(o) for o in observations]
        slots = [self._sight.slots(o) for o in observations]
        return self._batch(made, slots, self._drawn(observations))

    def sent(self, content: Mapping[str, Any], seed: int) -> tuple[Observation, tuple[Slot, ...]]:
        """Read what a client of openpi's server sent.

        Parameters
        ----------
        content
            The client's message.
        seed
            Of the noise that this call begins with.

        Returns
        -------
        The observation: its cameras are those that the policy sees, called as their keys end, or as option
        ``cameras`` says; and where the policy sees them.

        Raises
        ------
        ObservationError
            If openpi refuses it.
        PolicyError
            If openpi does with its images what is not understood.
        """
        message, slots, state = self._sight.sent(content)
        shown = {slot.camera for slot in slots}
        images = {c: pixels(i) for c, i in message.images.items() if c in shown}
        parts = [np.zeros(0, np.float32), *(message.numbers[key] for key in state)]
        return Observation(images, message.prompt, np.concatenate(parts), seed), slots

    def batch_of(self, made: Mapping[str, Any], slots: Sequence[Slot], noise: Any) -> Batch:
        """Make a batch of one observation that openpi's transforms have prepared already.

        Parameters
        ----------
        made
            What the transforms gave.
        slots
            Where the policy sees its cameras, of `sent`.
        noise
            Tensor (1, horizon, action_dof).

        Raises
        ------
        ObservationError
            If the prompt is too long.
        PolicyError
            If it is not what the configuration says.
        """
        return self._batch([made], [slots], {"noise": noise})

    def _batch(
        self,
        made: Sequence[Mapping[str, Any]],
        slots: Sequence[Sequence[Slot]],
        drawn: Mapping[str, Any],
    ) -> Batch:
        samples = tuple(self._sequence.sample(*each) for each in zip(made, slots, strict=True))
        tensors = {key: stacked([m[key] for m in made], self.device) for key in self._takes}
        return Batch({**tensors, **drawn}, samples, self._sequence.encoded(made[0], slots))

    def _drawn(self, observations: Sequence[Observation]) -> dict[str, Any]:
        """What a call begins with that is drawn at random, by the observations' seeds."""
        import torch

        noise = torch.stack([self.noise(o.seed) for o in observations])
        return {"noise": noise.to(self.device)}

    def noise(self, seed: int) -> Any:
        """Return the noise of a seed, a float32 tensor (horizon, action_dof) on the CPU."""
        import torch

        # On the CPU and in float32 whatever the device: the same seed gives the same noise.
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.horizon, self.action_dof, generator=generator)

    def _vision_config(self) -> Any:
        from transformers.models.auto import CONFIG_MAPPING

        # openpi changes none of the fields that are read here.
        return CONFIG_MAPPING["paligemma"]().vision_config

    def _digest_with_options(self, digest: str) -> str:
        if not self._seen:
            return digest
        options = json.dumps(self._seen, sort_keys=True)
        return hashlib.sha256(f"{digest} {options}".encode()).hexdigest()

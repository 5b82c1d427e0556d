"""Pi0.5 and Pi0 of openpi's PyTorch port: ``PI0Pytorch``.

Prefix: ``paligemma_with_expert.paligemma.model.language_model.layers[i].self_attn``. Suffix, once
per denoising step: ``paligemma_with_expert.gemma_expert.model.layers[i].self_attn``, whose queries
are the action tokens (Pi0: after a state token), and whose keys are the prefix followed by them.
Sequence: three image inputs of 256 tokens, of which the third is black and masked for a robot with
two cameras, then the prompt, padded on the right. Observations go through openpi's own transforms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

from ...optional import require
from ..about import About
from ..base import LAST, Batch, EncoderShape, PolicyError
from ..blocking import Blocked, block_by_mask
from ..checkpoint import (
    CheckpointFiles,
    Recognised,
    check_dtype,
    check_options,
    directory_name,
    unwrap,
)
from ..fingerprint import digest_parameters
from ..hooks import HookedPolicy, Shown, Watched
from ..released import WORDS, flow, tokens
from ..vision import vision_shape
from .checkpoint import WEIGHTS, OpenpiCheckpoint, describe_norm_stats, openpi
from .family import DTYPES, SEEN, STEPS, OpenpiFamily


class OpenpiPolicy(OpenpiFamily, HookedPolicy):
    """Adapter of openpi's PyTorch policies.

    The configuration, the norm stats and the tokenizer are read at once; the weights at the first
    use of `model`.

    Parameters
    ----------
    checkpoint
        Local directory or hub id of a converted checkpoint: ``model.safetensors`` and ``assets/``.
    variant
        Name of openpi's configuration: ``pi05_droid``.
    dtype
        ``bfloat16`` as openpi runs it (the default), or ``float32``: the same weights, computed
        in float32.
    device
        Torch device: ``cpu``, ``cuda:0``.
    revision
        Hub revision.
    options
        ``base=CAMERA``, ``wrist=CAMERA``, ``right_wrist=CAMERA``: the dataset's cameras for
        ``base_0_rgb``, ``left_wrist_0_rgb``, ``right_wrist_0_rgb``. ``cameras=CAMERA:KEY,...`` and
        ``state=KEY:LENGTH,...`` name the keys in which openpi's transform takes them. What is not
        said is found out (`openpi_robot`). ``steps=N``: denoising steps, 10 by default.
    compiled
        Let openpi compile the model, as its configuration says; captured calls run uncompiled anyway.

    Raises
    ------
    UsageError
        If the configuration, the data type or an option is none of openpi's.
    MissingExtraError
        If openpi is not installed.
    NotFoundError
        If there is no such directory.
    PolicyError
        If the directory is no converted checkpoint with norm stats.
    """

    name = "openpi"
    denoiser_steps = True
    value_norms = "yes"
    hidden_states = "yes"
    about = (
        About(
            "Pi0.5 and Pi0 of openpi's PyTorch port",
            {
                "prefix": "the cameras' images, then the prompt, in Pi0.5 with the state's numbers; one pass",
                "suffix": "the action chunk, in Pi0 after a state token, over the prefix and themselves; each "
                "denoising step",
            },
            "openpi 15a9616 with transformers 4.53, reduced, random weights (make test-openpi); a compact model of the "
            "architecture in every test run",
            released=flow(
                "pi05_droid, a state of 8 numbers",
                tokens(front=(16, 16), wrist=(16, 16), bos=1, task=WORDS, state_text=47),
                tokens(action=15),
                shape=(18, 8, 2048),
                expert=(18, 8, 1024),
                steps=10,
            ),
        ),
    )

    @staticmethod
    def recognises(files: CheckpointFiles) -> Recognised | None:
        """Whether a checkpoint is openpi's: weights beside ``assets``, and no type in its configuration."""
        typed = {"type", "model_type"} & set(files.config)
        if "assets" not in files.names or typed or WEIGHTS not in files.names:
            return None
        return Recognised(
            "openpi",
            "which of openpi's configurations it was trained with is not in the files: pass --policy "
            "openpi:pi05_droid, with its name",
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
        compiled: bool = False,
    ) -> None:
        check_dtype(self.name, dtype, DTYPES)
        given, steps = self._options(options)
        require("torch", "ingest", "policy openpi")
        self._source: OpenpiCheckpoint | None = OpenpiCheckpoint(checkpoint, variant, revision)
        self.checkpoint = directory_name(checkpoint)
        self.device, self._dtype, self._compiled = device, dtype, compiled
        self._set_up(
            self._source.config.model, self._source.transforms(), steps, given,
            self._source.columns(),
        )  # fmt: skip

    @classmethod
    def from_policy(
        cls,
        policy: Any,
        *,
        options: Mapping[str, str] | None = None,
        checkpoint: str = "in memory",
    ) -> OpenpiPolicy:
        """Adapt a policy that ``create_trained_policy`` made, compiled or not.

        Parameters
        ----------
        options
            Which camera and which part of the state goes where, as for the class; no ``steps``.

        Raises
        ------
        PolicyError
            If it is a JAX policy.
        """
        if not getattr(policy, "_is_pytorch_model", True):
            raise PolicyError(
                "this openpi policy runs in JAX: policy openpi-jax runs its checkpoint; or create it "
                "from one that is converted to PyTorch"
            )
        made = cls.from_model(
            policy._model,
            policy._input_transform.transforms,
            options=options,
            steps=int(policy._sample_kwargs.get("num_steps", STEPS)),
            checkpoint=checkpoint,
        )
        made.__dict__["theirs"] = policy
        return made

    @classmethod
    def from_model(
        cls,
        model: Any,
        transforms: Sequence[Any],
        *,
        options: Mapping[str, str] | None = None,
        steps: int = STEPS,
        checkpoint: str = "in memory",
    ) -> OpenpiPolicy:
        """Adapt a loaded ``PI0Pytorch``, compiled or not, and openpi's input transforms for it."""
        check_options("openpi in memory", options or {}, SEEN)
        policy = cls.__new__(cls)
        inner = unwrap(model)
        policy._source, policy._dtype, policy._compiled = None, None, False
        policy.checkpoint, policy.device = checkpoint, str(next(inner.parameters()).device)
        policy.__dict__["model"] = model
        policy._set_up(inner.config, transforms, steps, options or {}, {})
        return policy

    @cached_property
    def theirs(self) -> Any:
        """The ``Policy`` of openpi's own around the same model, loaded at the first use.

        Raises
        ------
        PolicyError
            If this was made of a model and no policy.
        """
        if self._source is None:
            raise PolicyError("this was made by from_model, so there is no openpi policy around it")
        theirs = self._source.policy(
            self.device,
            self._sight.transforms,
            {"num_steps": self.steps},
            compiled=self._compiled,
        )
        if self._dtype == "float32":
            theirs._model.paligemma_with_expert.to_bfloat16_for_selected_params("float32")
        return theirs

    @cached_property
    def model(self) -> Any:
        """The model, loaded at the first use, in evaluation mode."""
        return self.theirs._model.eval()

    @property
    def dtype(self) -> str:
        """Data type of the language model's and the expert's weights."""
        if self._source is not None:
            return self._dtype or DTYPES[0]
        weight = self._language_model().layers[0].self_attn.q_proj.weight
        return str(weight.dtype).removeprefix("torch.")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights, norm stats, configuration, and of options that say what is seen."""
        if self._source is not None:
            digest = self._source.digest()
        else:
            weights = digest_parameters(unwrap(self.model))
            stats = describe_norm_stats(self._sight.transforms)
            digest = hashlib.sha256(f"{weights} {self.config!r} {stats}".encode()).hexdigest()
        return self._digest_with_options(digest)

    def encoder_shape(self) -> EncoderShape:
        """Shape of SigLIP, from the configuration."""
        return vision_shape(self._vision_config())

    def act(self, batch: Batch) -> Any:
        """Sample an action chunk for every observation of the batch."""
        inputs = dict(batch.inputs)
        noise = inputs.pop("noise")
        # from_dict replaces the images in the dictionary that it is given.
        inputs["image"] = dict(inputs["image"])
        observation = openpi("models.model").Observation.from_dict(inputs)
        return self.model.sample_actions(
            self.device, observation, noise=noise, num_steps=self.steps
        )

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the language model (prefix) and of the expert (suffix)."""
        prefix, suffix = self._language_model().layers, self._expert().layers
        return [
            *(Watched("prefix", i, unwrap(layer).self_attn) for i, layer in enumerate(prefix)),
            *(Watched("suffix", i, unwrap(layer).self_attn) for i, layer in enumerate(suffix)),
        ]

    def encoder(self) -> Any:
        """SigLIP's vision tower, called once per image input."""
        return unwrap(self._paligemma().model).vision_tower

    def denoiser(self) -> tuple[Any, int]:
        """Return the projection that gets the noisy actions at each step."""
        return unwrap(self.model).action_in_proj, 0

    def projection(self) -> Shown:
        """The projection of the action tokens."""
        return Shown("suffix", LAST, unwrap(self.model).action_out_proj, entering=True)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Eager attention in the language model and the expert.

        openpi sets it at every call, and leaves it so; here it is as before afterwards.
        """
        configs = [self._language_model().config, self._expert().config]
        before = [config._attn_implementation for config in configs]
        try:
            for config in configs:
                config._attn_implementation = "eager"
            yield
        finally:
            for config, implementation in zip(configs, before, strict=True):
                config._attn_implementation = implementation

    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> AbstractContextManager[None]:
        """Block attention through the masks that Gemma's layers get."""
        return block_by_mask(self.watched(), blocked)

    def _paligemma(self) -> Any:
        return unwrap(unwrap(unwrap(self.model).paligemma_with_expert).paligemma)

    def _language_model(self) -> Any:
        return unwrap(unwrap(self._paligemma().model).language_model)

    def _expert(self) -> Any:
        expert = unwrap(unwrap(self.model).paligemma_with_expert).gemma_expert
        return unwrap(unwrap(expert).model)

    def _vision_config(self) -> Any:
        if "model" in self.__dict__:
            return self._paligemma().config.vision_config
        return super()._vision_config()

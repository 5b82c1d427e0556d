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
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.geometry import Geometry
from attnstore.store.tokens import Axis, Span, TokenLayout

from ..optional import require
from .base import (
    Batch,
    EncoderShape,
    Observation,
    ObservationError,
    PhaseShape,
    PolicyError,
    Sample,
    digest_directory,
)
from .blocking import Blocked, block_by_mask
from .checkpoint import check_options, locate, model_type, one_line, unwrap
from .fingerprint import digest_parameters
from .hooks import HookedPolicy, Watched
from .prompt import text_spans
from .vision import vision_shape

DTYPES = ("float32", "bfloat16", "float16")
OPTIONS = ("stats", "steps")


class Pi0Policy(HookedPolicy):
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
        If torch or transformers is not installed.
    NotFoundError
        If there is no such directory.
    PolicyError
        If the checkpoint is not a readable Pi0 checkpoint.
    """

    name = "pi0"
    denoiser_steps = True

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
        if variant is not None:
            raise UsageError(f"pi0 has no variants; got {variant!r}")
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(f"dtype is one of {', '.join(DTYPES)}; got {dtype!r}")
        self._options = dict(options or {})
        check_options("pi0", self._options, OPTIONS)
        steps = _checked_steps(self._options.get("steps"))
        require("torch", "ingest", "policy pi0")
        transformers = require("transformers", "ingest", "policy pi0")
        self._directory = locate(checkpoint, revision)
        self.checkpoint = Path(checkpoint).name if Path(checkpoint).exists() else checkpoint
        self.device = device
        # transformers builds a Pi0 of any configuration, with a warning only.
        if (found := model_type(checkpoint, Path(self._directory))) != "pi0":
            raise PolicyError(f"{checkpoint}: its config.json is of {found!r}, not 'pi0'")
        try:
            self.config = transformers.PI0Config.from_pretrained(self._directory)
            self.processor = transformers.AutoProcessor.from_pretrained(self._directory)
        except Exception as error:
            # Whatever transformers raises for a bad file (OSError, ValueError, KeyError, ...) means
            # the same to the user.
            raise PolicyError(
                f"{checkpoint}: not a readable Pi0 checkpoint ({one_line(error)})"
            ) from error
        _apply_stats(self.processor, self._options.get("stats"))
        self._requested_dtype = dtype
        self.steps = int(steps or self.config.num_inference_steps)
        self.horizon = int(self.config.chunk_size)
        self.action_dof = int(self.config.max_action_dim)

    @classmethod
    def from_model(cls, model: Any, processor: Any, *, checkpoint: str = "in memory") -> Pi0Policy:
        """Adapt a model and a processor that are loaded already, compiled or not."""
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
    def model(self) -> Any:
        """The model, loaded at the first use, in evaluation mode."""
        import torch

        transformers: Any = require("transformers", "ingest", "policy pi0")
        dtype = getattr(torch, self._requested_dtype) if self._requested_dtype else "auto"
        try:
            model, report = transformers.PI0ForConditionalGeneration.from_pretrained(
                self._directory, dtype=dtype, output_loading_info=True
            )
        except Exception as error:
            raise PolicyError(
                f"{self.checkpoint}: weights cannot be loaded ({one_line(error)})"
            ) from error
        if missing := sorted(report["missing_keys"]):
            # transformers fills them with random numbers and only warns.
            raise PolicyError(
                f"{self.checkpoint}: {len(missing)} weights are missing from the checkpoint: "
                f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
            )
        return model.to(self.device).eval()

    @property
    def dtype(self) -> str:
        """Data type of the weights: as asked, else the checkpoint's."""
        if self._requested_dtype is None and "model" in self.__dict__:
            return str(next(unwrap(self.model).parameters()).dtype).removeprefix("torch.")
        return self._requested_dtype or str(self.config.dtype or "float32").removeprefix("torch.")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint directory, or of the weights of a model given in memory.

        A state normalisation that is not the directory's own is part of it.
        """
        if hasattr(self, "_directory"):
            digest = digest_directory(Path(self._directory))
            if "stats" not in self._options:
                return digest
        else:
            digest = digest_parameters(unwrap(self.model))
        stats = [self.processor.state_mean, self.processor.state_std]
        return hashlib.sha256(f"{digest} {json.dumps(stats)}".encode()).hexdigest()

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and suffix, from the configuration."""
        text, expert = self.config.vlm_config.text_config, self.config.dit_config
        return {
            "prefix": PhaseShape(text.num_hidden_layers, text.num_attention_heads, None, ("text",)),
            "suffix": PhaseShape(
                expert.num_hidden_layers, expert.num_attention_heads, self.steps, ("action",)
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
        samples = tuple(self._sample(inputs, row, o) for row, o in enumerate(observations))
        noise = torch.stack([self._noise(o.seed) for o in observations])
        tensors = {key: value.to(self.device) for key, value in inputs.items()}
        return Batch(
            {**tensors, "noise": noise.to(self.device)}, samples, _encoded(inputs, samples)
        )

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

    def encoder(self) -> Any:
        """SigLIP's vision tower."""
        return unwrap(unwrap(unwrap(self.model).model).vlm).vision_tower

    def encoder_shape(self) -> EncoderShape:
        """Shape of SigLIP, from the configuration."""
        return vision_shape(self.config.vlm_config.vision_config)

    def denoiser(self) -> tuple[Any, int]:
        """Return the embedding that gets (state, noisy actions, time) at each step."""
        return unwrap(self.model).embed_action_time, 1

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

    @property
    def real_dof(self) -> int | None:
        """Components of an action that are not padding, from the processor's statistics."""
        mean = getattr(self.processor, "actions_mean", None)
        return None if mean is None else int(np.size(mean))

    def _check_state(self, state: NDArray[np.float32]) -> None:
        length, known = state.size, np.size(self.processor.state_mean)
        if length > self.processor.max_state_dim:
            raise ObservationError(
                f"the robot state has {length} components, the policy takes at most "
                f"{self.processor.max_state_dim}"
            )
        if length != known or np.size(self.processor.state_std) != known:
            # torch would stretch statistics of length 1 over any state.
            raise ObservationError(
                f"the robot state has {length} components, the processor's state_mean has {known} "
                f"and its state_std {np.size(self.processor.state_std)}"
            )

    def _noise(self, seed: int) -> Any:
        import torch

        # On the CPU and in float32 whatever the device: the same seed gives the same noise.
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.horizon, self.action_dof, generator=generator)

    def _sample(self, inputs: Any, row: int, observation: Observation) -> Sample:
        geometry = {
            camera: self._geometry(image.shape[:2]) for camera, image in observation.images.items()
        }
        prefix = self._prefix_axis(inputs, row, observation, geometry)
        suffix = Axis(
            (
                Span("state", "state", 0, 1, 0),
                Span("action", "action", 1, 1 + self.horizon, 1),
            )
        )
        key = prefix.followed_by(suffix, model_offset=int(inputs["input_ids"].shape[1]))
        return Sample(
            {
                "prefix": TokenLayout("prefix", prefix, prefix),
                "suffix": TokenLayout("suffix", suffix, key),
            },
            geometry,
        )

    def _prefix_axis(
        self, inputs: Any, row: int, observation: Observation, geometry: Mapping[str, Geometry]
    ) -> Axis:
        ids = inputs["input_ids"][row].tolist()
        valid = inputs["attention_mask"][row].bool().tolist()
        present = inputs["pixel_attention_mask"][row].tolist()
        image_id = self.config.vlm_config.image_token_id
        image_at = [i for i, token in enumerate(ids) if token == image_id and valid[i]]
        cameras = [c for c, shown in zip(observation.images, present, strict=False) if shown]
        if not cameras or len(image_at) % len(cameras):
            raise PolicyError(f"{len(image_at)} image tokens cannot be shared by cameras {cameras}")
        count = len(image_at) // len(cameras)
        spans: list[Span] = []
        for i, camera in enumerate(cameras):
            run = image_at[i * count : (i + 1) * count]
            grid = geometry[camera].grid
            if run[-1] - run[0] + 1 != count or grid[0] * grid[1] != count:
                raise PolicyError(
                    f"camera {camera}: {count} image tokens at {run[0]}..{run[-1]}, grid {grid}"
                )
            start = spans[-1].stop if spans else 0
            name = f"image:{camera}"
            spans.append(
                Span(name, "image", start, start + count, run[0], camera=camera, grid=grid)
            )
        text_at = [i for i, shown in enumerate(valid) if shown and ids[i] != image_id]
        spans += text_spans(self.processor.tokenizer, ids, text_at, start=spans[-1].stop)
        return Axis(tuple(spans))

    def _geometry(self, source: tuple[int, int]) -> Geometry:
        from transformers.image_utils import get_image_size_for_max_height_width

        image = self.processor.image_processor
        size, pad, patch = (
            dict(image.size),
            dict(image.pad_size),
            self.config.vlm_config.vision_config.patch_size,
        )
        if "max_height" in size:
            resized = get_image_size_for_max_height_width(
                source, size["max_height"], size["max_width"]
            )
        elif "height" in size:
            resized = (size["height"], size["width"])
        else:
            raise PolicyError(
                f"the image processor's size {size} is not understood; its geometry is unknown"
            )
        frame = (int(pad["height"]), int(pad["width"])) if image.do_pad else tuple(resized)
        count = math.isqrt(int(image.image_seq_length))
        if (frame[0] // patch) * (frame[1] // patch) != int(image.image_seq_length):
            raise PolicyError(
                f"images of {frame} in patches of {patch} are not {count * count} image tokens"
            )
        return Geometry.letterbox(
            (int(source[0]), int(source[1])),
            (frame[0], frame[1]),
            (patch, patch),
            anchor="top-left",
            resized=(int(resized[0]), int(resized[1])),
        )


def _encoded(inputs: Any, samples: Sequence[Sample]) -> tuple[tuple[int, str] | None, ...]:
    """Whose each image is: the model flattens (sample, camera slot), gaps included."""
    places: list[tuple[int, str] | None] = []
    for row, (shown, sample) in enumerate(
        zip(inputs["pixel_attention_mask"].tolist(), samples, strict=True)
    ):
        slots = zip_longest(shown, sample.geometry)
        places += [(row, camera) if here and camera else None for here, camera in slots]
    return tuple(places)


def _checked_steps(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"steps is a whole number of denoising steps, at least 1; got {text!r}")
    return int(text)


def _apply_stats(processor: Any, file: str | None) -> None:
    if file is not None:
        try:
            stats = json.loads(Path(file).read_text())
            processor.state_mean, processor.state_std = stats["state_mean"], stats["state_std"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PolicyError(
                f"{file}: JSON with state_mean and state_std is expected ({error!r})"
            ) from None
    if processor.state_mean is None or processor.state_std is None:
        raise PolicyError(
            "the checkpoint's processor has no state_mean and state_std, so a robot state cannot "
            "be normalised: pass --policy-option stats=FILE with those of the training dataset"
        )

"""OpenVLA as its authors published it: a checkpoint with its own code, for transformers 4.40.1.

The model takes one image and writes an action as text: [BOS, the image's patches, the prompt] is phase
``prefix``, and each generated token, a number of the action, a step of phase ``decode``. Actions come
from the checkpoint's own ``predict_action``, which is called as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import HealthError, UsageError
from attnstore.store.format.generated import DECODE, reserve
from attnstore.store.format.tokens import TASK, TokenLayout

from ..about import About
from ..base import (
    LAST,
    Batch,
    Generated,
    Observation,
    ObservationError,
    Observer,
    PhaseShape,
    PolicyError,
    Sample,
)
from ..blocking import Blocked, by_layer
from ..checkpoint import (
    CheckpointFiles,
    Recognised,
    check_dtype,
    check_options,
    check_variant,
    directory_name,
    locate,
    unwrap,
)
from ..decoder import eager_self_attention, language_model, self_attention
from ..hooks import Shown, Watched, instead
from ..passes import PREFIX, Passes, block_passes
from ..prompt import Prompt, prompt_axis
from ..released import WORDS, tokens, writing
from ..turns import Turns
from .actions import action_dof, choose_statistics, written
from .image import center_cropped, image_geometry, patch_grid, pick_camera
from .loading import (
    check_environment,
    check_trusted,
    load_model,
    oft_parts,
    read_checkpoint,
    read_statistics,
)
from .prismatic import EMPTY, IMAGE, PrismaticPolicy, truth, usual_template

OPTIONS = ("trust_remote_code", "unnorm_key", "camera", "center_crop", "prompt")


class OpenvlaPolicy(PrismaticPolicy):
    """Adapter of OpenVLA.

    Configuration and processor are read at once; the weights at the first use of `model`.

    Parameters
    ----------
    checkpoint
        Local directory or hub id, with model, processor, tokenizer and the checkpoint's code.
    dtype
        Data type of the weights; None keeps the checkpoint's.
    device
        Torch device: ``cpu``, ``cuda:0``.
    revision
        Hub revision.
    options
        ``trust_remote_code=true``: the checkpoint's code may run, without which nothing is loaded.
        ``unnorm_key=NAME``: whose statistics turn tokens into the robot's units; needed where the
        checkpoint has several. ``camera=NAME``: the one that the policy sees; needed where the data
        set has several. ``center_crop=true``: crop the image as OpenVLA's evaluation on LIBERO does.
        ``prompt=TEMPLATE``, with ``{instruction}`` in it: another than the checkpoint was trained with.

    Raises
    ------
    UsageError
        If the data type, the variant or an option is not one of this adapter's, or one is needed.
    MissingExtraError
        If torch, timm or transformers 4 is not installed.
    NotFoundError
        If there is no such directory.
    PolicyError
        If the checkpoint is no readable OpenVLA checkpoint.
    """

    name = "openvla"
    about = (
        About(
            "OpenVLA",
            {
                "prefix": "one image, then the prompt; one pass",
                "decode": "the generated token, a number of the action, over all before it; each token",
            },
            "OpenVLA's own code on transformers 4.40.1 with random weights",
            "no: two encoders look at an image, and a phase has one",
            released=writing(
                "openvla/openvla-7b, one camera",
                tokens(bos=1, camera=(16, 16), template=14, task=WORDS),
                shape=(32, 32, 4096),
                steps=7,
            ),
        ),
    )
    denoiser_steps = False
    horizon = 1

    @staticmethod
    def recognises(files: CheckpointFiles) -> Recognised | None:
        """Whether a checkpoint is OpenVLA's."""
        own = files.config.get("model_type") == "openvla" and not oft_parts(files.names)
        return Recognised("openvla") if own else None

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
        check_variant("openvla", variant)
        check_dtype("openvla", dtype)
        given = dict(options or {})
        check_options("openvla", given, OPTIONS)
        check_environment()
        check_trusted(checkpoint, given.pop("trust_remote_code", None))
        self._directory = locate(checkpoint, revision)
        config, processor = read_checkpoint(checkpoint, self._directory)
        name = directory_name(checkpoint)
        statistics = read_statistics(checkpoint, self._directory, config)
        self._adapt(config, processor, statistics, name, dtype, device, given)

    @classmethod
    def from_model(
        cls,
        model: Any,
        processor: Any,
        *,
        checkpoint: str = "in memory",
        device: str = "cpu",
        options: Mapping[str, str] | None = None,
    ) -> OpenvlaPolicy:
        """Adapt a model that is loaded already.

        Raises
        ------
        UsageError
            As the constructor.
        """
        given = dict(options or {})
        check_options("openvla", given, OPTIONS)
        given.pop("trust_remote_code", None)
        policy = cls.__new__(cls)
        policy.__dict__["model"] = model
        inner = unwrap(model)
        policy._adapt(inner.config, processor, inner.norm_stats, checkpoint, None, device, given)
        return policy

    def _adapt(
        self,
        config: Any,
        processor: Any,
        statistics: Mapping[str, Any],
        checkpoint: str,
        dtype: str | None,
        device: str,
        options: Mapping[str, str],
    ) -> None:
        self.checkpoint, self.device, self._requested_dtype = checkpoint, device, dtype
        self.config, self.processor, self._statistics = config, processor, statistics
        self._options = dict(options)
        self._key = choose_statistics(statistics, options.get("unnorm_key"))
        self.action_dof = action_dof(statistics, self._key)
        self._template = usual_template(config, options)
        self._center_crop = truth(options, "center_crop", default=False)
        self._grid = patch_grid(config, processor.image_processor)
        self._turns: Turns | None = None
        self._passes: Passes | None = None
        self._blocked: Sequence[Sequence[Blocked]] | None = None

    @cached_property
    def model(self) -> Any:
        """The model, loaded at the first use, in evaluation mode."""
        model = load_model(self.checkpoint, self._directory, self._requested_dtype)
        model.norm_stats = self._statistics
        return model.to(self.device).eval()

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Prefix and decode, from the configuration."""
        text = self.config.text_config
        layers, heads = int(text.num_hidden_layers), int(text.num_attention_heads)
        prefix = PhaseShape(
            layers, heads, None, (TASK,), causal=True, features=int(text.hidden_size)
        )
        decode = replace(prefix, steps=self.action_dof, query_groups=("readout",), last="readout")
        return {PREFIX: prefix, DECODE: decode}

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Run the checkpoint's own processor, and lay out what the model makes of its output.

        Raises
        ------
        UsageError
            If it is not said which of several cameras the policy sees.
        ObservationError
            If the camera is missing, or the instruction is not found in the prompt.
        """
        import torch
        from PIL import Image

        ids, masks, pixels, samples, encoded = [], [], [], [], []
        for row, observation in enumerate(observations):
            camera = self._camera(observation)
            image = observation.images[camera]
            seen = center_cropped(image) if self._center_crop else np.ascontiguousarray(image)
            prompt = self.prompt_of(observation.instruction)
            inputs = self.processor(prompt.text, Image.fromarray(seen).convert("RGB"))
            own, mask = inputs["input_ids"], inputs["attention_mask"]
            if int(own[0, -1]) != EMPTY:
                # As predict_action does it, which forgets the mask: eager attention needs both.
                own = torch.cat([own, own.new_full((1, 1), EMPTY)], 1)
                mask = torch.cat([mask, mask.new_ones((1, 1))], 1)
            samples.append(self._sample(own[0].tolist(), prompt, camera, image.shape[:2]))
            ids.append(own.to(self.device))
            masks.append(mask.to(self.device))
            pixels.append(inputs["pixel_values"])
            encoded.append((row, camera))
        given = {
            "input_ids": ids,
            "attention_mask": masks,
            "pixel_values": torch.cat(pixels).to(self.device),
        }
        return Batch(given, tuple(samples), encoded=tuple(encoded))

    def act(self, batch: Batch) -> Any:
        """Let the model predict each sample's action, one after the other.

        Returns
        -------
        Actions in normalised units, (batch, 1, action_dof): the bins' centres. What each token is in
        the robot's units goes to the observer.
        """
        import torch

        if self._turns is not None:
            self._turns.begin(len(batch))
        said, actions = [], []
        for row in range(len(batch)):
            if self._turns is not None and self._passes is not None:
                self._turns.next()
                self._passes.begin(Batch({}, (batch.samples[row],)), rows=1)
            blocked = nullcontext() if self._blocked is None else self._block(self._blocked[row])
            with blocked:
                generated, normalised = self._act(batch, row)
            said.append(generated)
            actions.append(normalised)
        if self._turns is not None:
            self._turns.end()
            self._turns.generated(said)
        return torch.from_numpy(np.stack(actions)[:, None])

    def _act(self, batch: Batch, row: int) -> tuple[Generated, NDArray[np.float32]]:
        model = unwrap(self.model)
        inputs = batch.inputs
        dtype = next(model.parameters()).dtype
        sequences: list[list[int]] = []

        def kept(generate: Any, *args: Any, **kwargs: Any) -> Any:
            found = generate(*args, **kwargs)
            sequences.append(found[0].tolist())
            return found

        with instead(model, "generate", kept):
            executed = model.predict_action(
                input_ids=inputs["input_ids"][row],
                attention_mask=inputs["attention_mask"][row],
                pixel_values=inputs["pixel_values"][row : row + 1].to(dtype),
                unnorm_key=self._key,
                do_sample=False,
            )
        if len(sequences) != 1:
            raise HealthError(f"predict_action generated {len(sequences)} times, once is expected")
        count = len(sequences[0]) - int(inputs["input_ids"][row].shape[1])
        return written(
            self.processor.tokenizer,
            sequences[0],
            count,
            np.asarray(executed, np.float64),
            int(model.vocab_size),
            np.asarray(model.bin_centers, np.float64),
        )

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the language model's decoder layers; `Passes` names their phases."""
        layers = self.phases[PREFIX].layers
        modules = self_attention(language_model(unwrap(self.model)), layers)
        return [Watched(PREFIX, i, module) for i, module in enumerate(modules)]

    def projection(self) -> Shown:
        """The language model's head, which chooses the next number; `Passes` names the phase."""
        head = unwrap(unwrap(self.model).get_output_embeddings())
        return Shown(PREFIX, LAST, head, entering=True)

    def encoder(self) -> Any:
        """Return the vision backbone: one tower, or two whose features are joined."""
        return unwrap(self.model).vision_backbone

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """Hook the modules; every pass is shown in its phase, the batch as if it ran at once."""
        self._turns = Turns(observer)
        self._passes = passes = Passes(self._turns, causal=True)
        try:
            with super().instrument(passes):
                yield
        finally:
            self._turns = self._passes = None

    def eager(self) -> AbstractContextManager[None]:
        """Eager attention in the language model, and only there."""
        return eager_self_attention([w.module for w in self.watched()])

    @contextmanager
    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> Iterator[None]:
        """Block attention through the masks of the language model's layers, sample by sample."""
        layers = range(self.phases[PREFIX].layers)
        by_layer(blocked, {(phase, n) for phase in (PREFIX, DECODE) for n in layers})
        before, self._blocked = self._blocked, blocked
        try:
            yield
        finally:
            self._blocked = before

    def _block(self, blocked: Sequence[Blocked]) -> AbstractContextManager[None]:
        return block_passes(self.watched(), [blocked])

    def _camera(self, observation: Observation) -> str:
        asked = self._options.get("camera")
        found = pick_camera(list(observation.images), asked)
        if found is not None:
            return found
        names = ", ".join(observation.images) or "none"
        if asked is not None:
            raise ObservationError(f"there is no camera {asked!r}; there is {names}")
        raise UsageError(
            "OpenVLA sees one camera, usually the one that looks at the scene from outside: say which "
            f"with --policy-option camera=NAME; there are {names}"
        )

    def _sample(
        self, ids: Sequence[int], prompt: Prompt, camera: str, source: tuple[int, int]
    ) -> Sample:
        grid, patch, side = self._grid
        strategy = str(self.processor.image_processor.image_resize_strategy)
        geometry = image_geometry(
            (int(source[0]), int(source[1])), strategy, grid, patch, side,
            center_crop=self._center_crop,
        )  # fmt: skip
        tokenizer = self.processor.tokenizer
        if ids[0] != tokenizer.bos_token_id:
            raise PolicyError(
                f"the prompt begins with token {ids[0]}, not with BOS: OpenVLA puts the image behind it"
            )
        # The model puts the patches behind BOS.
        whole = [ids[0], *[IMAGE] * (grid[0] * grid[1]), *ids[1:]]
        axis = prompt_axis(tokenizer, whole, [True] * len(whole), IMAGE, {camera: geometry}, prompt)
        layouts = {
            PREFIX: TokenLayout(PREFIX, axis, axis),
            DECODE: reserve(axis, length=len(whole), steps=self.action_dof),
        }
        return Sample(layouts, {camera: geometry})

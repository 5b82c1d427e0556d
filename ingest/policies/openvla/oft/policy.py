"""OpenVLA-OFT as its authors published it: a chunk of actions in one pass, by its own ``predict_action``.

Its fork of transformers lets every token of the language model attend to every other. Without denoising
that pass is phase ``joint``; with a diffusion head each denoising step is such a pass, and the tokens that
make actions are the queries of phase ``suffix``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import HealthError, UsageError
from attnstore.store.format.tokens import STATE, TASK

from ...base import (
    LAST,
    Batch,
    Observation,
    ObservationError,
    Observer,
    PhaseShape,
    Sample,
)
from ...blocking import Blocked, by_layer
from ...checkpoint import counted, unwrap
from ...decoder import language_model, self_attention
from ...fingerprint import digest_parameters
from ...hooks import Shown, Watched, instead
from ...prompt import Prompt
from ...sdpa import SdpaTap, block_sdpa
from ...turns import Turns
from ..actions import choose_statistics
from ..image import center_cropped, evaluated, image_geometry, patch_grid
from ..loading import OFT
from ..prismatic import EMPTY, PrismaticPolicy, truth, usual_template
from .layout import JOINT, SUFFIX, TIMESTEP, layouts, sequence_axis
from .parts import (
    TRAINED_STEPS,
    Parts,
)
from .robot import Robot, check_state, scaled_state


class OftPolicy(PrismaticPolicy):
    """Adapter of OpenVLA-OFT with actions by regression, or as tokens; `load_oft` and `adapt_oft` make it.

    Parameters
    ----------
    config, processor
        The checkpoint's.
    robot
        Sizes of actions and state.
    statistics
        By data set.
    load
        Gives the model and what stands beside it, at the first use of `model`.
    directory
        The checkpoint's; None for a model in memory.
    takes_state
        Whether there is a projector of the robot's state.
    options
        As `load_oft` takes them.
    """

    name = OFT
    denoiser_steps = False
    phase = JOINT

    def __init__(
        self,
        config: Any,
        processor: Any,
        robot: Robot,
        statistics: Mapping[str, Any],
        load: Callable[[], tuple[Any, Parts]],
        *,
        directory: str | None,
        takes_state: bool,
        checkpoint: str,
        dtype: str | None,
        device: str,
        options: Mapping[str, str],
    ) -> None:
        self.checkpoint, self.device, self._requested_dtype = checkpoint, device, dtype
        self.config, self.processor, self.robot, self._load = config, processor, robot, load
        self._statistics, self._options, self._takes_state = statistics, dict(options), takes_state
        if directory is not None:
            self._directory = directory
        self._key = choose_statistics(statistics, options.get("unnorm_key"), robot.bounds)
        if takes_state:
            check_state(statistics, self._key, robot)
        self.horizon, self.action_dof = robot.chunk, robot.action_dof
        self._steps = read_steps(options)[1]
        if not self.denoiser_steps and (lost := {"steps", "trained_steps"} & options.keys()):
            raise UsageError(
                f"{min(lost)}: {checkpoint} has no diffusion head and acts in one pass: leave it out"
            )
        self._cameras = parse_cameras(options.get("cameras"))
        self._template = usual_template(config, options)
        self._center_crop = truth(options, "center_crop", default=True)
        self._grid = patch_grid(config, processor.image_processor)
        self._tap = SdpaTap()
        self._turns: Turns | None = None
        self._blocked: Sequence[Sequence[Blocked]] | None = None
        self._first = 0

    @cached_property
    def model(self) -> Any:
        """The model, loaded at the first use, in evaluation mode."""
        model, self._parts = self._load()
        return model

    @property
    def parts(self) -> Parts:
        """What stands beside the model, loaded with it."""
        assert self.model is not None
        return self._parts

    def weights_digest(self) -> str:
        """SHA-256 of the directory, or of the weights of a model in memory and its parts."""
        if not self.in_memory:
            return super().weights_digest()
        modules = [unwrap(self.model), self.parts.head, self.parts.state, self.parts.noisy]
        found = [digest_parameters(m) for m in modules if m is not None]
        return hashlib.sha256(" ".join(found).encode()).hexdigest()

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """One phase, from the configuration."""
        text = self.config.text_config
        joint = PhaseShape(
            int(text.num_hidden_layers), int(text.num_attention_heads), None, (TASK, "action"),
            causal=False, features=int(text.hidden_size), last="action",
        )  # fmt: skip
        return {JOINT: joint}

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Run the checkpoint's own processor on each camera, and lay out what the model makes of it.

        Raises
        ------
        UsageError
            If it is not said which of several cameras the policy sees.
        ObservationError
            If a camera is missing, the state has another length, or the instruction is not found in the
            prompt.
        """
        import torch
        from PIL import Image

        ids, masks, pixels, states, noise, samples, encoded = [], [], [], [], [], [], []
        for row, observation in enumerate(observations):
            prompt = self.prompt_of(observation.instruction)
            cameras = self._seen(observation)
            shown = []
            for camera in cameras:
                image = observation.images[camera]
                seen = center_cropped(image) if self._center_crop else evaluated(image)
                shown.append(self.processor(prompt.text, Image.fromarray(seen).convert("RGB")))
            own = shown[0]["input_ids"]
            ids.append(own.to(self.device))
            masks.append(shown[0]["attention_mask"].to(self.device))
            pixels.append(torch.cat([each["pixel_values"] for each in shown], 1).to(self.device))
            if self._takes_state:
                scaled = scaled_state(observation.state, self._statistics, self._key, self.robot)
                states.append(torch.from_numpy(scaled)[None])
            noise.append(self._noise(observation.seed))
            samples.append(self._sample(own[0].tolist(), prompt, observation, cameras))
            encoded += [(row, camera) for camera in cameras]
        given = {"input_ids": ids, "attention_mask": masks, "pixel_values": pixels}
        if states:
            given["state"] = states
        if self.denoiser_steps:
            given["noise"] = noise
        return Batch(given, tuple(samples), encoded=tuple(encoded))

    def act(self, batch: Batch) -> Any:
        """Let the model predict each sample's chunk, one after the other.

        Returns
        -------
        Actions in normalised units, (batch, horizon, action_dof).
        """
        import torch

        if self._turns is not None:
            self._turns.begin(len(batch))
        actions = []
        for row in range(len(batch)):
            if self._turns is not None:
                self._turns.next()
            blocked = nullcontext() if self._blocked is None else self._block(self._blocked[row])
            with blocked, torch.no_grad():
                actions.append(self._act(batch, row))
        if self._turns is not None:
            self._turns.end()
        return torch.from_numpy(np.stack(actions))

    def _act(self, batch: Batch, row: int) -> NDArray[np.float32]:

        model, parts, inputs = unwrap(self.model), self.parts, batch.inputs
        found: list[NDArray[np.float32]] = []

        def kept(original: Any, normalised: Any, *args: Any, **kwargs: Any) -> Any:
            found.append(np.asarray(normalised, np.float32))
            return original(normalised, *args, **kwargs)

        (layout,) = batch.samples[row].layouts.values()
        self._first = next(s.model_start for s in layout.key if s.kind == "action")
        images = len(batch.samples[row].geometry)
        with ExitStack() as stack:
            stack.enter_context(instead(model, "_unnormalize_actions", kept))
            stack.enter_context(_images(model.vision_backbone, images))
            if self.denoiser_steps:
                stack.enter_context(_drawn(inputs["noise"][row]))
            model.predict_action(
                input_ids=inputs["input_ids"][row],
                attention_mask=inputs["attention_mask"][row],
                pixel_values=inputs["pixel_values"][row].to(next(model.parameters()).dtype),
                unnorm_key=self._key,
                do_sample=False,
                proprio=inputs["state"][row][0].numpy() if parts.state is not None else None,
                proprio_projector=parts.state,
                noisy_action_projector=parts.noisy,
                action_head=parts.head,
                use_film=parts.film,
            )
        if len(found) != 1 or found[0].shape != (self.horizon, self.action_dof):
            raise HealthError(
                f"predict_action made actions of {[f.shape for f in found]}, one of "
                f"{(self.horizon, self.action_dof)} is expected"
            )
        return found[0]

    def watched(self) -> Sequence[Watched]:
        """Self-attention of the language model's decoder layers, whose weights the tap computes."""
        layers = self.phases[self.phase].layers
        modules = self_attention(language_model(unwrap(self.model)), layers)
        return [Watched(self.phase, i, m, self._tap.weights(m)) for i, m in enumerate(modules)]

    def projection(self) -> Shown:
        """The network that makes actions, or noise, of the action tokens; else the language model's head."""
        head = self.parts.head
        if head is None:
            return Shown(
                self.phase, LAST, unwrap(unwrap(self.model).get_output_embeddings()), entering=True,
                states=self._action_rows,
            )  # fmt: skip
        return Shown(self.phase, LAST, self._network(head), entering=True, states=self._unfolded)

    def _network(self, head: Any) -> Any:
        return head.model

    def _action_rows(self, states: Any) -> Any:
        return states[:, self._first : self._first + self.horizon * self.action_dof]

    def _unfolded(self, states: Any) -> Any:
        """Undo that the hidden states of one action's numbers are joined."""
        return states.reshape(len(states), self.horizon * self.action_dof, -1)

    def encoder(self) -> Any:
        """Return the first vision tower, which is called with one image after the other."""
        backbone = unwrap(self.model).vision_backbone
        return getattr(backbone, "vision_backbone", backbone).featurizer

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """Hook the modules; a batch is shown as if it ran at once."""
        self._turns = turns = Turns(observer)
        try:
            with super().instrument(turns), self._denoising(turns):
                yield
        finally:
            self._turns = None

    def _denoising(self, turns: Turns) -> AbstractContextManager[None]:
        return nullcontext()

    def eager(self) -> AbstractContextManager[None]:
        """Weights computed beside the fork's own attention: eager attention would be causal."""
        return self._tap.over([w.module for w in self.watched()])

    @contextmanager
    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> Iterator[None]:
        """Block attention in the calls inside the language model's layers, sample by sample.

        The fork replaces every row of a mask by the last, so none can be given to the modules.
        """
        by_layer(blocked, {(self.phase, n) for n in range(self.phases[self.phase].layers)})
        before, self._blocked = self._blocked, blocked
        try:
            yield
        finally:
            self._blocked = before

    def _block(self, blocked: Sequence[Blocked]) -> AbstractContextManager[None]:
        return block_sdpa(self.watched(), [blocked])

    def _noise(self, seed: int) -> Any:
        """Noise of a prediction as ``predict_action`` draws it after ``torch.manual_seed``, on the CPU."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        dtype = getattr(torch, self.dtype)
        return torch.randn(1, self.horizon, self.action_dof, generator=generator, dtype=dtype)

    def _seen(self, observation: Observation) -> list[str]:
        """Cameras that the policy sees, in the order of its images."""
        names = ", ".join(observation.images) or "none"
        if self._cameras is not None:
            for camera in self._cameras:
                if camera not in observation.images:
                    raise ObservationError(f"there is no camera {camera!r}; there is {names}")
            found = self._cameras
        elif len(observation.images) == 1:
            found = list(observation.images)
        else:
            raise UsageError(
                "a checkpoint of OpenVLA-OFT does not say how many images it sees: name the cameras, the one "
                "that looks at the scene first, then those at the wrists, with --policy-option "
                f"cameras=NAME,NAME; there are {names}"
            )
        if len(found) > 1 and not self.config.use_fused_vision_backbone:
            raise UsageError(
                f"cameras={','.join(found)}: OpenVLA-OFT takes several images with two vision towers only"
            )
        return found

    def _sample(
        self, ids: list[int], prompt: Prompt, observation: Observation, cameras: Sequence[str]
    ) -> Sample:
        grid, patch, side = self._grid
        geometry = {}
        for camera in cameras:
            height, width = observation.images[camera].shape[:2]
            # Before the processor an image is a square, which every strategy only scales.
            geometry[camera] = image_geometry(
                (int(height), int(width)), "resize-naive", grid, patch, side,
                center_crop=self._center_crop,
            )  # fmt: skip
        if ids[-1] != EMPTY:
            ids = [*ids, EMPTY]
        extras = [STATE] if self._takes_state else []
        if self.denoiser_steps:
            extras.append(TIMESTEP)
        tokenizer = self.processor.tokenizer
        axis = sequence_axis(tokenizer, ids, geometry, prompt, extras, self.robot)
        return Sample(layouts(axis, diffusion=self.denoiser_steps), geometry)


class DiffusionOftPolicy(OftPolicy):
    """Adapter of OpenVLA-OFT with actions by denoising."""

    denoiser_steps = True
    phase = SUFFIX

    @property
    def phases(self) -> Mapping[str, PhaseShape]:
        """One phase, whose queries are the tokens that make actions; it has a step a denoising."""
        joint = super().phases[JOINT]
        return {SUFFIX: replace(joint, steps=self._steps, query_groups=("action",))}

    def _network(self, head: Any) -> Any:
        return head.noise_predictor.mlp_resnet

    @contextmanager
    def _denoising(self, turns: Turns) -> Iterator[None]:
        """Show the noisy actions of each step, which are projected number by number."""

        def entering(module: Any, args: Any) -> None:
            turns.noisy_actions(args[0].detach().float().reshape(-1, self.horizon, self.action_dof))

        noisy = self.parts.noisy
        assert noisy is not None
        handle = noisy.register_forward_pre_hook(entering)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _images(backbone: Any, count: int) -> Iterator[None]:
    """Have the encoder take so many images."""
    before = backbone.get_num_images_in_input()
    backbone.set_num_images_in_input(count)
    try:
        yield
    finally:
        backbone.set_num_images_in_input(before)


@contextmanager
def _drawn(noise: Any) -> Iterator[None]:
    """Have ``torch.randn`` return this noise, on whichever device it is asked for."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            given = kwargs or {}
            if func is not torch.randn:
                return func(*args, **given)
            size = tuple(given.get("size", args))
            if size != tuple(noise.shape):
                raise HealthError(
                    f"predict_action draws noise of {size}, {tuple(noise.shape)} is expected"
                )
            return noise.to(given.get("device"), given.get("dtype"))

    with Mode():
        yield


def read_steps(options: Mapping[str, str]) -> tuple[int, int]:
    """Return the denoising steps of the training, and of a prediction.

    Raises
    ------
    UsageError
        If one is no whole number, or a prediction has more than the training.
    """
    trained = counted(options, "trained_steps", "denoising steps") or TRAINED_STEPS
    steps = counted(options, "steps", "denoising steps") or min(trained, TRAINED_STEPS)
    if steps > trained:
        raise UsageError(f"steps={steps}: the training had {trained} (trained_steps)")
    return trained, steps


def parse_cameras(text: str | None) -> list[str] | None:
    """Parse ``NAME,NAME``.

    Raises
    ------
    UsageError
        If a name is empty or stands twice.

    Examples
    --------
    >>> parse_cameras("varied_camera_1,hand_camera")
    ['varied_camera_1', 'hand_camera']
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"cameras is NAME,NAME, each once; got {text!r}")
    return names

"""Octo as its authors published it: JAX and Flax, one pass for each prediction, phase ``joint``.

Everything is read off the checkpoint and a trace of the model: the slots of its cameras and their
sizes, the window of observations, token groups and their counts, the convolutions of its stems.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnstore.store.errors import HealthError, UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.hidden import EMBEDDING
from attnstore.store.format.views import earlier

from ...optional import require
from ..about import About
from ..base import (
    LAST,
    Batch,
    EncoderShape,
    Observation,
    ObservationError,
    Observer,
    PhaseShape,
    PolicyError,
    Sample,
)
from ..blocking import Blocked, nothing_left
from ..checkpoint import CheckpointFiles, Recognised, check_dtype, check_variant
from ..convolution import stem_geometry
from ..fingerprint import digest_directory
from ..released import joint, tokens
from .blocking import OctoBlocks
from .calls import OctoCalls
from .inputs import OctoInputs, camera_slots, random_keys, task_words
from .layout import PHASE, Word, joint_layout, query_groups, sequence_length
from .loading import FILES, check_directory, digest_parameters, jax_device, load_octo
from .survey import Survey, understood

if TYPE_CHECKING:
    import torch

TASKS = ("language", "goal", "both")
OPTIONS = ("task", "window", "statistics")


class OctoPolicy:
    """Adapter of Octo.

    Parameters
    ----------
    checkpoint
        Local directory, as ``OctoModel.save_pretrained`` writes it.
    dtype
        Only None or ``float32``.
    device
        ``cpu``, ``cuda`` or ``cuda:1``.
    options
        A camera for each of the model's slots, ``primary=varied_camera_1``, ``wrist=hand_camera``;
        ``wrist=none`` leaves its tokens out, ``wrist=masked`` gives a black image that nothing
        attends to. ``task``: ``language`` (default), ``goal`` (the episode's last frame) or
        ``both``. ``window=N``: observations instead of the checkpoint's number. ``statistics=NAME``:
        whose mean and standard deviation normalise a proprioceptive state.

    Raises
    ------
    UsageError
        If an option, the data type or the variant is not one of octo's.
    MissingExtraError
        If jax, flax, torch or octo is not installed.
    NotFoundError
        If there is no such directory.
    PolicyError
        If the checkpoint is not a readable Octo checkpoint.
    """

    name = "octo"
    value_norms = "no: its value vectors are not captured"
    hidden_states = "yes"
    about = (
        About(
            "Octo small and base",
            {
                "joint": "the task's words, then for each time step the cameras' images, the repeated words and the "
                "readout; one pass",
            },
            "octo on jax 0.4.23 with random weights (make test-octo); a flax model of its names in every test run",
            "no: its encoder is convolutional; attnstore cnn looks into it",
            released=joint(
                "octo-base-1.5, a window of two",
                tokens(
                    task=16,
                    primary_0=(16, 16),
                    wrist_0=(8, 8),
                    repeated_0=16,
                    readout=2,
                    primary_1=(16, 16),
                    wrist_1=(8, 8),
                    repeated_1=16,
                ),
                ("task", "readout"),
                shape=(12, 12, 768),
                dtype="float32",
            ),
        ),
    )
    dtype = "float32"
    denoiser_steps = False
    watches_encoder = False
    shows_at_the_end = True

    @staticmethod
    def recognises(files: CheckpointFiles) -> Recognised | None:
        """Whether a checkpoint is as ``OctoModel.save_pretrained`` writes it."""
        return Recognised("octo") if files.names >= set(FILES) else None

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
        check_variant("octo", variant)
        if revision is not None:
            raise UsageError("octo is loaded from a local directory, which has no revisions")
        check_dtype("octo", dtype, ("float32",))
        for module in ("jax", "flax", "torch"):
            require(module, "octo", "policy octo")
        directory = check_directory(checkpoint)
        self._directory: Path | None = directory
        self._adapt(load_octo(checkpoint, directory), directory.resolve().name, device, options)

    @classmethod
    def from_model(
        cls,
        model: Any,
        *,
        checkpoint: str = "in memory",
        device: str = "cpu",
        options: Mapping[str, str] | None = None,
    ) -> OctoPolicy:
        """Adapt an ``OctoModel`` that is loaded already."""
        policy = cls.__new__(cls)
        policy._directory = None
        policy._adapt(model, checkpoint, device, options)
        return policy

    def _adapt(
        self, model: Any, checkpoint: str, device: str, options: Mapping[str, str] | None
    ) -> None:
        import jax

        self.checkpoint, self._device = checkpoint, jax_device(device)
        self.model = model.replace(params=jax.device_put(model.params, self._device))
        chosen = dict(options or {})
        self._digest_with = dict(chosen)
        self._task = chosen.pop("task", "language")
        if self._task not in TASKS:
            raise UsageError(f"task is one of {', '.join(TASKS)}; got {self._task!r}")
        self._inputs = OctoInputs.of(
            model,
            camera_slots(model.example_batch["observation"], chosen, OPTIONS),
            window=chosen.get("window"),
            statistics=chosen.get("statistics"),
            goal=self.sees_goal,
            language=self._task != "goal",
        )
        self._calls = OctoCalls(self.model)
        self._observer: Observer | None = None
        self._blocks = OctoBlocks()
        head = model.module.heads["action"]
        self.horizon, self.action_dof = int(head.action_horizon), int(head.action_dim)

    @property
    def window(self) -> int:
        """Frames that it sees, the keyframe included."""
        return self._inputs.window

    @property
    def sees_goal(self) -> bool:
        """Whether it is shown the episode's last frame."""
        return self._task != "language"

    @cached_property
    def phases(self) -> Mapping[str, PhaseShape]:
        """Shape of the one phase."""
        size = self.model.module.octo_transformer.transformer_kwargs
        groups = query_groups(self._survey.groups, language=self._task != "goal")
        width = int(self.model.module.octo_transformer.token_embedding_size)
        shape = PhaseShape(
            int(size["num_layers"]), int(size["num_attention_heads"]), None, groups, features=width,
            last=self._calls.readout,
        )  # fmt: skip
        return {PHASE: shape}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint's files, or of the weights if it is in memory.

        Options are part of it: each of them changes what the model sees.
        """
        if self._directory is not None:
            digest = digest_directory(self._directory)
        else:
            digest = digest_parameters(self.model.params)
        if not self._digest_with:
            return digest
        options = json.dumps(self._digest_with, sort_keys=True)
        return hashlib.sha256(f"{digest} {options}".encode()).hexdigest()

    @cached_property
    def _survey(self) -> Survey:
        survey = self._calls.survey(*self._inputs.example())
        for slot in self._inputs.present:
            stem = survey.stems.get(slot)
            if stem is None or not understood(stem):
                found = "none" if stem is None else stem.encoder
                raise PolicyError(
                    f"{self.checkpoint}: the geometry of the {slot} camera's encoder is unknown "
                    f"({found}); leave the camera out with --policy-option {slot}=none"
                )
        return survey

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Turn observations into the model's inputs, with their token layouts.

        Raises
        ------
        ObservationError
            If a camera is missing, or the state does not fit.
        """
        seen, tasks = self._inputs.batch(observations)
        masks = self._calls.masks(seen, tasks)
        samples = []
        for row, observation in enumerate(observations):
            layout = joint_layout(
                self._survey.groups,
                [mask[row] for mask in masks],
                self._inputs.cameras,
                self._words(tasks, row, observation),
            )
            if not len(layout.query):
                raise ObservationError("every token of the observation is masked")
            samples.append(Sample({PHASE: layout}, self._geometry(observation)))
        keys = random_keys([o.seed for o in observations])
        return Batch({"observations": seen, "tasks": tasks, "keys": keys}, tuple(samples))

    def act(self, batch: Batch) -> torch.Tensor:
        """Run the policy: action chunks, (batch, horizon, action_dof), normalised units.

        They are those of ``OctoModel.sample_actions`` of each sample with its key.

        Raises
        ------
        HealthError
            If a weight that the model's mask forbids is not exactly 0, or a query of which
            something is blocked has nothing left to attend to.
        """
        observer = self._observer
        if observer is None:
            return self._tensor(self._calls.act(**batch.inputs))
        length = sequence_length(self._survey.groups)
        forbidden = self._blocks.forbidden(self.phases[PHASE].layers, len(batch), length)
        seen = self._calls.see(
            **batch.inputs, hidden=observer.watch.shows_hidden, forbidden=forbidden
        )
        for layer, emptied in enumerate(seen.emptied):
            if emptied:
                raise nothing_left(f"{PHASE} layer {layer}")
        for layer, stray in enumerate(np.asarray(seen.stray).tolist()):
            if stray != 0:
                raise HealthError(
                    f"{PHASE} layer {layer}: a masked token gets a weight of {stray:.3g}, not 0"
                )
        if seen.hidden:
            observer.hidden(PHASE, EMBEDDING, self._tensor(seen.hidden[0]))
        for layer in range(len(seen.weights)):
            # Let go of each layer as it is handed over.
            weights, seen.weights[layer] = self._tensor(seen.weights[layer]), None
            observer.attention(PHASE, layer, weights)
            if seen.hidden:
                observer.hidden(PHASE, layer, self._tensor(seen.hidden[layer + 1]))
        if seen.hidden:
            observer.hidden(PHASE, LAST, self._tensor(seen.last))
        return self._tensor(seen.actions)

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """Show `observer` the weights of each call; see `base.Policy.instrument`.

        Raises
        ------
        UsageError
            If `observer` wants to be shown the inside of the image encoder, or value norms.
        """
        if observer.watch.vision:
            self.encoder_shape()
        if observer.watch.values:
            self.check_values()
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before

    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> AbstractContextManager[None]:
        """Block attention by closing the masks inside a function that is traced for it."""
        return self._blocks.over(self.phases[PHASE].layers, blocked)

    def encoder_shape(self) -> EncoderShape:
        """Refuse: Octo's image encoder is a convolutional stem."""
        raise UsageError(
            "--vision: octo's image encoder is convolutional and has no attention; leave --vision out"
        )

    def check_hidden(self) -> None:
        """Hidden states are shown."""

    def check_values(self) -> None:
        """Refuse: what is captured of Octo's modules has no value vectors.

        Raises
        ------
        UsageError
            Always.
        """
        raise UsageError(
            "--values: of policy octo no value vectors are captured; leave value norms out: "
            "--no-values"
        )

    def _words(
        self, tasks: Mapping[str, Any], row: int, observation: Observation
    ) -> tuple[Word, ...]:
        return task_words(self.model.text_processor, tasks, row, observation.instruction)

    def _geometry(self, observation: Observation) -> dict[str, Geometry]:
        geometry = {}
        for back in range(self.window):
            for slot in self._inputs.present:
                camera = self._inputs.cameras[slot]
                height, width = observation.images[camera].shape[:2]
                stem = self._survey.stems[slot]
                geometry[earlier(camera, back)] = stem_geometry(
                    (height, width), self._inputs.sizes[slot], stem.grid, stem.convolutions
                )
        return geometry

    def _tensor(self, array: Any) -> torch.Tensor:
        import jax
        import torch
        from torch.utils.dlpack import from_dlpack

        if self._device.platform != "cpu" and not torch.cuda.is_available():
            array = jax.device_put(array, jax.devices("cpu")[0])
        return from_dlpack(array)

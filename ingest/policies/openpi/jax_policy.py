"""Pi0.5 and Pi0 of openpi in JAX, as their checkpoints are released or trained: no conversion.

How what happens inside is seen: `attnstore.ingest.policies.openpi.traced`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

from ...optional import require
from ..about import About
from ..base import ATTENTION_ONLY, Batch, EncoderShape, Observer
from ..blocking import Blocked, Bools, Samples, by_layer, forbidden
from ..checkpoint import CheckpointFiles, Recognised, check_dtype, directory_name
from ..released import WORDS, flow, tokens
from ..values import Projections, ValueNorms
from .checkpoint import WEIGHTS, OpenpiJaxCheckpoint, openpi
from .family import DTYPES, OpenpiFamily
from .showing import Showing
from .traced import Shown, TracedCalls, Wanted, output_matrices, start_jax, tensor

if TYPE_CHECKING:
    import torch


NO_VISION = "no, the attention inside SigLIP is not shown in JAX"


class OpenpiJaxPolicy(OpenpiFamily):
    """Adapter of openpi's JAX policies.

    Parameters
    ----------
    checkpoint
        Local directory with ``params/`` and ``assets/``, as openpi's training and releases have it.
    variant
        Name of openpi's configuration: ``pi05_droid``.
    dtype
        ``bfloat16`` as openpi runs it (the default), or ``float32``: the same weights, computed
        in float32.
    device
        What JAX runs on: ``cpu``, or ``cuda`` for its one GPU.
    revision
        None: a directory has none.
    options
        As for `attnstore.ingest.policies.openpi.policy.OpenpiPolicy`.

    Raises
    ------
    UsageError
        If the configuration, the data type, the device or an option is none of openpi's.
    MissingExtraError
        If openpi is not installed.
    NotFoundError
        If there is no such directory.
    PolicyError
        If the directory is no JAX checkpoint with norm stats.
    """

    name = "openpi-jax"
    denoiser_steps = True
    watches_encoder = False
    shows_at_the_end = True
    value_norms = "yes"
    hidden_states = "yes"
    about = (
        About(
            "Pi0.5 and Pi0 of openpi in JAX, without a conversion",
            {
                "prefix": "the cameras' images, then the prompt, in Pi0.5 with the state's numbers; one pass",
                "suffix": "the action chunk, in Pi0 after a state token, over the prefix and themselves; each "
                "denoising step",
            },
            "openpi 15a9616 with jax 0.5.3, reduced, random weights, on a CPU (make test-openpi)",
            NO_VISION,
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
        """Whether a checkpoint is openpi's in JAX: ``params`` beside ``assets``, not converted."""
        if not files.names >= {"assets", "params"} or WEIGHTS in files.names:
            return None
        return Recognised(
            "openpi-jax",
            "which of openpi's configurations it was trained with is not in the files: pass --policy "
            "openpi-jax:pi05_droid, with its name",
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
        check_dtype(self.name, dtype, DTYPES)
        given, steps = self._options(options)
        require("torch", "ingest", "policy openpi-jax")
        self.dtype = dtype or DTYPES[0]
        self._source = OpenpiJaxCheckpoint(checkpoint, variant, revision, dtype=self.dtype)
        self.checkpoint = directory_name(checkpoint)
        # Batches are made on the CPU; JAX takes them to its own device.
        self.device, self._asked_device = "cpu", device
        self._observer: Observer | None = None
        self._blocked: Mapping[tuple[str, int], Samples] = {}
        self._norms = ValueNorms()
        self._set_up(
            self._source.config.model, self._source.transforms(), steps, given,
            self._source.columns(),
        )  # fmt: skip

    @cached_property
    def theirs(self) -> Any:
        """The ``Policy`` of openpi's own, loaded at the first use.

        Raises
        ------
        UsageError
            If JAX runs on another device than was asked for, or on several.
        """
        _check_device(self._asked_device)
        return self._source.policy("cpu", self._sight.transforms, self._sampling)

    @property
    def _sampling(self) -> dict[str, Any]:
        """Arguments of every ``sample_actions``."""
        return {"num_steps": self.steps}

    @property
    def model(self) -> Any:
        """The flax model, loaded at the first use."""
        return self.theirs._model

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights, norm stats, configuration, and of options that say what is seen."""
        return self._digest_with_options(self._source.digest())

    def act(self, batch: Batch) -> torch.Tensor:
        """Sample an action chunk for every observation of the batch.

        Raises
        ------
        HealthError
            If a query has nothing left to attend to.
        PolicyError
            If Gemma's attention is not what the adapter knows.
        """
        import jax

        noise = jax.numpy.asarray(batch.inputs["noise"].numpy())
        actions, shown = self._sampled(batch, noise=noise, **self._sampling)
        showing = self._showing(self._observer)
        for each in shown:
            showing.take(each)
        return tensor(actions)

    def _sampled(self, batch: Batch, **given: Any) -> tuple[NDArray[Any], Sequence[Shown]]:
        """Call ``sample_actions``, and say what it gave and, if that is looked at or changed, showed."""
        import jax

        inputs = {key: own for key, own in batch.inputs.items() if key != "noise"}
        observation = openpi("models.model").Observation.from_dict(
            jax.tree.map(lambda each: jax.numpy.asarray(each.numpy()), inputs)
        )
        if self._observer is None and not self._blocked:
            run = self.theirs._sample_actions
            return np.asarray(run(jax.random.key(0), observation, **given)), ()
        watch = ATTENTION_ONLY if self._observer is None else self._observer.watch
        wanted = Wanted(watch.values, watch.shows_hidden)
        return self._traced(wanted, self._closed(batch), observation, **given)

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """Show `observer` the weights of each call; see `attnstore.ingest.policies.base.Policy.instrument`.

        Raises
        ------
        UsageError
            If `observer` wants to be shown the image encoder.
        """
        if observer.watch.vision:
            self.encoder_shape()
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before

    def encoder_shape(self) -> EncoderShape:
        """Refuse: the attention inside SigLIP is not shown in JAX."""
        raise UsageError(
            "--vision: policy openpi-jax does not show the attention inside its image encoder; leave "
            "--vision out, or convert the checkpoint (policy openpi)"
        )

    def check_hidden(self) -> None:
        """Hidden states are shown: nothing to check."""

    def check_values(self) -> None:
        """Value norms are shown: nothing to check."""

    @contextmanager
    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> Iterator[None]:
        """Block attention through the masks of Gemma's layers; see `BlockingPolicy.blocking`.

        Raises
        ------
        UsageError
            If there is no such layer.
        """
        layers = {(p, n) for p, shape in self.phases.items() for n in range(shape.layers)}
        before, self._blocked = self._blocked, by_layer(blocked, layers)
        try:
            yield
        finally:
            self._blocked = before

    @cached_property
    def _traced(self) -> TracedCalls:
        return TracedCalls(self.model)

    def _closed(self, batch: Batch) -> dict[str, Bools]:
        """By phase, what is blocked in each layer, over the model's own sequences; empty if nothing is."""
        if not self._blocked:
            return {}
        layout = batch.samples[0].layouts["suffix"]
        own, last = layout.query.spans[-1], layout.key.spans[-1]
        prefix, suffix = last.model_start - own.model_start, own.model_start + len(own)
        shapes = {"prefix": (prefix, prefix), "suffix": (suffix, prefix + suffix)}
        # Of both, so that one program does for all that can be blocked.
        return {
            phase: np.stack([
                forbidden(self._blocked.get((phase, layer), {}), (len(batch), *shape))
                for layer in range(self.phases[phase].layers)
            ])
            for phase, shape in shapes.items()
        }  # fmt: skip

    def _showing(self, observer: Observer | None) -> Showing:
        layers = {phase: shape.layers for phase, shape in self.phases.items()}
        watched = observer is not None and observer.watch.values
        outputs = self._outputs if watched else {}
        return Showing(observer, layers, self._blocked, self._norms, outputs)

    @cached_property
    def _outputs(self) -> dict[tuple[str, int], Projections]:
        """Per phase and layer, the output projection as one matrix."""
        import torch

        found = {}
        for phase, matrices in output_matrices(self.model, self.config).items():
            for layer, matrix in enumerate(matrices):
                width, inputs = matrix.shape
                linear = torch.nn.Linear(inputs, width, bias=False, device="meta")
                linear.weight = torch.nn.Parameter(torch.from_numpy(matrix), requires_grad=False)
                found[phase, layer] = Projections(None, linear)
        return found


def _check_device(device: str) -> None:
    found, wanted = start_jax(), "gpu" if device.startswith("cuda") else device
    if found[0].platform != wanted or len(found) > 1 or device not in ("cpu", "cuda", "cuda:0"):
        raise UsageError(
            f"--device {device}: JAX runs on {len(found)} x {found[0].platform} here, and openpi puts a "
            "model on all of them; this capture takes one: CUDA_VISIBLE_DEVICES=0 with --device cuda, "
            "or JAX_PLATFORMS=cpu with --device cpu"
        )

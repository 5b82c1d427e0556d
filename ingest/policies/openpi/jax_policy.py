"""Pi0.5 and Pi0 of openpi in JAX, as their checkpoints are released: no conversion.

`flax.linen.intercept_methods` acts while a function is traced: the adapter lets ``module_jit`` of openpi
trace ``sample_actions`` once more, with the softmax inside Gemma's ``Attention`` watched. What it
returns leaves the compiled program by ordered callbacks, from inside the scan over layers and the loop
over denoising steps, and is not changed. Nothing of openpi is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np

from attnstore.store.errors import UsageError

from ...optional import require
from ..about import About
from ..base import Batch, EncoderShape, Observer, PolicyError
from ..checkpoint import CheckpointFiles, Recognised, check_dtype, directory_name
from ..released import WORDS, flow, tokens
from .checkpoint import WEIGHTS, OpenpiJaxCheckpoint, openpi
from .family import DTYPES, OpenpiFamily

if TYPE_CHECKING:
    import torch


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
    value_norms = "no, it runs in JAX"
    hidden_states = "no, it runs in JAX"
    about = (
        About(
            "Pi0.5 and Pi0 of openpi in JAX, without a conversion",
            {
                "prefix": "the cameras' images, then the prompt, in Pi0.5 with the state's numbers; one pass",
                "suffix": "the action chunk, in Pi0 after a state token, over the prefix and themselves; each "
                "denoising step",
            },
            "openpi 15a9616 with jax 0.5.3, reduced, random weights, on a CPU (make test-openpi)",
            "no, it runs in JAX",
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
        self._seen_inside: list[tuple[str, Any]] = []
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
        return self._source.policy("cpu", self._sight.transforms, self.steps)

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
        PolicyError
            If Gemma's attention is not what the adapter knows.
        """
        import jax

        inputs = jax.tree.map(lambda each: jax.numpy.asarray(each.numpy()), dict(batch.inputs))
        noise = inputs.pop("noise")
        observation = openpi("models.model").Observation.from_dict(inputs)
        run = self.theirs._sample_actions if self._observer is None else self._watched
        self._seen_inside.clear()
        actions = run(jax.random.key(0), observation, noise=noise, num_steps=self.steps)
        actions = _tensor(np.asarray(actions))
        if self._observer is not None:
            # What the callbacks took; the actions may be there before the last of them ran.
            jax.effects_barrier()  # type: ignore[no-untyped-call]  # so in jax
            self._show(self._observer)
        return actions

    @contextmanager
    def instrument(self, observer: Observer) -> Iterator[None]:
        """Show `observer` the weights of each call; see `attnstore.ingest.policies.base.Policy.instrument`.

        Raises
        ------
        UsageError
            If `observer` wants to be shown the image encoder, value norms or hidden states.
        """
        watch = observer.watch
        if watch.vision:
            self.encoder_shape()
        if watch.values:
            self.check_values()
        if watch.shows_hidden:
            self.check_hidden()
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
        """Refuse: hidden states are not shown in JAX."""
        raise UsageError(
            "hidden states: policy openpi-jax does not show them; leave them out: --no-hidden, and no "
            "--token-stats, or convert the checkpoint (policy openpi)"
        )

    def check_values(self) -> None:
        """Refuse: value norms are not shown in JAX."""
        raise UsageError(
            "--values: policy openpi-jax does not show value norms; leave them out: --no-values, or "
            "convert the checkpoint (policy openpi)"
        )

    @cached_property
    def _watched(self) -> Callable[..., Any]:
        """``sample_actions``, compiled as openpi does, with what it computes shown."""
        from flax import linen

        sample = type(self.model).sample_actions
        seen, attention = self._seen_inside, openpi("models.gemma").Attention

        def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if not isinstance(context.module, attention) or context.method_name != "__call__":
                return next_fun(*args, **kwargs)
            return _with_softmax(next_fun, args, kwargs, seen)

        def watched(module: Any, *args: Any, **kwargs: Any) -> Any:
            embed = module.embed_suffix

            def embed_suffix(observation: Any, noisy: Any, time: Any) -> Any:
                _send(seen, "noisy", noisy)
                return embed(observation, noisy, time)

            # On the copy that module_jit makes for the trace, and lets go of after it.
            object.__setattr__(module, "embed_suffix", embed_suffix)
            with linen.intercept_methods(intercept):
                return sample(module, *args, **kwargs)

        compiled: Callable[..., Any] = openpi("shared.nnx_utils").module_jit(
            MethodType(watched, self.model)
        )
        return compiled

    def _show(self, observer: Observer) -> None:
        layers = dict.fromkeys(self.phases, 0)
        taken, self._seen_inside[:] = self._seen_inside[::-1], []
        while taken:
            what, values = taken.pop()
            if what == "noisy":
                observer.noisy_actions(_tensor(values))
                continue
            layer = layers[what] % self.phases[what].layers
            layers[what] += 1
            batch, groups, heads, queries, keys = values.shape
            observer.attention(
                what, layer, _tensor(values.reshape(batch, groups * heads, queries, keys))
            )


def _with_softmax(next_fun: Any, args: Any, kwargs: Any, seen: list[tuple[str, Any]]) -> Any:
    """Trace Gemma's attention with its one softmax shown, in the type in which it weighs values."""
    import jax

    # Gemma's block passes (tokens, positions, mask, cache), in this order.
    given = [*args, *kwargs.values()]
    tokens, cache = given[0], given[3]
    dtype = next(each.dtype for each in tokens if each is not None)
    phase: str = "prefix" if cache is None else "suffix"
    softmax, calls = jax.nn.softmax, []

    def shown(logits: Any, *rest: Any, **options: Any) -> Any:
        weights = softmax(logits, *rest, **options)
        calls.append(weights.ndim)
        _send(seen, phase, weights.astype(dtype))
        return weights

    # While this one module is traced, in this thread; the compiled program has no trace of it.
    jax.nn.softmax = shown  # type: ignore[assignment]
    try:
        output = next_fun(*args, **kwargs)
    finally:
        jax.nn.softmax = softmax
    if calls != [5]:
        raise PolicyError(
            f"openpi's Attention takes {len(calls)} softmaxes, attnstore knows one over (batch, group, "
            "head, query, key): this openpi is not known, convert the checkpoint (policy openpi)"
        )
    return output


def _send(seen: list[tuple[str, Any]], what: str, values: Any) -> None:
    """Let a traced value leave the compiled program, in the program's order."""
    import jax

    # A callback's array is the program's memory.
    jax.debug.callback(lambda each: seen.append((what, np.array(each))), values, ordered=True)


def _tensor(values: Any) -> torch.Tensor:
    import torch

    if values.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(values).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(values))


def _check_device(device: str) -> None:
    import jax

    found, wanted = jax.devices(), "gpu" if device.startswith("cuda") else device
    if found[0].platform != wanted or len(found) > 1 or device not in ("cpu", "cuda", "cuda:0"):
        raise UsageError(
            f"--device {device}: JAX runs on {len(found)} x {found[0].platform} here, and openpi puts a "
            "model on all of them; this capture takes one: CUDA_VISIBLE_DEVICES=0 with --device cuda, "
            "or JAX_PLATFORMS=cpu with --device cpu"
        )

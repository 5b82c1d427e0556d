"""``sample_actions`` of an openpi model in JAX, traced so that what it computes inside is shown.

`flax.linen.intercept_methods` acts while a function is traced: the adapter lets ``module_jit`` of openpi
trace ``sample_actions`` once more. In Gemma's ``Attention`` its softmax, the values and what is mixed of
them are seen, in its norms the hidden states. All leaves the compiled program by ordered callbacks, from
inside the scan over layers and the loop over denoising steps or written tokens. Nothing of openpi is changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.generated import DECODE

from ..base import LAST, PolicyError
from ..blocking import Bools
from .checkpoint import openpi

if TYPE_CHECKING:
    import torch

HIDDEN = -3
"""In place of a layer: hidden states that enter a layer, or the final norm; which one is a count."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is traced beside the attention; the program is compiled for every combination."""

    values: bool = False
    hidden: bool = False


class Weights(NamedTuple):
    """What one attention layer computed."""

    phase: str
    """``prefix`` of all that PaliGemma computes, ``suffix`` of the expert."""
    weights: torch.Tensor
    """(batch, head, query, key), of the keys that are there."""
    values: torch.Tensor | None
    """Of the pass' own tokens, (batch, token, key_head, feature)."""
    mixed: torch.Tensor | None
    """What the last query takes of the values, (batch, head * feature)."""
    emptied: bool
    """A query of which something is blocked has nothing left to attend to."""


class States(NamedTuple):
    """Hidden states."""

    phase: str
    kind: int
    """`HIDDEN` or `LAST`."""
    states: torch.Tensor
    """(batch, query, feature)."""


class Noisy(NamedTuple):
    """The input of a denoising step."""

    actions: torch.Tensor
    """(batch, horizon, action_dof)."""


Shown = Weights | States | Noisy


class TracedCalls:
    """One model's ``sample_actions``, with what it computes shown.

    Parameters
    ----------
    model
        ``Pi0`` or ``Pi0FAST`` of openpi.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._compiled: dict[Wanted, Callable[..., Any]] = {}
        self._taken: list[Shown] = []

    def __call__(
        self,
        wanted: Wanted,
        closed: Mapping[str, Bools],
        observation: Any,
        **given: Any,
    ) -> tuple[Any, list[Shown]]:
        """Sample actions.

        Parameters
        ----------
        closed
            By phase, attention that must not be, (layer, batch, query, key); empty if all may be. Passes over
            one written token are phase ``decode``.
        given
            Further arguments of ``sample_actions``.

        Returns
        -------
        The actions, and what was computed, in the program's order.

        Raises
        ------
        PolicyError
            If Gemma's attention is not what the adapter knows.
        """
        import jax

        if wanted not in self._compiled:
            self._compiled[wanted] = self._traced(wanted)
        self._taken.clear()
        actions = self._compiled[wanted](dict(closed), jax.random.key(0), observation, **given)
        actions = np.asarray(actions)
        # What the callbacks took; the actions may be there before the last of them ran.
        jax.effects_barrier()  # type: ignore[no-untyped-call]  # so in jax
        found, self._taken[:] = self._taken[:], []
        return actions, found

    def _traced(self, wanted: Wanted) -> Callable[..., Any]:
        from flax import linen

        sample, take = type(self._model).sample_actions, self._taken.append

        def watched(module: Any, closed: Any, *args: Any, **kwargs: Any) -> Any:
            acting = ("prefix", 1)
            if (embed := getattr(module, "embed_suffix", None)) is not None:

                def embed_suffix(observation: Any, noisy: Any, time: Any) -> Any:
                    _send(lambda actions: take(Noisy(tensor(actions))), noisy)
                    return embed(observation, noisy, time)

                # On the copy that module_jit makes for the trace, and lets go of after it.
                object.__setattr__(module, "embed_suffix", embed_suffix)
                acting = ("suffix", module.action_horizon)
            gemma = gemma_of(module)
            with linen.intercept_methods(_Interceptor(gemma, wanted, closed, acting, take)):
                return sample(module, *args, **kwargs)

        compiled: Callable[..., Any] = openpi("shared.nnx_utils").module_jit(
            MethodType(watched, self._model)
        )
        return compiled


class _Interceptor:
    """Acts in the modules of Gemma while they are traced.

    Parameters
    ----------
    gemma
        openpi's module that has them.
    acting
        Of which phase's last tokens actions are made, and of how many.
    """

    def __init__(
        self,
        gemma: Any,
        wanted: Wanted,
        closed: Mapping[str, Any],
        acting: tuple[str, int],
        take: Callable[[Shown], None],
    ) -> None:
        self._gemma, self._attention, self._norm = gemma.Module, gemma.Attention, gemma.RMSNorm
        self._einsum = openpi("models.lora").Einsum
        self._wanted, self._closed, self._acting, self._take = wanted, closed, acting, take
        self._values: list[Any] = []
        self._mixed: list[Any] = []

    def __call__(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, self._attention):
            # Gemma's block passes (tokens, positions, mask, cache), in this order, and what may follow.
            return self._attended(call, *args, *kwargs.values())
        if isinstance(module, self._gemma) and self._closed:
            return self._with_closed(call, module, *args, **kwargs)
        if isinstance(module, self._norm) and self._wanted.hidden:
            return self._normed(call, module.name, *args, **kwargs)
        if isinstance(module, self._einsum):
            return self._multiplied(call, str(module.name), *args, **kwargs)
        return call(*args, **kwargs)

    def _multiplied(self, call: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        if name.startswith("attn_vec_einsum"):
            self._mixed.append(args[1])
        elif name.startswith(("kv_einsum", "qkv_einsum")):
            self._values.append(output[-1])
        return output

    def _with_closed(self, call: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        # Gemma scans its cache along the layers: what each layer must not do goes with it. The scan itself
        # is no method that interceptors see.
        layers = getattr(module, "layers", None)
        if layers is None:
            # Pi0-FAST's Gemma makes it in the call.
            with _scans(self._beside):
                return call(*args, **kwargs)
        # The module is the copy that one call is applied to.
        object.__setattr__(module, "layers", self._beside(layers))
        try:
            return call(*args, **kwargs)
        finally:
            object.__setattr__(module, "layers", layers)

    def _beside(self, layers: Any) -> Any:
        """Give the layers what they must not do beside their cache."""

        def scanned(tokens: Any, cache: Any, *rest: Any) -> Any:
            writes = DECODE in self._closed and tokens.shape[1] == 1
            return layers(
                tokens, (cache, self._closed[DECODE if writes else _phase(tokens)]), *rest
            )

        return scanned

    def _attended(
        self, call: Any, tokens: Any, positions: Any, mask: Any, cache: Any, *rest: Any
    ) -> Any:
        import jax.numpy as jnp

        emptied: Any = False
        if self._closed:
            cache, closed = cache
            mask = mask & ~closed[:, None]
            emptied = jnp.any(closed.any(-1) & ~mask[:, 0].any(-1))
        given = (each for each in _parts(tokens) if each is not None)
        self._values.clear()
        self._mixed.clear()
        with _softmaxes() as seen:
            output = call(tokens, positions, mask, cache, *rest)
        found = len(seen), len(self._values), len(self._mixed)
        if found != (1, 1, 1) or seen[0].ndim != 5:
            raise PolicyError(
                "openpi's Attention takes {} softmaxes, {} projections of values and {} of what is mixed of "
                "them, attnstore knows one of each, the first over (batch, group, head, query, key): this "
                "openpi is not known, convert the checkpoint (policy openpi)".format(*found)
            )
        phase, after = _phase(tokens), output[1]
        # Pi0-FAST's cache is as long as it may get, and says how long it is.
        there = after[0][0] if len(after) == 3 else seen[0].shape[-1]
        # In the type in which they weigh the values.
        shown = [seen[0].astype(next(given).dtype), emptied, there]
        if self._wanted.values:
            shown += [self._values[0], self._mixed[0][:, -1]]
        take = self._take

        def taken(
            weights: Any, emptied: Any, there: Any, values: Any = None, mixed: Any = None
        ) -> None:
            weights = weights[..., : int(there)]
            batch, groups, heads, queries, keys = weights.shape
            take(
                Weights(
                    phase,
                    tensor(weights.reshape(batch, groups * heads, queries, keys)),
                    None if values is None else tensor(values),
                    None if mixed is None else tensor(mixed.reshape(batch, -1)),
                    bool(emptied),
                )
            )

        _send(taken, *shown)
        return output

    def _normed(self, call: Any, name: str, states: Any, *args: Any, **kwargs: Any) -> Any:
        phase = "suffix" if name.endswith("_1") else "prefix"
        take = self._take
        if not name.startswith("pre_ffw"):
            _send(lambda each: take(States(phase, HIDDEN, tensor(each))), states)
        output = call(states, *args, **kwargs)
        acting, count = self._acting
        if name.startswith("final") and phase == acting:
            # Pi0's norms return a gate, too.
            normed = output[0] if isinstance(output, tuple) else output
            _send(lambda each: take(States(phase, LAST, tensor(each))), normed[:, -count:])
        return output


def gemma_of(model: Any) -> Any:
    """Return openpi's module with the Gemma that a model is made of: Pi0-FAST has another."""
    return openpi("models.gemma" if hasattr(model, "embed_suffix") else "models.gemma_fast")


def output_matrices(model: Any, config: Any) -> dict[str, list[NDArray[np.float32]]]:
    """Return what each layer's output projection multiplies with, LoRA adapters in it.

    Parameters
    ----------
    model
        ``Pi0`` or ``Pi0FAST`` of openpi.
    config
        Its configuration.

    Returns
    -------
    By phase and layer, (width, head * feature).
    """
    import flax.nnx as nnx
    import jax

    gemma, einsum = gemma_of(model), openpi("models.lora").Einsum
    attention = nnx.state(model.PaliGemma.llm).to_pure_dict()["layers"]["attn"]
    parts = [("prefix", "attn_vec_einsum", config.paligemma_variant)]
    if hasattr(config, "action_expert_variant"):
        parts.append(("suffix", "attn_vec_einsum_1", config.action_expert_variant))
    found: dict[str, list[NDArray[np.float32]]] = {}
    for phase, name, variant in parts:
        size = gemma.get_config(variant)
        shape = size.num_heads, size.head_dim, size.width
        adapters = getattr(size, "lora_configs", {})
        module = einsum(shape=shape, lora_config=adapters.get("attn"))
        inputs = shape[0] * shape[1]
        ones = np.eye(inputs, dtype=np.float32).reshape(1, inputs, *shape[:2])
        with jax.default_matmul_precision("float32"):
            found[phase] = [
                np.array(
                    module.apply(
                        {
                            "params": {
                                k: w[i].astype(np.float32) for k, w in attention[name].items()
                            }
                        },
                        "BTNH,NHD->BTD",
                        ones,
                    )[0].T
                )
                for i in range(size.depth)
            ]
    return found


def tensor(values: Any) -> torch.Tensor:
    """Make a tensor of a NumPy array, of JAX's bfloat16 too."""
    import torch

    values = np.require(values, requirements=["C", "W"])
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _parts(tokens: Any) -> Sequence[Any]:
    """Tokens of PaliGemma and of the expert; Pi0-FAST's are not in a list."""
    return tokens if isinstance(tokens, list | tuple) else (tokens,)


def _phase(tokens: Any) -> str:
    # A pass is PaliGemma's or the expert's.
    return "suffix" if _parts(tokens)[0] is None else "prefix"


@contextmanager
def _scans(beside: Callable[[Any], Any]) -> Iterator[None]:
    """Have what `flax.linen.scan` makes in one module's call go through `beside`, in this thread."""
    from flax import linen

    scan = linen.scan

    def scanning(*target: Any, **options: Any) -> Any:
        lifted = scan(*target, **options)
        return lambda *args, **kwargs: beside(lifted(*args, **kwargs))

    linen.scan = scanning
    try:
        yield
    finally:
        linen.scan = scan


@contextmanager
def _softmaxes() -> Iterator[list[Any]]:
    """Collect what `jax.nn.softmax` returns while one module is traced, in this thread."""
    import jax

    softmax, seen = jax.nn.softmax, list[Any]()

    def shown(logits: Any, *rest: Any, **options: Any) -> Any:
        weights = softmax(logits, *rest, **options)
        seen.append(weights)
        return weights

    # The compiled program has no trace of it.
    jax.nn.softmax = shown  # type: ignore[assignment]
    try:
        yield seen
    finally:
        jax.nn.softmax = softmax


def start_jax() -> list[Any]:
    """Return JAX's devices, started if they are not.

    On one core JAX on a CPU starts one thread. That runs the program, and in it the callback of `_send`, which waits
    for a copy of a large array that the same thread is to make: for ever. XLA takes the number of its threads from
    ``NPROC``, once.
    """
    import jax

    is_alone = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
    if not is_alone or "NPROC" in os.environ:
        return list(jax.devices())
    os.environ["NPROC"] = "2"
    try:
        return list(jax.devices())
    finally:
        del os.environ["NPROC"]


def _send(take: Callable[..., None], *values: Any) -> None:
    """Let traced values leave the compiled program, in the program's order."""
    import jax

    # A callback's array is the program's memory.
    jax.debug.callback(lambda *each: take(*map(np.array, each)), *values, ordered=True)

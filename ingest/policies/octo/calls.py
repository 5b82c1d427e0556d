"""Octo's functions, traced with interceptors: token groups, action chunks, attention weights.

`flax.linen.intercept_methods` acts while a function is traced. A compiled function that was traced
without it ignores it, so the adapter traces functions of its own; nothing of Octo or flax is
changed. The classes are known by name, because Octo is installed from its repository.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import PolicyError
from .survey import TRANSFORMER, Survey, Tokenizers

Arrays = Mapping[str, Any]
ATTENTION = "MultiHeadDotProductAttention"
_BLOCK = re.compile(r"encoderblock_(\d+)")


@dataclass(frozen=True, slots=True)
class Seen:
    """One call of the model with its insides; arrays of the device."""

    actions: Any
    """(batch, horizon, action_dof)."""
    weights: list[Any]
    """Per layer, (batch, head, query, key)."""
    stray: Any
    """Per layer, the largest weight on a masked key of a row that has an unmasked one."""
    emptied: Any
    """Per layer, whether a query of which something is blocked has nothing left to attend to."""
    hidden: list[Any]
    """What enters layer 0, then what leaves each layer, (batch, token, feature); empty unless asked."""
    last: Any
    """What the action head takes, (batch, token, feature); None unless asked."""


class OctoCalls:
    """The traced functions of one model; each is compiled once for every shape of its inputs."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def readout(self) -> str:
        """Name of the token group that the action head takes."""
        return str(self._model.module.heads["action"].readout_key)

    def survey(self, observations: Arrays, tasks: Arrays) -> Survey:
        """Read the token groups off the model, without computing anything."""
        import jax

        survey = Survey()

        def shapes(params: Any, seen: Arrays, task: Arrays) -> Any:
            return self._masks(params, seen, task, survey)

        jax.eval_shape(shapes, self._model.params, dict(observations), dict(tasks))
        return survey

    def masks(self, observations: Arrays, tasks: Arrays) -> list[Any]:
        """Per group, whether each token may be attended to: (batch, [timestep], tokens)."""
        found = self._compiled_masks(self._model.params, dict(observations), dict(tasks))
        return [np.asarray(mask).astype(bool) for mask in found]

    def act(self, observations: Arrays, tasks: Arrays, keys: Any) -> Any:
        """Action chunks, (batch, horizon, action_dof), as ``OctoModel.sample_actions`` gives them.

        Parameters
        ----------
        keys
            Random key of each sample, (batch, 2) uint32.
        """
        return self._compiled_act(self._model.params, dict(observations), dict(tasks), keys)

    def see(
        self,
        observations: Arrays,
        tasks: Arrays,
        keys: Any,
        *,
        hidden: bool,
        forbidden: NDArray[np.bool_] | None = None,
    ) -> Seen:
        """As `act`, with the attention weights and, if asked, the hidden states.

        Parameters
        ----------
        forbidden
            Attention that must not be, (layer, batch, query, key); None traces a function that
            knows of none.
        """
        found = self._compiled_see(
            self._model.params, dict(observations), dict(tasks), keys, hidden, forbidden
        )
        return Seen(*found)

    @cached_property
    def _compiled_masks(self) -> Any:
        import jax

        return jax.jit(lambda p, o, t: self._masks(p, o, t, Survey()))

    @cached_property
    def _compiled_act(self) -> Any:
        import jax

        def act(params: Any, observations: Any, tasks: Any, keys: Any) -> Any:
            outputs = self._transform(params, observations, tasks)
            return self._head(params, outputs, keys)

        return jax.jit(act)

    @cached_property
    def _compiled_see(self) -> Any:
        import jax

        return jax.jit(self._see, static_argnums=4)

    def _transform(self, params: Any, observations: Any, tasks: Any, **options: Any) -> Any:
        return self._model.module.apply(
            {"params": params}, observations, tasks, observations["timestep_pad_mask"],
            train=False, method="octo_transformer", **options,
        )  # fmt: skip

    def _head(self, params: Any, outputs: Any, keys: Any) -> Any:
        import jax

        head = self._model.module.bind({"params": params}).heads["action"]
        # One sample after the other: its noise must not depend on those beside it.
        chunks = [
            head.predict_action(
                jax.tree_util.tree_map(lambda x, i=i: x[i : i + 1], outputs),
                rng=keys[i], train=False, argmax=False, sample_shape=(), temperature=1.0,
                embodiment_action_dim=None,
            )
            for i in range(keys.shape[0])
        ]  # fmt: skip
        return jax.numpy.concatenate(chunks) if len(chunks) > 1 else chunks[0]

    def _masks(self, params: Any, observations: Any, tasks: Any, survey: Survey) -> Any:
        import flax.linen as nn

        watch = Tokenizers(survey, tuple(observations))
        with nn.intercept_methods(watch):
            self._transform(params, observations, tasks)
        return watch.masks

    def _see(
        self,
        params: Any,
        observations: Any,
        tasks: Any,
        keys: Any,
        hidden: bool,
        forbidden: Any,
    ) -> Any:
        import flax.linen as nn
        import jax.numpy as jnp

        emptied: dict[int, Any] = {}

        def sow(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if context.method_name != "__call__" or TRANSFORMER not in "/".join(module.path):
                return following(*args, **kwargs)
            if type(module).__name__ == ATTENTION:
                given = {**kwargs, "sow_weights": True}
                if forbidden is not None:
                    no = forbidden[_layer(module.path)][:, None]
                    given["mask"] = jnp.logical_and(given["mask"], jnp.logical_not(no))
                    closed = no.any(-1) & jnp.logical_not(given["mask"].any(-1))
                    emptied[_layer(module.path)] = closed.any()
                return following(*args, **given)
            output = following(*args, **kwargs)
            if hidden and (block := _BLOCK.fullmatch(module.path[-1])):
                if block[1] == "0":
                    module.sow("intermediates", "entering", args[0])
                module.sow("intermediates", "leaving", output)
            return output

        with nn.intercept_methods(sow):
            outputs, state = self._transform(params, observations, tasks, mutable=["intermediates"])
        sown = _flat(state["intermediates"])
        weights, states = _by_layer(sown, "attention_weights"), _by_layer(sown, "leaving")
        if not weights:
            raise PolicyError(f"the model has no {ATTENTION} in {TRANSFORMER}: not an Octo")
        (mask,) = [v for path, v in sown.items() if path[-1] == "attention_mask"]
        # A row without any unmasked key is uniform over everything: that of a masked token.
        wrong = jnp.logical_and(jnp.logical_not(mask), mask.any(-1, keepdims=True))
        stray = jnp.stack([jnp.where(wrong, w, 0).max() for w in weights])
        states = _by_layer(sown, "entering") + states
        closed = [emptied[layer] for layer in sorted(emptied)]
        last = outputs[self.readout].tokens[:, -1] if hidden else None
        return self._head(params, outputs, keys), weights, stray, closed, states, last


def _flat(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if hasattr(tree, "items"):
        return {k: v for name, sub in tree.items() for k, v in _flat(sub, (*path, name)).items()}
    # flax sows into tuples, one entry for each call
    (value,) = tree
    return {path: value}


def _by_layer(sown: Mapping[tuple[str, ...], Any], name: str) -> list[Any]:
    found = {}
    for path, value in sown.items():
        if path[-1] == name and any(_BLOCK.fullmatch(part) for part in path):
            found[_layer(path)] = value
    return [found[layer] for layer in sorted(found)]


def _layer(path: Sequence[str]) -> int:
    return [int(m[1]) for part in path if (m := _BLOCK.fullmatch(part))][-1]

"""Taking a camera's image encoder out of an Octo model, with what conditions it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

_OWNER = re.compile(r"observation_tokenizers_(.+)")
_FILM = re.compile(r"FilmConditioning_\d+")
_TRANSFORMER = "BlockTransformer"


class Reached(Exception):
    """Ends a forward pass or a trace; caught where it was begun."""


@dataclass(frozen=True, slots=True, eq=False)
class Film:
    """One FiLM block (Perez et al. 2018): y = x * (1 + γ) + β, per channel; 0: it does nothing."""

    name: str
    gamma: NDArray[np.float32]
    """(channel,)."""
    beta: NDArray[np.float32]
    """(channel,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """An image encoder on its own."""

    module: Any
    params: Any
    options: Mapping[str, Any]
    """Arguments of its call besides the image that are no arrays."""
    conditions: Mapping[str, NDArray[np.float32]]
    """Those that are: per argument the instruction's vector; none without FiLM."""
    channels: int

    def apply(self, pixels: Any) -> Any:
        """Tokens of images (image, row, col, channel) with values 0..255."""
        import jax.numpy as jnp

        given = {
            name: jnp.broadcast_to(vector, (len(pixels), *vector.shape))
            for name, vector in self.conditions.items()
        }
        return self.module.apply({"params": self.params}, pixels, **self.options, **given)

    def film(self) -> list[Film]:
        """FiLM blocks in order of their names."""
        vectors = list(self.conditions.values())
        return sorted(_films(self.params, vectors[0]), key=lambda f: f.name) if vectors else []


def find_encoders(model: Any, instruction: str | None) -> dict[str, Encoder]:
    """Per camera its encoder.

    Raises
    ------
    UsageError
        If an instruction is given to a model without a text processor.
    """
    import flax.linen as nn
    import jax

    found: dict[str, tuple[Any, Any, Mapping[str, Any], int]] = {}
    conditions: dict[str, dict[str, Any]] = {}

    def note(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if type(module).__name__ == _TRANSFORMER:
            # Nothing after it is of interest, and its mask takes seconds.
            raise Reached
        owner = _OWNER.fullmatch(module.path[-2]) if len(module.path) > 1 else None
        if (
            owner
            and owner[1] not in found
            and context.method_name == "__call__"
            and args[0].ndim == 4
        ):
            params = model.params
            for name in module.path:
                params = params[name]
            plain = {k: v for k, v in kwargs.items() if isinstance(v, bool | str | type(None))}
            found[owner[1]] = module.clone(parent=None, name=None), params, plain, args[0].shape[-1]
            conditions[owner[1]] = {k: v[-1] for k, v in kwargs.items() if hasattr(v, "shape")}
        return following(*args, **kwargs)

    seen, task = model.example_batch["observation"], _task(model, instruction)

    def conditioned(params: Any) -> Any:
        try:
            with nn.intercept_methods(note):
                model.module.apply(
                    {"params": params}, seen, task, seen["timestep_pad_mask"], train=False,
                    method="octo_transformer",
                )  # fmt: skip
        except Reached:
            pass
        return conditions

    # Compiled, so that of all that is traced only what leads to the conditions is computed.
    vectors = jax.jit(conditioned)(model.params)
    return {
        camera: Encoder(
            module, params, options,
            {k: np.asarray(v, np.float32) for k, v in vectors[camera].items()}, channels,
        )
        for camera, (module, params, options, channels) in sorted(found.items())
    }  # fmt: skip


def _task(model: Any, instruction: str | None) -> dict[str, Any]:
    task = dict(model.example_batch["task"])
    if model.text_processor is not None:
        count = len(model.example_batch["observation"]["timestep_pad_mask"])
        said = [instruction or ""] * count
        task["language_instruction"] = model.text_processor.encode(said)
    elif instruction is not None:
        raise UsageError("the checkpoint has no text processor, so it takes no instruction")
    return task


def _films(params: Any, vector: NDArray[np.float32], path: str = "") -> Iterator[Film]:
    for name, value in params.items():
        here = f"{path}.{name}" if path else name
        if _FILM.fullmatch(name):
            # Octo's layer multiplies with its first Dense and adds its second, whatever it calls them.
            gamma, beta = (
                np.asarray(
                    vector @ np.asarray(value[part]["kernel"]) + value[part]["bias"], np.float32
                )
                for part in ("Dense_0", "Dense_1")
            )
            yield Film(here, gamma, beta)
        elif hasattr(value, "items"):
            yield from _films(value, vector, here)

"""The image encoder of an Octo camera as a `ConvNetwork`: SmallStem and other Flax encoders.

The encoder is met in a trace of the whole model and taken out of it with its parameters, so its
class need not be known. It is given pixels 0..255, which it scales itself; a model that can be
given a goal image takes that as three further channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

from ..optional import require
from ..policies.octo_loading import check_directory, digest_parameters, load_octo
from .base import Guided, Images, Layer, Target

_OWNER = re.compile(r"observation_tokenizers_(.+)")
_FILM = re.compile(r"FilmConditioning_\d+")


def load_stem(text: str) -> OctoStem:
    """Load a camera's image encoder from ``CHECKPOINT`` or ``CHECKPOINT#CAMERA``.

    Raises
    ------
    UsageError
        If the model has several cameras and none is named, or not that one.
    """
    for module in ("jax", "flax"):
        require(module, "octo", "attnstore cnn of Octo")
    checkpoint, _, camera = text.partition("#")
    model = load_octo(checkpoint, check_directory(checkpoint))
    return OctoStem(model, camera or None, weights=Path(checkpoint).expanduser().resolve().name)


class OctoStem:
    """One camera's image encoder.

    Parameters
    ----------
    model
        An ``OctoModel``.
    camera
        The model's own name of it: ``primary``, ``wrist``; None if it has one only.
    weights
        Where they are from, for people.
    """

    trained = True

    def __init__(self, model: Any, camera: str | None, *, weights: str) -> None:
        found = _encoders(model)
        if camera not in found and (camera is not None or len(found) != 1):
            said = f"no {camera}" if camera else "several cameras; name one with #"
            raise UsageError(f"{weights}: {said}; its cameras are {', '.join(found) or 'none'}")
        camera = camera or next(iter(found))
        self._encoder, self._params, self._options, self.channels = found[camera]
        self.name, self.weights = f"octo-{camera}", weights
        # -1..1, which the encoder's own scale is near to
        self.mean = self.std = (0.5,) * self.channels
        self.digest = digest_parameters(self._params)
        self._compiled: dict[str, Any] = {}

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Convolutions in the order in which they are called."""
        import flax.linen as nn
        import jax

        seen: dict[str, int] = {}

        def note(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = following(*args, **kwargs)
            if isinstance(context.module, nn.Conv) and context.method_name == "__call__":
                seen.setdefault(".".join(context.module.path), int(output.shape[-1]))
            return output

        image = jax.ShapeDtypeStruct((1, 224, 224, self.channels), np.float32)  # type: ignore[no-untyped-call]
        with nn.intercept_methods(note):
            jax.eval_shape(self._apply, image)
        return tuple(Layer(n, i, filters) for i, (n, filters) in enumerate(seen.items()))

    @property
    def film(self) -> list[tuple[str, float, float]]:
        """Per FiLM block its name and the norms of what makes γ and β; 0: it does nothing.

        FiLM (Perez et al. 2018) is y = x · (1 + γ) + β, γ and β linear in the instruction.
        """
        return sorted(_film_norms(self._params))

    def ascent(
        self, layer: Layer, images: Images, filters: Sequence[int]
    ) -> tuple[NDArray[np.float32], Images]:
        """See `ConvNetwork.ascent`."""
        import jax
        import jax.numpy as jnp

        def climbed(x: Any, numbers: Any) -> Any:
            maps = self._output(layer, x)
            maps = maps[jnp.arange(len(numbers)), ..., numbers].reshape(len(numbers), -1)
            values = jnp.clip(maps, 0).mean(1)
            return jnp.where((maps > 0).any(1), values, maps.mean(1)).sum(), values

        if layer.name not in self._compiled:
            self._compiled[layer.name] = jax.jit(jax.grad(climbed, has_aux=True))
        x, numbers = np.moveaxis(images, 1, -1), np.asarray(filters, np.int32)
        gradient, values = self._compiled[layer.name](x, numbers)
        return np.asarray(values, np.float32), _channels_first(gradient)

    def activations(self, layer: Layer, images: Images) -> NDArray[np.float32]:
        """See `ConvNetwork.activations`."""
        return _channels_first(self._output(layer, np.moveaxis(images, 1, -1)))

    def guided(self, layer: Layer, images: Images, filter: int, target: Target) -> Guided:
        """See `ConvNetwork.guided`.

        ``flax.linen.relu`` and ``jax.nn.relu`` are others while this runs; not for several threads.
        """
        import jax

        def value(x: Any) -> Any:
            maps = self._output(layer, x)[..., filter].reshape(len(x), -1)
            values = maps.max(1) if target == "max" else maps.mean(1)
            return values.sum(), values

        # Not compiled: what was compiled before does not see the other ReLU.
        with _guided_relu() as seen:
            gradient, values = jax.grad(value, has_aux=True)(np.moveaxis(images, 1, -1))
        return Guided(_channels_first(gradient), np.asarray(values, np.float32), len(seen))

    def _apply(self, x: Any) -> Any:
        pixels = x * 127.5 + 127.5
        return self._encoder.apply({"params": self._params}, pixels, **self._options)

    def _output(self, layer: Layer, x: Any) -> Any:
        """Output of a convolution, (image, row, col, filter)."""
        import flax.linen as nn

        held: list[Any] = []

        def keep(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = following(*args, **kwargs)
            if context.method_name == "__call__" and ".".join(context.module.path) == layer.name:
                held.append(output)
                raise _Reached
            return output

        try:
            with nn.intercept_methods(keep):
                self._apply(x)
        except _Reached:
            return held[0]
        raise UsageError(f"{self.name} does not call {layer.name} when it is given an image")


class _Reached(Exception):
    """Ends a forward pass; caught where it was begun."""


def _encoders(model: Any) -> dict[str, tuple[Any, Any, Mapping[str, Any], int]]:
    """Per camera: its encoder on its own, parameters, options of its call, input channels."""
    import flax.linen as nn
    import jax

    found: dict[str, tuple[Any, Any, Mapping[str, Any], int]] = {}

    def note(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
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
        return following(*args, **kwargs)

    seen, task = model.example_batch["observation"], model.example_batch["task"]

    def shapes(params: Any) -> Any:
        return model.module.apply(
            {"params": params}, seen, task, seen["timestep_pad_mask"], train=False,
            method="octo_transformer",
        )  # fmt: skip

    with nn.intercept_methods(note):
        jax.eval_shape(shapes, model.params)
    return dict(sorted(found.items()))


@contextmanager
def _guided_relu() -> Iterator[list[None]]:
    """Guided backpropagation's ReLU in place of flax's and jax's; the list counts its calls."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    seen: list[None] = []

    @jax.custom_vjp
    def rectify(x: Any) -> Any:
        return jnp.maximum(x, 0)

    def forward(x: Any) -> Any:
        return jnp.maximum(x, 0), x > 0

    def backward(open_: Any, gradient: Any) -> Any:
        return (jnp.maximum(gradient, 0) * open_,)

    rectify.defvjp(forward, backward)

    def relu(x: Any) -> Any:
        seen.append(None)
        return rectify(x)

    places: list[Any] = [nn, jax.nn]
    former = [place.relu for place in places]
    try:
        for place in places:
            place.relu = relu
        yield seen
    finally:
        for place, relu_ in zip(places, former, strict=True):
            place.relu = relu_


def _film_norms(params: Any, path: str = "") -> Iterator[tuple[str, float, float]]:
    for name, value in params.items():
        here = f"{path}.{name}" if path else name
        if _FILM.fullmatch(name):
            # Octo's layer multiplies with its first Dense and adds its second, whatever it calls them.
            gamma, beta = (
                float(np.sqrt(sum(float(np.square(leaf).sum()) for leaf in value[part].values())))
                for part in ("Dense_0", "Dense_1")
            )
            yield here, gamma, beta
        elif hasattr(value, "items"):
            yield from _film_norms(value, here)


def _channels_first(values: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.moveaxis(np.asarray(values, np.float32), -1, 1))

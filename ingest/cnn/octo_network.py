"""The image encoder of an Octo camera as a `ConvNetwork`: SmallStem and other Flax encoders.

The encoder is met in a trace of the model and taken out of it with its parameters, so its class
need not be known (`octo_encoder.py`). It is given pixels 0..255, which it scales itself; a model
that can be given a goal image takes that as three further channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

from ..optional import require
from ..policies.octo.loading import check_directory, digest_parameters, load_octo
from .base import Guided, Images, Layer, Target
from .octo_encoder import Film, Reached, find_encoders


def load_stem(text: str, instruction: str | None = None) -> OctoStem:
    """Load a camera's image encoder from ``CHECKPOINT`` or ``CHECKPOINT#CAMERA``.

    Raises
    ------
    UsageError
        If the model has several cameras and none is named, or not that one; if an instruction is
        given and the encoder takes none.
    """
    for module in ("jax", "flax"):
        require(module, "octo", "attnstore cnn of Octo")
    checkpoint, _, camera = text.partition("#")
    model = load_octo(checkpoint, check_directory(checkpoint))
    weights = Path(checkpoint).expanduser().resolve().name
    return OctoStem(model, camera or None, weights=weights, instruction=instruction)


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
    instruction
        What an encoder with FiLM is conditioned on; None: the empty instruction.

    Raises
    ------
    UsageError
        As `load_stem`.
    """

    trained = True

    def __init__(
        self, model: Any, camera: str | None, *, weights: str, instruction: str | None = None
    ) -> None:
        found = find_encoders(model, instruction)
        if camera not in found and (camera is not None or len(found) != 1):
            said = f"no {camera}" if camera else "several cameras; name one with #"
            raise UsageError(f"{weights}: {said}; its cameras are {', '.join(found) or 'none'}")
        camera = camera or next(iter(found))
        self._encoder = encoder = found[camera]
        if instruction is not None and not encoder.conditions:
            raise UsageError(
                f"{weights}: the encoder of {camera} takes no instruction; leave it out"
            )
        self.name, self.channels = f"octo-{camera}", encoder.channels
        # What an encoder with FiLM shows depends on it, so it is a part of the description.
        said = f", instruction {instruction or ''!r}" if encoder.conditions else ""
        self.weights = weights + said
        # -1..1, which the encoder's own scale is near to
        self.mean = self.std = (0.5,) * self.channels
        self.digest = digest_parameters(encoder.params)
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
            jax.eval_shape(self._encoder.apply, image)
        return tuple(Layer(n, i, filters) for i, (n, filters) in enumerate(seen.items()))

    @property
    def film(self) -> list[Film]:
        """FiLM blocks with their γ and β for the instruction; none where there is no FiLM."""
        return self._encoder.film()

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

    def _output(self, layer: Layer, x: Any) -> Any:
        """Output of a convolution, (image, row, col, filter)."""
        import flax.linen as nn

        held: list[Any] = []

        def keep(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = following(*args, **kwargs)
            if context.method_name == "__call__" and ".".join(context.module.path) == layer.name:
                held.append(output)
                raise Reached
            return output

        try:
            with nn.intercept_methods(keep):
                self._encoder.apply(x * 127.5 + 127.5)
        except Reached:
            return held[0]
        raise UsageError(f"{self.name} does not call {layer.name} when it is given an image")


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


def _channels_first(values: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.moveaxis(np.asarray(values, np.float32), -1, 1))

"""The seam: what filters, feature maps and guided backpropagation need of a network."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

Images = NDArray[np.float32]
"""(image, channel, row, col) in the network's units: (pixel / 255 - mean) / std."""

Target = Literal["max", "mean"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution of a network."""

    name: str
    """As the network calls it: ``features.10``."""
    index: int
    """Ordinal among the network's convolutions, in the order in which they are defined."""
    filters: int
    """Channels of its output."""


@dataclass(frozen=True, slots=True)
class Guided:
    """What guided backpropagation gives."""

    gradient: Images
    """(image, channel, row, col), in the unit of the activation per unit of the input."""
    value: NDArray[np.float32]
    """(image,): the activation that was taken back to the input."""
    relus: int
    """Rectifications on the way; 0: it is the plain gradient."""


@runtime_checkable
class ConvNetwork(Protocol):
    """A network with convolutions; not safe to use from several threads.

    Its methods leave it as it was: no hooks, no gradients, no changed mode, also after an error.
    """

    name: str
    weights: str
    """Where the weights are from, for people: ``IMAGENET1K_V1``, a file, ``random weights, seed 0``."""
    trained: bool
    """False for random weights; pictures say so."""
    digest: str
    """SHA-256 over the weights."""
    channels: int
    """Of the input."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel of the input, of pixels 0..1."""

    @property
    def layers(self) -> Sequence[Layer]:
        """Convolutions, in the network's order."""
        ...

    def ascent(
        self, layer: Layer, images: Images, filters: Sequence[int]
    ) -> tuple[NDArray[np.float32], Images]:
        """How much one filter answers, for each image its own, and the gradient of that.

        The answer is the mean over positions of the output's positive part: of the plain mean, a
        filter of mostly negative weights can at best bring its inputs to 0. Where no position is
        positive the value is 0, and the gradient is the plain mean's.

        Parameters
        ----------
        filters
            One per image.

        Returns
        -------
        (image,) and (image, channel, row, col); image i's values do not depend on the others.
        """
        ...

    def activations(self, layer: Layer, images: Images) -> NDArray[np.float32]:
        """Output of a convolution, (image, filter, row, col)."""
        ...

    def guided(self, layer: Layer, images: Images, filter: int, target: Target) -> Guided:
        """Guided backpropagation (Springenberg et al. 2015) from a filter to the input.

        At every ReLU the gradient passes where both its input and the gradient are positive.

        Parameters
        ----------
        target
            ``max``: the filter's strongest position; ``mean``: the mean over positions.
        """
        ...


def find_layer(network: ConvNetwork, text: str) -> Layer:
    """Find a convolution.

    Parameters
    ----------
    text
        Its name (``features.10``), the end of its name if only one ends so (``10``), or ``@``
        and its ordinal (``@4``; ``@-1`` is the last).

    Raises
    ------
    UsageError
        If there is none, or more than one; the message lists the nearest.
    """
    layers = network.layers
    if text.startswith("@"):
        try:
            return layers[int(text[1:])]
        except (ValueError, IndexError):
            raise UsageError(
                f"{network.name} has convolutions @0 to @{len(layers) - 1}; got {text!r}"
            ) from None
    for layer in layers:
        if layer.name == text:
            return layer
    ending = [x for x in layers if x.name.endswith(f".{text}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UsageError(
            f"{len(ending)} convolutions of {network.name} end in {text!r}: "
            + ", ".join(x.name for x in ending[:5])
            + (", ..." if len(ending) > 5 else "")
        )
    names = [x.name for x in layers]
    near = difflib.get_close_matches(text, names, 3, 0.4)
    if not near:
        last = {name.rpartition(".")[2]: name for name in names}
        near = [last[x] for x in difflib.get_close_matches(text, last, 3, 0.1)] or names[:3]
    raise UsageError(
        f"{network.name} has no convolution {text!r}; the nearest are {', '.join(near)} "
        f"({len(names)} in all, see attnstore cnn layers)"
    )


def check_filters(layer: Layer, filters: Sequence[int], most: int) -> tuple[int, ...]:
    """Return the filters asked for, ascending and once each; all up to `most` if none were.

    Raises
    ------
    UsageError
        If the layer does not have one of them.
    """
    for number in filters:
        if not 0 <= number < layer.filters:
            raise UsageError(f"{layer.name} has filters 0 to {layer.filters - 1}; got {number}")
    return tuple(sorted(set(filters))) or tuple(range(min(most, layer.filters)))

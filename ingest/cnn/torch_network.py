"""Any PyTorch module with two-dimensional convolutions, as a `ConvNetwork`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

from ..policies.fingerprint import digest_parameters
from .base import Guided, Images, Layer, Target
from .rectification import GuidedRectification


class TorchNetwork:
    """A PyTorch module, looked at through one convolution at a time.

    The forward pass ends at that convolution, so what follows it costs nothing and need not fit
    the image's size (a classifier does not).

    Parameters
    ----------
    module
        The network; it keeps its mode, its hooks and its gradients.
    name, weights, trained
        As in `ConvNetwork`.
    mean, std
        Of the pixels 0..1, per input channel; a single value is for all.
    device
        To run on; the module is moved there.

    Raises
    ------
    UsageError
        If it has no ``Conv2d``, or `mean` and `std` do not fit its input.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        name: str,
        weights: str,
        trained: bool,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        device: str = "cpu",
    ) -> None:
        self._layers = {
            key: part for key, part in module.named_modules() if isinstance(part, torch.nn.Conv2d)
        }
        if not self._layers:
            raise UsageError(
                f"{name} has no torch.nn.Conv2d among its {len(list(module.modules()))} modules; "
                "a convolutional network is expected"
            )
        self.name, self.weights, self.trained = name, weights, trained
        self.layers = tuple(
            Layer(key, index, part.out_channels)
            for index, (key, part) in enumerate(self._layers.items())
        )
        self.channels = next(iter(self._layers.values())).in_channels
        self.mean = _per_channel(mean, self.channels, "mean")
        self.std = _per_channel(std, self.channels, "std")
        self.device = device
        self._module = module.to(device)
        self.digest = digest_parameters(module)

    def ascent(
        self, layer: Layer, images: Images, filters: Sequence[int]
    ) -> tuple[NDArray[np.float32], Images]:
        """See `ConvNetwork.ascent`."""
        at = torch.arange(len(images), device=self.device)
        number = torch.as_tensor(list(filters), device=self.device)
        with torch.enable_grad():
            x = self._tensor(images).requires_grad_()
            maps = self._output(layer, x)[at, number].flatten(1)
            values = maps.clamp(min=0).mean(1)
            climbed = torch.where((maps > 0).any(1), values, maps.mean(1))
            # Of a sum, since no row's value depends on another row: each gets its own gradient.
            (gradient,) = torch.autograd.grad(climbed.sum(), x)
        return _numpy(values), _numpy(gradient)

    def activations(self, layer: Layer, images: Images) -> NDArray[np.float32]:
        """See `ConvNetwork.activations`."""
        with torch.no_grad():
            return _numpy(self._output(layer, self._tensor(images)))

    def guided(self, layer: Layer, images: Images, filter: int, target: Target) -> Guided:
        """See `ConvNetwork.guided`."""
        with torch.enable_grad(), GuidedRectification() as relus:
            x = self._tensor(images).requires_grad_()
            # A copy, for networks that begin with an operation in place.
            maps = self._output(layer, x.clone())[:, filter].flatten(1)
            values = maps.max(1).values if target == "max" else maps.mean(1)
            (gradient,) = torch.autograd.grad(values.sum(), x)
        return Guided(_numpy(gradient), _numpy(values), relus.seen)

    def _tensor(self, images: Images) -> torch.Tensor:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise UsageError(
                f"{self.name} takes images (image, {self.channels}, row, col); got {images.shape}"
            )
        dtype = next(self._module.parameters()).dtype
        return torch.from_numpy(np.ascontiguousarray(images)).to(self.device, dtype)

    def _output(self, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        """Output of a convolution, before anything that follows changes it."""
        with _watched(self._layers[layer.name]) as held, _evaluating(self._module):
            try:
                self._module(x)
            except _Reached:
                pass
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UsageError(
                    f"{self.name} cannot take an input of {tuple(x.shape)} as far as "
                    f"{layer.name}: {reason}"
                ) from error
        if not held:
            raise UsageError(
                f"{self.name} does not call {layer.name} when it is given an image; "
                "choose another layer"
            )
        return held[0]


class _Reached(Exception):
    """Ends a forward pass; caught where it was begun."""


@contextmanager
def _watched(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    held: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        held.append(output)
        raise _Reached

    handle = module.register_forward_hook(keep)
    try:
        yield held
    finally:
        handle.remove()


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode (each row of a batch for itself, no dropout), and the former mode after."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


def _per_channel(values: Sequence[float], channels: int, what: str) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise UsageError(
            f"{what} has one value, or one for each of {channels} channels; got {len(values)}"
        )
    if what == "std" and min(values) <= 0:
        raise UsageError(f"std is larger than 0; got {min(values)}")
    return tuple(float(v) for v in values) * (channels if len(values) == 1 else 1)


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().float().cpu().numpy(), np.float32)

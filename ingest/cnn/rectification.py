"""Guided backpropagation's rule, in place of every ReLU that is called within a ``with``.

A torch function mode sees each call of the public functions: `torch.nn.ReLU` calls
`torch.nn.functional.relu`, which is seen as `torch.relu` and `Tensor.relu_` are. So modules,
functions and in-place variants are all met, nothing of the network or of torch is replaced, and
leaving the ``with`` is the whole undoing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch.overrides import TorchFunctionMode


class _GuidedClip(torch.autograd.Function):
    """Clipping to 0..high that lets a gradient back only where it is positive and nothing was cut."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, high: float | None) -> torch.Tensor:
        # A mask and not x: an in-place ReLU overwrites x afterwards.
        open_ = x > 0 if high is None else (x > 0) & (x < high)
        context.save_for_backward(open_)
        return x.clamp(min=0.0, max=high)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        (open_,) = context.saved_tensors
        (gradient,) = gradients
        return gradient.clamp(min=0) * open_, None


_RELU = {functional.relu, torch.relu, torch.Tensor.relu}
_RELU_IN_PLACE = {functional.relu_, torch.relu_, torch.Tensor.relu_}
_RELU6 = {functional.relu6}
_HARDTANH = {functional.hardtanh}


class GuidedRectification(TorchFunctionMode):
    """ReLU and ReLU6 with the backward rule of Springenberg et al. 2015 within a ``with``.

    Attributes
    ----------
    seen
        How many were called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _RELU or func in _RELU6:
            high = 6.0 if func in _RELU6 else None
            return self._clip(_first(args, given), high, _flag(args, given, 1))
        if func in _RELU_IN_PLACE:
            return self._clip(_first(args, given), None, True)
        if func in _HARDTANH:  # ReLU6's module is a Hardtanh of 0..6
            low = args[1] if len(args) > 1 else given.get("min_val", -1.0)
            high = args[2] if len(args) > 2 else given.get("max_val", 1.0)
            if low == 0:
                return self._clip(_first(args, given), float(high), _flag(args, given, 3))
        return func(*args, **given)

    def _clip(self, x: torch.Tensor, high: float | None, in_place: bool) -> torch.Tensor:
        self.seen += 1
        clipped: torch.Tensor = _GuidedClip.apply(x, high)
        # An in-place ReLU's caller may go on with its argument instead of the result.
        return x.copy_(clipped) if in_place else clipped


def _first(args: Sequence[Any], given: Mapping[str, Any]) -> torch.Tensor:
    tensor: torch.Tensor = args[0] if args else given["input"]
    return tensor


def _flag(args: Sequence[Any], given: Mapping[str, Any], position: int) -> bool:
    return bool(args[position] if len(args) > position else given.get("inplace", False))

"""What is taken from a layer's weights on the device, before they leave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.precision import LEVELS, OCTAVES, ZERO_BELOW, dtype, look_up
from attnstore.store.format.tokens import Axis, TokenLayout
from attnstore.store.format.weighting import value_weighted

from .policies.base import SpanStates

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reduction:
    """Sums over one layer's weights of one sample, from the unrounded values."""

    mean: Mapping[str, Float] = field(repr=False)
    """Per query group: weights averaged over its tokens, (head, key)."""
    maximum: Mapping[str, Float] = field(repr=False)
    """Per query group: largest weight over its tokens, (head, key)."""
    confidence: Mapping[str, Float] = field(repr=False)
    """Per query group: mean over its tokens of their largest weight on any key, (head,)."""
    overall: Float = field(repr=False)
    """Weights averaged over all valid queries, (head, key)."""
    row_sum: tuple[float, float]
    """Smallest and largest sum over keys of a valid query's row; NaN if any weight is NaN."""


def reduce_states(states: torch.Tensor, query: Axis, spans: Sequence[str]) -> SpanStates:
    """Reduce one sample's hidden states, (query, feature) with padding.

    Parameters
    ----------
    query
        Its spans.
    spans
        Those whose every token is kept, by name; none keeps none.
    """
    import torch

    parts = [states.narrow(0, s.model_start, len(s)) for s in query]
    mean = torch.stack([part.mean(0, dtype=torch.float32) for part in parts])
    chosen = [part for part, span in zip(parts, query, strict=True) if span.name in spans]
    tokens = torch.cat(chosen).to(torch.float32) if chosen else None
    return SpanStates(mean, tokens)


def compact(weights: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """Strip padding: the model's (head, query, key) to the layout's; a view where possible."""
    return _take(_take(weights, 1, layout.query), 2, layout.key)


def _take(weights: torch.Tensor, dim: int, axis: Axis) -> torch.Tensor:
    import torch

    parts = [weights.narrow(dim, s.start, s.stop - s.start) for s in axis.model_slices]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def reduce(weights: torch.Tensor, query: Axis, groups: Sequence[str]) -> Reduction:
    """Reduce compact weights, (head, query, key); sums are in float32."""
    values = weights.float()
    sums = values.sum(-1)
    mean, maximum, confidence = _of_groups(lambda at: values[:, at], query, groups)
    low, high = sums.aminmax()
    return Reduction(mean, maximum, confidence, _numpy(values.mean(1)), (float(low), float(high)))


def compact_norms(norms: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """Strip padding: (head, key) of the model's keys to the layout's."""
    return _take(norms, 1, layout.key)


def reduce_carried(
    weights: torch.Tensor, norms: torch.Tensor, query: Axis, groups: Sequence[str]
) -> Reduction:
    """Reduce compact weights, (head, query, key), weighted by value norms, (head, key).

    As `reduce` of `attnstore.store.format.weighting.value_weighted`, of which only the groups' rows are
    made: over all queries it is two products of a matrix and a vector.
    """
    import torch

    values = weights.float()
    mean, maximum, confidence = _of_groups(
        lambda at: value_weighted(values[:, at], norms), query, groups
    )
    # Vectors as rows: a CPU takes ten times as long for a batch of columns.
    sums = torch.matmul(norms.unsqueeze(1), values.transpose(1, 2))
    overall = torch.matmul(1 / sums / values.shape[1], values).squeeze(1) * norms
    return Reduction(mean, maximum, confidence, _numpy(overall), (1.0, 1.0))


def _of_groups(
    rows_at: Callable[[slice], torch.Tensor], query: Axis, groups: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return each group's mean and largest weight by (head, key), and its confidence by head."""
    import torch

    mean, maximum, confidence = {}, {}, {}
    for group in groups:
        rows = [rows_at(at) for at in query.group(group)]
        if not rows:
            continue
        block = rows[0] if len(rows) == 1 else torch.cat(rows, 1)
        mean[group] = _numpy(block.mean(1))
        maximum[group] = _numpy(block.amax(1))
        confidence[group] = _numpy(block.amax(2).mean(1))
    return mean, maximum, confidence


def encode_on_device(weights: torch.Tensor, precision: str) -> NDArray[Any]:
    """Code weights as `attnstore.store.format.precision.encode` does, on their device, and fetch them."""
    import torch

    if precision == "float16":
        return _numpy(weights.to(torch.float16).contiguous())
    assert dtype(precision) == np.uint8
    if weights.dtype.itemsize == 2 and weights.device.type == "cpu":
        bits = weights.contiguous().view(torch.int16).numpy().view(np.uint16)
        return look_up(_codes_of_16_bits(weights.dtype), bits)
    return _numpy(_log8(weights.float()))


def _log8(values: torch.Tensor) -> torch.Tensor:
    import torch

    code = values.log2().mul_(LEVELS / OCTAVES).add_(254).round_().clamp_(1, 254)
    code.masked_fill_(values < ZERO_BELOW, 0)
    return code.to(torch.uint8)


@cache
def _codes_of_16_bits(dtype: torch.dtype) -> NDArray[np.uint8]:
    """Code of every value of a 16-bit type, by its bits: logarithms cost a CPU six times as much."""
    import torch

    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    return _numpy(_log8(every.float()))


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()

"""Reductions on the device: padding stripped, sums over query groups, storage codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attnstore.ingest.reduction import compact, encode_on_device, reduce, reduce_carried
from attnstore.store.format.precision import PRECISIONS, encode
from attnstore.store.format.tokens import Axis, Span, Token, TokenLayout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def text(name: str, start: int, stop: int, model: int) -> Span:
    tokens = tuple(Token(i, f"t{i}") for i in range(start, stop))
    return Span(name, "text", start, stop, model, role="task", tokens=tokens)


def gapped_layout() -> TokenLayout:
    """Keys 0..3, 6..8 and 12 of the model's 14 are valid; queries 1, 2 and 5 of its 6."""
    query = Axis((text("task", 0, 2, 1), Span("state", "state", 2, 3, 5)))
    key = Axis(
        (
            Span("image:a", "image", 0, 4, 0, camera="a", grid=(2, 2)),
            text("task", 4, 7, 6),
            Span("state", "state", 7, 8, 12),
        )
    )
    return TokenLayout("suffix", query, key)


def softmax(
    shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator)).softmax(-1).to(dtype)


def as_float64(weights: torch.Tensor) -> NDArray[np.float64]:
    return weights.double().numpy()


def test_compact_takes_the_valid_tokens_in_order() -> None:
    layout = gapped_layout()
    weights = softmax((3, 6, 14))
    ours = compact(weights, layout)
    wanted = as_float64(weights)[:, [1, 2, 5]][:, :, [0, 1, 2, 3, 6, 7, 8, 12]]
    np.testing.assert_array_equal(as_float64(ours), wanted)


def test_compact_of_contiguous_tokens_copies_nothing() -> None:
    axis = Axis((text("task", 0, 3, 0), Span("state", "state", 3, 4, 3)))
    weights = softmax((2, 6, 6))
    ours = compact(weights, TokenLayout("prefix", axis, axis))
    assert ours.shape == (2, 4, 4)
    assert ours.data_ptr() == weights.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sum_against_loops(dtype: str) -> None:
    axis = Axis(
        (
            Span("image:a", "image", 0, 4, 0, camera="a", grid=(2, 2)),
            text("bos", 4, 5, 4),
            Span("state", "state", 5, 6, 5),
            text("task", 6, 9, 6),
        )
    )
    weights = softmax((2, 9, 9), dtype=DTYPES[dtype])
    ours = reduce(weights, axis, ("text", "state", "absent"))
    values = as_float64(weights)
    assert sorted(ours.mean) == sorted(ours.maximum) == sorted(ours.confidence) == ["state", "text"]
    for group, rows in {"text": [4, 6, 7, 8], "state": [5]}.items():
        for head in range(2):
            largest = [max(values[head, q]) for q in rows]
            assert ours.confidence[group][head] == pytest.approx(sum(largest) / len(rows), rel=1e-6)
            for key in range(9):
                column = [values[head, q, key] for q in rows]
                assert ours.mean[group][head, key] == pytest.approx(
                    sum(column) / len(rows), rel=1e-6
                )
                assert ours.maximum[group][head, key] == pytest.approx(max(column), rel=1e-6)
    for head in range(2):
        for key in range(9):
            wanted = sum(values[head, q, key] for q in range(9)) / 9
            assert ours.overall[head, key] == pytest.approx(wanted, rel=1e-6)
    sums = [sum(values[h, q]) for h in range(2) for q in range(9)]
    assert ours.row_sum == pytest.approx((min(sums), max(sums)), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [9, 6])
def test_every_sum_of_what_is_carried_against_loops(dtype: str, keys: int) -> None:
    """Of whole rows and of a view of them, as padding leaves one."""
    axis = Axis((text("task", 0, 3, 0), Span("state", "state", 3, 5, 3)))
    weights = softmax((2, 5, 9), dtype=DTYPES[dtype])[..., :keys]
    norms = torch.linspace(0, 3, 2 * keys).reshape(2, keys)
    ours = reduce_carried(weights, norms, axis, ("text", "state", "absent"))
    assert sorted(ours.mean) == sorted(ours.maximum) == ["state", "text"]
    values, own = as_float64(weights), as_float64(norms)
    shares = np.zeros(values.shape)
    for head in range(2):
        for q in range(5):
            carried = [values[head, q, k] * own[head, k] for k in range(keys)]
            shares[head, q] = [each / sum(carried) for each in carried]
    for head in range(2):
        for key in range(keys):
            column = [shares[head, q, key] for q in range(5)]
            assert ours.overall[head, key] == pytest.approx(sum(column) / 5, rel=1e-5)
            assert ours.mean["text"][head, key] == pytest.approx(sum(column[:3]) / 3, rel=1e-5)
            assert ours.maximum["state"][head, key] == pytest.approx(max(column[3:]), rel=1e-5)
        largest = [max(shares[head, q]) for q in range(3)]
        assert ours.confidence["text"][head] == pytest.approx(sum(largest) / 3, rel=1e-5)


def test_nan_reaches_the_row_sums() -> None:
    axis = Axis((text("task", 0, 3, 0),))
    weights = softmax((2, 3, 3))
    weights[1, 2, 0] = float("nan")
    assert np.isnan(reduce(weights, axis, ("text",)).row_sum).all()


def corner_cases() -> list[float]:
    """Zero, the ends of log8's range and both sides of them, denormal float16 numbers, one."""
    steps = 2.0 ** (-16 + 16 * (np.arange(12) + 0.5) / 253)
    return [
        0.0,
        2.0**-30,
        2.0**-25,
        2.0**-24,
        2.0**-17 * (1 - 1e-6),
        2.0**-17,
        2.0**-16,
        1.0,
        *steps,
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_those_of_the_store(dtype: str, precision: str) -> None:
    weights = softmax((4, 50, 70), seed=1, dtype=DTYPES[dtype])
    weights[0, 0, : len(corner_cases())] = torch.tensor(corner_cases()).to(DTYPES[dtype])
    ours = encode_on_device(weights, precision)
    wanted = encode(weights.float().numpy(), precision)
    assert ours.dtype == wanted.dtype
    differing = np.flatnonzero(ours != wanted)
    if precision == "float16":
        assert not len(differing)
        return
    # log2 of torch and of NumPy differ in the last bit: a weight half-way between two levels may
    # go to either, as long as it is half-way
    level = 254 + np.log2(as_float64(weights).reshape(-1)[differing]) * 253 / 16
    np.testing.assert_allclose(level % 1, 0.5, atol=1e-4)
    assert len(differing) <= ours.size // 1000
    assert np.abs(ours.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_codes_of_a_view_are_contiguous_and_leave_the_weights_alone(precision: str) -> None:
    layout = gapped_layout()
    weights = softmax((3, 6, 14))
    before = weights.clone()
    ours: NDArray[Any] = encode_on_device(compact(weights, layout), precision)
    assert ours.flags["C_CONTIGUOUS"]
    assert torch.equal(weights, before)

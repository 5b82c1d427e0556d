"""Weights beside ``scaled_dot_product_attention``: against NumPy, against eager models, untouched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import GemmaConfig, GemmaModel, LlamaConfig, LlamaModel

from attnstore.ingest.capture import capture
from attnstore.ingest.policies.hooks import HookedPolicy, Watched
from attnstore.ingest.policies.sdpa import SdpaTap, sdpa_weights, weights_per_head
from attnstore.store.errors import HealthError

Array = NDArray[np.float64]


def numpy_weights(
    q: Array, k: Array, mask: Array | None, causal: bool, scale: float | None
) -> Array:
    """The definition, in float64; `mask` is added to the scores."""
    groups = q.shape[1] // k.shape[1]
    scores = q @ np.repeat(k, groups, axis=1).transpose(0, 1, 3, 2)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:]) > 0, scores, -np.inf)
    if mask is not None:
        scores = scores + mask
    top = scores.max(-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    exponentials = np.exp(scores - top)
    total = exponentials.sum(-1, keepdims=True)
    return np.asarray(np.divide(exponentials, total, out=np.zeros_like(scores), where=total > 0))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 3, 5, 6, 4))),
    groups=st.integers(1, 3),
    kind=st.sampled_from(["none", "causal", "bool", "float"]),
    leading=st.integers(0, 2),
    scale=st.sampled_from([None, 0.3, 2.0]),
    seed=st.integers(0, 999),
)
def test_weights_are_those_that_give_the_output(
    shape: tuple[int, ...], groups: int, kind: str, leading: int, scale: float | None, seed: int
) -> None:
    batch, shared, queries, keys, features = shape
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(batch, shared * groups, queries, features))
    k, v = (rng.normal(size=(batch, shared, keys, features)) for _ in range(2))
    full = (batch, shared * groups, queries, keys)
    # A mask may leave out leading dimensions, or have 1 there.
    part = (full[leading:] if leading < 2 else full[2:]) if seed % 2 else (1, 1, *full[2:])
    mask: Any = None
    if kind == "bool":
        mask = rng.random(part) < 0.7
    elif kind == "float":
        mask = rng.normal(size=part)
    arguments: dict[str, Any] = {"is_causal": kind == "causal", "scale": scale}
    arguments |= {"enable_gqa": groups > 1}
    if mask is not None:
        arguments["attn_mask"] = torch.from_numpy(mask)
    tensors: Any = [torch.from_numpy(x) for x in (q, k, v)]
    weights = sdpa_weights(*tensors, **arguments)
    added: Any = None if mask is None else np.where(mask, 0, -np.inf) if kind == "bool" else mask
    wanted = numpy_weights(q, k, added, kind == "causal", scale)
    np.testing.assert_allclose(weights.numpy(), wanted, atol=3e-7)
    output = functional.scaled_dot_product_attention(*tensors, **arguments).numpy()
    ours = wanted @ np.repeat(v, groups, axis=1)
    np.testing.assert_allclose(ours, output, atol=1e-9)


def test_a_query_that_may_attend_to_nothing_gets_zeros() -> None:
    q = torch.randn(1, 1, 2, 4)
    weights = sdpa_weights(q, q, q, torch.tensor([[True, False], [False, False]]))
    assert weights[0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("q", "k", "message"),
    [
        ((2, 3, 4), (2, 3, 4), r"\(batch, head, token, feature\)"),
        ((1, 3, 2, 4), (1, 2, 2, 4), "3 query heads"),
    ],
)
def test_what_is_not_understood_is_refused(
    q: tuple[int, ...], k: tuple[int, ...], message: str
) -> None:
    with pytest.raises(HealthError, match=message):
        sdpa_weights(torch.zeros(q), torch.zeros(k), torch.zeros(k))


class Model(HookedPolicy):
    """A transformers decoder with sdpa, seen through the tap alone."""

    def __init__(self, model: Any, modules: Sequence[nn.Module]) -> None:
        self.model, self.modules, self.tap = model, list(modules), SdpaTap()

    def watched(self) -> Sequence[Watched]:
        return [Watched("prefix", i, m, self.tap.weights(m)) for i, m in enumerate(self.modules)]

    def eager(self) -> AbstractContextManager[None]:
        return self.tap.over(self.modules)


def decoder(kind: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 90,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "initializer_range": 0.3,
    }  # fmt: skip
    model: Any = (
        GemmaModel(GemmaConfig(**sizes)) if kind == "gemma" else LlamaModel(LlamaConfig(**sizes))
    )
    return model.to(dtype=dtype).eval()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["gemma", "llama"])
@pytest.mark.parametrize(
    ("dtype", "first", "later"), [(torch.float32, 3e-6, 3e-6), (torch.bfloat16, 4e-3, 0.1)]
)
def test_a_real_decoder_acts_as_with_sdpa_and_shows_eager_weights(
    kind: str, padded: bool, dtype: torch.dtype, first: float, later: float
) -> None:
    # Layer 0 gets the same input from both; what enters the others differs, as sdpa rounds
    # otherwise than eager attention.
    model = decoder(kind, dtype)
    ids = torch.arange(20).reshape(2, 10)
    mask = torch.ones(2, 10, dtype=torch.long)
    if padded:
        mask[1, :4] = 0
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        plain = model(ids, attention_mask=mask).last_hidden_state
        policy: Any = Model(model, [layer.self_attn for layer in model.layers])
        with capture(policy) as session:
            seen = model(ids, attention_mask=mask).last_hidden_state
        again = model(ids, attention_mask=mask).last_hidden_state
        model.set_attn_implementation("eager")
        eager = model(ids, attention_mask=mask, output_attentions=True).attentions
    assert torch.equal(seen, plain)
    assert torch.equal(again, plain)
    assert [(r.phase, r.layer) for r in session.records] == [("prefix", i) for i in range(3)]
    valid = mask.bool()
    for record, wanted in zip(session.records, eager, strict=True):
        assert record.weights.dtype == dtype
        tolerance = later if record.layer else first
        for row in range(2):
            ours, theirs = (w[row][:, valid[row]].float() for w in (record.weights, wanted))
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
            torch.testing.assert_close(ours.sum(-1), torch.ones(ours.shape[:2]), atol=3e-3, rtol=0)


class Direct(nn.Module):
    """Calls the function itself, twice if told."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.project, self.calls = nn.Linear(8, 24), calls

    def forward(self, x: Any) -> Any:
        for _ in range(self.calls):
            q, k, v = (
                part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.project(x).chunk(3, -1)
            )
            x = functional.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
            x = x.transpose(1, 2).flatten(-2)
        return x


class Outer(nn.Module):
    """A watched module in another one, and attention beside it that nobody watches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = Direct(), Direct()

    def forward(self, x: Any) -> Any:
        return self.other(self.inner(x))


def modes() -> int:
    return int(torch._C._len_torch_function_stack())


@pytest.fixture
def clean() -> Iterator[None]:
    before, rng = modes(), torch.get_rng_state()
    yield
    assert modes() == before
    assert torch.equal(torch.get_rng_state(), rng)


def run(policy: Any, x: Any) -> Any:
    torch.manual_seed(1)
    rng = torch.get_rng_state()
    with torch.no_grad(), capture(policy) as session:
        output = policy.model(x)
    assert torch.equal(torch.get_rng_state(), rng)
    return output, session.records


def test_the_innermost_watched_module_gets_the_weights() -> None:
    torch.manual_seed(0)
    outer, x = Outer(), torch.randn(2, 5, 8)
    _, records = run(Model(outer, [outer.inner, outer.other]), x)
    assert [r.layer for r in records] == [0, 1]
    _, alone = run(Model(outer, [outer.other]), x)
    assert torch.equal(alone[0].weights, records[1].weights)
    with torch.no_grad():
        assert not torch.equal(records[0].weights, records[1].weights)


def test_two_calls_in_one_module_are_refused_and_leave_nothing() -> None:
    module = Direct(calls=2)
    policy = Model(module, [module])
    before = modes()
    with pytest.raises(HealthError, match="twice in one forward"):
        run(policy, torch.randn(1, 3, 8))
    assert modes() == before
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert policy.tap._held == {}
    assert policy.tap._running == []


def test_a_module_without_a_call_is_named() -> None:
    module = nn.Linear(8, 8)
    with pytest.raises(HealthError, match="Linear returned no"):
        run(Model(module, [module]), torch.randn(1, 3, 8))


def test_an_exception_inside_a_module_is_survived() -> None:
    outer, x = Outer(), torch.randn(2, 5, 8)
    policy = Model(outer, [outer.inner, outer.other])
    with torch.no_grad(), capture(policy) as session:  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            outer.inner(torch.randn(2, 5, 7))
        outer(x)
    assert [r.layer for r in session.records] == [0, 1]


def test_no_more_than_one_layer_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("llama", torch.float32)
    policy = Model(model, [layer.self_attn for layer in model.layers])
    held = []
    called = SdpaTap.called

    def note(tap: SdpaTap, *arguments: Any) -> None:
        called(tap, *arguments)
        held.append(len(tap._held))

    monkeypatch.setattr(SdpaTap, "called", note)
    with torch.no_grad(), capture(policy, lambda record: None):  # type: ignore[arg-type]
        model(torch.arange(12)[None])
    assert held == [1, 1, 1]


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_multihead_attention_gives_every_head_and_the_same_output(
    positional: bool, padding: bool
) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(16, 4).eval()
    q, k = torch.randn(3, 2, 16), torch.randn(5, 2, 16)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padding else None
    with torch.no_grad():
        given = (q, k, k, mask) if positional else (q, k, k)
        more = {} if positional else {"key_padding_mask": mask}
        plain, mean = module(*given, **more)
        handle = module.register_forward_pre_hook(weights_per_head, with_kwargs=True)
        output, weights = module(*given, **more)
        handle.remove()
    assert torch.equal(output, plain)
    assert weights.shape == (2, 4, 3, 5)
    torch.testing.assert_close(weights.mean(1), mean)
    if padding:
        assert not weights[1, ..., 3:].any()

"""Blocked attention: exactly zero, the rest as a softmax over the other keys, all undone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ingest_fixtures import LAYERS, STEPS, observe

from attnstore.ingest.capture import capture
from attnstore.ingest.policies.base import ATTENTION_ONLY
from attnstore.ingest.policies.blocking import Blocked
from attnstore.ingest.policies.pi0 import Pi0Policy
from attnstore.ingest.probing.forward import Forward
from attnstore.store.errors import HealthError, UsageError


def records(policy: Pi0Policy, blocked: list[list[Blocked]], **options: Any) -> tuple[Any, Any]:
    batch = policy.prepare([observe(i, **options) for i in range(len(blocked))])
    with capture(policy) as session, policy.blocking(blocked):
        actions = policy.act(batch)
    weights = {(r.phase, r.layer, r.step): r.weights for r in session.records}
    return weights, actions


def tokens(policy: Pi0Policy) -> dict[str, tuple[int, ...]]:
    layout = policy.prepare([observe(0)]).samples[0].layouts["prefix"]
    return {s.name: tuple(range(s.model_start, s.model_start + len(s))) for s in layout.key}


def test_blocked_weights_are_zero_and_the_others_a_softmax_without_them(policy: Pi0Policy) -> None:
    at = tokens(policy)
    query, key = at["task"], at["image:hand_camera"]
    base, _ = records(policy, [[]])
    found, _ = records(policy, [[Blocked("prefix", 0, query, key)]])
    first, blocked = base["prefix", 0, None][0], found["prefix", 0, None][0]
    assert float(first[:, query][:, :, key].min()) > 0
    assert float(blocked[:, query][:, :, key].max()) == 0
    kept = first.clone()
    kept[:, torch.tensor(query)[:, None], torch.tensor(key)] = 0
    expected = kept / kept.sum(-1, keepdim=True)
    np.testing.assert_allclose(blocked[:, query], expected[:, query], atol=1e-6)
    others = [i for i in range(first.shape[1]) if i not in query]
    assert torch.equal(blocked[:, others], first[:, others])
    assert (found["prefix", 1, None] != base["prefix", 1, None]).any()


def test_every_layer_and_step_and_only_that_sample(policy: Pi0Policy) -> None:
    at = tokens(policy)
    prefix = tuple(i for name in at if name != "state" for i in at[name])
    key = at["image:varied_camera_1"]
    blocks = [Blocked("suffix", n, tuple(range(1, 6)), key) for n in range(LAYERS)]
    assert len(prefix) > len(key)
    base, actions = records(policy, [[], []])
    found, changed = records(policy, [[], blocks])
    assert torch.equal(actions[0], changed[0])
    assert float((actions[1] - changed[1]).abs().max()) > 1e-3
    for layer in range(LAYERS):
        for step in range(STEPS):
            weights = found["suffix", layer, step]
            assert float(weights[1, :, 1:, list(key)].max()) == 0
            assert float(weights[1, :, 0, list(key)].min()) > 0
            np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
            assert torch.equal(weights[0], base["suffix", layer, step][0])


def test_all_is_undone_also_after_an_exception(policy: Pi0Policy) -> None:
    _, before = records(policy, [[]])
    batch = policy.prepare([observe(0)])
    block = Blocked("prefix", 0, (0,), (1,))
    with pytest.raises(KeyError), capture(policy), policy.blocking([[block]]):
        raise KeyError
    hooked = [m for m in policy.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooked == []
    assert torch.equal(policy.act(batch), policy.act(batch))
    assert torch.equal(records(policy, [[]])[1], before)


def test_a_query_with_nothing_left_is_refused(policy: Pi0Policy) -> None:
    at = tokens(policy)
    everything = tuple(i for indices in at.values() for i in indices)
    forward = Forward(policy, ATTENTION_ONLY)
    block = Blocked("prefix", 1, at["task"][:1], everything)
    with pytest.raises(HealthError, match="prefix layer 1: a query has nothing left to attend to"):
        forward.run(0, [observe(0)], [[block]])


@pytest.mark.parametrize(
    ("block", "error", "said"),
    [
        (Blocked("prefix", 9, (0,), (1,)), UsageError, "there is no prefix layer 9 to block"),
        (Blocked("suffix", 0, (99,), (1,)), HealthError, "query tokens to block, up to 99"),
        (Blocked("prefix", 0, (), (1,)), HealthError, "0 query tokens to block, up to none"),
    ],
)
def test_what_is_not_there_cannot_be_blocked(
    policy: Pi0Policy, block: Blocked, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Forward(policy, ATTENTION_ONLY).run(0, [observe(0)], [[block]])


def test_attention_that_is_left_is_noticed(policy: Pi0Policy) -> None:
    class Careless(Pi0Policy):
        def blocking(self, blocked: Any) -> Any:
            import contextlib

            return contextlib.nullcontext()

    careless = Careless.from_model(policy.model, policy.processor)
    block = Blocked("prefix", 0, (0,), (1,))
    with pytest.raises(HealthError, match="attention of .* is left where it is blocked"):
        Forward(careless, ATTENTION_ONLY).run(0, [observe(0)], [[block]])

"""Blocked attention in probes: the gate that holds it to zero, words as tokens, reused prefixes.

What every policy must keep whose attention can be blocked is in `blocking_contract`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_fixtures import LAYERS, observe

from attnstore.ingest.policies.base import ATTENTION_ONLY, Observation
from attnstore.ingest.policies.blocking import Blocked, block_multihead
from attnstore.ingest.policies.hooks import Watched
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.probing.forward import Forward, Ran
from attnstore.store.errors import HealthError


def tokens(policy: Pi0Policy) -> dict[str, tuple[int, ...]]:
    layout = policy.prepare([observe(0)]).samples[0].layouts["prefix"]
    return {s.name: tuple(range(s.model_start, s.model_start + len(s))) for s in layout.key}


def test_attention_that_is_left_is_noticed(policy: Pi0Policy) -> None:
    class Careless(Pi0Policy):
        def blocking(self, blocked: Any) -> Any:
            return contextlib.nullcontext()

    careless = Careless.from_model(policy.model, policy.processor)
    block = Blocked("prefix", 0, (0,), (1,))
    with pytest.raises(HealthError, match="attention of .* is left where it is blocked"):
        Forward(careless, ATTENTION_ONLY).run(0, [observe(0)], [[block]])


def test_nothing_to_block_is_said(policy: Pi0Policy) -> None:
    block = Blocked("prefix", 0, (), (1,))
    with pytest.raises(HealthError, match="0 query tokens to block, up to none"):
        Forward(policy, ATTENTION_ONLY).run(0, [observe(0)], [[block]])


class TestReusedPrefix:
    """Only the suffix changes: vision tower and language model need not run again."""

    def run(
        self,
        policy: Pi0Policy,
        blocked: Sequence[Sequence[Blocked]],
        *,
        reuse: bool,
        other: Observation | None = None,
    ) -> tuple[list[Ran], int, int]:
        """What ran, how often the vision tower did after the base, and what was reused."""
        sight = observe(3)
        forward = Forward(policy, ATTENTION_ONLY, maps=True, reuse=reuse)
        forward.run_base(0, sight)
        calls = []
        handle = policy.encoder().register_forward_hook(lambda *given: calls.append(1))
        try:
            found = forward.run(0, [other or sight for _ in blocked], blocked)
        finally:
            handle.remove()
        return found, len(calls), forward.reused

    def blocks(self, policy: Pi0Policy) -> list[Blocked]:
        key = tokens(policy)["image:hand_camera"]
        return [Blocked("suffix", layer, tuple(range(1, 6)), key) for layer in range(LAYERS)]

    def test_it_gives_the_same_bits(self, policy: Pi0Policy) -> None:
        blocked = [self.blocks(policy)]
        (plain,), ran, none = self.run(policy, blocked, reuse=False)
        (reused,), again, count = self.run(policy, blocked, reuse=True)
        assert (ran, none) == (1, 0)
        assert (again, count) == (0, 1)
        np.testing.assert_array_equal(reused.actions, plain.actions)
        assert reused.maps.keys() == plain.maps.keys()
        assert {place[0] for place in plain.maps} == {"prefix", "suffix"}
        for place, values in plain.maps.items():
            np.testing.assert_array_equal(reused.maps[place], values)

    def test_a_batch_of_variants_shares_one(self, policy: Pi0Policy) -> None:
        blocks = self.blocks(policy)
        blocked = [blocks, blocks[:1], []]
        plain, _, _ = self.run(policy, blocked, reuse=False)
        reused, _, count = self.run(policy, blocked, reuse=True)
        assert count == 3
        for one, other in zip(plain, reused, strict=True):
            np.testing.assert_allclose(one.actions, other.actions, atol=1e-5)
        assert abs(plain[0].actions - plain[1].actions).max() > 1e-3
        # what is kept stays what it was
        forward, sight = Forward(policy, ATTENTION_ONLY), observe(3)
        forward.run_base(0, sight)
        (first,) = forward.run(0, [sight], [blocks])
        forward.run(0, [sight] * 3, blocked)
        (again,) = forward.run(0, [sight], [blocks])
        np.testing.assert_array_equal(again.actions, first.actions)
        assert forward.reused == 5

    def test_not_where_prefix_or_observation_differ(self, policy: Pi0Policy) -> None:
        block = Blocked("prefix", 0, (0,), (1,))
        assert self.run(policy, [[block]], reuse=True)[2] == 0
        assert self.run(policy, [[]], reuse=True, other=observe(4))[1:] == (1, 0)

    def test_it_is_undone_after_an_exception(self, policy: Pi0Policy) -> None:
        sight, forward = observe(3), Forward(policy, ATTENTION_ONLY)
        base = forward.run_base(0, sight)
        everything = tuple(i for indices in tokens(policy).values() for i in indices)
        length = len(policy.prepare([sight]).inputs["input_ids"][0])
        own = tuple(range(length, length + policy.horizon + 1))
        with pytest.raises(HealthError, match="a query has nothing left"):
            forward.run(0, [sight], [[Blocked("suffix", 0, (1,), (*everything, *own))]])
        core = policy.model.model
        assert "embed_prefix" not in vars(core)
        assert "forward" not in vars(core.vlm)
        np.testing.assert_array_equal(forward.run_base(0, sight).actions, base.actions)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    first=st.booleans(),
    floating=st.booleans(),
    known=st.sampled_from(["none", "bool", "float"]),
)
def test_multihead_against_its_definition(
    seed: int, first: bool, floating: bool, known: str
) -> None:
    """Softmax of the masked scores, head by head, from the module's own projections."""
    floating = floating if known == "none" else known == "float"  # torch wants one type
    generator = torch.Generator().manual_seed(seed)
    heads, width, queries, keys = 2, 8, 3, 5
    module = torch.nn.MultiheadAttention(width, heads, batch_first=first).eval()
    query = torch.randn(2, queries, width, generator=generator)
    key = torch.randn(2, keys, width, generator=generator)
    shut = torch.rand(queries, keys, generator=generator) < 0.3
    shut[:, 0] = False
    given_mask = {
        "none": None,
        "bool": shut,
        "float": torch.zeros(queries, keys).masked_fill(shut, -torch.inf),
    }[known]
    padding = torch.tensor([[False] * keys, [False] * (keys - 1) + [True]])
    added = torch.zeros(2, keys).masked_fill(padding, -torch.inf)
    block = Blocked("prefix", 0, (0, 2), (1, 4))
    given = [x if first else x.transpose(0, 1) for x in (query, key)]
    watched = [Watched("prefix", 0, module)]
    with torch.no_grad(), block_multihead(watched, [[], [block]]):
        _, found = module(
            *given, given[1], key_padding_mask=added if floating else padding,
            attn_mask=given_mask, average_attn_weights=False,
        )  # fmt: skip
        q_weight, k_weight, _ = module.in_proj_weight.chunk(3)
        q_bias, k_bias, _ = module.in_proj_bias.chunk(3)
        q = (query @ q_weight.T + q_bias).reshape(2, queries, heads, -1).transpose(1, 2)
        k = (key @ k_weight.T + k_bias).reshape(2, keys, heads, -1).transpose(1, 2)
        scores = q @ k.transpose(-1, -2) / (width // heads) ** 0.5
    scores = scores.masked_fill(padding[:, None, None], -torch.inf)
    if known != "none":
        scores = scores.masked_fill(shut, -torch.inf)
    for row in block.query:
        scores[1, :, row, list(block.key)] = -torch.inf
    np.testing.assert_allclose(found, scores.softmax(-1), atol=1e-6)
    assert not module._forward_pre_hooks

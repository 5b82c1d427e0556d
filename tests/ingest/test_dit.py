"""Heads made of diffusers' ``Attention``: against a softmax of our own, under every kind of processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from blocking_contract import BlockingContract
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
)
from dit_policy import DitPolicy
from ingest_fixtures import observe
from numpy.typing import NDArray
from policy_contract import Captured, Case

from attnstore.ingest.capture import capture
from attnstore.ingest.policies.base import Watch
from attnstore.ingest.policies.dit import AttentionTap, DitHead, DitLayout
from attnstore.ingest.policies.values import ValueNorms
from attnstore.store.errors import HealthError, UsageError

HEADS, WIDTH, QUERIES, KEYS = 3, 12, 5, 7


class Kernel:
    """A processor with a kernel of its own, as xFormers' is: no weights, no function of torch's."""

    turned = False

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None,
        attention_mask: Any = None,
    ) -> Any:  # fmt: skip
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(part)
            for part in (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        )
        if self.turned:  # as rotary embeddings do, which no hook on to_q sees
            query = query.roll(1, -1)
        mask = attn.prepare_attention_mask(attention_mask, source.shape[1], len(source))
        scores = torch.einsum("bqd,bkd->bqk", query, key) * attn.scale
        if mask is not None:
            mask = mask.view(len(scores), -1, source.shape[1])
            if mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
            scores = scores + mask
        exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
        mixed = torch.einsum("bqk,bkd->bqd", exponentials, value) / exponentials.sum(
            -1, keepdim=True
        )
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(mixed)))


class Turned(Kernel):
    turned = True


def make(processor: Any, *, crosses: bool = False, **options: Any) -> Any:
    torch.manual_seed(1)
    build: Any = Attention
    module = build(
        WIDTH, cross_attention_dim=8 if crosses else None, heads=HEADS, dim_head=4, bias=True,
        processor=processor, **options,
    ).eval()  # fmt: skip
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape)
    if isinstance(processor, FusedAttnProcessor2_0):
        module.fuse_projections()
    return module


def new(kind: Any) -> Any:
    """A processor; diffusers' have no types."""
    return kind()


def oracle(module: Any, x: Any, y: Any, added: NDArray[Any]) -> NDArray[Any]:
    """The definition, in float64, from the module's weights; `added` to the scores."""

    def split(linear: Any, given: Any, norm: Any) -> NDArray[Any]:
        weight, bias = linear.weight.double().numpy(), linear.bias.double().numpy()
        made = (given.double().numpy() @ weight.T + bias).reshape(*given.shape[:2], HEADS, -1)
        if norm is not None:
            made = made - made.mean(-1, keepdims=True)
            made = made / np.sqrt(made.var(-1, keepdims=True) + norm.eps)
            made = made * norm.weight.double().numpy() + norm.bias.double().numpy()
        return np.asarray(made.transpose(0, 2, 1, 3))

    with torch.no_grad():
        query, key = split(module.to_q, x, module.norm_q), split(module.to_k, y, module.norm_k)
    scores = query @ key.transpose(0, 1, 3, 2) * module.scale + added
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


@torch.no_grad()
def tapped(module: Any, **given: Any) -> tuple[Any, Any]:
    """A module's output, and its weights."""
    tap = AttentionTap()
    with tap.over([module]):
        output = module(**given)
        return output, tap.weights(module)(output)


@pytest.mark.parametrize(
    "processor",
    [AttnProcessor2_0, AttnProcessor, lambda: SlicedAttnProcessor(2), Kernel, FusedAttnProcessor2_0],
)  # fmt: skip
@pytest.mark.parametrize("crosses", [False, True])
@pytest.mark.parametrize("kind", [None, "bool", "added"])
def test_weights_are_the_softmax_and_the_output_is_untouched(
    processor: Callable[[], Any], crosses: bool, kind: str | None
) -> None:
    module = make(processor(), crosses=crosses)
    x = torch.randn(2, QUERIES, WIDTH)
    y = torch.randn(2, KEYS, 8) if crosses else x
    keys = y.shape[1]
    open_ = torch.rand(2, 1, keys) > 0.4
    open_[..., 0] = True
    added = np.zeros((2, 1, 1, keys))
    given: dict[str, Any] = {"hidden_states": x, "encoder_hidden_states": y if crosses else None}
    if kind == "bool":
        if isinstance(module.processor, AttnProcessor | SlicedAttnProcessor):
            return  # diffusers adds the mask to the scores there
        given["attention_mask"] = open_[:, 0]
        added = np.where(open_.numpy()[:, None], 0, -np.inf)
    elif kind == "added":
        bias = torch.randn(2, 1, keys)
        given["attention_mask"] = bias
        added = bias.double().numpy()[:, None]
    with torch.no_grad():
        wanted = module(**given)
    output, weights = tapped(module, **given)
    assert torch.equal(output, wanted)
    np.testing.assert_allclose(weights.numpy(), oracle(module, x, y, added), atol=2e-6)


def test_normed_queries_and_keys_are_those_of_the_softmax() -> None:
    module = make(new(AttnProcessor2_0), qk_norm="layer_norm")
    x = torch.randn(2, QUERIES, WIDTH)
    _, weights = tapped(module, hidden_states=x)
    np.testing.assert_allclose(weights.numpy(), oracle(module, x, x, np.zeros(1)), atol=2e-6)


def test_a_processor_that_does_something_else_is_refused() -> None:
    x = torch.randn(2, QUERIES, WIDTH)
    with pytest.raises(HealthError, match=r"Turned makes something else .* set_processor"):
        tapped(make(Turned()), hidden_states=x)
    with pytest.raises(HealthError, match="shows neither its weights"):
        tapped(make(Kernel(), qk_norm="layer_norm"), hidden_states=x)


class DitContract(BlockingContract):
    """The adapter is one class: styles differ in their layouts."""

    style: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> Case:
        policy = DitPolicy(cls.style)
        sights = (observe(1, "put the red cube away"), observe(2, "wipe"))
        return Case(
            policy, sights, module=policy.model, reference=lambda b: list(policy.chunks(b))[-1],
            euler=lambda b: list(policy.chunks(b)),
        )  # fmt: skip


class TestTurns(DitContract):
    style = "turns"

    def test_text_images_and_its_own_tokens_in_turn(self, captured: Captured) -> None:
        names = ("image:hand_camera", "task", "action")
        for _, layer, _, weights, _ in captured.records:
            spans = {s.name: s for s in captured.batch.samples[0].layouts["suffix"].key}
            at = {n: spans[n].model_start for n in names}
            mass = [weights[0, ..., at[n] : at[n] + len(spans[n])].sum() > 0 for n in names]
            assert mass == [
                [False, True, False], [False, False, True], [True, False, False],
                [False, False, True],
            ][layer]  # fmt: skip


class TestQueries(DitContract):
    style = "queries"


class TestLayerwise(DitContract):
    style = "layerwise"


class TestLayout:
    def run(self, policy: DitPolicy, watch: Watch = Watch()) -> None:  # noqa: B008
        batch = policy.prepare([observe(1)])
        with capture(policy, lambda record: None, watch=watch):
            policy.act(batch)

    def test_a_layout_that_is_not_the_heads_is_refused(self) -> None:
        policy = DitPolicy("turns")
        modules = [block.attn1 for block in policy.blocks]
        policy._head = DitHead(
            DitLayout("suffix", ("context", "context", "context", "own")), modules, ValueNorms()
        )
        with pytest.raises(HealthError, match="suffix layer 1 attends to its own tokens; its"):
            self.run(policy)
        with pytest.raises(UsageError, match="the layout has 1 blocks, the head 4"):
            DitHead(DitLayout("suffix", ("own",)), modules, ValueNorms())

    def test_a_context_of_another_length_is_refused(self) -> None:
        policy = DitPolicy("turns")
        policy._head.expect = lambda context: None  # type: ignore[method-assign]
        with pytest.raises(HealthError, match=r"attends to 24 tokens; to 0, its context"):
            self.run(policy)

    def test_projections_that_are_fused_give_no_value_norms(self) -> None:
        policy = DitPolicy("turns")
        policy.blocks[1].attn1.to_out[0] = torch.nn.Identity()
        with pytest.raises(UsageError, match=r"to_out .* suffix layer 1.*--no-values"):
            self.run(policy, Watch(values=True))

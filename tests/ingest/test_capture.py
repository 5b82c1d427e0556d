"""Capture over an unmodified Pi0: what it sees, that it changes nothing, that it leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from ingest_fixtures import CHUNK, LAYERS, STEPS, observe
from policy_contract import state_of

from attnstore.ingest.capture import Record, capture
from attnstore.ingest.policies.base import Batch
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.tiny import build_tiny_pi0
from attnstore.store.errors import HealthError

Key = tuple[str, int, int | None]


@pytest.fixture
def batch(policy: Pi0Policy) -> Batch:
    return policy.prepare([observe(1), observe(2)])


def tiny() -> Any:
    """The same weights as the checkpoint fixture, in a model of its own."""
    return build_tiny_pi0(layers=LAYERS, steps=STEPS, chunk=CHUNK)[0]


def make_eager(model: Any) -> Any:
    model.model.vlm.language_model.set_attn_implementation("eager")
    model.model.dit.set_attn_implementation("eager")
    return model


def sample(model: Any, batch: Batch) -> torch.Tensor:
    actions = model.sample_actions(**batch.inputs, num_steps=STEPS)
    assert isinstance(actions, torch.Tensor)
    return actions


def hooked_eager_run(
    batch: Batch,
) -> tuple[torch.Tensor, list[tuple[Key, torch.Tensor]], list[torch.Tensor]]:
    """Actions, weights and every step's noisy actions, by hooks written here and nothing else."""
    model = make_eager(tiny())
    weights: list[tuple[Key, torch.Tensor]] = []
    noisy: list[torch.Tensor] = []
    step = -1

    def keep(phase: str, layer: int, module: Any, args: Any, output: Any) -> None:
        weights.append(((phase, layer, None if phase == "prefix" else step), output[1].clone()))

    def embed(module: Any, args: Any) -> None:
        nonlocal step
        step += 1
        noisy.append(args[1].clone())

    for i, layer in enumerate(model.model.vlm.language_model.layers):
        layer.self_attn.register_forward_hook(partial(keep, "prefix", i))
    for i, layer in enumerate(model.model.dit.layers):
        layer.self_attn.register_forward_hook(partial(keep, "suffix", i))
    model.embed_action_time.register_forward_pre_hook(embed)
    return sample(model, batch), weights, noisy


def keys(records: list[Record]) -> list[Key]:
    return [(r.phase, r.layer, r.step) for r in records]


def expected(layers: int, steps: int) -> list[Key]:
    prefix: list[Key] = [("prefix", layer, None) for layer in range(layers)]
    return prefix + [("suffix", layer, step) for step in range(steps) for layer in range(layers)]


EXPECTED = expected(LAYERS, STEPS)


def test_actions_are_bitwise_those_of_the_eager_model(policy: Pi0Policy, batch: Batch) -> None:
    eager = sample(make_eager(tiny()), batch)
    with capture(policy) as session:
        captured = policy.act(batch)
        noisy = list(session.noisy_actions)
    with capture(policy, lambda record: None) as session:
        again = policy.act(batch)
    assert captured.shape == (2, 5, 32)
    assert torch.equal(captured, eager)
    assert torch.equal(captured, again)
    _, _, wanted = hooked_eager_run(batch)
    assert len(noisy) == len(wanted) == STEPS
    assert torch.equal(noisy[0], batch.inputs["noise"])
    assert all(torch.equal(a, b) for a, b in zip(noisy, wanted, strict=True))


def test_records_are_the_eager_models_weights(policy: Pi0Policy, batch: Batch) -> None:
    with capture(policy) as session:
        policy.act(batch)
    _, wanted, _ = hooked_eager_run(batch)
    assert keys(session.records) == EXPECTED == [key for key, _ in wanted]
    assert session.counts == {"prefix": LAYERS, "suffix": LAYERS * STEPS}
    assert session.encoded_images == 4
    for record, (_, weights) in zip(session.records, wanted, strict=True):
        assert torch.equal(record.weights, weights)
        assert not record.weights.requires_grad
    prefix, suffix = session.records[0].weights, session.records[-1].weights
    assert suffix.shape == (2, 8, 1 + 5, prefix.shape[-1] + 1 + 5)
    # the state's row never sees the actions
    assert not suffix[:, :, 0, prefix.shape[-1] + 1 :].any()


def test_each_act_under_one_with_starts_at_step_0(policy: Pi0Policy, batch: Batch) -> None:
    with capture(policy) as session:
        first = policy.act(batch)
        second = policy.act(batch)
        assert keys(session.records) == EXPECTED * 2
        assert len(session.noisy_actions) == 2 * STEPS
        session.reset()
        assert (session.records, session.counts, session.encoded_images) == ([], {}, 0)
        third = policy.act(batch)
        assert keys(session.records) == EXPECTED
        assert len(session.noisy_actions) == STEPS
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_a_sink_gets_records_as_they_arrive_and_nothing_is_kept(
    policy: Pi0Policy, batch: Batch
) -> None:
    seen: list[Key] = []
    depth: list[int] = []

    def sink(record: Record) -> None:
        seen.append((record.phase, record.layer, record.step))
        depth.append(len(session.records))

    with capture(policy, sink) as session:
        policy.act(batch)
    assert seen == EXPECTED
    assert set(depth) == {0}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_nothing_is_left_behind(policy: Pi0Policy, batch: Batch, implementation: str) -> None:
    model = tiny()
    model.set_attn_implementation(implementation)
    ours = Pi0Policy.from_model(model, policy.processor)
    with capture(ours):  # transformers registers what it needs at the first call
        ours.act(batch)
    before = state_of(model)
    assert {a for a, _ in before["attention"]} == {implementation}
    with capture(ours):
        during = state_of(model)
        ours.act(batch)
    assert state_of(model) == before
    changed = {key for key in before if before[key] != during[key]}
    assert changed == ({"hooks", "stance"} | ({"attention"} if implementation == "sdpa" else set()))
    vision = model.model.vlm.vision_tower.config
    assert vision._attn_implementation == implementation

    with pytest.raises(ZeroDivisionError), capture(ours):
        ours.act(batch)
        1 / 0  # noqa: B018
    assert state_of(model) == before

    def fail(record: Record) -> None:
        if record.step == 1:
            raise RuntimeError("the sink is full")

    with pytest.raises(RuntimeError, match="the sink is full"), capture(ours, fail):
        ours.act(batch)
    assert state_of(model) == before

    model.model.dit.layers[0].self_attn.register_forward_hook(lambda m, a, o: (o[0], None))
    with (
        pytest.raises(HealthError, match="suffix layer 0.* returned no .*not eager"),
        capture(ours),
    ):
        ours.act(batch)
    model.model.dit.layers[0].self_attn._forward_hooks.clear()
    assert state_of(model) == before


def test_gradients_and_random_numbers_are_the_callers(policy: Pi0Policy, batch: Batch) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.enable_grad(), capture(policy) as session:
        assert torch.is_grad_enabled()
        policy.act(batch)
        assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(r.weights.requires_grad for r in session.records)


def _sample(model: Any, batch: Batch) -> None:
    model.sample_actions(**batch.inputs)


def _forward(model: Any, batch: Batch) -> None:
    model(timestep=torch.ones(len(batch)), **batch.inputs)


def _attribute(model: Any) -> Any:
    model.sample_actions = torch.compile(model.sample_actions, backend="eager")
    return model


def _in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def _wrapper(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def _submodule(model: Any) -> Any:
    model.model.dit = torch.compile(model.model.dit, backend="eager")
    return model


def _layers(model: Any) -> Any:
    for layer in model.model.vlm.language_model.layers:
        layer.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("compiled", "call"),
    [
        (_attribute, _sample),
        (_in_place, _sample),
        (_wrapper, _forward),
        (_submodule, _sample),
        (_layers, _sample),
    ],
)
def test_compiled_models(
    policy: Pi0Policy,
    compiled: Callable[[Any], Any],
    call: Callable[[Any, Batch], None],
) -> None:
    """A model that ran compiled before is captured uncompiled, and is compiled again afterwards."""
    model = make_eager(build_tiny_pi0(layers=1, steps=2, chunk=2)[0])
    ours = Pi0Policy.from_model(model, policy.processor)
    batch = ours.prepare([observe(1)])
    eager = ours.act(batch)
    try:
        ours = Pi0Policy.from_model(compiled(model), policy.processor)
        counters = torch._dynamo.utils.counters
        counters.clear()
        with torch.no_grad():
            call(ours.model, batch)
        frames = counters["frames"]["ok"]
        assert frames > 0, "nothing was compiled"
        with capture(ours) as session:
            captured = ours.act(batch)
        assert keys(session.records) == expected(layers=1, steps=2)
        assert torch.equal(captured, eager)
        assert counters["frames"]["ok"] == frames
        # compiled code may fuse and reorder, so it is only close
        torch.testing.assert_close(ours.act(batch), eager)
        ran = _count_compiled_calls(ours, batch, call)
        assert ran > 0, "it is not compiled any more"
    finally:
        torch._dynamo.reset()


def _count_compiled_calls(
    policy: Pi0Policy, batch: Batch, call: Callable[[Any, Batch], None]
) -> int:
    """Whether compiled code still runs: the compiler refuses to compile anew, and is not asked."""
    with torch.no_grad(), torch.profiler.profile() as profile:
        call(policy.model, batch)
    return sum("Torch-Compiled Region" in e.key for e in profile.key_averages())

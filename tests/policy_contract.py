"""What every policy adapter must keep: tests to inherit, for any `Policy` and some observations.

::

    class TestContract(PolicyContract):
        @pytest.fixture(scope="class")
        @classmethod
        def case(cls, loaded: Pi0Policy) -> Case:
            return Case(loaded, (observe(1), observe(2)), module=loaded.model)

Two observations make one batch; they should differ in pictures, state, instruction and seed. The
module imports neither torch nor transformers, so that a policy of another framework can use it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from droid_sample import sample_path
from ingest_fixtures import arrays_of, commits, make_job, problems
from numpy.typing import NDArray

from attnstore.ingest.capture import Record, Session, capture
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.health import ROW_TOLERANCE
from attnstore.ingest.keyframes import observation
from attnstore.ingest.policies.base import Batch, Observation, Policy
from attnstore.ingest.views import keyframe_views
from attnstore.query import Episode
from attnstore.store.commits.part import Part
from attnstore.store.format.axes import STEPPED_PHASES
from attnstore.store.format.generated import at_step
from attnstore.store.format.naming import default_group
from attnstore.store.format.tokens import Axis, TokenLayout


def sample_episode() -> DroidDataset:
    """The first of the packaged sample's episodes: 25 frames of 640x360."""
    return DroidDataset(sample_path(), limit=1)


@dataclass(frozen=True)
class Case:
    """A policy under the contract."""

    policy: Policy
    observations: tuple[Observation, ...]
    """At most as many as the policy takes in a batch; the first is also used alone."""
    module: Any = None
    """The root ``torch.nn.Module``, whose state is compared before and after."""
    reference: Callable[[Batch], Any] | None = None
    """Actions of the eager model by a way that shares no code with the adapter's context; None
    takes the adapter's own `act`, inside its ``eager()`` if it has one, without any hook."""
    euler: Callable[[Batch], Sequence[Any]] | None = None
    """The chunk after each denoising step, (batch, horizon, action_dof), by a loop of the tests' own
    over the eager model's velocities, nothing hooked. Needed where the policy shows its steps."""
    seeded: bool = True
    """Whether the actions depend on the seed."""
    every_key_attended: bool = True
    """Whether each valid key gets some attention; not so where valid tokens are masked."""
    dataset: Callable[[], Any] = field(default=sample_episode)
    """An episode that the policy takes; 2 keyframes of it are ingested."""


def check_masses(episode: Episode) -> None:
    """Every name in ``head_stats.mass`` is a name that ``key=`` takes, and yields that number."""
    rows = episode.part.table("head_stats").to_pylist()
    assert rows
    seen: dict[tuple[Any, ...], NDArray[Any]] = {}
    for row in rows:
        phase = f"vision/{row['camera']}" if row["phase"] == "vision" else row["phase"]
        for name, mass in row["mass"]:
            at = (phase, row["query_group"], name, row["keyframe"])
            if at not in seen:
                weights = episode.attention(
                    phase, query=row["query_group"], key=name, keyframe=row["keyframe"]
                ).values.astype(np.float64)
                there = ~np.isnan(weights)
                sums = np.nansum(weights, -1).sum(-1) / there.any(-1).sum(-1).clip(1)
                seen[at] = sums if row["step"] is not None else sums[None]
            found = seen[at][row["step"] or 0, row["layer"], row["head"]]
            assert mass == pytest.approx(found, abs=1e-3), (at, row["layer"], row["head"])
        assert sum(mass for _, mass in row["mass"]) == pytest.approx(1, abs=3e-3)


@dataclass(frozen=True)
class Captured:
    """One captured call."""

    batch: Batch
    actions: NDArray[Any]
    records: tuple[tuple[str, int, int | None, NDArray[Any], str], ...]
    """(phase, layer, step, weights, data type)."""
    session: Session


def as_array(values: Any) -> NDArray[Any]:
    """A tensor or an array of any framework, copied; bfloat16 becomes float32, which is exact."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if "bfloat16" in str(values.dtype) else values).numpy()
    return np.array(values)


def run_captured(policy: Policy, batch: Batch) -> Captured:
    """Act once under capture, every record kept."""
    records = []

    def keep(record: Record) -> None:
        dtype = str(record.weights.dtype).removeprefix("torch.")
        weights = as_array(record.weights)
        records.append((record.phase, record.layer, record.step, weights, dtype))

    with capture(policy, keep) as session:
        actions = as_array(policy.act(batch))
    return Captured(batch, actions, tuple(records), session)


def plain_eager(policy: Policy, batch: Batch) -> Any:
    """Actions of the eager model without capture."""
    eager: Callable[[], Any] = getattr(policy, "eager", nullcontext)
    with eager():
        return policy.act(batch)


def expected_records(policy: Policy) -> set[tuple[str, int, int | None]]:
    """Phase, layer and step of every record that the policy promises."""
    return {
        (phase, layer, step)
        for phase, shape in policy.phases.items()
        for layer in range(shape.layers)
        for step in (range(shape.steps) if shape.steps is not None else (None,))
    }


def model_indices(axis: Axis) -> list[int]:
    """Where an axis' valid tokens stand in the model's own sequence."""
    return [i for part in axis.model_slices for i in range(part.start, part.stop)]


def valid_weights(weights: NDArray[Any], row: int, layout: TokenLayout) -> NDArray[Any]:
    """One sample's weights without padding, (head, query, key)."""
    queries, keys = model_indices(layout.query), model_indices(layout.key)
    return np.asarray(weights[row][:, queries][:, :, keys])


def state_of(module: Any) -> dict[str, Any]:
    """Everything in a process that a capture could leave behind."""
    state: dict[str, Any] = {"numpy": np.random.get_state()[1].tolist()}  # type: ignore[index]  # noqa: NPY002
    torch = sys.modules.get("torch")
    if torch is not None:
        functional = torch.nn.functional
        state |= {
            "functions": [functional.scaled_dot_product_attention, functional.softmax, torch.matmul,
                          functional.multi_head_attention_forward],
            "modes": torch._C._len_torch_function_stack(),
            "stance": torch._dynamo.eval_frame._stance,
            "grad": torch.is_grad_enabled(),
            "rng": torch.get_rng_state().tolist(),
            "dtype": torch.get_default_dtype(),
            "global hooks": len(torch.nn.modules.module._global_forward_hooks)
            + len(torch.nn.modules.module._global_forward_pre_hooks),
        }  # fmt: skip
    if "transformers.modeling_utils" in sys.modules:
        registry = sys.modules["transformers.modeling_utils"].ALL_ATTENTION_FUNCTIONS
        state["registered"] = sorted((name, id(registry[name])) for name in registry.valid_keys())
    if module is not None:
        state |= _module_state(module)
    return state


def _module_state(module: Any) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
             "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_forward_hooks_always_called")  # fmt: skip
    modules = list(module.modules())
    return {
        "hooks": [[list(getattr(m, h)) for h in hooks] for m in modules],
        "patched": [sorted(k for k, v in vars(m).items() if callable(v)) for m in modules],
        "classes": {type(m): type(m).forward for m in modules},
        "attention": [
            (c._attn_implementation, c._attn_implementation_internal)
            for c in configurations(module)
        ],
        "training": [m.training for m in modules],
    }


def configurations(module: Any) -> list[Any]:
    """Every transformers configuration below a module, each once."""
    found = {}
    for config in (getattr(m, "config", None) for m in module.modules()):
        if hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    for config in list(found.values()):
        for name in getattr(config, "sub_configs", {}):
            found[id(getattr(config, name))] = getattr(config, name)
    return list(found.values())


class PolicyContract:
    """Inherit, and define the fixture `case`, of scope class."""

    @pytest.fixture(scope="class")
    @classmethod
    def captured(cls, case: Case) -> Captured:
        """One captured call over all observations."""
        return run_captured(case.policy, case.policy.prepare(case.observations))

    @pytest.fixture(autouse=True)
    def _left_as_it_was(self, case: Case, captured: Captured) -> Iterator[None]:
        # After the first call: libraries register what they need, and openpi forces eager.
        before = state_of(case.module)
        yield
        assert state_of(case.module) == before

    def test_actions_are_bitwise_those_of_the_eager_model(
        self, case: Case, captured: Captured
    ) -> None:
        policy, batch = case.policy, captured.batch
        wanted = as_array((case.reference or (lambda b: plain_eager(policy, b)))(batch))
        assert captured.actions.shape == (len(batch), policy.horizon, policy.action_dof)
        assert np.isfinite(captured.actions).all()
        np.testing.assert_array_equal(captured.actions, wanted)
        np.testing.assert_array_equal(run_captured(policy, batch).actions, wanted)
        np.testing.assert_array_equal(as_array(plain_eager(policy, batch)), wanted)

    def test_the_same_seed_gives_the_same_actions(self, case: Case) -> None:
        one = case.observations[0]

        def act(sight: Observation) -> NDArray[Any]:
            return as_array(plain_eager(case.policy, case.policy.prepare([sight])))

        first = act(one)
        np.testing.assert_array_equal(first, act(replace(one, images=dict(one.images))))
        if case.seeded:
            assert (first != act(replace(one, seed=one.seed + 1))).any()

    def test_every_record_arrives_once_and_in_order(self, case: Case, captured: Captured) -> None:
        found = [(phase, layer, step) for phase, layer, step, _, _ in captured.records]
        assert len(found) == len(set(found))
        assert set(found) == expected_records(case.policy)
        counted = {p: sum(phase == p for phase, _, _ in found) for p in case.policy.phases}
        assert captured.session.counts == counted
        for phase in case.policy.phases:
            order = [(s or 0, layer) for name, layer, s in found if name == phase]
            assert order == sorted(order)
            assert (phase in STEPPED_PHASES) == (case.policy.phases[phase].steps is not None)
        if case.policy.watches_encoder:
            cameras = sum(len(s.geometry) for s in captured.batch.samples)
            assert captured.session.encoded_images >= cameras

    def test_the_layout_is_what_is_attended_to_and_rows_sum_to_1(
        self, case: Case, captured: Captured
    ) -> None:
        for row, sample in enumerate(captured.batch.samples):
            assert set(sample.layouts) == set(case.policy.phases)
            attended: dict[str, NDArray[Any]] = {}
            for phase, layer, step, weights, dtype in captured.records:
                layout = at_step(sample.layouts[phase], step)
                shape = case.policy.phases[phase]
                queries, keys = model_indices(layout.query), model_indices(layout.key)
                assert weights.shape[:2] == (len(captured.batch), shape.heads)
                assert queries == sorted(set(queries))
                assert keys == sorted(set(keys))
                assert (len(queries), len(keys)) == (len(layout.query), len(layout.key))
                assert queries[-1] < weights.shape[2]
                assert keys[-1] < weights.shape[3]
                # What valid tokens attend to is on the axis: the rest is padding.
                rows = weights[row][:, queries].astype(np.float64)
                outside = np.delete(rows, keys, axis=-1)
                assert not outside.any(), (phase, layer, step)
                tolerance = ROW_TOLERANCE.get(dtype, 4e-3)
                np.testing.assert_allclose(rows.sum(-1), 1, atol=tolerance, err_msg=f"{phase}")
                assert (rows >= 0).all()
                most = np.zeros(len(sample.layouts[phase].key))
                most[: len(keys)] = rows[:, :, keys].max(axis=(0, 1))
                attended[phase] = np.maximum(attended.get(phase, most), most)
            if case.every_key_attended:
                assert all((most > 0).all() for most in attended.values())

    def test_every_token_has_its_place(self, case: Case, captured: Captured) -> None:
        for sample, sight in zip(captured.batch.samples, case.observations, strict=True):
            for layout in sample.layouts.values():
                for axis in (layout.query, layout.key):
                    assert axis.spans[0].start == 0
                    for span in axis:
                        assert all(token.text for token in span.tokens), span
                        if span.camera is not None:
                            geometry = sample.geometry[span.camera]
                            assert geometry.grid == span.grid
                            assert geometry.source == sight.images[span.camera].shape[:2]
                groups = case.policy.phases[layout.phase].query_groups
                assert groups[0] == default_group(groups), "maps and comparisons name one group"
                assert all(layout.query.group(group) for group in groups)

    def test_an_observation_has_one_layout_alone_or_in_a_batch(
        self, case: Case, captured: Captured
    ) -> None:
        alone = case.policy.prepare(case.observations[:1]).samples[0]
        together = captured.batch.samples[0]
        assert alone.geometry == together.geometry
        for phase, layout in alone.layouts.items():
            other = together.layouts[phase]
            for one, two in ((layout.query, other.query), (layout.key, other.key)):
                # Padding depends on the batch, so positions in the model's sequence may too.
                assert [replace(s, model_start=0) for s in one] == [
                    replace(s, model_start=0) for s in two
                ]

    def test_it_is_left_as_it_was_after_an_exception(self, case: Case, captured: Captured) -> None:
        before = state_of(case.module)
        stop = len(captured.records) // 2
        seen = 0

        def fail(record: Record) -> None:
            nonlocal seen
            seen += 1
            if seen > stop:
                raise RuntimeError("the sink is full")

        with pytest.raises(RuntimeError, match="the sink is full"), capture(case.policy, fail):
            case.policy.act(captured.batch)
        assert seen == stop + 1
        assert state_of(case.module) == before
        with pytest.raises(ZeroDivisionError), capture(case.policy):
            1 / 0  # noqa: B018
        assert state_of(case.module) == before
        again = run_captured(case.policy, captured.batch)
        np.testing.assert_array_equal(again.actions, captured.actions)

    def test_attention_implementations_are_put_back(self, case: Case, captured: Captured) -> None:
        """Set to sdpa first: a capture that leaves eager behind could not be told otherwise."""
        configs = [] if case.module is None else configurations(case.module)
        # Whole: where nothing was ever set, transformers keeps None and answers with a default.
        before = [dict(vars(config)) for config in configs]
        try:
            for config in configs:
                config._attn_implementation = "sdpa"
            run_captured(case.policy, captured.batch)
            assert [config._attn_implementation for config in configs] == ["sdpa"] * len(configs)
        finally:
            for config, attributes in zip(configs, before, strict=True):
                vars(config).update(attributes)

    def test_an_ingest_reads_back_as_a_direct_capture(self, case: Case, ram_path: Path) -> None:
        policy, dataset = case.policy, case.dataset()
        name = dataset.episode_names()[0]
        info = dataset.info(name)
        stride = (info.frames + 1) // 2
        job = make_job(ram_path / "store", policy, dataset, stride=stride)
        ingest_episode(job, policy, dataset, name)
        assert problems(ram_path / "store") == []
        part = Part(job.paths, commits(ram_path / "store")[name])
        stored = arrays_of(part)
        assert part.spec.frames == (0, stride)
        views = keyframe_views(dataset, info, part.spec.frames, policy)
        for keyframe, frame in enumerate(views):
            wanted = run_captured(policy, policy.prepare([observation(frame, info, 0)]))
            for phase, layer, step, weights, _ in wanted.records:
                layout = at_step(wanted.batch.samples[0].layouts[phase], step)
                spec = part.spec.phases[phase]
                where = (keyframe, layer) if step is None else (keyframe, step, layer)
                block = stored[f"{phase}/attention"][where].copy()
                ours = valid_weights(weights, 0, layout).astype(np.float16)
                for row, query in spec.query.place(layout.query):
                    for column, key in spec.key.place(layout.key):
                        np.testing.assert_array_equal(block[:, row, column], ours[:, query, key])
                        block[:, row, column] = np.nan
                assert np.isnan(block).all()  # what a keyframe lacks is NaN
            if policy.horizon:
                np.testing.assert_array_equal(stored["policy/actions"][keyframe], wanted.actions[0])
            np.testing.assert_array_equal(stored["policy/state"][keyframe], frame.state)
            assert ("policy/denoising" in stored) == policy.denoiser_steps
            if policy.denoiser_steps:
                assert case.euler is not None
                denoising = stored["policy/denoising"][keyframe]
                steps = [as_array(chunk)[0] for chunk in case.euler(wanted.batch)]
                np.testing.assert_array_equal(denoising, steps)
                np.testing.assert_array_equal(denoising[-1], wanted.actions[0])
        check_masses(Episode(part))

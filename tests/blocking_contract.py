"""What a policy must keep whose attention can be blocked, beside `policy_contract.PolicyContract`.

The oracle is the unblocked capture: a softmax over the keys that are left is the base's weights on
them, divided by their sum. It holds wherever the scores are the base's: in the first layer that is
blocked, in the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from policy_contract import (
    Captured,
    Case,
    PolicyContract,
    as_array,
    model_indices,
    state_of,
)

from attnstore.ingest.capture import Record, capture
from attnstore.ingest.policies.base import Batch
from attnstore.ingest.policies.blocking import Blocked, BlockingPolicy
from attnstore.store.errors import HealthError, UsageError
from attnstore.store.format.generated import at_step
from attnstore.store.format.tokens import TokenLayout

ROUNDING = {"float32": 2e-6, "bfloat16": 2**-8, "float16": 2**-10}
Place = tuple[str, int, int | None]


@dataclass(frozen=True)
class Ran:
    """One captured call with something blocked."""

    actions: NDArray[Any]
    weights: dict[Place, NDArray[Any]]
    generated: list[Any]


def run_blocked(case: Case, batch: Batch, blocked: Sequence[Sequence[Blocked]]) -> Ran:
    """Act once under capture with some attention blocked."""
    assert isinstance(case.policy, BlockingPolicy)
    weights: dict[Place, NDArray[Any]] = {}

    def keep(record: Record) -> None:
        weights[record.phase, record.layer, record.step] = as_array(record.weights)

    with capture(case.policy, keep) as session, case.policy.blocking(blocked):
        actions = as_array(case.policy.act(batch))
    return Ran(actions, weights, list(session.generated))


def sight(layout: TokenLayout, group: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Queries of a group, and the tokens of the last image, in the model's own sequence."""
    spans = [s for s in layout.query if group in (s.kind, s.name)]
    query = [i for s in spans for i in range(s.model_start, s.model_start + len(s))]
    image = [s for s in layout.key if s.camera is not None][-1]
    return tuple(query), tuple(range(image.model_start, image.model_start + len(image)))


class BlockingContract(PolicyContract):
    """Inherit instead of `PolicyContract`; the second of two observations is blocked."""

    def test_blocked_weights_are_zero_and_the_others_a_softmax_without_them(
        self, case: Case, captured: Captured
    ) -> None:
        base = {(p, n, s): w for p, n, s, w, _ in captured.records}
        dtypes = {p: d for p, _, _, _, d in captured.records}
        for phase, shape in case.policy.phases.items():
            layout = captured.batch.samples[1].layouts[phase]
            query, key = sight(layout, shape.query_groups[0])
            rest = [i for i in model_indices(layout.query) if i not in query]
            for layer in sorted({0, shape.layers - 1}):
                block = Blocked(phase, layer, query, key)
                found = run_blocked(case, captured.batch, [[], [block]])
                first = (phase, layer, 0 if shape.steps else None)
                before, after = base[first][1].astype(np.float64), found.weights[first][1]
                rounding = ROUNDING[dtypes[phase]]
                assert (before[:, query][:, :, key] > 0).any(), first
                kept = before[:, query].copy()
                kept[:, :, key] = 0
                np.testing.assert_allclose(
                    after[:, query], kept / kept.sum(-1, keepdims=True), atol=rounding
                )
                np.testing.assert_allclose(after[:, rest], before[:, rest], atol=rounding)
                for (name, at, step), weights in found.weights.items():
                    if (name, at) == (phase, layer):
                        own = weights[1][:, query]
                        assert not own[:, :, [k for k in key if k < own.shape[-1]]].any()
                        np.testing.assert_allclose(own.sum(-1), 1, atol=4 * rounding)
                    if (name, at, step) in base:
                        np.testing.assert_allclose(
                            weights[0], base[name, at, step][0], atol=20 * rounding
                        )

    def test_nothing_blocked_changes_nothing(self, case: Case, captured: Captured) -> None:
        found = run_blocked(case, captured.batch, [[] for _ in case.observations])
        np.testing.assert_array_equal(found.actions, captured.actions)
        for phase, layer, step, weights, _ in captured.records:
            np.testing.assert_array_equal(found.weights[phase, layer, step], weights)

    def test_images_blocked_everywhere_change_what_that_observation_gives(
        self, case: Case, captured: Captured
    ) -> None:
        layouts = captured.batch.samples[1].layouts
        blocks = [
            Blocked(phase, layer, *sight(layouts[phase], group))
            for phase, shape in case.policy.phases.items()
            for group in shape.query_groups[:1]
            for layer in range(shape.layers)
        ]
        found = run_blocked(case, captured.batch, [[], blocks])
        for block in blocks:
            for (phase, layer, step), weights in found.weights.items():
                if (phase, layer) == (block.phase, block.layer):
                    last = len(weights[1][0][0])
                    there = [k for k in block.key if k < last]
                    assert not weights[1][:, block.query][:, :, there].any(), (phase, layer, step)
        if case.policy.horizon:
            same, changed = np.abs(found.actions - captured.actions).max(axis=(1, 2))
            assert same < 1e-4
            assert changed > max(1e-4, 10 * same)

    def test_blocking_is_undone_after_an_exception(self, case: Case, captured: Captured) -> None:
        phase = next(iter(case.policy.phases))
        shape = case.policy.phases[phase]
        at = sight(captured.batch.samples[0].layouts[phase], shape.query_groups[0])
        blocked = [[Blocked(phase, 0, *at)], []]
        before = state_of(case.module)
        assert isinstance(case.policy, BlockingPolicy)

        def fail(record: Record) -> None:
            raise RuntimeError("the sink is full")

        with (
            pytest.raises(RuntimeError, match="the sink is full"),
            capture(case.policy, fail),
            case.policy.blocking(blocked),
        ):
            case.policy.act(captured.batch)
        assert state_of(case.module) == before
        found = run_blocked(case, captured.batch, [[], []])
        np.testing.assert_array_equal(found.actions, captured.actions)
        for place, weights in found.weights.items():
            wanted = [w for p, n, s, w, _ in captured.records if (p, n, s) == place]
            np.testing.assert_array_equal(weights, wanted[0])

    def test_a_query_with_nothing_left_is_refused(self, case: Case, captured: Captured) -> None:
        for phase, shape in case.policy.phases.items():
            layout = captured.batch.samples[1].layouts[phase]
            query = sight(layout, shape.query_groups[0])[0][:1]
            everything = tuple(model_indices(at_step(layout, 0).key))
            blocked = [[], [Blocked(phase, shape.layers - 1, query, everything)]]
            where = f"{phase} layer {shape.layers - 1}: a query has nothing left to attend to"
            with pytest.raises(HealthError, match=where):
                run_blocked(case, captured.batch, blocked)

    def test_what_is_not_there_cannot_be_blocked(self, case: Case, captured: Captured) -> None:
        phase, shape = next(iter(case.policy.phases.items()))
        with pytest.raises(UsageError, match=f"there is no {phase} layer {shape.layers} to block"):
            run_blocked(case, captured.batch, [[Blocked(phase, shape.layers, (0,), (0,))], []])
        with pytest.raises(HealthError, match="1 key tokens to block, up to 9999"):
            run_blocked(case, captured.batch, [[Blocked(phase, 0, (0,), (9999,))], []])

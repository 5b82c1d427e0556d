"""The contract tests on the real Octo: ``make test-octo OCTO=/path/to/checkout``.

Not collected by `make test`: Octo is installed from its repository, with libraries of 2024. The
weights are random, the architecture is octo-small's (octo_checkpoint.py, a plugin of pytest).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from blocking_contract import BlockingContract
from ingest_fixtures import observe, picture
from octo_checkpoint import save_octo_small
from policy_contract import Case, as_array, run_captured, valid_weights

from attnstore.ingest.capture import capture
from attnstore.ingest.policies.base import Observation
from attnstore.ingest.policies.octo.policy import OctoPolicy

GREEN = "place the green cube into the pink bowl"
SIDE, WRIST = "varied_camera_1", "hand_camera"


@pytest.fixture(scope="session")
def policy(octo_small: Path) -> OctoPolicy:
    return OctoPolicy(str(octo_small))


def look(seed: int, *, past: int = 1, instruction: str = GREEN) -> Observation:
    sight = observe(seed, instruction, size=(360, 640))
    earlier = {
        f"{camera}@-{back}": picture(100 * seed + back + len(camera), 360, 640)
        for camera in (WRIST, SIDE) for back in range(1, past + 1)
    }  # fmt: skip
    return replace(sight, images={**sight.images, **earlier})


class TestContract(BlockingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, policy: OctoPolicy) -> Case:
        return Case(policy, (look(1), look(2, past=0, instruction="wipe")))


def test_actions_are_those_of_sample_actions(policy: OctoPolicy) -> None:
    for sight in (look(1), look(2, past=0)):
        batch = policy.prepare([sight])
        seen, own = batch.inputs["observations"], batch.inputs["tasks"]
        tasks = policy.model.create_tasks(texts=[sight.instruction])
        for name in ("input_ids", "attention_mask"):
            np.testing.assert_array_equal(
                tasks["language_instruction"][name], own["language_instruction"][name]
            )
        key = jax.numpy.asarray(batch.inputs["keys"][0])
        wanted = as_array(policy.model.sample_actions(seen, tasks, rng=key))
        np.testing.assert_array_equal(as_array(policy.act(batch)), wanted)
        np.testing.assert_array_equal(run_captured(policy, batch).actions, wanted)


@pytest.mark.parametrize(
    ("options", "length"),
    [({}, 690), ({"wrist": "none"}, 562), ({"wrist": "masked"}, 690), ({"window": "1"}, 353)],
)
def test_sequences(octo_small: Path, options: dict[str, str], length: int) -> None:
    policy = OctoPolicy(str(octo_small), options=options)
    captured = run_captured(policy, policy.prepare([look(1)]))
    assert {r[3].shape for r in captured.records} == {(1, 6, length, length)}
    assert len(captured.records) == 12
    layout = captured.batch.samples[0].layouts["joint"]
    assert len(layout.key) == length - (2 * 64 if options == {"wrist": "masked"} else 0)
    for record in captured.records:
        rows = valid_weights(record[3], 0, layout).sum(-1)
        assert abs(rows - 1).max() < 2e-6


def test_a_camera_left_out_is_one_that_is_masked(octo_small: Path) -> None:
    rows = []
    for way in ("none", "masked"):
        policy = OctoPolicy(str(octo_small), options={"wrist": way})
        captured = run_captured(policy, policy.prepare([look(1)]))
        layout = captured.batch.samples[0].layouts["joint"]
        rows.append([valid_weights(r[3], 0, layout) for r in captured.records])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)


def test_the_old_mask(tmp_path: Path) -> None:
    """Checkpoints of December 2023 have a mask that is off by one: it is captured as it is."""
    policy = OctoPolicy(str(save_octo_small(tmp_path, correct_attention=False)))
    captured = run_captured(policy, policy.prepare([look(1)]))
    axis = captured.batch.samples[0].layouts["joint"].query
    readout, image = axis.group("readout_action")[0], axis.group(f"image:{SIDE}")[0]
    weights = captured.records[0][3][0]
    # By the rules only readouts see a readout; that mask takes it for a repeated task token.
    assert (weights[:, image, readout] > 0).all()


def seconds(function: Callable[[], Any], repeats: int = 7) -> float:
    """Median wall time of a warm call."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def test_overhead(policy: OctoPolicy, capsys: pytest.CaptureFixture[str]) -> None:
    batch = policy.prepare([look(1)])
    seen, tasks = batch.inputs["observations"], batch.inputs["tasks"]
    key = jax.numpy.asarray(batch.inputs["keys"][0])
    plain = seconds(lambda: np.asarray(policy.model.sample_actions(seen, tasks, rng=key)))
    with capture(policy, lambda record: None):
        captured = seconds(lambda: policy.act(batch))
    # Looking costs a copy of the weights out of the compiled call, not another forward pass.
    assert captured < 2 * plain
    with capsys.disabled():
        print(f"\nsample_actions {plain:.3f} s, captured {captured:.3f} s: {captured / plain:.2f}")

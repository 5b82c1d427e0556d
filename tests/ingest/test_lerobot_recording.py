"""LeRobot's loop, recorded: a loop of its shape over small policies; on LeRobot itself in tests/real."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lerobot_fixture_models import CAMERAS, STATE_DOF, build

import attnstore
from attnstore.cli import cli
from attnstore.commands.record import run_lerobot_eval
from attnstore.ingest.datasets.lerobot.metadata import camera_name
from attnstore.ingest.policies.base import PolicyError
from attnstore.ingest.recording.dataset import RecordingDataset
from attnstore.ingest.recording.lerobot import EvalRecorder, record_lerobot, results_of
from attnstore.store.errors import MissingExtraError, UsageError
from attnstore.store.recordings.call import layouts_to_json

ENDS = {0: (3, True), 1: (7, False), 2: (9, False)}
"""Of each row: after how many steps it ends, and whether it succeeds."""


class Rows:
    """A vector environment whose rows end at their own times, and go on."""

    num_envs = len(ENDS)

    def __init__(self) -> None:
        self.metadata = {"render_fps": 10}
        self.taken = 0
        self.actions: list[Any] = []

    def see(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.taken)
        shape = (self.num_envs, 3, 36, 64)
        return {
            **{c: torch.randint(0, 256, shape, generator=generator) / 255 for c in CAMERAS},
            "observation.state": torch.rand(self.num_envs, STATE_DOF, generator=generator),
            "task": ["wipe", "lift the cube", "wipe"],
        }

    def step(self, actions: Any) -> Any:
        self.actions.append(actions)
        self.taken += 1
        over = np.array([self.taken >= ENDS[r][0] for r in range(self.num_envs)])
        info = {"is_success": np.array([over[r] and ENDS[r][1] for r in range(self.num_envs)])}
        return self.see(), np.full(self.num_envs, 0.5), over, np.zeros_like(over), info


def loop(**given: Any) -> dict[str, Any]:
    """A rollout as LeRobot has it, of policies that give chunks of 5."""
    env, policy, preprocessor = given["env"], given["policy"], given["preprocessor"]
    policy.reset()
    seen = env.see()
    rewards: list[Any] = []
    successes: list[Any] = []
    dones: list[Any] = []
    queue: list[Any] = []
    done = np.zeros(env.num_envs, bool)
    while not done.all():
        made = preprocessor(dict(seen))
        if not queue:
            queue = list(policy.predict_action_chunk(made).unbind(1))
        seen, reward, over, _, info = env.step(queue.pop(0).numpy())
        done = done | over
        for values, value in ((rewards, reward), (successes, info["is_success"]), (dones, done)):
            values.append(value)
    found = {"reward": rewards, "success": successes, "done": dones}
    return {k: torch.from_numpy(np.stack(v, 1)) for k, v in found.items()}


def run_one(group: str, task: int, env: Any, *, n_episodes: int, **more: Any) -> Any:
    return module.rollout(env=env, seeds=[4, 5, 6], **more)


module = SimpleNamespace()


@pytest.fixture(autouse=True)
def _module() -> Iterator[None]:
    module.rollout, module.run_one = loop, run_one
    yield
    assert (module.rollout, module.run_one) == (loop, run_one)


def built(kind: str) -> tuple[Any, Any]:
    policy, preprocessor = build(kind)
    policy.reset = lambda: None
    return policy, preprocessor


def test_rows_that_end_at_different_times(tmp_path: Path) -> None:
    policy, preprocessor = built("act")
    alone, recorded = Rows(), Rows()
    loop(env=alone, policy=policy, preprocessor=preprocessor)
    recording = EvalRecorder(tmp_path / "s", {"mode": "live"})
    with recording.around(module):
        module.run_one("toy", 0, recorded, n_episodes=2, policy=policy, preprocessor=preprocessor)
    assert recording.ended == ["success", "failure", "failure"]
    for ours, theirs in zip(recorded.actions, alone.actions, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "predict_action_chunk" not in vars(policy)
    assert "step" not in vars(recorded)
    with attnstore.open(tmp_path / "s") as store:
        rows = store.sql(
            "select name, outcome, instruction, frames, keyframes, rate from episodes order by name"
        ).fetchall()
        assert rows == [
            ("toy_0/episode_0000", "success", "wipe", 3, 1, 10.0),
            ("toy_0/episode_0001", "failure", "lift the cube", 7, 2, 10.0),
            ("toy_0/episode_0002", "failure", "wipe", 9, 2, 10.0),
        ]
        kept = [store.episode(row[0]).spec.attributes for row in rows]
        assert [(a["seed"], a["reward"], a["counted"]) for a in kept] == [
            (4, 2.0, True), (5, 4.0, True), (6, 4.5, False),
        ]  # fmt: skip
        called = store.sql("select frame, executed, rows from calls order by episode, frame")
        assert called.fetchall() == [(0, 3, 3), (0, 5, 3), (5, 2, 3), (0, 5, 3), (5, 4, 3)]
        episode = store.episode("toy_0/episode_0001")
        chunk = episode.policy_array("actions")
        np.testing.assert_array_equal(chunk[0, 2], alone.actions[2][1])
        np.testing.assert_array_equal(chunk[1, 0], alone.actions[5][1])


def test_noise_is_the_policys_own_and_a_reset_ends_an_episode_that_nobody_opened(
    tmp_path: Path,
) -> None:
    policy, preprocessor = built("smolvla")
    seen = {k: v[:1] for k, v in Rows().see().items()} | {"task": [""]}

    def noise(shape: tuple[int, ...], device: Any) -> Any:
        return torch.randn(shape)

    policy.model.sample_noise = noise
    torch.manual_seed(3)
    chunk = policy.predict_action_chunk(
        preprocessor(dict(seen)),
        noise=noise((1, policy.config.chunk_size, policy.config.max_action_dim), "cpu"),
    )
    torch.manual_seed(3)
    with record_lerobot(policy, preprocessor, tmp_path / "s", name="alone") as made:
        assert torch.equal(policy.predict_action_chunk(preprocessor(dict(seen))), chunk)
        policy.reset()
        policy.predict_action_chunk(preprocessor(dict(seen)))
        broken = dict(preprocessor(dict(seen)))
        with made.episode("broken") as episode:
            made._here.raw = {}  # as if the preprocessor had been another one
            assert policy.predict_action_chunk(broken, noise=torch.zeros(1, 5, 32)).shape[0] == 1
            assert episode.dropped.total() == 1
    with attnstore.open(tmp_path / "s") as store:
        names = store.sql("select name, outcome, keyframes from episodes order by name").fetchall()
        # a policy that is told nothing has no words to look from, but its prompt's newline
        assert store.episode("episode").query_groups("prefix") == ("text",)
        assert np.isfinite(store.episode("episode").maps("prefix", "hand_camera").values).all()
    assert names == [("episode", "unknown", 1), ("episode~2", "unknown", 1)]


def test_what_the_policy_saw_is_kept_though_its_memory_is_used_again(tmp_path: Path) -> None:
    """Of two rows; an image that is NumPy's own memory, and one that is a part of another tensor."""
    policy, preprocessor = built("act")
    (tmp_path / "config.json").write_text("{}")
    policy.config.pretrained_path = str(tmp_path)
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 160)).astype(np.float32) / 255
    whole = torch.from_numpy(array.copy()).flip(0)
    raw: dict[str, Any] = {
        CAMERAS[0]: torch.from_numpy(array), CAMERAS[1]: whole[..., 16:144],
        "observation.state": torch.rand(2, STATE_DOF), "task": ["wipe", "lift"],
    }  # fmt: skip
    saw = {k: v.clone() for k, v in raw.items() if k != "task"}
    chunk = policy.predict_action_chunk(preprocessor(dict(raw)))
    made = record_lerobot(policy, preprocessor, tmp_path / "s", mode="replay", pictures="png")
    gate = threading.Event()
    with made, made.recorder.rows([made.episode("first"), made.episode("second")]):
        batch = preprocessor(dict(raw))
        # What copies while the policy acts is busy: then the call does, before it returns.
        made.recorder._copier.submit(gate.wait, 20)
        assert torch.equal(policy.predict_action_chunk(batch), chunk)
        for values in (array, whole, raw["observation.state"], *batch.values()):
            if not isinstance(values, list):
                values[...] = 0.5
        gate.set()
    dataset = RecordingDataset(made.recorder.directory)
    for row, name in enumerate(("first", "second")):
        (frame,) = dataset.frames(name, [0])
        assert frame.call is not None
        inputs = frame.call.batch.inputs
        pixels = {camera.camera: camera.rgb for camera in frame.cameras}
        for feature in CAMERAS:
            assert torch.equal(inputs[feature], saw[feature][row : row + 1])
            wanted = (saw[feature][row] * 255).round().to(torch.uint8).permute(1, 2, 0)
            np.testing.assert_array_equal(pixels[camera_name(feature)], wanted.numpy())
        np.testing.assert_array_equal(frame.state, saw["observation.state"][row].numpy())


def test_a_layout_is_read_after_the_call_off_what_the_policy_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, preprocessor = built("smolvla")
    (tmp_path / "config.json").write_text("{}")
    policy.config.pretrained_path = str(tmp_path)
    policy.model.sample_noise = lambda shape, device: torch.zeros(shape)
    seen = {k: v[:1] for k, v in Rows().see().items()} | {"task": ["wipe the table"]}
    size = (1, policy.config.chunk_size, policy.config.max_action_dim)
    chunk = policy.predict_action_chunk(preprocessor(dict(seen)), noise=torch.zeros(size))
    gate = threading.Event()
    made = record_lerobot(policy, preprocessor, tmp_path / "s", mode="replay")
    with made, made.episode("one") as episode:
        batch = preprocessor(dict(seen))
        observations, _ = made.adapter.observations(seen, ["wipe the table"])
        (wanted,) = made.adapter.batch(batch, observations).samples
        assert made.recorder._outbox is not None
        made.recorder._outbox.put(lambda: gate.wait(20))
        assert torch.equal(policy.predict_action_chunk(batch), chunk)
        for key, values in batch.items():
            if "language" in key:
                values.zero_()
        gate.set()
        made.recorder.flush()
        with monkeypatch.context() as patch:
            patch.setattr(type(made.adapter), "sample", lambda *given: 1 / 0)
            assert torch.equal(policy.predict_action_chunk(preprocessor(dict(seen))), chunk)
            made.recorder.flush()
        assert dict(episode.dropped) == {"ZeroDivisionError: division by zero": 1}
    (frame,) = RecordingDataset(made.recorder.directory).frames("one", [0])
    assert frame.call is not None
    (kept,) = frame.call.batch.samples
    assert layouts_to_json(kept.layouts) == layouts_to_json(wanted.layouts)
    assert any(span.tokens for span in kept.layouts["prefix"].query.spans)


def test_a_method_that_somebody_kept_from_before_is_no_fault_of_the_caller(tmp_path: Path) -> None:
    """smolvla's inner method asked by what does not come through the recorder's, as a compiled one may be."""
    policy, preprocessor = built("smolvla")
    seen = {k: v[:1] for k, v in Rows().see().items()} | {"task": ["wipe"]}
    size = (1, policy.config.chunk_size, policy.config.max_action_dim)
    noise = torch.rand(size)
    policy._get_action_chunk = policy.select_action = policy.predict_action_chunk
    chunk = policy._get_action_chunk(preprocessor(dict(seen)), noise)
    with record_lerobot(policy, preprocessor, tmp_path / "s") as made:
        assert torch.equal(policy._get_action_chunk(preprocessor(dict(seen)), noise), chunk)
        assert not made.recorder.faults


def test_a_rollout_that_raises_leaves_its_episodes_unknown(tmp_path: Path) -> None:
    policy, preprocessor = built("act")

    class Falling(Rows):
        def step(self, actions: Any) -> Any:
            if self.taken == 2:
                raise RuntimeError("the simulator diverged")
            return super().step(actions)

    recording = EvalRecorder(tmp_path / "s", {"mode": "live"})
    with pytest.raises(RuntimeError, match="diverged"), recording.around(module):
        module.rollout(env=Falling(), policy=policy, preprocessor=preprocessor)
    with attnstore.open(tmp_path / "s") as store:
        rows = store.sql("select outcome, frames from episodes").fetchall()
        name = next(iter(store.episodes))
        assert (
            store.episode(name).spec.attributes["ended"] == "RuntimeError: the simulator diverged"
        )
    assert rows == [("unknown", 2)] * 3


def test_results_are_those_that_lerobot_counts() -> None:
    found = {
        "reward": torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 1.0]]),
        "success": torch.tensor([[False, False, False, True], [False, False, False, True]]),
        "done": torch.tensor([[False, True, True, True], [False, False, False, True]]),
    }
    assert results_of(found) == [(False, 7.0), (True, 4.0)]


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = EvalRecorder(tmp_path / "s", {})
    with pytest.raises(MissingExtraError, match="lerobot"):
        run_lerobot_eval(recording, ["--policy.path=x"])
    done = CliRunner().invoke(
        cli, ["record", "lerobot-eval", str(tmp_path / "s"), "--", "--env.type=a"]
    )
    assert isinstance(done.exception, MissingExtraError)
    policy, preprocessor = built("act")
    with pytest.raises(UsageError, match="a replay needs the checkpoint that drove"):
        record_lerobot(policy, preprocessor, tmp_path / "s", mode="replay")
    policy.config.type = "diffusion"
    with pytest.raises(
        PolicyError, match="a policy of type 'diffusion' has no attention over images"
    ):
        record_lerobot(policy, preprocessor, tmp_path / "s")

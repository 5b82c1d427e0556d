"""Trials of inspect-robots, the real package with its own simulator, recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_policy import Still

import attnstore
from attnstore.ingest.policies.base import Observation
from attnstore.ingest.recording.dataset import RecordingDataset, recording_directories
from attnstore.ingest.recording.inspect_robots import RecordedTrials
from attnstore.store.errors import EpisodeError

robots = pytest.importorskip("inspect_robots", reason="pip install inspect-robots")
from inspect_robots.mock import CubePickEmbodiment, NoopPolicy, ScriptedPolicy  # noqa: E402
from inspect_robots.scene import Scene  # noqa: E402
from inspect_robots.task import Task  # noqa: E402


class Driver:
    """A policy that shows its picture to ours, and drives as another one does."""

    def __init__(self, policy: Still, other: Any, error_at: int | None = None) -> None:
        self._policy, self._other, self._error_at = policy, other, error_at
        self.info, self.config = other.info, other.config
        self._calls = 0

    def reset(self, scene: Any) -> None:
        self._other.reset(scene)

    def act(self, observation: Any) -> Any:
        self._calls += 1
        if self._calls == self._error_at:
            raise RuntimeError("out of memory")
        seen = Observation(
            {"hand_camera": observation.images["top"]}, observation.instruction or "",
            observation.state["eef_pos"].astype(np.float32), self._calls,
        )  # fmt: skip
        self._policy.act(self._policy.prepare([seen]))
        return self._other.act(observation)


def test_trials_are_episodes_with_their_outcomes(tmp_path: Path) -> None:
    policy = Still()
    task = Task(
        name="reach",
        scenes=[Scene(id=f"s{i}", instruction="reach the cube") for i in range(2)],
        scorer="success_at_end", max_steps=30, epochs=2,
    )  # fmt: skip
    drivers = {"scripted": Driver(policy, ScriptedPolicy(chunk_size=4)),
               "noop": Driver(policy, NoopPolicy(chunk_size=4), error_at=9)}  # fmt: skip
    for name, driver in drivers.items():
        with attnstore.record(policy, tmp_path / name, mode="replay") as recorder:
            (log,) = robots.eval(
                task, driver, CubePickEmbodiment(), log_dir=str(tmp_path / "logs"),
                sinks=[RecordedTrials(recorder)],
            )  # fmt: skip
            assert not recorder.faults
        (directory,) = recording_directories(tmp_path / name)
        dataset = RecordingDataset(directory)
        names = list(dataset.episode_names())
        assert names == [f"reach/s{i}-e{e}" for i in range(2) for e in range(2)]
        # As inspect-robots' own log has it; what failed with an error is not scored there.
        scored = [e.get("success_at_end") for sample in log.samples for e in sample.epochs]
        spelled = {1.0: "success", 0.0: "failure", None: "unknown"}
        infos = [dataset.info(n) for n in names if n != "reach/s0-e1" or name == "scripted"]
        for info in infos:
            assert info.outcome == spelled[scored[names.index(info.name)]]
            assert info.keyframes == tuple(range(0, info.frames, 4))
            assert info.task == "reach"
            assert isinstance(info.attributes["seed"], int)
        if name == "scripted":
            assert scored == [1.0] * 4
            assert all(info.frames < 30 for info in infos)
            continue
        # Thirty steps in chunks of four are eight calls: the ninth, which fails, is the second trial's first.
        assert scored == [0.0, None, 0.0, 0.0]
        assert [info.frames for info in infos] == [30] * 3
        with pytest.raises(EpisodeError, match="no policy call was recorded in it"):
            dataset.info("reach/s0-e1")

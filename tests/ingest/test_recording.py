"""Recording a policy while it drives: live and by replay, exactly, and never in its way."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest_fixtures import (
    CAMERAS,
    Watcher,
    arrays_of,
    assert_same_store,
    commits,
    observe,
    problems,
    run_attnstore,
)

import attnstore
from attnstore.ingest.episode import EpisodeJob
from attnstore.ingest.pipeline import Report, ingest_all, provenance
from attnstore.ingest.plan import describe_run, make_plan
from attnstore.ingest.policies.base import ATTENTION_ONLY, Observation, Watch
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.registry import load_policy
from attnstore.ingest.recording import Recorder
from attnstore.ingest.recording.dataset import RecordingDataset, recording_directories, recover
from attnstore.ingest.recording.inputs import (
    UnknownInputError,
    copy_inputs,
    pack_inputs,
    unpack_inputs,
)
from attnstore.ingest.recording.journal import Journal, read_contents
from attnstore.ingest.recording.outbox import Outbox
from attnstore.store.commits import StorePaths
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import save_run
from attnstore.store.errors import EpisodeError, UsageError
from attnstore.store.opening import create_store

torch = pytest.importorskip("torch", reason="a model's test needs torch")


def drive(recorder: Recorder, policy: Pi0Policy, name: str, calls: int = 3, first: int = 0) -> Any:
    """One episode of so many calls, five environment steps apart; return what the policy gave."""
    given = []
    with recorder.episode(name, task="cubes", seed=first) as episode:
        for i in range(calls):
            batch = policy.prepare([observe(first + i)])
            given.append(policy.act(batch))
            episode.advance(5, reward=0.5)
        episode.finish(outcome="success", note="kept")
    return given


def replay(
    source: Path, store: Path, policy: Any, *, tolerance: float = 0.0, watch: Watch = ATTENTION_ONLY
) -> Report:
    """What `attnstore ingest recording` does."""
    (directory,) = recording_directories(source)
    dataset = RecordingDataset(directory)
    dataset.check_policy(policy, tolerance)
    run = describe_run(
        policy, policy.name, dataset, stride=1, precision="float16", seed=0, watch=watch
    )
    paths = create_store(store)
    save_run(paths, run, provenance(policy))
    job = EpisodeJob(paths, run, watch=watch, tolerance=tolerance)
    plan = make_plan(job, policy, dataset)
    assert not plan.broken
    return ingest_all(job, policy, dataset, plan.pending, Watcher())


@pytest.mark.parametrize("watch", [ATTENTION_ONLY, Watch(vision=True, token_stats=True)])
def test_live_and_replay_store_the_same(policy: Pi0Policy, ram_path: Path, watch: Watch) -> None:
    with policy.eager():
        expected = [policy.act(policy.prepare([observe(i)])) for i in range(3)]
    live, later = ram_path / "live", ram_path / "later"
    with attnstore.record(policy, live, watch=watch) as recorder:
        given = drive(recorder, policy, "one")
        drive(recorder, policy, "two", 2, first=7)
    assert [o.status for o in recorder.outcomes] == ["committed", "committed"]
    assert not recorder.faults
    if not watch.vision:  # an eager encoder rounds otherwise
        assert all(map(torch.equal, expected, given))
    assert problems(live) == []
    assert not list(live.rglob("*.spool"))
    # The policy that drove was watched, and is not without a capture: the comparison is to rounding.
    report = replay(live, later, policy, watch=watch)
    assert [o.status for o in report.outcomes] == ["committed", "committed"]
    assert_same_store(live, later)
    # The run is the same one, so there is nothing left to do.
    assert replay(live, live, policy, watch=watch).outcomes == []


def test_replay_is_held_to_the_policy_as_it_drove(policy: Pi0Policy, ram_path: Path) -> None:
    expected = [policy.act(policy.prepare([observe(i)])) for i in range(3)]
    recorded, store = ram_path / "recorded", ram_path / "store"
    with attnstore.record(policy, recorded, mode="replay") as recorder:
        given = drive(recorder, policy, "one")
    assert all(map(torch.equal, expected, given))
    assert not commits(recorded)
    assert [o.status for o in replay(recorded, store, policy).outcomes] == ["committed"]
    assert problems(store) == []
    commit = commits(store)["one"]
    captured = arrays_of(Part(StorePaths(store), commit))["policy/actions"]
    apart = float(np.abs(captured - torch.cat(given).numpy()).max())
    assert 0 < apart < 1e-4  # eager attention against the kernel that drove
    assert commit.summary["replay"] == {
        "tolerance": 0.0,
        "difference": 0.0,
        "captured_difference": pytest.approx(apart),
    }


def test_what_an_episode_says_of_itself(policy: Pi0Policy, ram_path: Path) -> None:
    store = ram_path / "s"
    with attnstore.record(policy, store, rate=15) as recorder:
        given = drive(recorder, policy, "pick/one", first=3)
    with attnstore.open(store) as opened:
        episode = opened.episodes["pick/one"]
        assert episode.outcome == "success"
        spec = episode.spec
        assert spec.frames == (0, 5, 10)
        assert spec.total_frames == 15
        assert spec.seeds == (3, 4, 5)
        assert spec.rate == 15
        assert spec.task == "cubes"
        assert spec.attributes == {"note": "kept", "seed": 3, "reward": 1.5, "dropped": 0}
        rows = opened.sql(
            "select executed, action_difference, instruction from keyframes order by keyframe"
        ).fetchall()
    assert rows == [(5, 0.0, observe().instruction)] * 3
    part = Part(StorePaths(store), commits(store)["pick/one"])
    np.testing.assert_array_equal(arrays_of(part)["policy/actions"], torch.cat(given).numpy())

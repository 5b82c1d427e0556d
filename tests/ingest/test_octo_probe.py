"""Probes of a policy with a window of observations: what it saw comes from the store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ingest_fixtures import Watcher, make_job, write_droid
from octo_fixture import LAYERS, build_octo

import attnstore
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.policies.octo.policy import OctoPolicy
from attnstore.ingest.probing.episode import ProbeJob
from attnstore.ingest.probing.keyframe import stored_keyframes
from attnstore.ingest.probing.knockout import Knockout
from attnstore.ingest.probing.pipeline import check_policy, choose_episodes, make_plan, probe_all
from attnstore.ingest.probing.regions import Regions
from attnstore.ingest.probing.variant import Probe
from attnstore.store.errors import UsageError

SIDE, WRIST = "varied_camera_1", "hand_camera"


@pytest.fixture(scope="module")
def policy() -> OctoPolicy:
    return OctoPolicy.from_model(build_octo())


@pytest.fixture(scope="module")
def job(policy: OctoPolicy, tmp_path_factory: pytest.TempPathFactory) -> ProbeJob:
    """One episode, its first and its last keyframe."""
    root = tmp_path_factory.mktemp("octo-probe")
    dataset = DroidDataset(write_droid(root / "recordings", lengths=(9,)))
    made = make_job(root / "s", policy, dataset)
    ingest_episode(made, policy, dataset, dataset.episode_names()[0])
    return ProbeJob(made.paths, made.run, Regions(), policy.action_dof)


def run(job: ProbeJob, policy: OctoPolicy, probe: Probe) -> list[dict[str, Any]]:
    job = replace(job, probe=probe)
    pending = make_plan(job, choose_episodes(job.paths, job.run, ())).pending
    report = probe_all(job, policy, pending, Watcher())
    assert not report.failed, report.failed
    store = attnstore.open(job.paths.root)
    sql = f"from interventions where part = '{probe.part}' order by keyframe, variant"
    rows: list[dict[str, Any]] = store.sql(sql).to_arrow_table().to_pylist()
    return rows


def test_earlier_views_are_seen_again(policy: OctoPolicy, job: ProbeJob) -> None:
    (episode,) = choose_episodes(job.paths, job.run, ())
    first, last = stored_keyframes(episode)
    assert set(first.observation.images) == {WRIST, SIDE}
    assert set(last.observation.images) == {WRIST, SIDE, f"{WRIST}@-1", f"{SIDE}@-1"}
    rows = run(job, policy, Regions(by=("camera",), cameras=("each",), fill="black"))
    assert {r["mse"] for r in rows if r["target"] == "base"} == {0}
    here = {(r["keyframe"], r["detail"]) for r in rows if r["target"] == "camera"}
    now = {(k, c) for k in (0, 1) for c in (WRIST, SIDE)}
    assert here == now | {(1, f"{WRIST}@-1"), (1, f"{SIDE}@-1")}
    assert all(r["mse"] > 0 for r in rows if r["target"] == "camera")


def test_readouts_that_must_not_see_an_image(policy: OctoPolicy, job: ProbeJob) -> None:
    probe = Knockout((f"image:{SIDE}", "word:cube"), query="readout_action")
    rows = [r for r in run(job, policy, probe) if r["target"] != "base"]
    assert [r["detail"] for r in rows[:2]] == [
        f"readout_action > image:{SIDE}", "readout_action > word:cube"
    ]  # fmt: skip
    assert len(rows) == 4
    assert all(r["mse"] > 0 for r in rows)
    layers = run(job, policy, Knockout(("word:cube",), query="readout_action", at="each"))
    assert [r["layer"] for r in layers if r["keyframe"] == 0][1:] == list(range(LAYERS))
    assert np.isfinite([r["cosine"] for r in layers]).all()


def test_a_goal_is_not_in_the_store(policy: OctoPolicy, job: ProbeJob) -> None:
    check_policy(policy, job.run)
    other = OctoPolicy.from_model(policy.model, options={"task": "goal"})
    with pytest.raises(UsageError, match="shown the episode's last frame as its goal, which the"):
        check_policy(other, job.run)

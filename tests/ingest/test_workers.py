"""Several processes on one ingest: the same store, and what becomes of a dying worker's episode."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ingest_fixtures import (
    Watcher,
    assert_same_store,
    commits,
    make_job,
    problems,
    write_droid,
)

from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import EpisodeJob
from attnstore.ingest.pipeline import DiskFullError, Report, ingest_all
from attnstore.ingest.policies.base import PolicyError
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.workers import (
    PolicySpec,
    _Pool,
    _serve,
    _Worker,
    ingest_with_workers,
)
from attnstore.store.commits import ATTEMPT_FILE
from attnstore.store.errors import AttnstoreError

LENGTHS = (17, 9, 20, 9, 12)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> DroidDataset:
    """Four good episodes, and one whose second keyframe is a torn JPEG."""
    root = write_droid(tmp_path_factory.mktemp("five") / "toy", LENGTHS)
    image = next(root.glob("*/*/*_09-03-00")) / "recordings" / "frames" / "hand_camera"
    torn = image / "00008.jpg"
    torn.write_bytes(torn.read_bytes()[:200])
    return DroidDataset(root)


@pytest.fixture(scope="module")
def by_one(
    loaded: Pi0Policy, five: DroidDataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Report]:
    """The same by one process."""
    store = tmp_path_factory.mktemp("one") / "s"
    job = make_job(store, loaded, five)
    return store, ingest_all(job, loaded, five, five.episode_names(), Watcher())


def by_two(
    job: EpisodeJob, checkpoint: Path, dataset: DroidDataset, watcher: Watcher, **options: Any
) -> Report:
    return ingest_with_workers(
        job, PolicySpec("pi0", str(checkpoint), None, None, {}), dataset,
        dataset.episode_names(), watcher, device="cpu", workers=2, **options,
    )  # fmt: skip


def children() -> list[psutil.Process]:
    alive = psutil.Process().children(recursive=True)
    return [p for p in alive if "spawn_main" in " ".join(p.cmdline())]


def test_two_workers_give_the_store_of_one(
    policy: Pi0Policy,
    checkpoint: Path,
    five: DroidDataset,
    by_one: tuple[Path, Report],
    ram_path: Path,
) -> None:
    store, watcher = ram_path / "s", Watcher()
    report = by_two(make_job(store, policy, five), checkpoint, five, watcher)
    assert sorted(watcher.begun) == sorted(five.episode_names())
    assert report.outcomes == watcher.outcomes
    assert not report.interrupted

    def told(report: Report) -> list[tuple[Any, ...]]:
        return sorted((o.name, o.status, o.reason, o.keyframes) for o in report.outcomes)

    assert told(report) == told(by_one[1])
    assert [o.status for o in report.failed] == ["broken"]
    assert sum(n for _, n in watcher.keyframes) == 3 + 2 + 3 + 2
    assert_same_store(store, by_one[0])
    assert problems(store) == []
    assert children() == []


class Killer(Watcher):
    """Kills the worker of an episode after its first keyframe."""

    def __init__(self, store: Path, job: EpisodeJob, name: str) -> None:
        super().__init__()
        run, episode, _ = job.commit_folder(name)
        self.folder, self.name = store / "data" / run / episode, name

    def advanced(self, name: str, keyframes: int) -> None:
        super().advanced(name, keyframes)
        if name == self.name:
            for file in self.folder.glob(f"*/{ATTEMPT_FILE}"):
                pid = json.loads(file.read_text())["pid"]
                assert pid in {p.pid for p in children()}
                os.kill(pid, signal.SIGKILL)


def test_a_killed_worker_is_named_and_the_others_do_the_rest(
    policy: Pi0Policy,
    checkpoint: Path,
    five: DroidDataset,
    by_one: tuple[Path, Report],
    ram_path: Path,
) -> None:
    store = ram_path / "s"
    job = make_job(store, policy, five)
    name = five.episode_names()[1]
    report = by_two(job, checkpoint, five, killer := Killer(store, job, name))
    failed = {o.name: o for o in report.failed}
    assert len(report.outcomes) == 5
    assert {o.status for o in report.failed} == {"broken", "failed"}
    assert failed[name].reason == (
        "its worker on cpu died (killed by SIGKILL); run the same command again"
    )
    assert len(killer.begun) == 5
    assert name not in commits(store)
    assert len(commits(store)) == 3
    assert problems(store) == []
    again = ingest_all(job, policy, five, five.episode_names(), Watcher())
    assert sorted(o.status for o in again.outcomes) == ["broken", "committed", *["present"] * 3]
    assert_same_store(store, by_one[0])


def test_an_interrupt_gives_up_the_episodes_in_flight(
    policy: Pi0Policy,
    checkpoint: Path,
    five: DroidDataset,
    by_one: tuple[Path, Report],
    ram_path: Path,
) -> None:
    store, watcher = ram_path / "s", Watcher()
    job = make_job(store, policy, five)
    report = by_two(job, checkpoint, five, watcher, stopped=lambda: bool(watcher.keyframes))
    assert report.interrupted
    assert len(report.outcomes) <= 1  # one may have been at its last keyframe
    assert set(commits(store)) == {o.name for o in report.outcomes}
    assert len(list((store / "data").glob("*/*/*"))) == len(report.outcomes)
    assert children() == []
    ingest_all(job, policy, five, five.episode_names(), Watcher())
    assert_same_store(store, by_one[0])


def test_a_policy_that_cannot_be_loaded_ends_the_ingest(
    policy: Pi0Policy, checkpoint: Path, recordings: Path, ram_path: Path
) -> None:
    broken = ram_path / "ck"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    dataset = DroidDataset(recordings, limit=1)
    job = make_job(ram_path / "s", policy, dataset)
    with pytest.raises(AttnstoreError, match="^ck: weights cannot be loaded") as caught:
        by_two(job, broken, dataset, Watcher())
    assert not isinstance(caught.value, DiskFullError | PolicyError)
    assert children() == []


def test_nothing_to_do_starts_no_process(
    policy: Pi0Policy, checkpoint: Path, five: DroidDataset, ram_path: Path
) -> None:
    spec = PolicySpec("pi0", str(checkpoint), None, None, {})
    job = make_job(ram_path / "s", policy, five)
    report = ingest_with_workers(job, spec, five, [], Watcher(), device="cpu", workers=2)
    assert report == Report()


def dead_worker(
    end: Callable[..., Any], code: int, messages: list[tuple[str, Any]], episode: str | None
) -> _Worker:
    """A worker that sent some messages, and is dead by the time that anybody reads them."""
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=end, args=(code,))
    process.start()
    process.join()
    for message in messages:
        child.send(message)
    child.close()
    return _Worker(process, parent, "cpu", episode)


@pytest.mark.parametrize("kind", ["advanced", "ready"])
def test_a_worker_that_dies_after_its_message_is_still_named(kind: str) -> None:
    """The answer to it cannot be sent; that must not end the ingest."""
    watcher = Watcher()
    pool = _Pool([dead_worker(os._exit, 7, [(kind, 1)], "a")], deque(["b"]), Report())
    _serve(pool, watcher, lambda: False)
    reasons = {o.name: o.reason for o in pool.report.outcomes}
    died = "its worker on cpu died (exit code 7); run the same command again"
    if kind == "advanced":
        assert reasons == {"a": died, "b": "no worker is left; run the same command again"}
    else:  # it had been given the next one
        assert reasons == {"b": died}
    assert {o.status for o in pool.report.outcomes} == {"failed"}
    assert watcher.outcomes == pool.report.outcomes


def test_a_worker_that_dies_before_it_is_ready() -> None:
    watcher = Watcher()
    pool = _Pool([dead_worker(os._exit, 3, [], None)], deque(["a", "b"]), Report())
    _serve(pool, watcher, lambda: False)
    assert [(o.name, o.status) for o in watcher.outcomes] == [("a", "failed"), ("b", "failed")]
    assert watcher.outcomes[0].reason == "no worker is left; run the same command again"

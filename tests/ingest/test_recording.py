"""Recording a policy while it drives: live and by replay, exactly, and never in its way."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_fixtures import run
from hypothesis import given as drawn
from hypothesis import strategies as st
from ingest_fixtures import (
    Watcher,
    Zygote,
    arrays_of,
    assert_same_store,
    commits,
    observe,
    problems,
)
from recording_policy import kill_recorders

import attnstore
from attnstore.ingest.episode import EpisodeJob
from attnstore.ingest.pipeline import ingest_all, provenance
from attnstore.ingest.plan import describe_run, make_plan
from attnstore.ingest.policies.base import (
    Batch,
    HiddenChoice,
    Sample,
    Watch,
    watch_where_shown,
)
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.registry import load_policy
from attnstore.ingest.recording import Recorder
from attnstore.ingest.recording.dataset import RecordingDataset, recording_directories
from attnstore.ingest.recording.inputs import (
    UnknownInputError,
    copy_inputs,
    pack_inputs,
    unpack_inputs,
)
from attnstore.ingest.recording.memory import Memory
from attnstore.ingest.recording.outbox import Outbox
from attnstore.ingest.recording.outcomes import read_said
from attnstore.ingest.work import Report
from attnstore.store.commits import StorePaths
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import save_run
from attnstore.store.errors import IntegrityError, UsageError
from attnstore.store.opening import create_store
from attnstore.store.recordings.journal import Journal, read_contents

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
    source: Path,
    store: Path,
    policy: Any,
    *,
    tolerance: float = 0.0,
    watch: Watch | None = None,
) -> Report:
    """What `attnstore ingest recording` does."""
    watch = watch_where_shown(policy) if watch is None else watch
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


@pytest.mark.parametrize(
    "watch",
    [
        None,
        Watch(hidden=HiddenChoice((1,), ("action",))),
        Watch(vision=True, token_stats=True, values=True),
    ],
)
def test_live_and_replay_store_the_same(
    policy: Pi0Policy, ram_path: Path, watch: Watch | None
) -> None:
    with policy.eager():
        expected = [policy.act(policy.prepare([observe(i)])) for i in range(3)]
    live, later = ram_path / "live", ram_path / "later"
    with attnstore.record(policy, live, watch=watch) as recorder:
        given = drive(recorder, policy, "one")
        drive(recorder, policy, "two", 2, first=7)
    assert [o.status for o in recorder.outcomes] == ["committed", "committed"]
    assert not recorder.faults
    if watch is None or not watch.vision:  # an eager encoder rounds otherwise
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


def test_replay_computes_with_the_threads_that_drove(policy: Pi0Policy, ram_path: Path) -> None:
    """On a CPU another number of them rounds otherwise: a convolution's sums are divided among them."""
    recorded, seen = ram_path / "recorded", []
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with attnstore.record(policy, recorded, mode="replay") as recorder:
            drive(recorder, policy, "one", 2)
    finally:
        torch.set_num_threads(before)
    hook = policy.model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        report = replay(recorded, ram_path / "store", policy)
    finally:
        hook.remove()
    assert [o.status for o in report.outcomes] == ["committed"]
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


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
            "select frame, executed, action_difference, seconds > 0, instruction "
            "from calls join keyframes using (run, episode, keyframe, frame) order by keyframe"
        ).fetchall()
    assert rows == [(frame, 5, 0.0, True, observe().instruction) for frame in (0, 5, 10)]
    part = Part(StorePaths(store), commits(store)["pick/one"])
    np.testing.assert_array_equal(arrays_of(part)["policy/actions"], torch.cat(given).numpy())


def test_replayed_actions_that_differ_are_quarantined_with_both(
    policy: Pi0Policy, ram_path: Path
) -> None:
    recorded, store = ram_path / "recorded", ram_path / "store"
    with attnstore.record(policy, recorded, mode="replay") as recorder:
        drive(recorder, policy, "one", 2)
    (directory,) = recording_directories(recorded)
    other = load_policy("pi0", _checkpoint_of(policy))
    with torch.no_grad():
        other.model.action_out_proj.bias += 0.01  # type: ignore[attr-defined]
    (outcome,) = replay(recorded, store, other).outcomes
    assert outcome.status == "quarantined"
    assert "more than --tolerance 0" in outcome.reason
    (file,) = (store / "quarantine").rglob("*.json")
    both = json.loads(file.read_text())["actions"]
    assert both["keyframe"] == 0
    apart = np.abs(np.array(both["recorded"]) - np.array(both["replayed"])).max()
    assert 0.001 < apart < 0.1
    assert not commits(store)
    # The same to a stated tolerance
    (outcome,) = replay(recorded, store, other, tolerance=0.1).outcomes
    assert outcome.status == "committed"
    assert commits(store)["one"].summary["replay"]["difference"] >= apart
    # Another checkpoint is refused before anything runs.
    other.__dict__["digest"] = "0" * 64
    with pytest.raises(UsageError, match="replay it with the checkpoint that drove"):
        RecordingDataset(directory).check_policy(other, 0.0)


def _checkpoint_of(policy: Pi0Policy) -> str:
    return policy._directory


def test_batched_environments_do_not_mix(policy: Pi0Policy, ram_path: Path) -> None:
    """Rows end at different times, and another episode begins in a row."""
    store, again = ram_path / "live", ram_path / "again"
    given: dict[str, list[Any]] = {"a": [], "b": [], "c": []}
    with attnstore.record(policy, store) as recorder:
        episodes = [recorder.episode("a"), recorder.episode("b")]
        with recorder.rows(episodes):
            for turn in range(4):
                seeds = [turn, 100 + turn]
                actions = policy.act(policy.prepare([observe(s) for s in seeds]))
                for row, episode in enumerate(episodes):
                    if not episode.ended:
                        given[episode.name].append(actions[row])
                        episode.advance(2)
                if turn == 1:
                    episodes[0].finish(outcome=True)
                    episodes[0] = recorder.episode("c")
                if turn == 2:
                    episodes[1].finish(outcome=False)
            episodes[0].finish()
    assert {o.name: (o.status, o.keyframes) for o in recorder.outcomes} == {
        "a": ("committed", 2),
        "b": ("committed", 3),
        "c": ("committed", 2),
    }
    found = commits(store)
    assert {n: c.summary["outcome"] for n, c in found.items()} == {
        "a": "success", "b": "failure", "c": "unknown",
    }  # fmt: skip
    for name, chunks in given.items():
        part = Part(StorePaths(store), found[name])
        np.testing.assert_array_equal(
            arrays_of(part)["policy/actions"], torch.stack(chunks).numpy()
        )
    assert Part(StorePaths(store), found["c"]).spec.seeds == (2, 3)
    assert Part(StorePaths(store), found["b"]).spec.seeds == (100, 101, 102)
    # Alone, a row rounds otherwise than in its batch.
    assert {o.status for o in replay(store, again, policy, tolerance=1e-4).outcomes} == {
        "committed"
    }
    for name, commit in commits(again).items():
        one = arrays_of(Part(StorePaths(store), found[name]))["prefix/attention"]
        other = arrays_of(Part(StorePaths(again), commit))["prefix/attention"]
        np.testing.assert_allclose(one.astype(np.float32), other, atol=2e-3, equal_nan=True)


@pytest.mark.parametrize("mode", ["live", "replay"])
def test_threads_and_policies_do_not_mix(
    policy: Pi0Policy, checkpoint: Path, ram_path: Path, mode: Any
) -> None:
    other = load_policy("pi0", str(checkpoint))
    store, second = ram_path / "one", ram_path / "two"
    failures: list[BaseException] = []

    def work(recorder: Recorder, which: Any, name: str, first: int) -> None:
        try:
            drive(recorder, which, name, 3, first)
        except BaseException as error:
            failures.append(error)

    with (
        attnstore.record(policy, store, mode=mode) as one,
        attnstore.record(other, second, mode=mode) as two,
    ):
        threads = [
            threading.Thread(target=work, args=(recorder, which, f"{first}", first))
            for first, (recorder, which) in enumerate([(one, policy), (two, other)] * 2)
        ]
        for thread in threads:
            thread.start()
        outside = policy.act(policy.prepare([observe(50)]))
        for thread in threads:
            thread.join()
        del outside
    assert not failures
    assert not one.faults
    assert not two.faults
    for path, firsts in ((store, (0, 2)), (second, (1, 3))):
        (directory,) = recording_directories(path)
        dataset = RecordingDataset(directory)
        assert dataset.episode_names() == [str(f) for f in firsts]
        for first in firsts:
            info = dataset.info(str(first))
            assert info.keyframes == (0, 5, 10)
            calls = [f.call for f in dataset.frames(info.name, info.keyframes)]
            assert [c.seed for c in calls if c is not None] == [first, first + 1, first + 2]
        if mode == "live":
            assert len(commits(path)) == 2


def test_an_episode_without_finish_is_unknown_by_name(policy: Pi0Policy, ram_path: Path) -> None:
    store = ram_path / "s"
    with attnstore.record(policy, store) as recorder:
        with recorder.episode("forgotten"):
            policy.act(policy.prepare([observe()]))
        with pytest.raises(KeyError), recorder.episode("broken"):
            policy.act(policy.prepare([observe()]))
            raise KeyError("gripper")
        left = recorder.episode("left open")
        with recorder.rows([left]):
            policy.act(policy.prepare([observe()]))
        with recorder.episode("typo") as episode:
            policy.act(policy.prepare([observe()]))
            episode.finish(outcome="sucess")
        with recorder.episode("typo") as episode:
            policy.act(policy.prepare([observe()]))
            episode.finish(outcome="success")
    found = {n: Part(StorePaths(store), c).spec for n, c in commits(store).items()}
    assert {n: s.outcome for n, s in found.items()} == {
        "forgotten": "unknown", "broken": "unknown", "left open": "unknown", "typo": "unknown",
        "typo~2": "success",
    }  # fmt: skip
    assert found["broken"].attributes["ended"] == "KeyError: 'gripper'"
    assert found["forgotten"].attributes["ended"] == "the episode ended without finish"
    assert found["typo"].attributes["outcome_given"] == "sucess"
    assert "ended" not in found["typo~2"].attributes


def test_faults_are_logged_once_and_never_raised(
    policy: Pi0Policy,
    ram_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full disk for some calls, a batch of nobody, wrong rows: the loop goes on, drops are counted."""
    expected = [policy.act(policy.prepare([observe(i)])) for i in range(6)]
    store, full = ram_path / "s", threading.Event()
    write = os.pwrite

    def pwrite(file: int, data: Any, offset: int) -> int:
        if full.is_set():
            # half of it goes through, as on a real disk
            write(file, bytes(data)[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    given = []
    with (
        caplog.at_level(logging.WARNING),
        attnstore.record(policy, store, mode="replay") as recorder,
        recorder.episode("one") as episode,
    ):
        for i in range(6):
            recorder.flush()
            full.set() if i in (2, 3) else full.clear()
            given.append(policy.act(policy.prepare([observe(i)])))
            recorder.flush()
        full.clear()
        foreign = policy.prepare([observe()])
        recorder._prepared.clear()
        policy.act(foreign)
        policy.act(policy.prepare([observe(), observe(1)]))
        episode.finish(outcome="failure")
    assert all(map(torch.equal, expected, given))
    said = [r.message for r in caplog.records]
    assert len(said) == 3
    assert "No space left" in said[0]
    info = RecordingDataset(recorder.directory).info("one")
    assert info.keyframes == (0, 1, 4, 5)
    assert info.attributes["dropped"] == 4
    assert sum(info.attributes["dropped_because"].values()) == 4
    assert [o.status for o in replay(store, ram_path / "t", policy).outcomes] == ["committed"]


def test_images_that_fill_gaps_belong_to_every_row() -> None:
    """Of two observations with a camera each, and two inputs that the policy fills: input by input, row by row."""
    sample = Sample({}, {})
    batch = Batch({}, (sample, sample), (None, None, (0, "hand"), (1, "hand"), None, None))
    assert [batch.images_of(row) for row in (0, 1)] == [[0, 2, 4], [1, 3, 5]]
    lone = Batch({}, (sample,), ((0, "hand"), None, (0, "side")))
    assert lone.images_of(0) == [0, 1, 2]


def test_a_call_returns_when_what_it_saw_is_copied(policy: Pi0Policy, ram_path: Path) -> None:
    seen = observe()
    pictures = {camera: np.zeros_like(image) for camera, image in seen.images.items()}

    def fill() -> None:
        time.sleep(0.5)
        for picture in pictures.values():
            picture[...] = 7

    with (
        attnstore.record(policy, ram_path / "s", mode="replay", pictures="png") as recorder,
        recorder.episode("one"),
    ):
        batch = policy.prepare([seen])
        wanted = {k: v.clone() for k, v in batch.inputs.items() if isinstance(v, torch.Tensor)}
        recorder.saw(batch, [replace(seen, images=pictures)], fill)
        policy.act(batch)
        assert all((picture == 7).all() for picture in pictures.values())
        for tensor in batch.inputs.values():
            if isinstance(tensor, torch.Tensor):
                tensor.zero_()
    (frame,) = RecordingDataset(recorder.directory).frames("one", [0])
    assert all((camera.rgb == 7).all() for camera in frame.cameras)
    assert frame.call is not None
    assert all(torch.equal(frame.call.batch.inputs[k], v) for k, v in wanted.items())


def test_a_call_that_is_over_before_it_is_copied(
    policy: Pi0Policy, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a policy that is faster than the copying thread's head start, the caller's thread copies, and once."""
    monkeypatch.setattr("attnstore.ingest.recording.recorder.HEAD_START", 60.0)
    copies: list[str] = []
    with (
        attnstore.record(policy, ram_path / "s", mode="replay") as recorder,
        recorder.episode("one") as episode,
    ):
        monkeypatch.setattr(recorder._copier, "submit", lambda task: _Asleep())
        batch, name = policy.prepare([observe()]), threading.current_thread().name
        recorder.saw(batch, [observe()], lambda: copies.append(threading.current_thread().name))
        policy.act(batch)
        assert copies == [name]
        assert not episode.dropped


class _Asleep:
    """A copy that is not made yet."""

    def result(self) -> None:
        raise AssertionError("the call waited for it")


def test_memory_is_used_again_when_nobody_looks_at_it() -> None:
    memory = Memory(3 << 16)
    assert memory.empty((3, 5), np.float32).shape == (3, 5)
    first = memory.empty((128, 128), np.float32)
    first[...] = 1
    at, row = first.ctypes.data, first[7, 1:].view(np.uint8).T
    del first
    other = memory.empty((1 << 16,), np.uint8)
    assert other.ctypes.data != at
    other[...] = 9
    assert (row.view(np.float32) == 1).all()
    assert not memory.free
    del row
    assert memory.free == 1 << 16
    again = memory.empty((64, 256), np.int32)
    assert again.ctypes.data == at
    assert again.shape == (64, 256)
    held = [memory.empty((1 << 16,), np.uint8) for _ in range(5)]
    del held, again, other
    assert memory.free == 3 << 16


def test_a_copy_that_fails_is_a_dropped_call(policy: Pi0Policy, ram_path: Path) -> None:
    def broken() -> None:
        raise MemoryError("no room for pixels")

    with (
        attnstore.record(policy, ram_path / "s", mode="replay") as recorder,
        recorder.episode("one") as episode,
    ):
        batch = policy.prepare([observe()])
        recorder.saw(batch, [observe()], broken)
        assert policy.act(batch).shape[0] == 1
        policy.act(policy.prepare([observe(1)]))
        assert dict(episode.dropped) == {"MemoryError: no room for pixels": 1}
        recorder.flush()
    assert list(RecordingDataset(recorder.directory).numbers("one")) == [1]


def test_a_capture_that_fails_does_not_stop_the_policy(
    policy: Pi0Policy, ram_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = policy.act(policy.prepare([observe()]))
    store = ram_path / "s"
    with attnstore.record(policy, store) as recorder, recorder.episode("one") as episode:
        with monkeypatch.context() as patch:
            patch.setattr("attnstore.ingest.recording.spool.compact", lambda *a: 1 / 0)
            assert policy.act(policy.prepare([observe()])).shape == expected.shape
            patch.setattr(policy, "eager", _broken)
            assert torch.equal(policy.act(policy.prepare([observe()])), expected)
        policy.act(policy.prepare([observe(1)]))
        episode.finish(outcome="success")
    assert [o.status for o in recorder.outcomes] == ["failed"]
    assert "2 of 3 calls were not captured" in recorder.outcomes[0].reason
    # What it saw is whole.
    assert [o.keyframes for o in replay(store, store, policy, tolerance=1e-4).outcomes] == [3]


def _broken() -> Any:
    raise RuntimeError("no eager attention")


def test_the_policys_own_error_is_the_callers(policy: Pi0Policy, ram_path: Path) -> None:
    with attnstore.record(policy, ram_path / "s") as recorder, recorder.episode("one") as episode:
        batch = policy.prepare([observe()])
        batch.inputs["noise"] = torch.zeros(1, 2, 3)  # type: ignore[index]
        with pytest.raises(RuntimeError):
            policy.act(batch)
        policy.act(policy.prepare([observe()]))
        episode.finish(outcome="success")
    assert "act" not in vars(policy)
    assert "prepare" not in vars(policy)
    with attnstore.record(policy, ram_path / "s"), pytest.raises(UsageError, match="already"):
        attnstore.record(policy, ram_path / "t").__enter__()
    with pytest.raises(UsageError, match="mode is one of live, replay; got 'alive'"):
        attnstore.record(policy, ram_path / "s", mode="alive")  # type: ignore[arg-type]


def test_a_full_queue_drops_and_never_waits() -> None:
    gate, ran = threading.Event(), []
    outbox = Outbox(100)
    assert outbox.put(lambda: gate.wait(10), 60)
    assert outbox.put(lambda: ran.append(1), 40)
    began = time.monotonic()
    assert not outbox.put(lambda: ran.append(2), 1)
    assert outbox.put(lambda: ran.append(3))  # an episode's end is always let in
    assert time.monotonic() - began < 0.5
    assert not outbox.put(lambda: ran.append(4), 50, wait=0.05)
    gate.set()
    assert outbox.put(lambda: ran.append(5), 50, wait=5)
    outbox.close()
    assert ran == [1, 3, 5]


def test_inputs_come_back_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    picture = (rng.integers(0, 256, (1, 3, 64, 64)) / 127.5 - 1).astype(np.float32)
    noise = rng.normal(size=(1, 9, 700)).astype(np.float32)
    noise[0, 0, :3] = np.nan, np.inf, -0.0
    inputs = {
        "picture": torch.from_numpy(picture),
        "noise": torch.from_numpy(noise),
        "half": torch.from_numpy(noise).bfloat16(),
        "nested": {
            "mask": torch.tensor([[True, False]]),
            "none": None,
            "list": [1, 2.5, "x", (True,)],
        },
        "numpy": noise[0, 0],
        "empty": torch.zeros(1, 0),
        "scalar": np.float64(0.1),
        "ids": torch.tensor([[3, -4]]),
    }
    said, pieces = pack_inputs(copy_inputs(inputs))
    back = unpack_inputs(json.loads(json.dumps(said)), b"".join(pieces))
    for key in ("picture", "noise", "half", "ids", "empty"):
        one, other = inputs[key], back[key]
        assert isinstance(one, torch.Tensor)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.numel() == 0 or bytes(one.view(torch.uint8).numpy()) == bytes(
            other.view(torch.uint8).numpy()
        )
    assert back["nested"]["list"] == [1, 2.5, "x", (True,)]
    assert torch.equal(back["nested"]["mask"], torch.tensor([[True, False]]))
    np.testing.assert_array_equal(back["numpy"], noise[0, 0])
    assert back["scalar"] == np.float64(0.1)
    # A picture of 256 levels is a quarter of its bytes and less.
    assert said["arrays"][0]["coding"] == "tables"
    assert said["arrays"][0]["size"] + said["arrays"][0]["tables"] <= picture.nbytes / 4 + 2048
    with pytest.raises(UnknownInputError, match=r"inputs\.odd: a object"):
        copy_inputs({"odd": object()})
    row = copy_inputs({"x": torch.arange(6).reshape(3, 2), "task": ["a", "b", "c"]}, 1, 3)
    said, pieces = pack_inputs(row)
    back = unpack_inputs(said, b"".join(pieces))
    assert back["x"].tolist() == [[2, 3]]
    assert back["task"] == ["b"]
    with pytest.raises(UnknownInputError, match="once per environment"):
        copy_inputs({"x": torch.zeros(5, 2)}, 1, 3)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int16"])
@pytest.mark.parametrize("shape", [(2, 3, 120, 70), (1, 3, 60, 70), (9001,)])
def test_pictures_of_any_kind_come_back_bit_for_bit(shape: tuple[int, ...], dtype: str) -> None:
    """Normalised channel by channel, of 90 levels each, with zeros of both signs."""
    levels = torch.from_numpy(np.random.default_rng(1).integers(0, 90, shape))
    if "float" in dtype:
        channel = torch.arange(3).reshape(3, 1, 1) if len(shape) > 2 else 1
        levels = (levels / 255 - 0.137 * channel) / 0.2
        levels.view(-1)[:3] = torch.tensor([0.0, -0.0, np.nan])
    picture = levels.to(getattr(torch, dtype))
    said, pieces = pack_inputs(copy_inputs({"picture": picture}))
    (array,) = said["arrays"]
    bits = picture.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[picture.element_size()])
    if shape[-2:] != (60, 70) or len(bits.unique()) <= 256:
        assert (array["coding"], array["codes"]) == ("tables", "uint8")
    elif picture.element_size() > 2:  # planes so small have one table
        assert (array["coding"], array["codes"]) == ("tables", "uint16")
    else:
        assert array["coding"] == "plain"
    back = unpack_inputs(json.loads(json.dumps(said)), b"".join(pieces))["picture"]
    assert (back.dtype, back.shape) == (picture.dtype, picture.shape)
    assert bytes(back.view(torch.uint8).numpy()) == bytes(picture.view(torch.uint8).numpy())


@drawn(st.permutations(range(4)), st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]))
def test_what_lies_otherwise_in_memory_comes_back_so(order: list[int], dtype: Any) -> None:
    """Of images whose channels come last a convolution makes other last bits."""
    sizes = (2, 3, 40, 50)
    lain = torch.arange(12_000).reshape([sizes[i] for i in order]).to(dtype)
    image = lain.permute([order.index(i) for i in range(4)])
    assert image.shape == sizes
    inputs = {
        "image": image,
        "array": image.float().numpy(),
        "gaps": image[:, :, ::2],
        "spread": image[:1].expand(3, -1, -1, -1),
    }
    said, pieces = pack_inputs(copy_inputs(inputs))
    back = unpack_inputs(json.loads(json.dumps(said)), b"".join(pieces))
    for name in ("image", "gaps", "spread"):
        assert torch.equal(back[name], inputs[name])
    assert back["image"].stride() == image.stride()
    np.testing.assert_array_equal(back["array"], inputs["array"])
    assert back["array"].strides == inputs["array"].strides
    said, pieces = pack_inputs(copy_inputs({"image": image}, 1, 2))
    row = unpack_inputs(said, b"".join(pieces))["image"]
    assert torch.equal(row, image[1:2])
    assert row.is_contiguous(memory_format=torch.channels_last) == image[1:2].is_contiguous(
        memory_format=torch.channels_last
    )


def test_an_order_of_dimensions_that_are_not_there_is_refused() -> None:
    image = torch.zeros(1, 3, 8, 8).to(memory_format=torch.channels_last)
    said, pieces = pack_inputs(copy_inputs({"image": image}))
    assert said["arrays"][0]["order"] == [0, 2, 3, 1]
    for wrong in ([0, 2, 3], [0, 2, 3, 4], [0, 0, 1, 2]):
        said["arrays"][0]["order"] = wrong
        with pytest.raises(IntegrityError, match="order"):
            unpack_inputs(said, b"".join(pieces))


def test_a_cameras_noise_takes_few_more_bits_than_it_has() -> None:
    """Of noise of so many levels no coder needs less than its entropy; differences have half a bit more."""
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.linspace(20, 90, 240), np.linspace(0, 120, 320))
    levels = np.clip(smooth + rng.normal(0, 4, (1, 3, 240, 320)), 0, 255).astype(np.uint8)
    mean, std = (
        np.array(v, np.float32).reshape(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.2, 0.3, 0.25])
    )
    picture = (levels / np.float32(255) - mean) / std
    _, pieces = pack_inputs(copy_inputs({"picture": picture}))
    entropy = math.log2(4 * math.sqrt(2 * math.pi * math.e))
    assert 8 * sum(map(len, pieces)) / levels.size < entropy + 0.8


def test_every_cut_and_every_flipped_byte_of_a_journal_is_found(tmp_path: Path) -> None:
    path = tmp_path / "e.journal"
    journal = Journal(path)
    sizes = [path.stat().st_size]
    for i in range(4):
        journal.append({"kind": "call", "number": i}, [bytes([i]) * 50])
        sizes.append(path.stat().st_size)
    journal.close()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        contents = read_contents(path)
        count = sum(size <= length for size in sizes[1:])
        assert len(contents.places) == count
        assert (contents.reason is None) == (length in sizes)
    rng = random.Random(0)
    for at in rng.sample(range(sizes[0], len(whole)), 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        contents = read_contents(path)
        assert contents.reason is not None
        assert len(contents.places) == sum(size <= at for size in sizes[1:])


def test_killed_at_random_moments_nothing_that_was_flushed_is_lost(ram_path: Path) -> None:
    """Forty processes are killed while they record into one store; then all is recovered."""
    kill_recorders(ram_path, kills=40, seed=15)  # a thousand: make test-recording


def test_from_the_command_line(
    policy: Pi0Policy,
    checkpoint: Path,
    ram_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    zygote: Zygote,
) -> None:
    def forked(*arguments: object) -> tuple[int, str]:
        output = ram_path / "output"
        output.unlink(missing_ok=True)
        code = zygote.run(*arguments, output=output)
        return code, output.read_text()

    store, other = ram_path / "robot.attn", ram_path / "lab.attn"
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "robot")
        with attnstore.record(policy, store, mode="replay", name="monday") as recorder:
            drive(recorder, policy, "one", 2)
            drive(recorder, policy, "two", 1)
    (journal,) = recorder.directory.glob("one-*.journal")
    # The robot lost its power in the midst of the second call.
    Journal(journal, at=read_contents(journal).places[2].start + 150).close()
    options = ("--policy", "pi0", "--checkpoint", checkpoint)
    code, said = forked("ingest", "recording", other, store, *options)
    assert code == 5, said
    assert "attnstore record recover" in said
    assert list(commits(other)) == ["two"]
    code, said = forked("record", "recover", store)
    assert code == 0
    assert said.startswith("recovered: one: 1 call; ")
    assert (journal.parent / f"{journal.name}.rest").stat().st_size > 150
    assert forked("record", "recover", store) == (0, "every episode was ended\n")
    code, said = forked("ingest", "recording", store, *options, "--name", "monday")
    assert code == 0, said
    assert {n: c.summary["outcome"] for n, c in commits(store).items()} == {
        "one": "unknown", "two": "success",
    }  # fmt: skip
    assert problems(store) == []


def test_outcomes_joined_afterwards(policy: Pi0Policy, ram_path: Path) -> None:
    store = ram_path / "s"
    with attnstore.record(policy, store) as recorder:
        for i, name in enumerate(("day/one", "day/two", "day/three")):
            with recorder.episode(name, seed=10 + i):
                policy.act(policy.prepare([observe(i)]))
    before = {n: arrays_of(Part(StorePaths(store), c)) for n, c in commits(store).items()}
    table = ram_path / "droid.csv"
    table.write_text(
        "success,duration,video_filename\n1.0,8,one.mp4\n0,9,videos/two.mp4\n1,3,ten.mp4\n"
    )
    done = run("outcomes", store, "--csv", table)
    assert done.returncode == 5
    assert done.stdout == "outcomes in runs and recordings: 4 changed, 0 were said already\n"
    assert "names 1 episodes that are not in" in done.stderr
    assert "ten" in done.stderr
    with attnstore.open(store) as opened:
        assert {n: e.outcome for n, e in opened.episodes.items()} == {
            "day/one": "success", "day/two": "failure", "day/three": "unknown",
        }  # fmt: skip
        rows = opened.sql("select name, outcome from episodes order by name").fetchall()
        assert rows == [("day/one", "success"), ("day/three", "unknown"), ("day/two", "failure")]
    assert problems(store) == []
    for name, commit in commits(store).items():
        assert commit.revision == (1 if name == "day/three" else 2)
        for path, values in arrays_of(Part(StorePaths(store), commit)).items():
            np.testing.assert_array_equal(values, before[name][path])
    # The recordings know it, too, for whoever replays them.
    dataset = RecordingDataset(recorder.directory)
    assert dataset.info("day/two").outcome == "failure"
    found = ram_path / "eval_info.json"
    found.write_text(
        json.dumps(
            {"per_episode": [{"episode_ix": 0, "sum_reward": 2.5, "success": True, "seed": 12}]}
        )
    )
    done = run("outcomes", store, "--json", found, "--by", "seed")
    assert (done.returncode, done.stderr) == (0, "")
    assert RecordingDataset(recorder.directory).info("day/three").attributes["reward"] == 2.5
    done = run("outcomes", store, "--json", found, "--by", "seed")
    assert done.stdout == "outcomes in runs and recordings: 0 changed, 2 were said already\n"
    with attnstore.open(store) as opened:
        episode = opened.episodes["day/three"]
        assert episode.outcome == "success"
        assert episode.spec.attributes["reward"] == 2.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("episode,success\na,0.5\n", "row 2: an outcome is one of"),
        ("episode,success\na,1\na,0\n", "a stands twice, row 2 and row 3"),
        ("episode,success,outcome\na,1,failure\n", "row 2 says both failure and success"),
        ("id,success\na,1\n", "row 2 has no episode, name"),
        ("episode,duration\na,1\n", "row 2 has no outcome or success"),
        ("", "it names no episode"),
    ],
)
def test_outcomes_that_cannot_be_read_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "o.csv"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_said(file)

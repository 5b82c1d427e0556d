"""From recordings to a store: what is stored, batching, resume, forecast, and what can go wrong."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from ingest_fixtures import (
    CAMERAS,
    CHUNK,
    STEPS,
    Watcher,
    arrays_of,
    assert_same_store,
    commits,
    make_job,
    problems,
    write_droid,
)
from numpy.typing import NDArray

from attnstore.ingest.capture import capture
from attnstore.ingest.datasets.base import CameraFrame, Frame
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import EpisodeJob, ingest_episode
from attnstore.ingest.keyframes import keyframe_indices, noise_seed, observation
from attnstore.ingest.pipeline import ingest_all, ingest_one, provenance
from attnstore.ingest.plan import claimed_by_other, describe_run, make_plan
from attnstore.ingest.policies.base import (
    ATTENTION_ONLY,
    Batch,
    HiddenChoice,
    Observation,
    ObservationError,
    PolicyError,
    Watch,
)
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.registry import load_policy
from attnstore.ingest.work import Outcome, Report, SharedFailureError
from attnstore.sample import checkpoint_path, episodes_path
from attnstore.store.arrays.groups import MAP_BITS
from attnstore.store.commits import ATTEMPT_FILE, Attempt, latest_commit, now
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import load_run
from attnstore.store.errors import EpisodeError, IntegrityError, NotFoundError
from attnstore.store.format.precision import encode
from attnstore.store.tables.base import METRICS


@pytest.fixture
def dataset(recordings: Path) -> DroidDataset:
    return DroidDataset(recordings)


def ingest(job: EpisodeJob, policy: Pi0Policy, dataset: DroidDataset, **options: Any) -> Report:
    return ingest_all(job, policy, dataset, dataset.episode_names(), Watcher(), **options)


def files_of(store: Path) -> set[str]:
    return {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def part(loaded: Pi0Policy, recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Part:
    dataset = DroidDataset(recordings)
    job = make_job(tmp_path_factory.mktemp("stored") / "s", loaded, dataset)
    return Part(job.paths, ingest_episode(job, loaded, dataset, dataset.episode_names()[1]))


@pytest.fixture(scope="module")
def frames(recordings: Path) -> list[Frame]:
    dataset = DroidDataset(recordings)
    return list(dataset.frames(dataset.episode_names()[1], (0, 8, 16)))


class TestWhatIsStored:
    def test_attention_is_the_captured_weights(
        self, policy: Pi0Policy, part: Part, frames: list[Frame], dataset: DroidDataset
    ) -> None:
        arrays = arrays_of(part)
        info = dataset.info(part.spec.name)
        for keyframe, frame in enumerate(frames):
            batch = policy.prepare([observation(frame, info, 0)])
            with capture(policy) as session:
                actions = policy.act(batch)
            for record in session.records:
                layout = batch.samples[0].layouts[record.phase]
                query = [i for s in layout.query.model_slices for i in range(s.start, s.stop)]
                key = [i for s in layout.key.model_slices for i in range(s.start, s.stop)]
                weights = record.weights[0].numpy()[:, query][:, :, key]
                at = (
                    (keyframe, record.layer)
                    if record.step is None
                    else (keyframe, record.step, record.layer)
                )
                stored = arrays[f"{record.phase}/attention"][at]
                np.testing.assert_array_equal(stored, encode(weights, "float16"))
            np.testing.assert_array_equal(arrays["policy/actions"][keyframe], actions[0])
            noisy = [n[0].numpy() for n in session.noisy_actions]
            np.testing.assert_array_equal(
                arrays["policy/denoising"][keyframe], [*noisy[1:], actions[0].numpy()]
            )

    def test_state_actions_images_and_seeds_are_the_recordings(
        self, part: Part, frames: list[Frame], dataset: DroidDataset
    ) -> None:
        arrays = arrays_of(part)
        assert arrays["policy/actions"].shape == (3, CHUNK, 32)
        assert arrays["policy/denoising"].shape == (3, STEPS, CHUNK, 32)
        rows = part.table("keyframes").to_pylist()
        images = {(r["keyframe"], r["camera"]): r for r in part.table("frames").to_pylist()}
        assert len(images) == 6
        for keyframe, frame in enumerate(frames):
            np.testing.assert_array_equal(arrays["policy/state"][keyframe], frame.state)
            np.testing.assert_array_equal(arrays["policy/actions_recorded"][keyframe], frame.action)
            row = rows[keyframe]
            assert (row["keyframe"], row["frame"]) == (keyframe, frame.index)
            assert row["seed"] == noise_seed(0, part.spec.name, frame.index)
            assert row["seed"] == part.spec.seeds[keyframe]
            assert row["instruction"] == dataset.info(part.spec.name).instruction
            assert row["state"] == frame.state.tolist()
            assert abs(row["row_sum_min"] - 1) < 1e-5
            for image in frame.cameras:
                kept = images[keyframe, image.camera]
                assert kept["image"] == image.data
                assert (kept["height"], kept["width"]) == image.rgb.shape[:2]
                assert kept["geometry"] == part.spec.geometry[image.camera].to_json()

    def test_spans_and_tokens(self, part: Part) -> None:
        assert tuple(part.spec.geometry) == CAMERAS
        spans = part.table("spans").to_pylist()
        for phase, spec in part.spec.phases.items():
            for axis, aligned in (("query", spec.query), ("key", spec.key)):
                for keyframe in range(3):
                    found = [
                        (r["span"], r["start"], r["stop"], r["reserved_stop"])
                        for r in spans
                        if (r["phase"], r["axis"], r["keyframe"]) == (phase, axis, keyframe)
                    ]
                    assert found == [(s.name, s.start, s.stop, s.stop) for s in aligned]
        tokens = part.table("tokens").to_pylist()
        task = [
            r["text"]
            for r in tokens
            if (r["phase"], r["axis"], r["keyframe"], r["role"]) == ("suffix", "key", 2, "task")
        ]
        assert "".join(task) == part.spec.instruction

    def test_the_run_says_how_it_was_made(
        self, policy: Pi0Policy, part: Part, dataset: DroidDataset, ram_path: Path
    ) -> None:
        job = make_job(ram_path / "s", policy, dataset)
        config, made = load_run(job.paths, job.run.id)
        assert config == job.run
        assert (config.policy, config.dataset, config.cameras) == ("pi0", "droid:toy", CAMERAS)
        assert config.checkpoint_digest == policy.digest
        assert set(made["versions"]) >= {"torch", "transformers", "numpy", "attnstore"}
        assert made["host"] == socket.gethostname()


def close(one: NDArray[Any], other: NDArray[Any], path: str) -> None:
    """Within 1e-5; weights that are stored as float16 may round to the neighbour, codes too."""
    if one.dtype == np.uint8:
        assert np.abs(one.astype(int) - other).max() <= 1, path
        return
    a, b = one.astype(np.float64), other.astype(np.float64)
    rounding: Any = np.spacing(np.abs(one)).astype(np.float64) if one.dtype == np.float16 else 0.0
    bits = MAP_BITS.get(path.rpartition("/")[2]) if path.startswith("maps/") else None
    if bits is not None:  # of a few significant bits
        rounding = np.abs(a) * 2.0 ** (1 - bits)
    assert (np.isnan(a) == np.isnan(b)).all(), path
    worst = np.nanmax(np.abs(a - b) - rounding)
    assert worst <= 1e-5, (path, worst)


@pytest.fixture(scope="module")
def one_long_episode(tmp_path_factory: pytest.TempPathFactory) -> DroidDataset:
    """Eight keyframes."""
    return DroidDataset(write_droid(tmp_path_factory.mktemp("long") / "toy", lengths=(60,)))


def test_batching_does_not_change_the_results(
    policy: Pi0Policy, one_long_episode: DroidDataset, ram_path: Path
) -> None:
    parts = {}
    for size in (1, 3, 8):
        job = make_job(ram_path / str(size), policy, one_long_episode, batch_size=size)
        watcher = Watcher()
        report = ingest_all(
            job, policy, one_long_episode, one_long_episode.episode_names(), watcher
        )
        assert [o.status for o in report.outcomes] == ["committed"]
        assert [n for _, n in watcher.keyframes] == {1: [1] * 8, 3: [3, 3, 2], 8: [8]}[size]
        commit = next(iter(commits(ram_path / str(size)).values()))
        parts[size] = Part(job.paths, commit)
    one = parts.pop(1)
    assert len(set(one.spec.seeds)) == 8
    for other in parts.values():
        assert other.spec == one.spec
        assert other.commit.run == one.commit.run
        arrays, others = arrays_of(one), arrays_of(other)
        assert sorted(arrays) == sorted(others)
        scale = np.abs(arrays["policy/actions"]).max()
        for path, values in arrays.items():
            if path in ("policy/actions", "policy/denoising"):  # not weights in 0..1
                close(values / scale, others[path] / scale, path)
            else:
                close(values, others[path], path)
        for name in ("spans", "tokens", "frames"):
            assert other.table(name).equals(one.table(name))
        assert other.table("keyframes")["seed"].equals(one.table("keyframes")["seed"])
        stats, ours = one.table("head_stats"), other.table("head_stats")
        for metric in METRICS:
            a, b = stats[metric].to_numpy(), ours[metric].to_numpy()
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=metric)


@pytest.mark.parametrize(("stride", "frames"), [(1, range(9)), (5, (0, 5)), (100, (0,))])
def test_stride(
    policy: Pi0Policy, dataset: DroidDataset, ram_path: Path, stride: int, frames: Sequence[int]
) -> None:
    job = make_job(ram_path / "s", policy, dataset, stride=stride, batch_size=4, precision="log8")
    commit = ingest_episode(job, policy, dataset, "success/2025-12-10/2025-12-10_09-01-00")
    assert Part(job.paths, commit).spec.frames == tuple(frames)
    assert keyframe_indices(9, stride) == tuple(frames)


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ({}, [2, 0, 1]),
        ({"outcome": "success"}, [0, 1]),
        ({"outcome": "failure"}, [2]),
        ({"episodes": "*_09-01-*"}, [1]),
        ({"limit": 2}, [2, 0]),
        ({"outcome": "success", "limit": 1}, [0]),
    ],
)
def test_the_readers_filters_choose_the_episodes(
    policy: Pi0Policy, recordings: Path, ram_path: Path, filters: Any, numbers: list[int]
) -> None:
    dataset = DroidDataset(recordings, **filters)
    plan = make_plan(make_job(ram_path / "s", policy, dataset), policy, dataset)
    assert [n.rpartition("/")[2] for n in plan.pending] == [
        f"2025-12-10_09-0{i}-00" for i in numbers
    ]
    assert list(plan.keyframes.values()) == [(3, 2, 3)[i] for i in numbers]


def test_what_makes_another_run(policy: Pi0Policy, recordings: Path) -> None:
    dataset = DroidDataset(recordings)
    base = {"stride": 8, "precision": "float16", "seed": 0}
    runs = [
        describe_run(policy, "pi0", dataset, **base),  # type: ignore[arg-type]
        describe_run(policy, "pi0", dataset, **base | {"stride": 4}),  # type: ignore[arg-type]
        describe_run(policy, "pi0", dataset, **base | {"seed": 1}),  # type: ignore[arg-type]
        describe_run(policy, "pi0", dataset, **base | {"precision": "log8"}),  # type: ignore[arg-type]
        describe_run(policy, "pi0", DroidDataset(recordings, side="right"), **base),  # type: ignore[arg-type]
        describe_run(policy, "pi0", DroidDataset(recordings, name="other"), **base),  # type: ignore[arg-type]
    ]
    assert len({r.id for r in runs}) == len(runs)
    again = describe_run(policy, "pi0", DroidDataset(recordings, limit=1), **base)  # type: ignore[arg-type]
    assert again.id == runs[0].id


class TestResume:
    def test_committed_episodes_are_skipped_and_others_redone(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        names = list(dataset.episode_names())
        whole, resumed = ram_path / "whole", ram_path / "resumed"
        ingest(make_job(whole, policy, dataset), policy, dataset)
        job = make_job(resumed, policy, dataset)
        ingest_episode(job, policy, dataset, names[1])
        # what a killed process leaves: an attempt, never a commit
        left = Attempt(job.paths, *job.commit_folder(names[0]))
        (left.path / "attention.zarr").mkdir()
        (left.path / ATTEMPT_FILE).write_text(
            json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "created": now()})
        )
        before = files_of(resumed)

        plan = make_plan(job, policy, dataset)
        assert (plan.committed, plan.pending) == ((names[1],), (names[0], names[2]))
        watcher = Watcher()
        report = ingest_all(job, policy, dataset, plan.pending, watcher)
        assert [(o.name, o.status) for o in report.outcomes] == [
            (names[0], "committed"), (names[2], "committed"),
        ]  # fmt: skip
        assert before <= files_of(resumed)
        assert_same_store(resumed, whole)
        assert problems(resumed) == []

        again = ingest(job, policy, dataset)
        assert [o.status for o in again.outcomes] == ["present"] * 3
        assert again.failed == []
        assert [c.revision for c in commits(resumed).values()] == [1, 1, 1]

    def test_an_episode_that_is_interrupted_leaves_nothing(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        store = ram_path / "s"
        job = make_job(store, policy, dataset)
        watcher = Watcher()
        # three keyframes of the first episode, one of the second
        report = ingest_all(
            job, policy, dataset, dataset.episode_names(), watcher,
            stopped=lambda: len(watcher.keyframes) == 4,
        )  # fmt: skip
        assert report.interrupted
        assert [o.status for o in report.outcomes] == ["committed"]
        assert len(watcher.begun) == 2
        assert list(commits(store)) == [watcher.begun[0]]
        assert problems(store) == []
        assert len(list((store / "data").glob("*/*/*"))) == 1
        assert [o.status for o in ingest(job, policy, dataset).outcomes] == [
            "present", "committed", "committed",
        ]  # fmt: skip

    def test_a_corrupt_commit_is_not_taken_for_an_absent_one(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        job = make_job(ram_path / "s", policy, dataset)
        ingest_episode(job, policy, dataset, dataset.episode_names()[0])
        file = sorted((ram_path / "s").glob("commits/log/*.json"))[-1]
        file.write_text(file.read_text()[:100])
        with pytest.raises(IntegrityError, match="not JSON"):
            make_plan(job, policy, dataset)


class Sized(DroidDataset):
    """One of the sample's recordings, with images of another size."""

    size = (480, 640)

    def episode_names(self) -> list[str]:
        return list(super().episode_names()[-3:-2])

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        for frame in super().frames(name, indices):
            cameras = []
            for seen in frame.cameras:
                large = cv2.resize(seen.rgb, self.size[::-1], interpolation=cv2.INTER_CUBIC)
                data = cv2.imencode(".jpg", large[..., ::-1])[1]
                decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
                assert decoded is not None
                rgb = np.asarray(decoded[..., ::-1], np.uint8)
                cameras.append(CameraFrame(seen.camera, data.tobytes(), "image/jpeg", rgb))
            yield replace(frame, cameras=tuple(cameras))


BY_DEFAULT = Watch(values=True, hidden=HiddenChoice())
"""What the command captures of a policy that shows it."""


class TestForecast:
    @pytest.mark.parametrize(
        ("dtype", "precision", "watch"),
        [
            ("float32", "float16", ATTENTION_ONLY),
            ("float32", "log8", BY_DEFAULT),
            ("bfloat16", "float16", BY_DEFAULT),
        ],
        ids=["float16", "log8", "bfloat16"],
    )
    def test_trained_attention_and_images_of_two_sizes_within_5_percent(
        self, ram_path: Path, dtype: str, precision: str, watch: Watch
    ) -> None:
        pytest.importorskip("torch", reason="a model's test needs torch")
        trained = load_policy("pi0", str(checkpoint_path()), dtype=dtype)
        for size, share in (((480, 640), 0.01), ((720, 1280), 0.03)):
            dataset = Sized(episodes_path())
            dataset.size = size
            job = make_job(
                ram_path / f"{size}",
                trained,
                dataset,
                precision=precision,
                batch_size=4,
                watch=watch,
            )
            plan = make_plan(job, trained, dataset)
            files = [
                f for n in plan.pending for f in ingest_episode(job, trained, dataset, n).files
            ]
            came = sum(f.size for f in files)
            assert plan.stored_bytes == pytest.approx(came, rel=0.05)
            assert sum(f.size for f in files if f.path == "frames.parquet") > share * came

    @pytest.mark.parametrize("watch", [ATTENTION_ONLY, BY_DEFAULT], ids=["attention", "default"])
    def test_a_tiny_store_within_5_percent(
        self, policy: Pi0Policy, ram_path: Path, watch: Watch
    ) -> None:
        """Two keyframes of a tiny model: half of it is tables and what describes arrays."""
        dataset = DroidDataset(write_droid(ram_path / "toy", lengths=(9,)))
        job = make_job(ram_path / "s", policy, dataset, watch=watch)
        plan = make_plan(job, policy, dataset)
        commit = ingest_episode(job, policy, dataset, plan.pending[0])
        assert plan.stored_bytes == pytest.approx(commit.size, rel=0.05)
        described = sum(f.size for f in commit.files if f.path.endswith((".json", ".parquet")))
        assert described > 0.4 * commit.size

    def test_what_the_run_has_committed_says_what_the_rest_will_take(
        self, policy: Pi0Policy, ram_path: Path
    ) -> None:
        """Random weights compress otherwise than trained ones do, and are known when some are there."""
        root = write_droid(ram_path / "toy", lengths=(41, 25, 33), instructions=["pick it up"])
        dataset = DroidDataset(root)
        job = make_job(ram_path / "s", policy, dataset, batch_size=6)
        before = make_plan(job, policy, dataset)
        first, *others = before.pending
        size = ingest_episode(job, policy, dataset, first).size
        after = make_plan(job, policy, dataset)
        assert after.pending == tuple(others)
        came = sum(ingest_episode(job, policy, dataset, name).size for name in others)
        assert after.stored_bytes == pytest.approx(came, rel=0.01)
        assert abs(before.stored_bytes - size - came) > 0.02 * came

    @pytest.mark.parametrize("precision", ["float16", "log8"])
    def test_size_against_what_is_written(
        self, policy: Pi0Policy, one_long_episode: DroidDataset, ram_path: Path, precision: str
    ) -> None:
        """Random weights compress otherwise than trained ones do."""
        job = make_job(ram_path / "s", policy, one_long_episode, precision=precision, batch_size=8)
        plan = make_plan(job, policy, one_long_episode)
        assert plan.total_keyframes == 8
        assert plan.fits
        commit = ingest_episode(job, policy, one_long_episode, plan.pending[0])
        came = sum(f.size for f in commit.files)
        assert came / 2 < plan.stored_bytes < came * 2
        part = Part(job.paths, commit)
        raw = sum(
            values.nbytes
            for path, values in arrays_of(part).items()
            if path.endswith(("/attention", "/mean", "/max"))
        )
        assert plan.keyframe_bytes * 8 == raw
        prefix = part.spec.phases["prefix"]
        assert plan.tokens["prefix"] == (len(prefix.query), len(prefix.key))

    def test_it_loads_no_weights_and_writes_nothing(
        self, checkpoint: Path, dataset: DroidDataset, ram_path: Path
    ) -> None:
        from attnstore.ingest.policies.registry import load_policy

        directory = ram_path / "ck"
        shutil.copytree(checkpoint, directory)
        (directory / "model.safetensors").unlink()
        policy = load_policy("pi0", str(directory))
        job = make_job(ram_path / "s", policy, dataset)
        before = files_of(ram_path / "s")
        assert make_plan(job, policy, dataset).total_keyframes == 8
        assert files_of(ram_path / "s") == before

    def test_broken_episodes_are_named(self, policy: Pi0Policy, ram_path: Path) -> None:
        root = write_droid(ram_path / "toy", lengths=(9, 9, 9, 9))
        names = DroidDataset(root).episode_names()
        (root / names[0] / "trajectory.h5").unlink()
        image = root / names[1] / "recordings" / "frames" / CAMERAS[0] / "00000.jpg"
        image.write_bytes(image.read_bytes()[:200])
        plan = make_plan(
            make_job(ram_path / "s", policy, DroidDataset(root)), policy, DroidDataset(root)
        )
        assert set(plan.broken) == {names[0], names[1]}
        assert set(plan.keyframes) == set(plan.pending) == {names[2], names[3]}

    def test_a_policy_that_takes_no_sample_at_all(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        job = make_job(ram_path / "s", policy, dataset)
        with pytest.raises(ObservationError, match="not today"):
            make_plan(job, Picky(policy, refuses=lambda o: True), dataset)
        plan = make_plan(job, Picky(policy, refuses=lambda o: o.instruction == "wipe"), dataset)
        assert plan.broken == {dataset.episode_names()[2]: "not today"}


class Picky(Pi0Policy):
    """The real policy, which refuses some observations."""

    def __init__(self, policy: Pi0Policy, refuses: Any) -> None:
        vars(self).update(vars(policy))
        self.refuses = refuses

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        if any(self.refuses(o) for o in observations):
            raise ObservationError("not today")
        return super().prepare(observations)


class Careless(Pi0Policy):
    """The real policy, whose processor stumbles over some instructions."""

    def __init__(self, policy: Pi0Policy, error: Exception, word: str) -> None:
        vars(self).update(vars(policy))
        self.error, self.word = error, word

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        if any(self.word in o.instruction for o in observations):
            raise self.error
        return super().prepare(observations)


class Faulty(DroidDataset):
    """The real reader, which fails at a frame of one episode."""

    def __init__(self, root: Path, error: Exception, name: str) -> None:
        super().__init__(root)
        self.error, self.bad, self.reads = error, name, 0

    def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
        self.reads += name == self.bad
        for number, frame in enumerate(super().frames(name, indices)):
            # the first pass describes the episode, the second one is captured
            if name == self.bad and self.reads == 2 and number == 1:
                raise self.error
            yield frame


class TestOneEpisodeFails:
    @pytest.mark.parametrize(
        ("error", "status", "reason"),
        [
            (
                EpisodeError("x", "frame 8 of hand_camera is torn"),
                "broken",
                "frame 8 of hand_camera is torn",
            ),
            (
                RuntimeError("torn\n bits"),
                "broken",
                "reading frame 8: RuntimeError: torn bits",
            ),
            (
                OSError(5, "Input/output error"),
                "broken",
                "reading frame 8: OSError: [Errno 5] Input/output error",
            ),
            (NotFoundError("moved"), "broken", "reading frame 8: moved"),
            (OSError(24, "Too many"), "failed", "OSError: [Errno 24] Too many"),
            (MemoryError(), "failed", "MemoryError: "),
        ],
    )
    def test_the_others_go_on(
        self, policy: Pi0Policy, recordings: Path, ram_path: Path,
        error: Exception, status: str, reason: str,
    ) -> None:  # fmt: skip
        names = DroidDataset(recordings).episode_names()
        dataset = Faulty(recordings, error, names[1])
        store = ram_path / "s"
        report = ingest(make_job(store, policy, dataset), policy, dataset)
        assert [o.status for o in report.outcomes] == ["committed", status, "committed"]
        assert [(o.name, o.reason) for o in report.failed] == [(names[1], reason)]
        assert sorted(commits(store)) == [names[0], names[2]]
        assert problems(store) == []
        assert len(list((store / "data").glob("*/*/*"))) == 2, "the attempt was not removed"

    def test_an_error_that_all_share_ends_the_run(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """As a store library that is too old makes every episode fail."""

        def broken(*args: Any, **kwargs: Any) -> None:
            raise TypeError("got an unexpected keyword argument 'data'")

        monkeypatch.setattr("attnstore.ingest.episode.EpisodeWriter", broken)
        job = make_job(ram_path / "s", policy, dataset)
        names, watcher = dataset.episode_names(), Watcher()
        with pytest.raises(
            SharedFailureError, match=f"{names[0]} and {names[1]} fail alike.*'data'"
        ):
            ingest_all(job, policy, dataset, names, watcher)
        assert [o.name for o in watcher.outcomes] == [names[0]]

    @pytest.mark.parametrize(
        ("outcomes", "ends"),
        [
            ("failed:x failed:x", True), ("present: failed:x failed:x", True),
            ("failed:x", False), ("failed:x failed:y", False), ("failed:x broken:x", False),
            ("broken:x broken:x", False), ("committed: failed:x failed:x", False),
            ("failed:x failed:y failed:y", True),
        ],
    )  # fmt: skip
    def test_when_it_is_all_of_them(self, outcomes: str, ends: bool) -> None:
        made = [text.split(":") for text in outcomes.split()]
        report = Report([Outcome(f"e{i}", s, f"e{i}: {r}") for i, (s, r) in enumerate(made)])  # type: ignore[arg-type]
        assert (report.shared_failure() is not None) == ends

    def test_an_observation_that_is_refused(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        picky = Picky(policy, refuses=lambda o: o.instruction == "wipe")
        report = ingest(make_job(ram_path / "s", policy, dataset), picky, dataset)
        assert [(o.status, o.reason) for o in report.failed] == [("broken", "not today")]
        assert len(commits(ram_path / "s")) == 2

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (PolicyError("7 tokens for 2 cameras"), "7 tokens for 2 cameras"),
            (KeyError("pixel_values"), "KeyError: 'pixel_values'"),
        ],
    )
    def test_whatever_prepare_raises_is_the_episodes(
        self,
        policy: Pi0Policy,
        dataset: DroidDataset,
        ram_path: Path,
        error: Exception,
        reason: str,
    ) -> None:
        careless = Careless(policy, error, "wipe")
        job = make_job(ram_path / "s", policy, dataset)
        plan = make_plan(job, careless, dataset)
        assert [*plan.broken.values()] == [f"the policy cannot take the observation: {reason}"]
        assert len(plan.pending) == 2
        names = [*plan.broken]
        outcome = ingest(
            job,
            careless,
            dataset,
        ).failed
        assert [(o.name, o.status) for o in outcome] == [(names[0], "broken")]

    def test_the_forecast_goes_on_behind_what_is_refused(
        self, policy: Pi0Policy, ram_path: Path
    ) -> None:
        words = ("point at <image>",) * 4 + ("wipe",)
        root = write_droid(ram_path / "toy", (3,) * 5, words)
        dataset = DroidDataset(root)
        plan = make_plan(make_job(ram_path / "s", policy, dataset), policy, dataset)
        assert len(plan.broken) == 4
        assert all("contains '<image>'" in reason for reason in plan.broken.values())
        assert len(plan.pending) == 1
        assert plan.stored_bytes > 0

    def test_a_token_that_the_model_does_not_know(self, policy: Pi0Policy, ram_path: Path) -> None:
        strange = copy.copy(policy)
        strange.processor = copy.deepcopy(policy.processor)
        strange.processor.tokenizer.add_tokens(["<loc9999>"])
        number = strange.processor.tokenizer.convert_tokens_to_ids("<loc9999>")
        assert number == policy.vocabulary
        root = write_droid(ram_path / "toy", (3, 3), ("go to <loc9999>", "wipe"))
        dataset = DroidDataset(root)
        plan = make_plan(make_job(ram_path / "s", strange, dataset), strange, dataset)
        (reason,) = plan.broken.values()
        assert f"'<loc9999>' token {number}, and the model has {number}" in reason
        assert len(plan.pending) == 1

    def test_a_reader_that_gives_too_few_frames(
        self, policy: Pi0Policy, recordings: Path, ram_path: Path
    ) -> None:
        class Short(DroidDataset):
            def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
                yield from list(super().frames(name, indices))[:-1]

        dataset = Short(recordings, limit=1)
        report = ingest(make_job(ram_path / "s", policy, dataset), policy, dataset)
        assert [(o.status, o.reason) for o in report.outcomes] == [
            ("broken", "the reader was asked for frame 16 and gave no more")
        ]
        assert commits(ram_path / "s") == {}

    def test_images_that_change_their_size(
        self, policy: Pi0Policy, recordings: Path, ram_path: Path
    ) -> None:
        class Growing(DroidDataset):
            def frames(self, name: str, indices: Sequence[int]) -> Iterator[Frame]:
                for frame in super().frames(name, indices):
                    images = [replace(c, rgb=c.rgb[: 36 - frame.index]) for c in frame.cameras]
                    yield replace(frame, cameras=tuple(images))

        dataset = Growing(recordings, limit=1)
        report = ingest(make_job(ram_path / "s", policy, dataset), policy, dataset)
        assert [(o.status, o.reason) for o in report.outcomes] == [
            ("broken", "frame 8: a camera's image changes its size")
        ]

    def test_what_concerns_all_episodes_ends_the_ingest(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        class Unloadable(Picky):
            def act(self, batch: Batch) -> Any:
                raise PolicyError("weights cannot be loaded")

        ours = Unloadable(policy, refuses=lambda o: False)
        with pytest.raises(PolicyError, match="weights cannot be loaded"):
            ingest(make_job(ram_path / "s", policy, dataset), ours, dataset)
        assert not list((ram_path / "s" / "data").glob("*/*/*"))


class TestAnotherWriter:
    def test_an_episode_that_was_committed_meanwhile_is_present(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        job = make_job(ram_path / "s", policy, dataset)
        name = dataset.episode_names()[0]
        outcomes: list[Any] = []

        def other_is_faster(count: int) -> None:
            if not outcomes:
                outcomes.append("begun")
                ingest_episode(job, policy, dataset, name)

        outcome = ingest_one(
            job, policy, dataset, name, progress=other_is_faster, stopped=lambda: False
        )
        assert (outcome.status, outcome.reason) == ("present", "")
        assert [c.revision for c in commits(ram_path / "s").values()] == [1]
        assert len(list((ram_path / "s" / "data").glob("*/*/*"))) == 1
        assert problems(ram_path / "s") == []

    def test_an_attempt_that_gc_removed_is_not_present(
        self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
    ) -> None:
        job = make_job(ram_path / "s", policy, dataset)

        def collect(count: int) -> None:
            for file in (ram_path / "s").glob(f"data/*/*/*/{ATTEMPT_FILE}"):
                file.unlink()

        outcome = ingest_one(
            job,
            policy,
            dataset,
            dataset.episode_names()[0],
            progress=collect,
            stopped=lambda: False,
        )
        assert outcome.status == "failed"
        assert "was removed while it was written" in outcome.reason
        assert commits(ram_path / "s") == {}


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this host."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


class TestClaims:
    """An attempt's owner is asked after, so that two ingests do not do the same work."""

    @pytest.fixture
    def job(self, policy: Pi0Policy, dataset: DroidDataset, ram_path: Path) -> EpisodeJob:
        return make_job(ram_path / "s", policy, dataset)

    def claim(self, job: EpisodeJob, name: str, **owner: Any) -> Attempt:
        attempt = Attempt(job.paths, *job.commit_folder(name))
        known = {"host": socket.gethostname(), "pid": os.getpid(), "created": now()}
        (attempt.path / ATTEMPT_FILE).write_text(json.dumps(known | owner))
        return attempt

    def claimed(self, job: EpisodeJob, name: str) -> bool:
        return claimed_by_other(job.paths, *job.commit_folder(name))

    def test_whose_it_is(self, job: EpisodeJob, sleeper: subprocess.Popen[bytes]) -> None:
        assert not self.claimed(job, "nothing")
        self.claim(job, "mine")
        assert not self.claimed(job, "mine")
        self.claim(job, "theirs", pid=sleeper.pid)
        assert self.claimed(job, "theirs")
        self.claim(job, "elsewhere", pid=sleeper.pid, host="another.host")
        assert not self.claimed(job, "elsewhere")
        attempt = self.claim(job, "torn")
        (attempt.path / ATTEMPT_FILE).write_text('{"host"')
        assert not self.claimed(job, "torn")

    def test_a_dead_owner(self, job: EpisodeJob, sleeper: subprocess.Popen[bytes]) -> None:
        self.claim(job, "theirs", pid=sleeper.pid)
        sleeper.kill()
        # nobody has waited for it yet, as in a container without an init process
        deadline = time.monotonic() + 10
        while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not self.claimed(job, "theirs")
        sleeper.wait()
        assert not self.claimed(job, "theirs")

    def test_a_number_that_another_process_has_now(
        self, job: EpisodeJob, sleeper: subprocess.Popen[bytes]
    ) -> None:
        """Else an ingest after a reboot would wait for some daemon for ever."""
        self.claim(job, "theirs", pid=sleeper.pid, created="2020-01-01T00:00:00.000+00:00")
        assert not self.claimed(job, "theirs")

    def test_claimed_episodes_come_last(
        self, job: EpisodeJob, policy: Pi0Policy, dataset: DroidDataset,
        sleeper: subprocess.Popen[bytes],
    ) -> None:  # fmt: skip
        names = dataset.episode_names()
        self.claim(job, names[0], pid=sleeper.pid)
        plan = make_plan(job, policy, dataset)
        assert plan.pending == (names[1], names[2], names[0])

    def test_a_claimed_episode_is_waited_for_and_done_when_its_owner_dies(
        self, job: EpisodeJob, policy: Pi0Policy, dataset: DroidDataset,
        sleeper: subprocess.Popen[bytes],
    ) -> None:  # fmt: skip
        name = dataset.episode_names()[0]
        self.claim(job, name, pid=sleeper.pid)
        timer = threading.Timer(0.5, sleeper.kill)
        timer.start()
        watcher = Watcher()
        started = time.monotonic()
        report = ingest_all(job, policy, dataset, [name], watcher)
        assert time.monotonic() - started >= 0.5
        assert [o.status for o in report.outcomes] == ["committed"]

    def test_waiting_ends_when_the_user_interrupts(
        self, job: EpisodeJob, policy: Pi0Policy, dataset: DroidDataset,
        sleeper: subprocess.Popen[bytes],
    ) -> None:  # fmt: skip
        name = dataset.episode_names()[0]
        self.claim(job, name, pid=sleeper.pid)
        deadline = time.monotonic() + 0.5
        report = ingest_all(
            job, policy, dataset, [name], Watcher(), stopped=lambda: time.monotonic() > deadline
        )
        assert report.interrupted
        assert report.outcomes == []


def test_provenance_is_json(policy: Pi0Policy) -> None:
    json.dumps(provenance(policy))
    assert provenance(policy)["device"] == "cpu"


def test_nothing_is_committed_before_the_last_keyframe(
    policy: Pi0Policy, dataset: DroidDataset, ram_path: Path
) -> None:
    job = make_job(ram_path / "s", policy, dataset)
    name = dataset.episode_names()[0]
    seen = []
    ingest_episode(
        job, policy, dataset, name,
        progress=lambda count: seen.append(latest_commit(job.paths, *job.commit_folder(name))),
    )  # fmt: skip
    assert seen == [None] * 3

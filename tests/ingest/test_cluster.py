"""Workers of a Dask cluster: the store of one process, and what becomes of a dying worker's episode."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_fixtures import Small, Unshared
from ingest_fixtures import (
    Watcher,
    assert_same_store,
    commits,
    make_job,
    problems,
    write_droid,
)
from remote_servers import S3_CREDENTIALS, FaultyProxy

from attnstore.ingest.cluster import device_of_worker
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import EpisodeJob
from attnstore.ingest.executor import execute
from attnstore.ingest.pipeline import ingest_all
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.registry import PolicySpec
from attnstore.ingest.work import Report, Workers
from attnstore.store.commits import ATTEMPT_FILE, all_commits
from attnstore.store.errors import AttnstoreError, DeniedError, NotFoundError, UsageError
from attnstore.store.opening import create_store, open_store
from attnstore.store.remote.spool import forget_buckets

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


def by_workers(
    job: EpisodeJob,
    policy: Pi0Policy,
    checkpoint: Path,
    dataset: DroidDataset,
    watcher: Watcher,
    workers: Workers,
) -> Report:
    return ingest_all(
        job, policy, dataset, dataset.episode_names(), watcher,
        spec=PolicySpec("pi0", str(checkpoint), None, None, {}), workers=workers,
    )  # fmt: skip


def children() -> list[psutil.Process]:
    alive = psutil.Process().children(recursive=True)
    return [p for p in alive if "spawn_main" in " ".join(p.cmdline())]


class Killer(Watcher):
    """Kills the worker of an episode after its first keyframe, once."""

    def __init__(self, store: Path, job: EpisodeJob, name: str) -> None:
        super().__init__()
        run, episode, _ = job.commit_folder(name)
        self.folder, self.name, self.killed = store / "data" / run / episode, name, 0

    def advanced(self, name: str, keyframes: int) -> None:
        super().advanced(name, keyframes)
        if name == self.name and not self.killed:
            (file,) = self.folder.glob(f"*/{ATTEMPT_FILE}")
            self.killed = json.loads(file.read_text())["pid"]
            assert self.killed in {p.pid for p in children()}
            os.kill(self.killed, signal.SIGKILL)


def test_two_workers_give_the_store_of_one_although_one_dies(
    policy: Pi0Policy,
    checkpoint: Path,
    five: DroidDataset,
    by_one: tuple[Path, Report],
    ram_path: Path,
) -> None:
    store = ram_path / "s"
    job = make_job(store, policy, five)
    name = next(n for n in five.episode_names() if n.endswith("_09-00-00"))
    report = by_workers(
        job, policy, checkpoint, five, killer := Killer(store, job, name), Workers(2)
    )
    assert killer.killed
    assert killer.notes == [f"{name}: its worker died, and it is begun again by another"]
    assert sorted(killer.begun) == sorted([*five.episode_names(), name])
    assert report.outcomes == killer.outcomes
    assert not report.interrupted

    def told(report: Report) -> list[tuple[Any, ...]]:
        return sorted((o.name, o.status, o.reason, o.keyframes) for o in report.outcomes)

    assert told(report) == told(by_one[1])
    assert [o.status for o in report.failed] == ["broken"]
    assert_same_store(store, by_one[0])
    assert problems(store) == []
    assert children() == []


@pytest.fixture
def small(ram_path: Path) -> Small:
    (ram_path / "log").mkdir()
    return Small(create_store(ram_path / "s"), ram_path / "log")


@pytest.mark.parametrize(
    ("device", "name", "wanted"),
    [
        ("cpu", 3, "cpu"), ("cuda:1", 0, "cuda:1"), ("cuda", 1, "cuda:1"), ("cuda", "gpu-host-1", "cuda:1"),
        ("cuda", "SLURMCluster-3", "cuda:1"), ("cuda", "tcp://10.0.0.1:4711", "cuda:0"),
    ],
)  # fmt: skip
def test_each_worker_has_a_device(
    device: str, name: object, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On hosts with two: by the number that the name ends with."""
    pytest.importorskip("torch", reason="a model's test needs torch")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_of_worker(device, name) == wanted


def names(count: int) -> list[str]:
    return [f"e{i:02d}" for i in range(count)]


class TestOwnCluster:
    """Workers that live as long as the command, doing a work that loads nothing."""

    def test_an_episode_that_kills_its_workers_is_named_and_the_rest_goes_on(
        self, small: Small
    ) -> None:
        small.dies_at.update({"e01": 1, "e03": 99})
        report = execute(small, names(6), watcher := Watcher(), workers=Workers(2))
        assert sorted(o.name for o in report.outcomes) == names(6)
        (failed,) = report.failed
        assert failed.name == "e03"
        # Where a worker dies before it could tell that it began, Dask's third death is not our third.
        assert re.match("[345] workers died at it, the last one on ", failed.reason)
        assert sorted(commits(small.paths.root)) == [n for n in names(6) if n != "e03"]
        tries = {n: small.times(f"do.{n}") for n in names(6)}
        assert 3 <= tries.pop("e03") <= 5
        assert tries == {n: 2 if n == "e01" else 1 for n in names(6) if n != "e03"}
        # A result that is lost with its worker before it was fetched is a further note.
        assert {note.partition(":")[0] for note in watcher.notes} == {"e01", "e03"}
        assert len(watcher.notes) >= 3
        opened = [file.name.split(".")[1] for file in small.log.glob("open.*")]
        assert len(opened) == len(set(opened)), "once a worker, not once an episode"
        assert children() == []

    def test_an_interrupt_gives_up_what_is_in_flight(self, small: Small, ram_path: Path) -> None:
        slow = Small(small.paths, small.log, keyframes=1000, seconds=0.02)
        watcher = Watcher()
        began = time.monotonic()
        report = execute(
            slow, names(5), watcher, workers=Workers(2), stopped=lambda: len(watcher.keyframes) > 8
        )
        assert report.interrupted
        assert time.monotonic() - began < 60
        assert report.outcomes == []
        assert 1 <= len(watcher.begun) <= 3
        assert not list((small.paths.root / "data").glob("*/*/*")), "an attempt was left"
        assert children() == []

    def test_what_concerns_all_ends_it(self, small: Small) -> None:
        refusing = Small(small.paths, small.log, refuses="the moon is down")
        with pytest.raises(AttnstoreError, match="^worker tcp://.*: the moon is down$"):
            execute(refusing, names(3), Watcher(), workers=Workers(2))
        assert small.times("do") == 0
        assert children() == []

    def test_a_store_in_a_bucket(
        self, ram_path: Path, tmp_path: Path, s3_server: tuple[str, Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Each worker opens it anew, with what its environment says; a death leaves no entry."""
        import botocore.session

        (ram_path / "log").mkdir()
        endpoint, _ = s3_server
        for name, value in {**S3_CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "cache"))
        botocore.session.get_session().create_client("s3").create_bucket(Bucket="cluster")
        paths = create_store("s3://cluster/lab.attn")
        small = Small(paths, ram_path / "log", dies_at={"e01": 1})
        report = execute(small, names(4), Watcher(), workers=Workers(2))
        assert not report.failed
        monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "another"))
        found = list(all_commits(open_store("s3://cluster/lab.attn")))
        assert sorted(str(c.summary["name"]) for c in found) == names(4)
        assert {n: small.times(f"do.{n}") for n in names(4)} == {
            "e00": 1, "e01": 2, "e02": 1, "e03": 1,
        }  # fmt: skip

    def test_nothing_to_do_starts_no_process(self, small: Small) -> None:
        assert execute(small, [], Watcher(), workers=Workers(2)) == Report()
        assert small.times("open") == 0


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and two workers, of several threads each, that were there before."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=3, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


@contextmanager
def one_more(scheduler: str, first: str) -> Iterator[None]:
    """One more worker of a cluster, in a process that begins with some Python."""
    from distributed import Client

    code = (
        f"import sys; {first}\nimport asyncio\nfrom distributed import Worker\n"
        f"async def run(): await (await Worker({scheduler!r}, nthreads=1)).finished()\n"
        "asyncio.run(run())"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        with Client(scheduler) as client:
            while len(client.nthreads()) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield
    finally:
        other.kill()
        other.wait()


class TestOtherCluster:
    """Workers of somebody else's."""

    def test_each_worker_opens_once_and_does_one_at_a_time(
        self, small: Small, scheduler: str
    ) -> None:
        """And it goes on living, for another command."""
        slow = Small(small.paths, small.log, keyframes=2, seconds=0.1)
        workers = Workers(scheduler=scheduler)
        report = execute(slow, names(8), Watcher(), workers=workers)
        assert not report.failed
        assert sorted(commits(small.paths.root)) == names(8)
        done = {c.summary["pid"] for c in commits(small.paths.root).values()}
        assert len(done) == 2
        assert small.times("open") == 2
        again = execute(slow, names(9), Watcher(), workers=workers)
        assert [o.status for o in again.outcomes].count("present") == 8
        assert small.times("do") == 9

    def test_a_store_that_is_another_one_there(
        self, small: Small, scheduler: str, ram_path: Path
    ) -> None:
        """As a local path on another host would be: none, or one of the same name."""
        workers = Workers(scheduler=scheduler)
        root = small.paths.root
        elsewhere = Unshared(small.paths, small.log)
        with pytest.raises(NotFoundError, match=r"worker tcp://.*: .* is not an attnstore store"):
            execute(elsewhere, names(2), Watcher(), workers=workers)
        create_store(root.with_name("s-there"))
        with pytest.raises(
            AttnstoreError, match="is another store there; all workers need the store"
        ):
            execute(elsewhere, names(2), Watcher(), workers=workers)
        assert small.times("open") == 0

    def test_a_worker_of_another_version(
        self, small: Small, scheduler: str, tmp_path: Path
    ) -> None:
        info = tmp_path / "attnstore-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: attnstore\nVersion: 9.9\n")
        with (
            one_more(
                scheduler,
                f"sys.path.insert(0, {str(tmp_path)!r})\n"
                "import attnstore; attnstore.__version__ = '9.9'",  # where distributed 2024 looks
            ),
            pytest.raises(AttnstoreError, match=r"has attnstore 9.9, this command is of 0"),
        ):
            execute(small, names(2), Watcher(), workers=Workers(scheduler=scheduler))
        assert small.times("open") == 0

    def test_a_policy_that_cannot_be_loaded_ends_the_ingest(
        self, loaded: Pi0Policy, checkpoint: Path, recordings: Path, scheduler: str, ram_path: Path
    ) -> None:
        """Its weights are read by the first task, since nothing else needs them."""
        broken = ram_path / "ck"
        shutil.copytree(checkpoint, broken)
        dataset = DroidDataset(recordings, limit=1)
        job = make_job(ram_path / "s", loaded, dataset)
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(
            AttnstoreError, match="worker .*: checkpoint .* has digest .* all workers"
        ):
            by_workers(job, loaded, broken, dataset, Watcher(), Workers(scheduler=scheduler))

    @pytest.mark.parametrize("lacks", ["torch"])
    def test_a_worker_without_what_the_policy_or_the_dataset_needs(
        self, lacks: str, loaded: Pi0Policy, checkpoint: Path, recordings: Path, scheduler: str,
        ram_path: Path,
    ) -> None:  # fmt: skip
        dataset = DroidDataset(recordings)
        job = make_job(ram_path / "s", loaded, dataset)
        with (
            one_more(scheduler, f"sys.modules[{lacks!r}] = None"),
            pytest.raises(AttnstoreError) as said,
        ):
            watcher = Watcher()
            by_workers(job, loaded, checkpoint, dataset, watcher, Workers(scheduler=scheduler))
        assert re.fullmatch(rf"worker tcp://\S+: .*\b{lacks}\b.*", str(said.value))
        assert watcher.begun == []

    def test_a_bucket_is_reached_as_the_command_reaches_it(
        self, scheduler: str, ram_path: Path, tmp_path: Path, s3_server: tuple[str, Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Workers that know nothing of it; also after a command that had another server."""
        import botocore.session

        (ram_path / "log").mkdir()
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "cache"))
        workers = Workers(scheduler=scheduler)
        endpoint, _ = s3_server
        proxy = FaultyProxy(endpoint)
        for name, value in S3_CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        for count, server in ((2, endpoint), (4, proxy.url)):
            monkeypatch.setenv("AWS_ENDPOINT_URL", server)
            forget_buckets()
            client = botocore.session.get_session().create_client("s3")
            if count == 2:
                client.create_bucket(Bucket="lent")
            small = Small(create_store("s3://lent/lab.attn"), ram_path / "log")
            proxy.requests.clear()
            assert not execute(small, names(count), Watcher(), workers=workers).failed
            found = list(all_commits(open_store("s3://lent/lab.attn")))
            assert sorted(str(c.summary["name"]) for c in found) == names(count)
        assert sum(m == "PUT" and "/data/" in path for m, path in proxy.requests) >= 2
        # Keys in a file of this machine are not given away.
        profile = tmp_path / "credentials"
        profile.write_text("[default]\naws_access_key_id=test\naws_secret_access_key=test\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        forget_buckets()
        own = Small(open_store("s3://lent/lab.attn"), ram_path / "log")
        with pytest.raises(DeniedError, match=r"^worker tcp://.*: s3://lent.*no credentials"):
            execute(own, names(6), Watcher(), workers=workers)
        proxy.close()

    def test_no_scheduler(
        self, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("attnstore.ingest.cluster.PATIENCE", 0.5)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(AttnstoreError, match=f"--scheduler {address}: no Dask scheduler"):
                execute(small, names(2), Watcher(), workers=Workers(scheduler=address))
        with pytest.raises(AttnstoreError, match="neither an address .* nor a scheduler file"):
            execute(
                small, names(2), Watcher(), workers=Workers(scheduler=str(tmp_path / "no.json"))
            )
        with pytest.raises(UsageError, match="give one of them"):
            Workers(2, "tcp://127.0.0.1:1")

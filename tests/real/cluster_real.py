"""A scheduler and three workers, each in a network of its own: ``make test-cluster``.

Not collected by `make test`: network namespaces are made by root. The store is in a directory that the
hosts share, or in a bucket of Ceph's gateway, of which the workers know nothing but what the command
tells them. What happens to a cluster's machines happens to these: a process is killed, a cable is pulled,
the scheduler dies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import psutil
import pytest
from ceph_gateway import ceph_gateway
from ingest_fixtures import assert_same_store, attnstore_command, commits, problems
from remote_servers import S3_CREDENTIALS

from attnstore.query import open as open_for_reading
from attnstore.sample import checkpoint_path, episodes_path
from attnstore.store.commits import all_commits
from attnstore.store.remote.bucket import Bucket
from attnstore.store.remote.spool import forget_buckets

BRIDGE, NET = "attn0", "10.99.14"
HOSTS = {"scheduler": 2, "one": 11, "two": 12, "three": 13}
SCHEDULER = f"tcp://{NET}.{HOSTS['scheduler']}:8786"
PATIENT = {
    "OMP_NUM_THREADS": "1",
    # a host that went away is known after seconds instead of half a minute
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "15s",
}


EPISODES = 12
PORT = 17480


def ip(*arguments: object, check: bool = True) -> None:
    subprocess.run(["ip", *map(str, arguments)], check=check, capture_output=True)


class Hosts:
    """Network namespaces that a bridge connects, and the processes in them."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.remove()
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for host, number in HOSTS.items():
            ip("netns", "add", f"attn-{host}")
            ends = "peer", "name", "eth0", "netns", f"attn-{host}"
            ip("link", "add", f"attn{number}", "type", "veth", *ends)
            ip("link", "set", f"attn{number}", "master", BRIDGE, "up")
            inside = "netns", "exec", f"attn-{host}", "ip"
            ip(*inside, "addr", "add", f"{NET}.{number}/24", "dev", "eth0")
            ip(*inside, "link", "set", "eth0", "up")
            ip(*inside, "link", "set", "lo", "up")

    def start(self, host: str) -> None:
        """Start a host's daemon as a user does: dask scheduler, dask worker."""
        address = f"{NET}.{HOSTS[host]}"
        if host == "scheduler":
            what = ["scheduler", "--host", address, "--port", "8786", "--no-dashboard"]
        else:
            what = ["worker", SCHEDULER, "--name", host, "--nthreads", "2", "--host", address]
            what.append("--no-dashboard")
        command = ["ip", "netns", "exec", f"attn-{host}", sys.executable, "-m", "dask", *what]
        with (self.logs / host).open("ab") as log:
            self.processes[host] = subprocess.Popen(
                command, env=self.environment(host), stdout=log, stderr=log, cwd="/"
            )

    def cache(self, host: str) -> Path:
        """Where a host's worker writes what goes to a bucket."""
        return self.logs.parent / f"cache-{host}"

    def environment(self, host: str) -> dict[str, str]:
        """A host's variables: none that leads to a bucket."""
        known = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return known | PATIENT | {"ATTNSTORE_CACHE": str(self.cache(host))}

    def worker_of(self, host: str) -> psutil.Process:
        """The process that does the work, a child of the nanny's."""
        found = psutil.Process(self.processes[host].pid).children(recursive=True)
        return next(p for p in found if "spawn_main" in " ".join(p.cmdline()))

    def cable(self, host: str, state: str) -> None:
        """Pull a host's cable (down), or put it in again (up)."""
        ip("link", "set", f"attn{HOSTS[host]}", state)

    def stop(self) -> None:
        """Kill everything."""
        for process in self.processes.values():
            family = (
                psutil.Process(process.pid).children(recursive=True)
                if process.poll() is None
                else []
            )
            process.kill()
            process.wait()
            for each in family:
                if each.is_running():
                    each.kill()
        self.processes.clear()

    def remove(self) -> None:
        """Take the networks down."""
        for host, number in HOSTS.items():
            ip("link", "del", f"attn{number}", check=False)
            ip("netns", "del", f"attn-{host}", check=False)
        ip("link", "del", BRIDGE, check=False)

    def said(self) -> str:
        """The ends of the logs, for a test that fails."""
        return "\n".join(f"== {f}\n{f.read_text()[-3000:]}" for f in self.logs.iterdir())


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    assert os.geteuid() == 0, "network namespaces are root's"
    (tmp_path / "logs").mkdir()
    hosts = Hosts(tmp_path / "logs")
    for host in HOSTS:
        hosts.start(host)
    yield hosts
    hosts.stop()
    hosts.remove()


class Place(Protocol):
    """Where the store is, and how a test looks into it."""

    name: str
    """As the command line has it."""

    def attempts(self, hosts: Hosts, host: str) -> list[Path]:
        """Episodes that may be in the making on a host: their attempts."""
        ...

    def committed(self) -> dict[str, str]:
        """Attempts of what is committed, by the episode's name; empty if there is no store yet."""
        ...

    def entries(self) -> int:
        """How many entries the log has."""
        ...

    def whole(self) -> Path:
        """A directory that has it all."""
        ...


class OnDisk:
    """A directory that the hosts share."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def attempts(self, hosts: Hosts, host: str) -> list[Path]:
        found = self.root.glob("data/*/*/*/attempt.json")
        committed = set(self.committed().values())
        return [f for f in found if f.parent.name.rpartition(".")[2] not in committed]

    def committed(self) -> dict[str, str]:
        found = commits(self.root) if (self.root / "attnstore.json").exists() else {}
        return {name: c.attempt for name, c in found.items()}

    def entries(self) -> int:
        return len(list(self.root.glob("commits/log/*.json")))

    def whole(self) -> Path:
        return self.root


class InBucket:
    """A bucket that hosts reach by the network alone."""

    def __init__(self, root: Path) -> None:
        import botocore.session

        self.root = root
        forget_buckets()
        bucket = f"cluster-{uuid.uuid4().hex[:8]}"
        botocore.session.get_session().create_client("s3").create_bucket(Bucket=bucket)
        self.name = f"s3://{bucket}/lab.attn"

    def attempts(self, hosts: Hosts, host: str) -> list[Path]:
        return list(hosts.cache(host).glob("*/*/data/*/*/*/attempt.json"))

    def committed(self) -> dict[str, str]:
        if Bucket(self.name).read("attnstore.json") is None:
            return {}
        found = list(all_commits(open_for_reading(self.name).paths))
        named = {str(c.summary["name"]): c.attempt for c in found}
        assert len(named) == len(found)
        return named

    def entries(self) -> int:
        return len(list(Bucket(self.name).lying("commits/log")))

    def whole(self) -> Path:
        copy = self.root.with_name("pulled")
        command = attnstore_command("pull", self.name, copy, "--tier", "full")
        subprocess.run(command, check=True, capture_output=True)
        return copy


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of S3 that every host reaches over the bridge."""
    with ceph_gateway(tmp_path_factory.mktemp("ceph"), "0.0.0.0", PORT):
        yield f"http://{NET}.1:{PORT}"


@pytest.fixture(params=[OnDisk, InBucket])
def place(
    request: pytest.FixtureRequest, hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "cache"))
    if request.param is InBucket:
        endpoint = request.getfixturevalue("gateway")
        for name, value in {**S3_CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
    made: Place = request.param(tmp_path / "s")
    return made


def ingest(store: object, *more: str) -> list[str]:
    return attnstore_command(
        "ingest", "droid", store, episodes_path(), "--policy", "pi0", "--checkpoint",
        checkpoint_path(), "--dataset-name", "sample", "--stride", 4, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample, ingested by one process."""
    store = tmp_path_factory.mktemp("ordinary") / "s"
    subprocess.run(ingest(store), check=True, env=os.environ | PATIENT, capture_output=True)
    return store


class Command:
    """An ingest on the cluster, in the background."""

    def __init__(self, place: Place, hosts: Hosts, log: Path) -> None:
        self.place, self.hosts, self.log = place, hosts, log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                ingest(place.name, "--scheduler", SCHEDULER),
                env=os.environ | PATIENT,
                stdout=out,
                stderr=out,
            )

    def until(self, what: Callable[[], object], seconds: float = 240) -> None:
        """Wait for something, while the command runs."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.log.read_text() + self.hosts.said()
            assert self.process.poll() is None, self.log.read_text() + self.hosts.said()
            time.sleep(0.1)

    def at_work(self, host: str) -> bool:
        """Whether a host's worker has an episode in the making."""
        attempts = self.place.attempts(self.hosts, host)
        if not attempts:
            return False
        pid = f'"pid": {self.hosts.worker_of(host).pid},'
        for file in attempts:
            try:
                if pid in file.read_text():
                    return True
            except FileNotFoundError:  # committed meanwhile
                continue
        return False

    def end(self) -> tuple[int, str]:
        """Exit code, and what it said."""
        code = self.process.wait(400)
        return code, self.log.read_text()


def check_whole(place: Place, ordinary: Path) -> None:
    """Nothing is lost, nothing is there twice."""
    assert len(place.committed()) == EPISODES
    assert place.entries() == 1 + EPISODES, "something was committed twice"
    whole = place.whole()
    assert problems(whole) == []
    assert_same_store(whole, ordinary)


def test_a_worker_is_killed_and_one_is_cut_off(
    hosts: Hosts, place: Place, ordinary: Path, tmp_path: Path
) -> None:
    command = Command(place, hosts, tmp_path / "command")
    command.until(lambda: command.at_work("one"))
    hosts.worker_of("one").send_signal(signal.SIGKILL)
    command.until(lambda: command.at_work("two"))
    hosts.cable("two", "down")
    code, said = command.end()
    assert code == 0, said + hosts.said()
    again = [line for line in said.splitlines() if line.endswith("begun again by another")]
    assert len(again) == 2, said + hosts.said()
    assert "Traceback" not in said
    check_whole(place, ordinary)
    hosts.cable("two", "up")


def test_the_scheduler_is_killed_and_the_command_run_again(
    hosts: Hosts, place: Place, ordinary: Path, tmp_path: Path
) -> None:
    command = Command(place, hosts, tmp_path / "command")
    command.until(lambda: len(place.committed()) > 2)
    hosts.processes["scheduler"].kill()
    killed = time.monotonic()
    code, said = command.end()
    assert time.monotonic() - killed < 120, "it waits for what is gone"
    assert code == 1, said + hosts.said()
    last = said.splitlines()[-1]
    assert last.startswith(f"attnstore: the scheduler {SCHEDULER} is gone (")
    assert last.endswith("committed episodes are kept: run the same command again")
    assert "Traceback" not in said
    before = place.committed()
    hosts.stop()
    for host in HOSTS:
        hosts.start(host)
    code, said = Command(place, hosts, tmp_path / "again").end()
    assert code == 0, said + hosts.said()
    assert before.items() <= place.committed().items()
    check_whole(place, ordinary)

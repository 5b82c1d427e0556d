"""A scheduler and three workers, each in a network of its own: ``make test-cluster``.

Not collected by `make test`: network namespaces are made by root. The hosts share a directory, as a
cluster's do. What happens to a cluster's machines happens to these: a process is killed, a cable is
pulled, the scheduler dies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ingest_fixtures import assert_same_store, attnstore_command, commits, problems

from attnstore.sample import checkpoint_path, episodes_path

BRIDGE, NET = "attn0", "10.99.14"
HOSTS = {"scheduler": 2, "one": 11, "two": 12, "three": 13}
SCHEDULER = f"tcp://{NET}.{HOSTS['scheduler']}:8786"
PATIENT = {
    "OMP_NUM_THREADS": "1",
    # a host that went away is known after seconds instead of half a minute
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "15s",
}


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
                command, env=os.environ | PATIENT, stdout=log, stderr=log, cwd="/"
            )

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


def ingest(store: Path, *more: str) -> list[str]:
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

    def __init__(self, store: Path, hosts: Hosts, log: Path) -> None:
        self.store, self.hosts, self.log = store, hosts, log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                ingest(store, "--scheduler", SCHEDULER),
                env=os.environ | PATIENT,
                stdout=out,
                stderr=out,
            )

    def until(self, what: Callable[[], object], seconds: float = 120) -> None:
        """Wait for something, while the command runs."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.log.read_text() + self.hosts.said()
            assert self.process.poll() is None, self.log.read_text() + self.hosts.said()
            time.sleep(0.1)

    def at_work(self, host: str) -> bool:
        """Whether a host's worker has an episode in the making."""
        pid = f'"pid": {self.hosts.worker_of(host).pid},'
        files = self.store.glob("data/*/*/*/attempt.json")
        committed = {c.attempt for c in commits(self.store).values()}
        return any(
            pid in f.read_text() for f in files if f.parent.name.rpartition(".")[2] not in committed
        )

    def end(self) -> tuple[int, str]:
        """Exit code, and what it said."""
        code = self.process.wait(300)
        return code, self.log.read_text()


def test_a_worker_is_killed_and_one_is_cut_off(
    hosts: Hosts, ordinary: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    command = Command(store, hosts, tmp_path / "command")
    command.until(lambda: store.exists() and command.at_work("one"))
    hosts.worker_of("one").send_signal(signal.SIGKILL)
    command.until(lambda: command.at_work("two"))
    hosts.cable("two", "down")
    code, said = command.end()
    assert code == 0, said + hosts.said()
    again = [line for line in said.splitlines() if line.endswith("begun again by another")]
    assert len(again) == 2, said + hosts.said()
    assert "Traceback" not in said
    assert len(commits(store)) == 12
    assert len(list(store.glob("commits/log/*.json"))) == 1 + 12, "something was committed twice"
    assert problems(store) == []
    assert_same_store(store, ordinary)
    hosts.cable("two", "up")


def test_the_scheduler_is_killed_and_the_command_run_again(
    hosts: Hosts, ordinary: Path, tmp_path: Path
) -> None:
    store = tmp_path / "s"
    command = Command(store, hosts, tmp_path / "command")
    command.until(lambda: store.exists() and len(commits(store)) > 2)
    hosts.processes["scheduler"].kill()
    killed = time.monotonic()
    code, said = command.end()
    assert time.monotonic() - killed < 30, "it waits for what is gone"
    assert code == 1, said + hosts.said()
    last = said.splitlines()[-1]
    assert last.startswith(f"attnstore: the scheduler {SCHEDULER} is gone (")
    assert last.endswith("committed episodes are kept: run the same command again")
    assert "Traceback" not in said
    before = {name: c.attempt for name, c in commits(store).items()}
    hosts.stop()
    for host in HOSTS:
        hosts.start(host)
    code, said = Command(store, hosts, tmp_path / "again").end()
    assert code == 0, said + hosts.said()
    after = {name: c.attempt for name, c in commits(store).items()}
    assert before.items() <= after.items()
    assert len(after) == 12
    assert len(list(store.glob("commits/log/*.json"))) == 1 + 12, "something was committed twice"
    assert problems(store) == []
    assert_same_store(store, ordinary)

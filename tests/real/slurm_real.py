"""An array job of a real SLURM: ``make test-slurm``.

Not collected by `make test`: it needs SLURM's and munge's daemons, which it starts by itself, as root,
with everything below a directory of its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ingest_fixtures import assert_same_store, attnstore_command, commits, problems

from attnstore.sample import checkpoint_path, episodes_path

CONF = """
ClusterName=attnstore
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=10
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
PlugStackConfig={root}/plugstack.conf
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
EXAMPLES = Path(__file__).parents[2] / "examples" / "cluster"


def wait_until(what: Callable[[], object], seconds: float, shown: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, shown()
        time.sleep(0.1)


class Slurm:
    """A controller and one node, as processes of this test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = os.environ | {
            "SLURM_CONF": str(root / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        for folder in ("munge", "state", "spool"):
            (root / folder).mkdir()
        (root / "plugstack.conf").touch()
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            ports = one.getsockname()[1], two.getsockname()[1]
        (root / "slurm.conf").write_text(
            CONF.format(
                host=socket.gethostname(), ports=ports, root=root,
                cpus=len(os.sched_getaffinity(0)),
            )
        )  # fmt: skip
        key = root / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        of_munge = (
            ("key-file", "key"),
            ("socket", "socket"),
            ("pid-file", "pid"),
            ("log-file", "log"),
        )
        munge = [f"--{name}={root}/munge/{file}" for name, file in of_munge]
        self._daemons = [
            self._start(
                "munged", "--foreground", "--force", *munge, f"--seed-file={root}/munge/seed"
            )
        ]
        wait_until((root / "munge" / "socket").exists, 10, self.logs)
        self._daemons.append(self._start("slurmctld", "-D", "-c"))
        self._daemons.append(self._start("slurmd", "-D", "-c"))
        wait_until(lambda: self.run("sinfo", "-h", "-o", "%T") == "idle", 60, self.logs)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, f"no {name}: apt-get install slurm-wlm munge"
        with (self.root / f"{name}.out").open("wb") as out:
            return subprocess.Popen(
                [program, *arguments], env=self.environment, stdout=out, stderr=out
            )

    def run(self, *command: object) -> str:
        """Run one of SLURM's commands."""
        done = subprocess.run(
            [str(c) for c in command],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return (done.stdout if done.returncode == 0 else done.stderr).strip()

    def logs(self) -> str:
        """The ends of all logs, for a test that fails."""
        files = [*self.root.glob("*.log"), *self.root.glob("*.out"), *self.root.glob("logs/*")]
        return "\n".join(f"== {f}\n{f.read_text(errors='replace')[-2000:]}" for f in files)

    def close(self) -> None:
        """End the daemons."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(30)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    assert os.geteuid() == 0, "the daemons are started as root"
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    yield slurm
    slurm.close()


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample, ingested by one process."""
    store = tmp_path_factory.mktemp("ordinary") / "s"
    subprocess.run(
        attnstore_command(*ingest(store)), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )  # fmt: skip
    return store


def ingest(store: Path, stride: int = 2) -> list[str]:
    """What follows ``attnstore``."""
    options = ["--policy", "pi0", "--checkpoint", checkpoint_path(), "--dataset-name", "sample"]
    found = ["ingest", "droid", store, episodes_path(), *options, "--stride", stride]
    return [str(each) for each in found]


def test_an_array_of_which_two_tasks_are_stopped(
    slurm: Slurm, ordinary: Path, tmp_path: Path
) -> None:
    """One by the signal before its time is up, one requeued by its user: both go on by themselves."""
    store, logs = tmp_path / "s", slurm.root / "logs"
    logs.mkdir()
    job = slurm.run(
        "sbatch", "--parsable", "--array=1-3", f"--output={logs}/%a", EXAMPLES / "array.sh",
        *ingest(store),
    )  # fmt: skip
    assert job.isdecimal(), job + slurm.logs()

    def shown() -> str:
        return slurm.run("scontrol", "show", "job", job) + slurm.logs()

    def at_work(task: int) -> bool:
        log = logs / str(task)
        return log.exists() and "the time is known after the first keyframes" in log.read_text()

    stopped = "attnstore: interrupted; committed episodes are kept, the same command resumes"
    for task, stop in (
        (1, ("scancel", "--signal=USR1", f"{job}_1")),
        (2, ("scontrol", "requeue", f"{job}_2")),
    ):
        wait_until(lambda task=task: at_work(task), 120, shown)  # type: ignore[misc]
        time.sleep(2)  # into an episode
        assert slurm.run(*stop) == ""
        wait_until(lambda task=task: stopped in (logs / str(task)).read_text(), 60, shown)  # type: ignore[misc]
    wait_until(lambda: not slurm.run("squeue", "-h", "-j", job), 400, shown)
    said = {task: (logs / str(task)).read_text() for task in (1, 2, 3)}
    assert [said[task].count("shard ") for task in (1, 2, 3)] == [2, 2, 1], shown()
    assert said[1].count("shard 0/3: 4 of 12 episodes") == 2
    assert "Traceback" not in "".join(said.values())
    assert len(commits(store)) == 12
    assert problems(store) == []
    assert len(list(store.glob("data/*/*/*"))) == 12, "an attempt was left"
    assert_same_store(store, ordinary)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample at the default stride, ingested by one process."""
    store = tmp_path_factory.mktemp("coarse") / "s"
    subprocess.run(
        attnstore_command(*ingest(store, 8)), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )  # fmt: skip
    return store


def run_example(slurm: Slurm, folder: Path, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], cwd=folder, env=slurm.environment,
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + slurm.logs()
    return done.stdout + done.stderr


def test_workers_that_are_jobs(slurm: Slurm, coarse: Path, tmp_path: Path) -> None:
    said = run_example(slurm, tmp_path, "jobqueue.py", *ingest(tmp_path / "s", 8))
    assert "committed 12 episodes" in said
    assert_same_store(tmp_path / "s", coarse)
    wait_until(lambda: not slurm.run("squeue", "-h"), 60, slurm.logs)


@pytest.mark.parametrize("where", ["local", "slurm"])
def test_shards_by_datatrove(slurm: Slurm, coarse: Path, tmp_path: Path, where: str) -> None:
    said = run_example(slurm, tmp_path, "trove.py", where, *ingest(tmp_path / "s", 8))
    wait_until(lambda: not slurm.run("squeue", "-h"), 300, slurm.logs)
    outputs = "".join(f.read_text() for f in tmp_path.glob("trove-logs/slurm_logs/*"))
    assert len(commits(tmp_path / "s")) == 12, said + outputs + slurm.logs()
    assert_same_store(tmp_path / "s", coarse)

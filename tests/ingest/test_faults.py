"""Killed, interrupted, out of disk, two at once: what is committed stays, the same command resumes."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ingest_fixtures import (
    Zygote,
    assert_same_store,
    attnstore_command,
    commits,
    problems,
    write_droid,
)

from attnstore.store.commits import MARKER

KILLS = 16
LENGTHS = (9, 17, 9, 12, 9, 20, 9)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_droid(tmp_path_factory.mktemp("recorded") / "toy", LENGTHS)


def ingest_arguments(dataset: Path, checkpoint: Path, store: Path, *more: str) -> list[str]:
    return ["ingest", "droid", str(store), str(dataset), "--policy", "pi0", "--checkpoint", str(checkpoint),
            *more]  # fmt: skip


@pytest.fixture(scope="module")
def whole(
    zygote: Zygote, recorded: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """A store that nothing happened to, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    code = zygote.run(*ingest_arguments(recorded, checkpoint, folder / "s"), output=folder / "log")
    assert code == 0, (folder / "log").read_text()
    assert len(commits(folder / "s")) == len(LENGTHS)
    return folder / "s", time.monotonic() - started


READER = """
import pathlib, sys, time
import numpy as np
import attnstore
from attnstore.store.errors import NotFoundError

store, stop, rounds, seen = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), 0, {}
while not stop.exists():
    where = store.resolve()
    try:
        opened = attnstore.open(where)
    except NotFoundError:
        time.sleep(0.1)
        continue
    for commit in opened.base_commits():
        episode = opened.from_commit(commit)
        prefix = episode.attention("prefix", keyframe=0, layer=0).values
        suffix = episode.attention("suffix", keyframe=-1, step=-1).values
        rows = np.nansum(prefix.astype(np.float64), -1)
        assert abs(rows[rows > 0] - 1).max() < 1e-2, commit
        assert np.isfinite(suffix.astype(np.float32)).all(), commit
        assert episode.part.table("head_stats").num_rows == 384 * len(episode.frames), commit
        assert seen.setdefault((where, commit.key), commit.attempt) == commit.attempt, commit
    ((counted,),) = opened.sql("select count(*) from episodes").fetchall()
    assert counted >= len([1 for at, _ in seen if at == where]), (counted, seen)
    rounds += 1
    time.sleep(0.3)
print(rounds, len(seen))
"""


class Reader:
    """A process that reads the store that a link leads to, all of it, over and over."""

    def __init__(self, store: Path, stop: Path) -> None:
        self._stop = stop
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, str(store), str(stop)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether nothing has failed so far."""
        return self._process.poll() is None

    def close(self) -> tuple[int, int]:
        """Rounds that it made, and episodes that it saw."""
        self._stop.touch()
        out, errors = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, errors
        rounds, seen = map(int, out.split())
        return rounds, seen


def check(store: Path, before: dict[str, str]) -> dict[str, str]:
    """Hold every commit to its files, and to what was there before; return name and attempt."""
    if not (store / MARKER).exists():
        assert before == {}
        return {}
    found = commits(store)
    assert problems(store) == []
    attempts = {name: commit.attempt for name, commit in found.items()}
    assert before.items() <= attempts.items()
    assert {c.revision for c in found.values()} <= {1}
    return attempts


@pytest.mark.timeout(1500)  # a busy machine draws longer moments
def test_kill_9_at_random_moments(
    zygote: Zygote, recorded: Path, checkpoint: Path, whole: tuple[Path, float], ram_path: Path,
) -> None:  # fmt: skip
    """Kill, check, resume: the store becomes the one that was never interrupted."""
    rng = random.Random(20251210)
    reference, seconds = whole
    kills = rounds = at_work = 0
    window = seconds  # moments are drawn from it; follows how busy the machine is
    link, log = ram_path / "store", ram_path / "log"
    reader = Reader(link, ram_path / "stop")
    try:
        while kills < KILLS:
            rounds += 1
            store = ram_path / f"s{rounds}"
            (ram_path / "next").symlink_to(store)
            (ram_path / "next").replace(link)
            arguments = ingest_arguments(recorded, checkpoint, store)
            done: dict[str, str] = {}
            while kills < KILLS and len(done) < len(LENGTHS):
                pid = zygote.start(*arguments, output=log)
                time.sleep(rng.uniform(0, window))
                os.kill(pid, signal.SIGKILL)
                code = zygote.wait(pid)
                if code == 0:
                    window *= 0.8
                    break
                assert code == -signal.SIGKILL, log.read_text()
                assert reader.alive
                kills += 1
                before, done = done, check(store, done)
                window *= 1.2 if done == before else 0.95
                at_work += len(list(store.glob("data/*/*/*"))) > len(done)
            assert zygote.run(*arguments, output=log) == 0, log.read_text()
            check(store, done)
            attempts = len(list(store.glob("data/*/*/*")))
            assert zygote.run("gc", store, "--lease", 0, output=log) == 0
            assert len(list(store.glob("data/*/*/*"))) == len(LENGTHS) <= attempts
            assert_same_store(store, reference)
            assert "Traceback" not in log.read_text()
    finally:
        reads, seen = reader.close()
    assert reads >= rounds
    assert seen >= len(LENGTHS)
    assert at_work >= KILLS // 4, "few kills hit an episode in the making"


def test_a_kill_while_the_store_is_made(
    zygote: Zygote, recorded: Path, checkpoint: Path, ram_path: Path
) -> None:
    """Between the marker's temporary name and its own; a second ingest can see the same."""
    store, log = ram_path / "s", ram_path / "log"
    (store / "runs").mkdir(parents=True)
    (store / ".tmp-0123456789abcdef").write_text('{"format"')
    arguments = ingest_arguments(recorded, checkpoint, store, "--limit", "1")
    assert zygote.run(*arguments, output=log) == 0, log.read_text()


@pytest.mark.timeout(1500)  # a busy machine draws longer moments
@pytest.mark.slow
def test_kill_9_of_the_installed_command(
    zygote: Zygote, recorded: Path, checkpoint: Path, whole: tuple[Path, float], ram_path: Path
) -> None:
    """The same without a fork: a kill of the process that a user starts, then a resume."""
    rng = random.Random(7)
    store = ram_path / "s"
    command = attnstore_command(*ingest_arguments(recorded, checkpoint, store))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 60
        while not list(store.glob("data/*/*/*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, whole[1] / 3))
        process.kill()
    assert process.returncode in (-signal.SIGKILL, 0)
    done = check(store, {})
    log = ram_path / "log"
    assert zygote.run(*ingest_arguments(recorded, checkpoint, store), output=log) == 0
    check(store, done)
    assert_same_store(store, whole[0])


def wait_for(pattern: str, store: Path, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(store.glob(pattern)):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "wanted"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_an_interrupt_keeps_what_is_committed(
    zygote: Zygote, recorded: Path, checkpoint: Path, whole: tuple[Path, float], ram_path: Path,
    number: signal.Signals, wanted: int,
) -> None:  # fmt: skip
    store, log = ram_path / "s", ram_path / "log"
    arguments = ingest_arguments(recorded, checkpoint, store)
    pid = zygote.start(*arguments, output=log)
    # the first entry is the run's
    wait_for("commits/log/0000000002.json", store, log)
    wait_for("data/*/*/*/attention.zarr/prefix", store, log)
    os.kill(pid, number)
    assert zygote.wait(pid) == wanted
    said = log.read_text()
    assert "stopping after this keyframe; once more stops at once" in said
    assert "interrupted; committed episodes are kept, the same command resumes" in said
    assert "Traceback" not in said
    done = check(store, {})
    assert 1 <= len(done) < len(LENGTHS)
    assert len(list(store.glob("data/*/*/*"))) == len(done), "the attempt was not removed"
    assert zygote.run(*arguments, output=log) == 0
    check(store, done)
    assert_same_store(store, whole[0])


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_second_interrupt_stops_at_once(
    zygote: Zygote, recorded: Path, checkpoint: Path, ram_path: Path, number: signal.Signals,
    wanted: int,
) -> None:  # fmt: skip
    store, log = ram_path / "s", ram_path / "log"
    # one forward of all keyframes: the first signal alone would wait for it
    arguments = ingest_arguments(recorded, checkpoint, store, "--stride", "1", "--batch-size", "20")
    pid = zygote.start(*arguments, output=log)
    wait_for("data/*/*/*/attention.zarr/prefix", store, log)
    os.kill(pid, number)
    while "once more" not in log.read_text():
        time.sleep(0.002)
    os.kill(pid, number)
    assert zygote.wait(pid) == wanted
    assert "Traceback" not in log.read_text()
    # without the hint that the first one ends with, unless the forward was over by then
    assert (
        log.read_text()
        .splitlines()[-1]
        .startswith(("attnstore: interrupted", "attnstore: stopped"))
    )
    check(store, {})


def test_two_ingests_of_one_dataset_at_once(
    zygote: Zygote, recorded: Path, checkpoint: Path, whole: tuple[Path, float], ram_path: Path
) -> None:
    from attnstore.store.opening import create_store

    store = ram_path / "s"
    create_store(store)
    logs = [ram_path / f"log{i}" for i in range(2)]
    arguments = ingest_arguments(recorded, checkpoint, store)
    pids = [zygote.start(*arguments, output=log) for log in logs]
    codes = [zygote.wait(pid) for pid in pids]
    said = [log.read_text() for log in logs]
    assert codes == [0, 0], said
    assert len(list(store.glob("commits/log/*.json"))) == 1 + len(LENGTHS)
    done = [int(m) for text in said for m in re.findall(r"committed (\d+) episodes", text)]
    assert sum(done) == len(LENGTHS), said
    check(store, {})
    assert_same_store(store, whole[0])
    assert len(list(store.glob("data/*/*/*"))) == len(LENGTHS)


class SmallDisk:
    """A file system of a few megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, size: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def enlarge(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=False)


@pytest.fixture
def disk(ram_path: Path) -> Iterator[SmallDisk]:
    path = ram_path / "disk"
    path.mkdir()
    disk = SmallDisk(path)
    if sys.platform != "linux" or os.geteuid() != 0 or not disk.mount("64k"):
        pytest.skip("a small file system can be mounted by root on Linux only")
    yield disk
    disk.unmount()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(
    zygote: Zygote, recorded: Path, checkpoint: Path, whole: tuple[Path, float], disk: SmallDisk,
    ram_path: Path, workers: int,
) -> None:  # fmt: skip
    """With room for one episode and a half."""
    store, log = disk.path / "s", ram_path / "log"
    arguments = ingest_arguments(recorded, checkpoint, store)
    used = [sum(-(-f.size // 4096) for f in c.files) * 4 for c in commits(whole[0]).values()]
    disk.enlarge(f"{int(1.5 * max(used)) * workers}k")
    refused = zygote.run(*arguments, "--stride", "1", output=log)
    assert refused == 1
    assert "the forecast needs" in log.read_text().splitlines()[-1]
    assert not list(store.glob("data/*/*/*"))

    log.unlink()
    assert zygote.run(*arguments, "--force", "--workers", workers, output=log) == 1
    *_, last = log.read_text().splitlines()
    wanted = r"attnstore: no space left for \S+ while writing \S+; committed episodes are kept: .*"
    assert re.fullmatch(wanted, last), log.read_text()
    assert "Traceback" not in log.read_text()
    done = check(store, {})
    assert 1 <= len(done) < len(LENGTHS)
    assert len(list(store.glob("data/*/*/*"))) == len(done), "what was begun takes up space"

    disk.enlarge("32m")
    assert zygote.run(*arguments, output=log) == 0, log.read_text()
    check(store, done)
    assert_same_store(store, whole[0])


@pytest.mark.parametrize("size", ["0", "8k", "24k"])
def test_a_disk_that_is_full_from_the_start(
    zygote: Zygote, recorded: Path, checkpoint: Path, disk: SmallDisk, ram_path: Path, size: str
) -> None:
    store, log = disk.path / "s", ram_path / "log"
    # tmpfs takes 0 for "no limit"
    disk.enlarge("4k" if size == "0" else size)
    code = zygote.run(*ingest_arguments(recorded, checkpoint, store, "--force"), output=log)
    assert code == 1
    last = log.read_text().splitlines()[-1]
    assert last.startswith("attnstore: ")
    assert re.search("no space left", last, re.IGNORECASE)
    assert "Traceback" not in log.read_text()

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from attnstore.ingest import threads
from attnstore.store import processes


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*threads.POOLS, "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        # first set, so that what the test does to it is undone
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(processes, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 12),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 12),
        ("", 12),
    ],
)
def test_a_containers_quota_counts(quota: str, expected: int) -> None:
    assert processes.cores() == 12, "no quota is told"
    processes.QUOTA.write_text(f"{quota}\n")
    assert processes.cores() == expected


@pytest.mark.parametrize(("workers", "each"), [(1, "12"), (4, "3"), (5, "2"), (40, "1")])
def test_workers_share_the_cores(workers: int, each: str) -> None:
    environment = threads.thread_environment(workers)
    assert {environment[name] for name in threads.POOLS} == {each}
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=told.append))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.limit_threads(4)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("7", "ACTIVE")
    assert os.environ["MKL_NUM_THREADS"] == "7"
    assert told == [7]


@pytest.mark.parametrize("name", threads.POOLS)
def test_a_number_for_one_pool_is_that_of_all(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "5")
    environment = threads.thread_environment()
    assert {environment[other] for other in threads.POOLS} == {"5"}


def test_pytorch_starts_with_the_threads_that_the_user_has_set() -> None:
    """In a process that loads it afterwards, as a worker does; two are more than a machine of one core gives."""
    code = (
        "from attnstore.ingest.threads import limit_threads; limit_threads()\n"
        "import torch; print(torch.get_num_threads())"
    )
    for count in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": count},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == count

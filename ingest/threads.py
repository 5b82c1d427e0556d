"""How many threads the libraries of one process use, and that none of them waits by spinning.

PyTorch, BLAS and OpenCV each start a thread a core, as if the machine were theirs. Where it is not (several
workers, a container's quota, a neighbour), an OpenMP thread that has done its part spins until the others have
done theirs, which wait for the core that it spins on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from attnstore.store.processes import cores

POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables by which a pool learns how many threads it may have."""


def thread_environment(workers: int = 1) -> dict[str, str]:
    """Return the variables that give each of so many processes its share of the cores.

    What the user has set stays as it is, and a number that is set for one pool is that of the others: PyTorch with MKL
    starts as many threads as ``MKL_NUM_THREADS`` says, whatever ``OMP_NUM_THREADS`` does.
    """
    told = next((count for name in POOLS if (count := os.environ.get(name))), None)
    wanted = dict.fromkeys(POOLS, told or str(max(1, cores() // workers)))
    wanted |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def limit_threads(workers: int = 1) -> None:
    """Give this process its threads, before a library starts its own; its children inherit them.

    Libraries read the variables when they are loaded; PyTorch and OpenCV are told, if they are already.
    """
    environment = thread_environment(workers)
    os.environ.update(environment)
    count = environment["OMP_NUM_THREADS"]
    if count.isdecimal() and int(count):
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(int(count))
        if (cv2 := sys.modules.get("cv2")) is not None:
            cv2.setNumThreads(int(count))


def torch_threads() -> int | None:
    """Return with how many threads PyTorch computes in this process; None if it is not loaded."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


@contextmanager
def with_torch_threads(count: int | None) -> Iterator[None]:
    """Have PyTorch compute with so many threads, as it did when a policy drove; None leaves it as it is.

    Convolutions and products are divided among threads, and their sums rounded as they are divided.
    """
    before = torch_threads()
    if count is None or before in (None, count):
        yield
        return
    torch = sys.modules["torch"]
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

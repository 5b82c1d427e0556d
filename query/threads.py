"""Blocks of numbers, worked on in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from attnstore.store.processes import cores

T = TypeVar("T")
S = TypeVar("S")

THREADS = 4
"""Threads that blocks are worked on by, at most."""
ONE_BLAS = threading.Lock()
"""Who holds it has set BLAS's threads, which are the process's: of two, the second would not set them back."""


def in_threads(work: Callable[[S], T], blocks: Iterable[S]) -> list[T]:
    """Work on blocks in threads, BLAS in one each, and give the results in order.

    Threads that each call a BLAS of several threads wait for each other by spinning: on a busy machine
    the same products took twenty times as much processor time.
    """
    blocks = list(blocks)
    threads = min(cores(), THREADS, len(blocks))
    if threads < 2:
        return [work(block) for block in blocks]
    with (
        ONE_BLAS,
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads, "attnstore-resampling") as pool,
    ):
        return list(pool.map(work, blocks))

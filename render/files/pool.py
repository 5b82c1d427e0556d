"""Drawing in several threads: OpenCV and FFmpeg release the interpreter's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def run(tasks: Iterable[Callable[[], T]], workers: int) -> Iterator[T]:
    """Run tasks in threads and give their results in order.

    The tasks are drawn from the iterable in the calling thread, a few ahead of the results, so
    that what they hold is in memory only while it is needed. The first error ends the run: tasks
    that have begun are completed, the others are dropped.
    """
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="render")
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

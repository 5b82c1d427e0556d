"""The bounded queue between the model's thread and the threads that write shards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from attnstore.store.processes import cores

DEFAULT_BYTES = 96 << 20
"""What may wait or be in the writers' hands: it bounds extra memory."""
MOST_THREADS = 16

Write = Callable[[], object]


class WriteQueue:
    """Runs writes in threads; blocks the caller while too many bytes wait or are being written.

    Each shard is compressed by one thread (numcodecs and TensorStore release the interpreter's
    lock), so a model that is faster than one core's compression needs several. The first error
    of a write is raised in the caller's thread, at the next `put`, at `flush` or at exit; after
    it no other write begins.

    Parameters
    ----------
    limit
        Bytes that may be held. A single larger item is let in when nothing else is.
    threads
        Writers; they begin in the order of `put`. Default: one a core, at most 16.
    """

    def __init__(self, limit: int = DEFAULT_BYTES, threads: int | None = None) -> None:
        self._limit = limit
        self._held = self._unfinished = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(threads or min(MOST_THREADS, cores()), "attnstore-writer")

    def __enter__(self) -> WriteQueue:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self._raise()

    def put(self, write: Write, size: int) -> None:
        """Queue a write that holds `size` bytes."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._error is not None or not self._held or self._held + size <= self._limit
                )
            )
            self._raise()
            self._held += size
            self._unfinished += 1
        self._pool.submit(self._run, write, size)

    def flush(self) -> None:
        """Return when everything put so far is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not self._unfinished)
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self, write: Write, size: int) -> None:
        try:
            if self._error is None:
                write()
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
        finally:
            with self._changed:
                self._held -= size
                self._unfinished -= 1
                self._changed.notify_all()

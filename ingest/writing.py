"""The bounded queue between the model's thread and the thread that writes shards."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

DEFAULT_BYTES = 96 << 20
"""What may wait to be written; together with the shard being written it bounds extra memory."""

Write = Callable[[], None]


class WriteQueue:
    """Runs writes in order in one thread; blocks the caller while too many bytes wait.

    An error in a write is raised in the caller's thread, at the next `put` or at `flush`; nothing
    after it is written.

    Parameters
    ----------
    limit
        Bytes that may wait. A single larger item is let in when the queue is empty.
    """

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self._limit = limit
        self._items: deque[tuple[Write, int]] = deque()
        self._waiting = 0
        self._busy = False
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="attnstore-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> WriteQueue:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            if kind is not None:
                self._items.clear()
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, write: Write, size: int) -> None:
        """Queue a write that holds `size` bytes."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._error is not None
                    or not self._waiting
                    or self._waiting + size <= self._limit
                )
            )
            self._raise()
            self._items.append((write, size))
            self._waiting += size
            self._changed.notify_all()

    def flush(self) -> None:
        """Return when everything put so far is written."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._error is not None or not (self._items or self._busy)
            )
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed)
                if not self._items:
                    return
                write, size = self._items.popleft()
                self._busy = True
            try:
                write()
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._items.clear()
                    self._closed = True
            finally:
                # Drop the reference before the next wait, or the last item's memory stays.
                del write
                with self._changed:
                    self._waiting -= size
                    self._busy = False
                    self._changed.notify_all()

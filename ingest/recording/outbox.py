"""The bounded queue between a policy's thread and the thread that writes what it saw."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

_log = logging.getLogger(__name__)

Task = Callable[[], object]


class Outbox:
    """Runs tasks in one thread, in order; what does not fit is refused and never waited for, unless asked.

    Parameters
    ----------
    limit
        Bytes that may be held. A single larger task is let in when nothing else is.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: deque[tuple[Task, int]] = deque()
        self._held = 0
        self._busy = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="attnstore-outbox", daemon=True)
        self._thread.start()

    def put(self, task: Task, size: int = 0, wait: float = 0.0) -> bool:
        """Queue a task that holds `size` bytes; say whether there was room.

        Parameters
        ----------
        size
            0 is always let in.
        wait
            Seconds to wait for room.
        """
        with self._changed:
            if size and not self._changed.wait_for(lambda: self._fits(size), wait):
                return False
            if self._closed:
                return False
            self._held += size
            self._tasks.append((task, size))
            self._changed.notify_all()
            return True

    def _fits(self, size: int) -> bool:
        return not self._held or self._held + size <= self._limit

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything put so far was run; False if the time was up before."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._tasks and not self._busy, timeout)

    def close(self) -> None:
        """Run what is queued, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._closed)
                if not self._tasks:
                    return
                task, size = self._tasks.popleft()
                self._busy = True
            try:
                task()
            except Exception:
                # Tasks report their own faults; this one is ours, and must not end the thread.
                _log.exception("recording")
            finally:
                del task
                with self._changed:
                    self._held -= size
                    self._busy = False
                    self._changed.notify_all()

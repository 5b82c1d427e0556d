"""Processes that run SQL, from the outside: kept warm, killed at the deadline, replaced.

They are forked from a server process of multiprocessing that has imported DuckDB and Arrow and
opened nothing, so that a new one is ready in a tenth of a second. What comes back from one is
bytes and JSON, never a pickle.
"""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from attnstore.store.commits import StorePaths, log_of

from ..config import Limits
from ..guard.refusal import Refusal
from . import sandbox
from .sandbox import Form

START_SECONDS = 300.0
"""Time to open a catalog, or to make it from the commits of 10,000 episodes."""
_OVERHEAD = 1 << 20


class Child:
    """One process, with the catalog of one store at one moment."""

    def __init__(self, paths: StorePaths, limits: Limits) -> None:
        self._paths, self._limits = paths, limits
        context = _context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=sandbox.main,
            args=(theirs, str(paths.root), limits.sql_memory, limits.sql_seconds),
            daemon=True,
        )
        self._process.start()
        theirs.close()
        try:
            ready = self._message(START_SECONDS)
        except Refusal:
            raise Refusal(503, "no process for SQL could be started; the log says why") from None
        if not ready["ok"]:
            self.kill()
            raise Refusal(500, f"the catalog cannot be opened: {ready['message']}")
        self._version = ready["version"]

    def shows_everything(self) -> bool:
        """Whether its catalog has everything that the log says now."""
        if not self._process.is_alive():
            return False
        return bool(log_of(self._paths).update().version == self._version)

    def ask(self, sql: str, form: Form, seconds: float) -> bytes:
        """Run one query.

        Raises
        ------
        Refusal
            If it fails, its result is too large, or its time is up. In the last case the process
            is gone.
        """
        most = self._limits.sql_bytes
        self._pipe.send_bytes(json.dumps({"sql": sql, "form": form, "most": most}).encode())
        until = time.monotonic() + seconds
        message = self._message(seconds)
        if not message["ok"]:
            if message["spent"]:
                self.kill()
            status = {"usage": 400, "overflow": 413, "damaged": 500}.get(message["kind"], 400)
            raise Refusal(status, message["message"])
        body = self._receive(max(until - time.monotonic(), 1.0), most)
        if message["spent"]:
            self.kill()
        return body

    def _message(self, seconds: float) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._receive(seconds, _OVERHEAD))
        return found

    def _receive(self, seconds: float, most: int) -> bytes:
        try:
            if self._pipe.poll(seconds):
                found: bytes = self._pipe.recv_bytes(most)
                return found
        except (EOFError, OSError):
            self.kill()
            raise Refusal(
                400, "the statement ended its process: it needs more memory than it may have"
            ) from None
        self.kill()
        raise Refusal(504, f"the statement ran longer than {seconds:g} s and was stopped")

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        self._process.kill()
        self._process.join(5)
        with suppress(OSError):
            self._pipe.close()


class Children:
    """The processes of one store, for one kind of questions."""

    def __init__(self, paths: StorePaths, limits: Limits) -> None:
        self._paths, self._limits = paths, limits
        self._idle: list[Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def ask(
        self, sql: str, form: Form, began: Callable[[Child], None] = lambda child: None
    ) -> bytes:
        """Run one query in a process that shows every commit; blocks until it is done.

        Parameters
        ----------
        began
            Called with the process before it is asked, so that a caller can kill it.
        """
        child = self._take()
        began(child)
        try:
            return child.ask(sql, form, self._limits.sql_seconds)
        finally:
            self._give_back(child)

    def warm(self) -> None:
        """Have a process ready."""
        self._give_back(self._take())

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.kill()

    def _take(self) -> Child:
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None:
                return Child(self._paths, self._limits)
            if child.shows_everything():
                return child
            child.kill()

    def _give_back(self, child: Child) -> None:
        with self._lock:
            if child._process.is_alive() and not self._closed:
                self._idle.append(child)
                return
        child.kill()


def _context() -> Any:
    """Return multiprocessing's context whose processes are forked from a bare one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([sandbox.__name__])
    return context

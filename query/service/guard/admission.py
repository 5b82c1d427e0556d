"""How many requests are worked on at once, so that one client cannot stop the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from .refusal import Refusal

T = TypeVar("T")


class Gate:
    """Runs blocking work in threads: so many at once, so many waiting, and the rest is refused.

    Parameters
    ----------
    name
        What it is, for messages.
    slots
        Threads.
    waiting
        Requests that may wait for one.
    retry_after
        Seconds after which a refused client is told to come back.
    """

    def __init__(self, name: str, slots: int, waiting: int, retry_after: int = 1) -> None:
        self._name, self._most, self._retry_after = name, slots + waiting, retry_after
        self._limiter = anyio.CapacityLimiter(slots)
        self._present = 0

    async def run(self, work: Callable[[], T], *, abandon: bool = False) -> T:
        """Run `work` in a thread, when it is its turn.

        Parameters
        ----------
        abandon
            Leave the thread to itself when the request is cancelled; somebody else ends it.

        Raises
        ------
        Refusal
            429, if too many are waiting.
        """
        if self._present >= self._most:
            raise Refusal(
                429, f"too many {self._name} at once; try again", retry_after=self._retry_after
            )
        self._present += 1
        try:
            return await anyio.to_thread.run_sync(
                work, limiter=self._limiter, abandon_on_cancel=abandon
            )
        finally:
            self._present -= 1

"""Connections: a deadline for the head of a request, and a cap on how many there are.

uvicorn has neither: a connection that never sends a whole head stays for ever, before any token is
asked for, until the process has no descriptor left.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""From the first byte of a request, or the connection, to the end of its headers."""
CONNECTIONS = 512
"""Most connections at once, those between two requests included."""


def most_connections() -> int:
    """`CONNECTIONS`, or half of what this process may open if that is less."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft < 0 else max(16, min(CONNECTIONS, soft // 2))


class GuardedConnection(H11Protocol):
    """A connection that is closed if its request does not come, or if a newer one needs its place."""

    _deadline: asyncio.TimerHandle | None = None
    _asked = False
    _since = 0.0

    @property
    def waits(self) -> bool:
        """Whether no request is being answered on it."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline; close the oldest waiting connection if there are too many."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._expect_head()
        # Of many that come at once, those already told to go are still among the connections.
        open_ = [c for c in cast(set[Any], self.connections) if not c.transport.is_closing()]
        if len(open_) > most_connections():
            waiting = [c for c in open_ if c is not self and c.waits]
            # Those that never asked anything go first.
            oldest = min(waiting, key=lambda c: (c._asked, c._since), default=self)
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass bytes on; the deadline runs until they are a request."""
        super().data_received(data)
        if not self.waits:
            self._asked = True
            self._forget_deadline()
        elif self._deadline is None:
            # uvicorn's own clock, between two requests, stops at the first byte.
            self._expect_head()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._since = self.loop.time()
        super().on_response_complete()
        if self.waits and self.conn.trailing_data[0] and self._deadline is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._forget_deadline()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.waits:
            self.transport.abort()

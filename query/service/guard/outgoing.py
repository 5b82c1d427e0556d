"""Answers that are being sent: how many bytes of them wait in memory for who reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from .refusal import Refusal

CHUNK = 256 << 10
"""Bytes handed to the connection at a time: what a reader that stops leaves in memory."""
STALLED_SECONDS = 2.0
"""A reader that took no piece for as long gives way to others, when there is no room."""


class SlowReader(Exception):
    """The client takes nothing any more."""


class Outgoing:
    """All answers under way, and their budget.

    Parameters
    ----------
    total
        Bytes of all answers that are not sent yet.
    each
        Those of one client's address. One answer is always let through.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total, self._each = total, each
        self._answers: set[Answer] = set()

    def add(self, answer: Answer) -> None:
        """Begin to count an answer."""
        self._answers.add(answer)

    def remove(self, answer: Answer) -> None:
        """Forget an answer that was sent, or is not going to be."""
        self._answers.discard(answer)

    def has_room(self, answer: Answer, size: int) -> bool:
        """Whether bytes may wait for a client, after readers that stopped were left."""
        fellows = [a for a in self._answers if a.client == answer.client]
        return self._make_room(fellows, answer, size, self._each) and self._make_room(
            self._answers, answer, size, self._total
        )

    def leave_one(self) -> bool:
        """Leave the reader that has stopped for longest; False if all of them read."""
        return self._leave(self._answers)

    def _make_room(self, among: Iterable[Answer], new: Answer, size: int, most: int) -> bool:
        others = [a for a in among if a is not new]
        while (held := sum(a.held for a in others if a in self._answers)) and held + size > most:
            if not self._leave([a for a in others if a.held]):
                return False
        return True

    def _leave(self, among: Iterable[Answer]) -> bool:
        now = asyncio.get_running_loop().time()
        stalled = [
            a
            for a in among
            if a in self._answers and a.stalled_since is not None
            and now - a.stalled_since > STALLED_SECONDS
        ]  # fmt: skip
        if not stalled:
            return False
        longest = min(stalled, key=lambda a: a.stalled_since or 0.0)
        self._answers.discard(longest)
        longest.leave()
        return True


class Answer:
    """One answer: adds headers, hands out its body in small pieces, gives up on who does not read.

    Parameters
    ----------
    send
        To the server.
    client
        Its address.
    seconds
        Time for each piece.
    headers
        Of every answer, unless it says otherwise.
    outgoing
        The budget.
    """

    def __init__(
        self,
        send: Send,
        client: str,
        seconds: float,
        headers: dict[str, str],
        outgoing: Outgoing,
    ) -> None:
        self._send, self._seconds, self._headers, self._outgoing = send, seconds, headers, outgoing
        self.client = client
        self.begun = False
        self.held = 0
        """Bytes of the body that are in memory and not sent."""
        self.stalled_since: float | None = None
        """When the piece was handed out that the client has not taken."""
        self._timeout: asyncio.Timeout | None = None
        self._start: Message | None = None
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        """Send a message of ASGI."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            self._start = message  # held back: the body may find no room
            return
        body = message.get("body", b"")
        if len(body) > CHUNK:
            if self._start is not None and not self._outgoing.has_room(self, len(body)):
                await self._refuse()
                return
            self.held = len(body)
        del message["body"]
        await self._begin()
        last = max(len(body) - 1, 0) // CHUNK * CHUNK
        for start in range(0, last, CHUNK):
            piece = body[start : start + CHUNK]
            await self._pass_on({**message, "body": piece, "more_body": True})
            self.held = len(body) - start - CHUNK
        await self._pass_on({**message, "body": body[last:] if last else body})
        self.held = 0

    def leave(self) -> None:
        """End it: its reader has stopped, and others need the room."""
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def _begin(self) -> None:
        if self._start is None:
            return
        start, self._start = self._start, None
        self.begun = True
        headers = MutableHeaders(raw=start["headers"])
        for name, value in self._headers.items():
            headers.setdefault(name, value)
        await self._pass_on({**start, "headers": headers.raw})

    async def _refuse(self) -> None:
        refusal = Refusal(
            429, "too many answers wait for their readers; try again", retry_after=5
        ).response()
        self._start = {
            "type": "http.response.start",
            "status": refusal.status_code,
            "headers": refusal.raw_headers,
        }
        await self._begin()
        await self._pass_on({"type": "http.response.body", "body": bytes(refusal.body)})
        self._replaced = True

    async def _pass_on(self, message: Message) -> None:
        self.stalled_since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._seconds) as self._timeout:
                await self._send(message)
        except TimeoutError:
            raise SlowReader from None
        finally:
            self._timeout = self.stalled_since = None

"""What stands before every endpoint: access, bodies, the number of requests, and how much waits for slow readers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import Limits
from ..payload import REVALIDATE
from .access import API, OPEN, Access, Arrival, Head
from .outgoing import Answer, Outgoing, SlowReader
from .refusal import Refusal, refusal_of

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
"""On every answer, errors included."""
BODY_SECONDS = 10.0
_READING = frozenset({"GET", "HEAD"})
_log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware around the whole service."""

    def __init__(
        self, app: ASGIApp, access: Access, limits: Limits, roots: Sequence[Path] = ()
    ) -> None:
        self._app, self._access, self._limits, self._roots = app, access, limits, tuple(roots)
        self._open = 0
        self._outgoing = Outgoing(limits.unread_bytes, limits.unread_bytes_of_client)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        cached = "no-store" if scope["path"].startswith(API) else REVALIDATE
        client, _ = scope.get("client") or ("", 0)
        headers = {**HEADERS, "Cache-Control": cached}
        answering = Answer(send, client, self._limits.send_seconds, headers, self._outgoing)
        self._outgoing.add(answering)
        try:
            await self._answer(scope, receive, answering)
        except SlowReader:
            # Returning in the middle of an answer makes the server close the connection.
            _log.info("a client that took nothing for %g s is left", self._limits.send_seconds)
        except Exception as error:
            if answering.begun:
                _log.error("failed in the middle of an answer", exc_info=error)
                return
            await refusal_of(error).response(self._roots)(scope, receive, answering)
        finally:
            self._outgoing.remove(answering)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        head = Head(
            scope["method"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            {name: ", ".join(headers.getlist(name)) for name in headers},
        )
        if head.path in OPEN:
            # Outside the count: whether the service is up can always be asked.
            self._access.check(head)
            await self._app(scope, receive, send)
            return
        if self._open >= self._limits.open_requests and not self._outgoing.leave_one():
            raise Refusal(429, "too many requests at once; try again", retry_after=1)
        self._open += 1
        try:
            arrival = self._access.check(head)
            if isinstance(arrival, Arrival):
                await _welcome(arrival)(scope, receive, send)
                return
            body = await self._body(head, receive)
            await self._app(scope, _replayed(body, receive), send)
        finally:
            self._open -= 1

    async def _body(self, head: Head, receive: Receive) -> bytes:
        """Read the whole body, if there may be one; it is small and JSON."""
        most = self._limits.body_bytes
        told = head.headers.get("content-length", "0")
        empty = told == "0" and "transfer-encoding" not in head.headers
        if head.method in _READING:
            if not empty:
                raise Refusal(400, f"a {head.method} request has no body")
            return b""
        kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # A form or text/plain may be sent from any page without asking; JSON may not.
            raise Refusal(415, "a body is application/json")
        if not told.isdigit() or int(told) > most:
            raise Refusal(413, f"a body has at most {most} bytes")
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the client went away")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise Refusal(413, f"a body has at most {most} bytes")
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read already, then what comes after it: a disconnect."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _welcome(arrival: Arrival) -> Response:
    headers = {"Set-Cookie": arrival.cookie, "Cache-Control": "no-store"}
    return RedirectResponse(arrival.location, 303, headers)

"""The service's answers, asked of its application in this process: no port, no server."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import orjson

from attnstore.store.errors import AttnstoreError, UsageError

from .questions import Question

Application = Callable[..., Any]
"""ASGI: called with scope, receive and send."""
GZIP = 6


@dataclass(slots=True)
class Answers:
    """What a page carries: chunks of text, and which of them answers a question."""

    most: int
    """Bytes that the chunks may have together."""
    chunks: dict[str, str] = field(default_factory=dict)
    """Base64 by digest; equal answers are one chunk."""
    json: dict[str, str] = field(default_factory=dict)
    """By question, the chunk: gzip of a JSON object that holds its answer under the same name."""
    arrays: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By question, the chunk (gzip of npy) and the dimensions, separated by commas."""
    blobs: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By question, the chunk and its media type."""
    size: int = 0
    """Bytes of all chunks."""

    def add(self, content: bytes) -> str:
        """Keep a chunk; returns its name.

        Raises
        ------
        UsageError
            If the page gets too large.
        """
        name = hashlib.sha256(content).hexdigest()[:16]
        if name not in self.chunks:
            self.chunks[name] = base64.b64encode(content).decode()
            self.size += len(self.chunks[name])
        if self.size > self.most:
            raise UsageError(too_large(self.size, self.most))
        return name


def too_large(size: int, most: int) -> str:
    """Say that a page is too large, and what helps."""
    return (
        f"the page would be larger than {most >> 20} MB (so far {size >> 20}): take fewer episodes "
        "(--where), layers (--layers) or phases (--phase), or raise --max-size"
    )


def collect(
    application: Application, token: str, groups: Iterable[Iterable[Question]], answers: Answers,
    progress: Callable[[int], None],
) -> None:  # fmt: skip
    """Ask every question.

    Parameters
    ----------
    groups
        Questions; JSON answers of a group, such as those of an episode, share a chunk.
    progress
        Called with how many were asked.

    Raises
    ------
    AttnstoreError
        If the service refuses one.
    UsageError
        If the page gets too large.
    """
    with ThreadPoolExecutor(1) as thread:
        # A thread of its own: a notebook's has an event loop that runs already.
        thread.submit(
            lambda: asyncio.run(_collect(application, token, groups, answers, progress))
        ).result()


async def _collect(
    application: Application, token: str, groups: Iterable[Iterable[Question]], answers: Answers,
    progress: Callable[[int], None],
) -> None:  # fmt: skip
    asked = 0
    for questions in groups:
        rows: dict[str, Any] = {}
        for question in questions:
            headers, body = await _ask(application, token, question)
            if question.form == "json":
                rows[question.key] = orjson.loads(body)
            elif question.form == "array":
                # No time of packing in it: the same store gives the same page.
                place = answers.add(gzip.compress(body, GZIP, mtime=0)), headers["x-attnstore-dims"]
                answers.arrays[question.key] = place
            else:
                answers.blobs[question.key] = answers.add(body), headers["content-type"]
            asked += 1
            progress(asked)
        name = answers.add(gzip.compress(orjson.dumps(rows), GZIP, mtime=0))
        answers.json |= dict.fromkeys(rows, name)


async def _ask(
    application: Application, token: str, question: Question
) -> tuple[dict[str, str], bytes]:
    path, query = question.address
    if question.form == "array":
        query += "&format=npy"
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": unquote(path), "raw_path": path.encode(),
        "query_string": query.encode(), "root_path": "",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())],
        "server": ("localhost", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    said: dict[str, Any] = {}
    pieces: list[bytes] = []
    given = False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if given:
            # The client stays until it is answered.
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            said["status"] = message["status"]
            said["headers"] = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            pieces.append(message.get("body", b""))

    await application(scope, receive, send)
    body = b"".join(pieces)
    if said["status"] != 200:
        raise AttnstoreError(f"{path}?{query}: {_message(body)}")
    return said["headers"], body


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


def new_token() -> str:
    """Make a token for a service that nobody else asks."""
    return secrets.token_urlsafe(24)

"""What a service has to bear: statements that never end or want all memory, and clients that read slowly."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

BOMBS = (
    # minutes of CPU in one scalar function, which does not listen to interrupts
    "select levenshtein(repeat('ab', 300000), repeat('ba', 300000))",
    "select count(*) from range(100000000) a, range(100000000) b",
    # gigabytes of memory
    "select list_sort(range(200000000))",
    "select string_agg(repeat('x', 1000000), '') from range(10000)",
)
BOMBERS, READERS = 4, 8
SLOW = "select repeat('x', 1000) from range(30000)"
"""An answer of 30 MB, of which a slow reader takes a few bytes a second."""


@dataclass(slots=True)
class Made:
    """What was done so far."""

    statements: int = 0
    """Bombs and answers for slow readers that were asked for."""


@contextmanager
def attack(address: tuple[str, int], token: str, store: str) -> Iterator[Made]:
    """Attack a service with threads of this process, for as long as the ``with`` lasts."""
    made, over = Made(), threading.Event()
    threads = [
        threading.Thread(target=_bomb, args=(address, token, store, n, made, over), daemon=True)
        for n in range(BOMBERS)
    ] + [
        threading.Thread(target=_read_slowly, args=(address, token, store, made, over), daemon=True)
        for _ in range(READERS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(1)
    try:
        yield made
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def _bomb(
    address: tuple[str, int], token: str, store: str, number: int, made: Made, over: threading.Event
) -> None:
    while not over.is_set():
        made.statements += 1
        connection = http.client.HTTPConnection(*address, timeout=120)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        with suppress(OSError, http.client.HTTPException):
            body = json.dumps({"query": BOMBS[number % len(BOMBS)]})
            connection.request("POST", f"{store}/sql", body, headers)
            connection.getresponse().read()
        connection.close()
        number += 1


def _read_slowly(
    address: tuple[str, int], token: str, store: str, made: Made, over: threading.Event
) -> None:
    body = json.dumps({"query": SLOW})
    request = (
        f"POST {store}/sql HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    while not over.is_set():
        made.statements += 1
        with socket.socket() as client, suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(30)
            client.connect(address)
            client.sendall(request.encode())
            while not over.is_set() and client.recv(64):
                time.sleep(0.5)

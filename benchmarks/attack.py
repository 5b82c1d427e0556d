"""What a service has to bear: statements that never end or want all memory, and clients that read slowly."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

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
    over: threading.Event = field(default_factory=threading.Event)
    """Nothing more is to be asked."""
    clients: dict[threading.Thread, socket.socket] = field(default_factory=dict)
    """The connection of each attacker."""


@contextmanager
def attack(address: tuple[str, int], token: str, store: str) -> Iterator[Made]:
    """Attack a service with threads of this process, for as long as the ``with`` lasts."""
    made = Made()
    attackers = [(BOMBS[n % len(BOMBS) :] + BOMBS[: n % len(BOMBS)], False) for n in range(BOMBERS)]
    attackers += [((SLOW,), True)] * READERS
    threads = [
        threading.Thread(target=_ask, args=(address, token, store, *one, made), daemon=True)
        for one in attackers
    ]
    for thread in threads:
        thread.start()
    time.sleep(1)
    try:
        yield made
    finally:
        made.over.set()
        for thread in threads:
            # who waits for an answer, which may never come, is woken
            while thread.is_alive():
                with suppress(OSError, KeyError):
                    made.clients[thread].shutdown(socket.SHUT_RDWR)
                thread.join(0.1)


def _ask(
    address: tuple[str, int],
    token: str,
    store: str,
    queries: Sequence[str],
    slowly: bool,
    made: Made,
) -> None:
    number = 0
    while not made.over.is_set():
        made.statements += 1
        body = json.dumps({"query": queries[number % len(queries)]})
        number += 1
        request = (
            f"POST {store}/sql HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )
        with socket.socket() as client, suppress(OSError):
            if slowly:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(30 if slowly else 120)
            client.connect(address)
            made.clients[threading.current_thread()] = client
            client.sendall(request.encode())
            while client.recv(64 if slowly else 1 << 16) and not made.over.is_set():
                if slowly:
                    made.over.wait(0.5)

"""`attnstore serve` under load, over loopback. Server and clients share the machine's cores.

A client is a thread with one connection that it keeps; it asks the next question when the last
one is answered. Every question is of another layer, head or keyframe than the one before, and no
client sends entity tags: nothing is answered from a browser's cache.

The same is measured under attack (`benchmarks.attack`). Rates are of what was answered; how many were told to
come back (429), which the attack may cause, is in the remark.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

import attnstore
from attnstore.query import Episode

from .attack import attack
from .measure import Figure, Setting
from .replay import CAMERAS, ingest_store, shape_of
from .slices import KEYFRAMES

TOKEN = "benchmark-0123456789"
CLIENTS = (1, 8, 32)
REQUESTS = 10_000
"""After as many, which fill the caches, the memory is looked at, and again after as many more."""
ATTACKED_SECONDS = 15.0
"""For how long clients ask under attack, where a statement may wait for minutes in all."""
Question = Callable[[int], tuple[str, str, str | None]]
"""Of a number: method, path, body."""


def run(setting: Setting) -> list[Figure]:
    count = 3 if setting.toy else KEYFRAMES
    root = ingest_store(setting.directory, count, **shape_of(setting.toy))
    store = attnstore.open(root)
    (episode,) = store.episodes.values()
    figures = []
    with server_of(root, *("--sql-seconds", "0.5") if setting.toy else ()) as (address, pid):
        name = json.loads(_ask(address, "GET", "/v1/stores")[1])[0]["id"]
        questions = _questions(f"/v1/stores/{name}", episode)
        for what, question in questions.items():
            _load(address, question, 1, 3)  # warm: imports, the first process for SQL
            for clients in (2,) if setting.toy else CLIENTS:
                total = clients * (2 if setting.toy else max(8, 400 // clients))
                figures += _figures(what, clients, _load(address, question, clients, total))
        every = list(questions.values())

        def mixed(i: int) -> tuple[str, str, str | None]:
            return every[i % len(every)](i // len(every))

        figures += _memory(address, pid, mixed, "", setting)
        with attack(address, TOKEN, f"/v1/stores/{name}") as made:
            for what in UNDER_ATTACK[-1:] if setting.toy else UNDER_ATTACK:
                for clients in (2,) if setting.toy else CLIENTS:
                    seconds = 0.3 if setting.toy else ATTACKED_SECONDS
                    load = _load(address, questions[what], clients, 1000 * clients, seconds)
                    figures += _figures(f"under attack: {what}", clients, load)
            cheap = questions[UNDER_ATTACK[1]]
            figures += _memory(address, pid, cheap, "under attack: ", setting)
        figures.append(Figure("attack: statements that were sent", made.statements, ""))
    return figures


UNDER_ATTACK = (
    "slice: one head's text rows, npy", "map of a head, all keyframes, npy",
    "overlay, 640 pixels, JPEG", "SQL: count of episodes",
)  # fmt: skip


def _questions(store: str, episode: Episode) -> dict[str, Question]:
    keyframes, layers = len(episode.frames), episode.layers("prefix")
    heads, url = episode.heads("prefix"), f"{store}/episodes/{episode.run}/{episode.id}"
    camera = CAMERAS[0]

    def at(i: int) -> str:
        return f"phase=prefix&layer={i % layers}&head={i // layers % heads}"

    def one(i: int) -> str:
        return f"{at(i)}&keyframe={i * 7 % keyframes}"

    def sql(query: str) -> Question:
        return lambda i: ("POST", f"{store}/sql", json.dumps({"query": f"{query} -- {i}"}))

    return {
        "slice: one head's text rows, npy": lambda i: (
            "GET", f"{url}/attention?{one(i)}&query=text&format=npy", None),
        "map of a head, all keyframes, npy": lambda i: (
            "GET", f"{url}/maps?{at(i)}&camera={camera}&format=npy", None),
        "layer x head matrix of a metric": lambda i: (
            "GET", f"{url}/metrics/entropy/matrix?phase=prefix&camera={camera}"
            f"&keyframe={i % keyframes}", None),
        "overlay, 640 pixels, JPEG": lambda i: (
            "GET", f"{url}/overlays/{camera}?{one(i)}&width=640&format=jpg", None),
        "SQL: count of episodes": sql("select count(*) from episodes"),
        "SQL: layer x head over head_stats": sql(
            "select layer, head, avg(entropy) from head_stats "
            "where weighting = 'raw' and phase = 'prefix' group by all"),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Load:
    """What became of some requests."""

    times: list[float]
    """Seconds of each that was answered."""
    seconds: float
    """All together."""
    refused: int
    """How many got 429 or 503."""


def _figures(what: str, clients: int, load: Load) -> list[Figure]:
    ordered = sorted(load.times) or [load.seconds]
    where = f"{what}, {clients} client{'' if clients == 1 else 's'}"
    note = f"{len(load.times)} requests"
    note += f", {load.refused} more told to come back" if load.refused else ""
    return [
        Figure(f"{where}, p50", 1e3 * statistics.median(ordered), "ms", note=note),
        Figure(f"{where}, p99", 1e3 * ordered[round(0.99 * (len(ordered) - 1))], "ms"),
        Figure(f"{where}, rate", len(load.times) / load.seconds, "1/s"),
    ]  # fmt: skip


def _memory(
    address: tuple[str, int], pid: int, question: Question, when: str, setting: Setting
) -> list[Figure]:
    """Memory of the server after the first and after the last of many requests."""
    process = psutil.Process(pid)
    warm, count = (4, 10) if setting.toy else (REQUESTS, REQUESTS)
    _load(address, question, 2, warm)
    before = process.memory_info().rss
    _load(address, question, 2, count)
    after = process.memory_info().rss
    return [
        Figure(f"{when}memory after {warm} requests", before / 1e6, "MB"),
        Figure(f"{when}growth in {count} more", (after - before) / 1e6, "MB", aim="<= 20"),
    ]


def _load(
    address: tuple[str, int],
    question: Question,
    clients: int,
    total: int,
    seconds: float | None = None,
) -> Load:
    """Ask `total` questions, or as many as can be begun within `seconds`."""
    times: list[float] = []
    refused = 0
    numbers = iter(range(total))
    lock = threading.Lock()
    began = time.perf_counter()

    def client() -> None:
        nonlocal refused
        connection = http.client.HTTPConnection(*address, timeout=300)
        while seconds is None or time.perf_counter() - began < seconds:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            start = time.perf_counter()
            status, body = _ask(address, *question(number), connection=connection)
            taken = time.perf_counter() - start
            assert status in (200, 429, 503), body[:500]
            with lock:
                if status == 200:
                    times.append(taken)
                else:
                    refused += 1
            if status != 200:
                time.sleep(0.2)  # as it is told, but not for as long
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seconds is not None or len(times) + refused == total
    return Load(times, time.perf_counter() - began, refused)


def _ask(
    address: tuple[str, int],
    method: str,
    path: str,
    body: str | None = None,
    connection: http.client.HTTPConnection | None = None,
) -> tuple[int, bytes]:
    used = connection or http.client.HTTPConnection(*address, timeout=120)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    used.request(method, path, body, headers)
    response = used.getresponse()
    found = response.status, response.read()
    if connection is None:
        used.close()
    return found


@contextmanager
def server_of(root: Path, *options: str) -> Iterator[tuple[tuple[str, int], int]]:
    """Start a service of a store; yields its address and process id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "attnstore", "serve", str(root), "--port", "0", "--json", *options],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"ATTNSTORE_TOKEN": TOKEN},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        parts = urlsplit(json.loads(process.stdout.readline())["url"])
        assert parts.hostname is not None
        assert parts.port is not None
        yield (parts.hostname, parts.port), process.pid
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()

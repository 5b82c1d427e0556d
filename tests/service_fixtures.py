"""A real `attnstore serve` process, and stores for it, shared by the service's tests."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from store_fixtures import (
    POLICY,
    random_episode,
    run_config,
    write_blocks,
    write_episode,
    write_rows,
)

from attnstore.store.commits import Attempt, StorePaths, all_commits, slug
from attnstore.store.commits.run import save_run
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.opening import create_store

TOKEN = "a-token-for-tests-0123456789"
SCRIPT = "<script>alert('x')</script>"
HOSTILE = f'success/"><img src=x onerror=alert(1)>/{SCRIPT}'


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json()["error"]["message"])


@dataclass
class Server:
    """A running service."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        token: str | None = TOKEN,
        timeout: float = 60,
    ) -> Answer:
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        said = {"Authorization": f"Bearer {token}"} if token is not None else {}
        try:
            connection.request(method, path, body, said | (headers or {}))
            response = connection.getresponse()
            got = {k.lower(): v for k, v in response.getheaders()}
            return Answer(response.status, got, response.read())
        finally:
            connection.close()

    def get(self, path: str, headers: dict[str, str] | None = None, **parameters: Any) -> Answer:
        query = f"?{urlencode(parameters)}" if parameters else ""
        return self.ask("GET", path + query, headers=headers)

    def sql(self, query: str, accept: str = "application/json", store: str = "lab") -> Answer:
        return self.ask(
            "POST",
            f"/v1/stores/{store}/sql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json", "Accept": accept},
        )


def start(*arguments: object, log: Path) -> Server:
    """Start a server on a free port, and wait until it answers."""
    environment = {k: v for k, v in os.environ.items() if k != "ATTNSTORE"}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "attnstore", "serve", *map(str, arguments),
             "--port", "0", "--json"],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
            env=environment | {"ATTNSTORE_TOKEN": TOKEN, "SECRET_OF_THE_HOST": "hush"},
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, log.read_text()
    return Server(json.loads(line)["url"], process, log)


def stop(server: Server) -> None:
    server.process.send_signal(signal.SIGINT)
    try:
        server.process.wait(15)
    finally:
        server.process.kill()
        server.process.wait()
        assert server.process.stdout is not None
        server.process.stdout.close()


def write_named(paths: StorePaths, name: str, instruction: str, seed: int) -> None:
    """Commit a random episode with another instruction."""
    made = random_episode(name, seed=seed, keyframes=2)
    episode = replace(made, spec=replace(made.spec, instruction=instruction))
    run = save_run(paths, run_config(), {"host": "test", "code": "0"})
    writer = EpisodeWriter(Attempt(paths, run, slug(name), "base"), episode.spec, POLICY)
    write_blocks(writer, episode)
    write_rows(writer, episode, seed)
    writer.commit({})


@pytest.fixture(scope="session")
def served_stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Three stores: `lab` of four episodes, `other` with a hostile name and instruction, and `bad`.

    In `bad` the episode ``success/x`` has an array of Python objects, and a link instead of the
    file that its commit lists first; ``success/y`` is as it should be.
    """
    folder = tmp_path_factory.mktemp("served")
    lab = create_store(folder / "lab.attn")
    for number, outcome in enumerate(("success", "success", "failure", "failure")):
        name = f"{outcome}/2025-01-01/2025-01-01_1{number}-00-00"
        write_episode(lab, name, outcome, number, keyframes=2 + number % 2)
    other = create_store(folder / "other.attn")
    write_named(other, HOSTILE, f"put {SCRIPT} into \u2028 the bowl", 9)
    bad = create_store(folder / "bad.attn")
    for name in ("success/x", "success/y"):
        write_episode(bad, name, keyframes=1, layers=1, heads=1, steps=1)
    commit = next(c for c in all_commits(bad) if c.summary["name"] == "success/x")
    array = commit.directory(bad) / "attention.zarr" / "prefix" / "attention" / "zarr.json"
    array.write_text(json.dumps(json.loads(array.read_text()) | {"data_type": "object"}))
    secret = folder / "secret"
    secret.write_text("root:x")
    listed = commit.directory(bad) / commit.files[0].path
    listed.unlink()
    listed.symlink_to(secret)
    return lab.root, other.root, bad.root


@pytest.fixture(scope="session")
def server(
    served_stores: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for all tests that leave it as it is."""
    log = tmp_path_factory.mktemp("log") / "serve.log"
    started = start(
        *served_stores, "--sql-seconds", 2, "--sql-memory", 128, "--max-slice", 1, log=log
    )
    yield started
    stop(started)
    text = log.read_text()
    assert "Traceback" not in text, text
    assert TOKEN not in text
    left = re.findall(r"ERROR.*", text)
    assert not left, text

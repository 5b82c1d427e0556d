"""Who gets the environment's token: real servers that keep what they were told."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from service_fixtures import TOKEN, start, stop
from store_fixtures import write_episode

import attnstore
from attnstore.store.errors import AttnstoreError, UsageError
from attnstore.store.opening import create_store
from attnstore.store.remote.token import token_for

SECRET = "secret-of-the-environment"


class Ear:
    """A web server that has nothing, or sends everybody elsewhere; as a proxy it is any host."""

    def __init__(self, elsewhere: str | None = None) -> None:
        self.heard: list[tuple[str, str | None]] = []
        ear = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                ear.heard.append((self.path, self.headers.get("Authorization")))
                if elsewhere is None:
                    self.send_error(404)
                    return
                self.send_response(302)
                self.send_header("Location", elsewhere + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def tokens(self) -> set[str | None]:
        assert self.heard
        return {token for _, token in self.heard}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def ear() -> Iterator[Ear]:
    made = Ear()
    yield made
    made.close()


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "http_proxy", "no_proxy", "NO_PROXY", "ATTNSTORE_TOKEN_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ATTNSTORE_TOKEN", SECRET)
    return monkeypatch


def attempt(url: str) -> None:
    with pytest.raises(AttnstoreError):
        attnstore.open(url)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_this_machine_gets_it(environment: pytest.MonkeyPatch, ear: Ear, name: str) -> None:
    attempt(ear.url.replace("127.0.0.1", name))
    assert ear.tokens == {f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    ("hosts", "tokens"),
    [
        (None, {None}),
        ("", {None}),
        ("other.example, 10.0.0.5:8732", {None}),
        ("example, store.lab.example, lab.example:8080", {None}),
        ("Lab.Example", {f"Bearer {SECRET}"}),
        ("other.example,lab.example:80", {f"Bearer {SECRET}"}),
    ],
)
def test_another_machine_gets_it_if_it_is_named(
    environment: pytest.MonkeyPatch, ear: Ear, hosts: str | None, tokens: set[str | None]
) -> None:
    environment.setenv("http_proxy", ear.url)  # a host of any name, without a network
    if hosts is not None:
        environment.setenv("ATTNSTORE_TOKEN_HOSTS", hosts)
    attempt("http://lab.example/pi05.attn")
    assert all(path.startswith("http://lab.example/") for path, _ in ear.heard)
    assert ear.tokens == tokens


def test_a_token_in_the_address_is_for_that_address(
    environment: pytest.MonkeyPatch, ear: Ear
) -> None:
    environment.setenv("http_proxy", ear.url)
    attempt("http://lab.example/?token=of-the-address")
    assert ear.tokens == {"Bearer of-the-address"}


def test_a_redirect_does_not_take_it_along(environment: pytest.MonkeyPatch, ear: Ear) -> None:
    first = Ear(elsewhere=ear.url)
    try:
        for url in (first.url, f"{first.url}/?token=of-the-address"):
            attempt(url)
    finally:
        first.close()
    assert first.tokens == {f"Bearer {SECRET}", "Bearer of-the-address"}
    assert ear.tokens == {None}


def test_a_service_of_this_machine_is_read(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_episode(create_store(tmp_path / "lab"), "success/2025-12-10/one")
    environment.setenv("ATTNSTORE_TOKEN", TOKEN)
    server = start(tmp_path / "lab", log=tmp_path / "log")
    try:
        local, remote = attnstore.open(tmp_path / "lab"), attnstore.open(server.url)
        name = local.base_commits()[0].episode
        np.testing.assert_array_equal(
            remote.episode(name).maps("prefix", "hand_camera").values,
            local.episode(name).maps("prefix", "hand_camera").values,
        )
        environment.setenv("ATTNSTORE_TOKEN", "another-token-0123456789")
        with pytest.raises(AttnstoreError, match="only if ATTNSTORE_TOKEN_HOSTS names it"):
            attnstore.open(server.url)
    finally:
        stop(server)


def test_what_is_no_host(environment: pytest.MonkeyPatch) -> None:
    for wrong in ("https://lab.example", "lab.example/store", "lab.example:http", "user@lab"):
        environment.setenv("ATTNSTORE_TOKEN_HOSTS", f"fine.example,{wrong}")
        with pytest.raises(UsageError, match=f"host or host:port, .*; got '{wrong}'"):
            token_for("http://fine.example/store")


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://127.8.9.1:80/x", True),
        ("http://[::1]:8732/x", True),
        ("http://10.0.0.5:8732/x", True),
        ("http://10.0.0.5/x", False),
        ("https://10.0.0.5:8732/x", True),
        ("https://lab.example/x", True),
        ("http://lab.example:8080/x", True),
        # look like this machine, or like one that is named
        ("http://127.0.0.1.evil.example/x", False),
        ("http://localhost.evil.example/x", False),
        ("http://127.0.0.1@evil.example/x", False),
        ("http://lab.example.evil.example/x", False),
        ("http://evil.example/lab.example", False),
    ],
)
def test_hosts(environment: pytest.MonkeyPatch, url: str, sent: bool) -> None:
    environment.setenv("ATTNSTORE_TOKEN_HOSTS", "lab.example,10.0.0.5:8732")
    assert token_for(url) == (SECRET if sent else None)
    environment.delenv("ATTNSTORE_TOKEN")
    assert token_for(url) is None

"""Stores on the Hugging Face Hub: through huggingface_hub itself, from a local server that speaks its API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_fixtures import run
from remote_servers import HubServer
from store_fixtures import write_episode

import attnstore
from attnstore.errors import DeniedError, IntegrityError, NotFoundError, UsageError
from attnstore.store.commits import StorePaths
from attnstore.store.opening import create_store
from attnstore.store.remote.mirror import forget_transports, open_transport

URL = "hf://datasets/lab/maps/runs/pi0.attn"


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    paths = create_store(tmp_path / "repository" / "runs" / "pi0.attn")
    for name in ("success/d/a", "failure/d/b"):
        write_episode(paths, name, keyframes=2)
    return paths


@pytest.fixture
def hub(paths: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    yield from _hub(tmp_path, monkeypatch, None)


@pytest.fixture
def private(
    paths: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    yield from _hub(tmp_path, monkeypatch, "hf_secret")


def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None) -> Iterator[HubServer]:
    server = HubServer(tmp_path / "repository", token=token)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("attnstore.store.remote.downloads.PAUSES", ())
    forget_transports()
    try:
        yield server
    finally:
        server.close()
        forget_transports()


def test_a_store_on_the_hub_answers_as_the_one_on_the_disk(
    paths: StorePaths, hub: HubServer, tmp_path: Path
) -> None:
    here, there = attnstore.open(paths.root), attnstore.open(URL)
    query = "select * from head_stats order by all"
    assert there.sql(query).fetchall() == here.sql(query).fetchall()
    one, other = (s.episode("a").attention("prefix", layer=0, head=1) for s in (here, there))
    np.testing.assert_array_equal(one, other)
    # a slice takes pieces of a shard, and no directory was listed for any of it
    assert any("/cdn/" in path for path in hub.requests)
    assert not [path for path in hub.requests if "/tree/" in path or "paths-info" in path]
    assert hub.sent < sum(f.stat().st_size for f in paths.root.rglob("*") if f.is_file())

    write_episode(paths, "success/d/c", keyframes=1)
    assert len(attnstore.open(URL).episodes) == 3
    copied = run("pull", URL, tmp_path / "copy.attn", "--tier", "full")
    assert copied.returncode == 0, copied.stderr
    assert run("verify", tmp_path / "copy.attn").returncode == 0
    assert attnstore.open(tmp_path / "copy.attn").sql(query).fetchall()


def test_a_private_repository_takes_the_hubs_token(
    private: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(NotFoundError, match=r"no such repository, or a private one: .*HF_TOKEN$"):
        attnstore.open(URL)
    forget_transports()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert len(attnstore.open(URL).episodes) == 2
    # where a large file lies is another host, which learns nothing
    attnstore.open(URL).episode("a").attention("prefix", layer=0)
    assert private.tokens_of_cdn
    assert set(private.tokens_of_cdn) == {None}


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("hf://datasets/lab/maps/none.attn", NotFoundError, "is not an attnstore store"),
        ("hf://datasets/lab/maps@v9/runs/pi0.attn", NotFoundError, "has no such revision"),
        ("hf://datasets/other/maps/x", NotFoundError, "no such repository"),
        ("hf://datasets/lab", UsageError, "is at hf://datasets/ORGANISATION/NAME/PATH"),
        ("hf://lab", UsageError, "is at hf://datasets/ORGANISATION/NAME/PATH"),
        (
            "hf://datasets/lab/ma..ps/x",
            UsageError,
            r"^hf://datasets/lab/ma\.\.ps/x: .*'lab/ma\.\.ps'",
        ),
    ],
)
def test_what_is_not_there_is_one_line(
    hub: HubServer, url: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        attnstore.open(url)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("code", ["GatedRepo", "Forbidden"])
def test_whoever_has_not_accepted_the_conditions_is_told_to(hub: HubServer, code: str) -> None:
    hub.refused = code
    with pytest.raises(
        DeniedError, match=r"^hf://\S+: the Hub does not give it .*HF_TOKEN, and accept"
    ):
        attnstore.open(URL)


def test_files_come_in_pieces_and_never_more_than_they_may(
    hub: HubServer, paths: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnstore.store.remote.hub._BLOCK", 100)
    transport = open_transport(URL)
    for size in (0, 1, 99, 100, 101, 200, 250):
        data = bytes(range(256))[:size]
        (paths.root / "file").write_bytes(data)
        for limit in (size, size + 1, 1000):
            transport.fetch("file", tmp_path / "came", limit)
            assert (tmp_path / "came").read_bytes() == data
    with pytest.raises(IntegrityError, match="at most 249 are expected"):
        transport.fetch("file", tmp_path / "came", 249)
    assert transport.fetch_range("file", 7, 120, 250) == bytes(range(7, 120))
    with pytest.raises(IntegrityError, match="3 bytes came, 5 were asked for"):
        transport.fetch_range("file", 247, 252, 252)
    with pytest.raises(NotFoundError, match=r"pi0\.attn/none: not found$"):
        transport.fetch("none", tmp_path / "came", 249)


def test_the_hub_is_read_only(hub: HubServer) -> None:
    refused = run("remove", URL, "--episode", "a")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1

"""Stores at a URL: the answers of the local store, few requests, and nothing that was not committed."""

from __future__ import annotations

import functools
import http.server
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from remote_servers import S3_CREDENTIALS, FileServer, file_server
from store_fixtures import flip_byte, write_episode

import attnstore
from attnstore.cli import cli
from attnstore.store.arrays.shards import Grid
from attnstore.store.catalog import generations, refresh
from attnstore.store.commits import StorePaths, all_commits, read_json, remove_part
from attnstore.store.commits.entry import sealed
from attnstore.store.errors import (
    AttnstoreError,
    DeniedError,
    IntegrityError,
    MissingExtraError,
    NotFoundError,
    PartialError,
    UsageError,
)
from attnstore.store.opening import create_store
from attnstore.store.remote.fetching import fetch_all
from attnstore.store.remote.mirror import MirrorPaths, _transport

SMALL: dict[str, Any] = {"keyframes": 2, "grid": (2, 2)}
QUERIES = (
    "SELECT name, outcome, keyframes FROM episodes ORDER BY ALL",
    "SELECT count(*), sum(token_id) FROM tokens",
    "SELECT episode, layer, avg(entropy) FROM head_stats GROUP BY ALL ORDER BY ALL",
    "SELECT episode, keyframe, camera, octet_length(image) FROM frames ORDER BY ALL",
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three episodes, with a catalog."""
    root = tmp_path_factory.mktemp("remote") / "toy.attn"
    paths = create_store(root)
    for i in range(3):
        write_episode(paths, f"success/d/e{i}", ("success", "failure")[i % 2], i, **SMALL)
    refresh(paths)
    return root


@pytest.fixture
def paths(template: Path, tmp_path: Path) -> StorePaths:
    return StorePaths(shutil.copytree(template, tmp_path / "source" / "toy.attn"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(paths: StorePaths) -> Iterator[FileServer]:
    with file_server(paths.root) as server:
        yield server


@pytest.fixture(scope="module")
def s3(s3_server: tuple[str, Path]) -> Iterator[tuple[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**S3_CREDENTIALS, "AWS_ENDPOINT_URL": s3_server[0]}.items():
            patch.setenv(name, value)
        yield s3_server


def entry_of(paths: StorePaths, name: str) -> Path:
    (file,) = (f for f in paths.log.iterdir() if f'"episode": "{name}-' in f.read_text())
    return file


def make_bucket(name: str) -> Any:
    import s3fs

    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdirs(name, exist_ok=True)
    return files


def upload(root: Path, url: str) -> None:
    files = make_bucket(url.removeprefix("s3://").split("/")[0])
    files.put(f"{root}/", url + "/", recursive=True)


def assert_same_answers(here: attnstore.Store, there: attnstore.Store) -> None:
    for query in QUERIES:
        assert there.sql(query).fetchall() == here.sql(query).fetchall()
    for name in ("e0", "e2"):
        a, b = here.episode(name), there.episode(name)
        np.testing.assert_array_equal(
            a.attention("prefix", layer=1, keyframe=1).values,
            b.attention("prefix", layer=1, keyframe=1).values,
        )
        np.testing.assert_array_equal(a.attention("suffix").values, b.attention("suffix").values)
        np.testing.assert_array_equal(
            a.maps("suffix", "hand_camera").values, b.maps("suffix", "hand_camera").values
        )
        np.testing.assert_array_equal(a.policy_array("actions"), b.policy_array("actions"))
        assert a.image_bytes(1, "hand_camera") == b.image_bytes(1, "hand_camera")
        np.testing.assert_array_equal(
            a.attention("prefix", lazy=True)[1].values, b.attention("prefix", lazy=True)[1].values
        )


def test_a_file_server_gives_the_answers_of_the_path(paths: StorePaths, server: FileServer) -> None:
    assert_same_answers(attnstore.open(paths.root), attnstore.open(server.url))
    there = attnstore.open(server.url)
    assert server.url in repr(there)
    server.take()
    assert_same_answers(attnstore.open(paths.root), there)
    assert server.take() == [], "what was fetched is kept"


def test_a_server_that_knows_no_ranges(paths: StorePaths, cache: Path) -> None:
    """Python's own: whole files, compared with their SHA-256."""
    (file,) = paths.data.glob("*/e1-*/base.*/attention.zarr/prefix/attention/c/0/0/0/0/0")
    with file_server(paths.root, ranges=False) as server:
        assert_same_answers(attnstore.open(paths.root), attnstore.open(server.url))
        there = attnstore.open(server.url)
        server.take()
        assert_same_answers(attnstore.open(paths.root), there)
        assert server.take() == []
        flip_byte(file, file.stat().st_size // 2)
        with pytest.raises(IntegrityError, match="SHA-256"):
            there.episode("e1").attention("prefix", layer=0, keyframe=0)


@pytest.mark.parametrize("engine", ["tensorstore", "zarr"])
def test_both_engines(paths: StorePaths, server: FileServer, engine: str) -> None:
    a = attnstore.open(paths.root).episode("e1").attention("prefix", head=1).values
    b = attnstore.open(server.url, engine=engine).episode("e1").attention("prefix", head=1).values
    np.testing.assert_array_equal(a, b)


def test_s3_gives_the_answers_of_the_path(paths: StorePaths, s3: tuple[str, Path]) -> None:
    url = "s3://first/some/where/toy.attn"
    upload(paths.root, url)
    assert_same_answers(attnstore.open(paths.root), attnstore.open(url))
    before = s3[1].read_text().count("HTTP/1.1")
    store = attnstore.open(url)
    assert store.sql(QUERIES[0]).fetchall()
    assert s3[1].read_text().count("HTTP/1.1") - before <= 8, "not one for each commit"
    write_episode(paths, "success/d/e1", seed=9, replace=True, **SMALL)
    write_episode(paths, "new", seed=8, **SMALL)
    upload(paths.root, url)
    assert_same_answers(attnstore.open(paths.root), attnstore.open(url))
    found = attnstore.open(url).sql("SELECT name, revision FROM episodes ORDER BY ALL").fetchall()
    assert found == [("new", 1), ("success/d/e0", 1), ("success/d/e1", 2), ("success/d/e2", 1)]


@pytest.mark.parametrize(
    ("endpoint", "url", "kind", "says"),
    [
        ("http://127.0.0.1:9", "s3://first/x", AttnstoreError,
         "s3://first/x: http://127.0.0.1:9 cannot be reached (no connection); look at AWS_ENDPOINT_URL"),
        ("127.0.0.1:9", "s3://first/x", UsageError,
         "AWS_ENDPOINT_URL begins with http:// or https://; got '127.0.0.1:9'"),
        ("https", "s3://first/x", AttnstoreError, "cannot be reached (it speaks no TLS, or its"),
        ("S3", "s3://nowhere/x", NotFoundError, "s3://nowhere/x: there is no bucket nowhere at http://127"),
        ("S3", "s3://first/x", NotFoundError,
         "s3://first/x is not an attnstore store: it has no attnstore.json at http://127"),
        ("AccessDenied", "s3://first/x", DeniedError, "s3://first/x/attnstore.json: access denied"),
        ("SignatureDoesNotMatch", "s3://first/x", DeniedError,
         "the credentials are not accepted by http://127"),
        ("AuthorizationHeaderMalformed", "s3://first/x", AttnstoreError,
         "the bucket is in another region than us-east-1; set AWS_REGION"),
        ("no profile", "s3://first/x", UsageError,
         "AWS_PROFILE is a profile of AWS's configuration file; got 'nobody'"),
        ("no credentials", "s3://first/x", DeniedError,
         "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
         "or for a public bucket FSSPEC_S3_ANON=true"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)  # fmt: skip
def test_what_s3_refuses_is_said(
    s3: tuple[str, Path], endpoint: str, url: str, kind: type[AttnstoreError], says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Refusing(http.server.BaseHTTPRequestHandler):
        """Answers every request with the error whose code is `endpoint`."""

        def do_GET(self) -> None:
            body = (
                f"<?xml version='1.0'?><Error><Code>{endpoint}</Code><Message>no</Message></Error>"
            )
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    _transport.cache_clear()
    if endpoint == "S3":
        make_bucket("first")
    elif endpoint == "https":
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3[0].replace("http:", "https:"))
    elif endpoint == "no profile":
        monkeypatch.setenv("AWS_PROFILE", "nobody")
    elif endpoint == "no credentials":
        for name in S3_CREDENTIALS:
            monkeypatch.delenv(name)
    elif "127" in endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        if endpoint.isalpha() and endpoint not in ("S3", "https"):
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{httpd.server_port}")
        try:
            with pytest.raises(kind, match=re.escape(says)) as raised:
                attnstore.open(url)
        finally:
            httpd.shutdown()
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)


def test_file_urls_are_paths(paths: StorePaths, cache: Path) -> None:
    store = attnstore.open(paths.root.as_uri())
    assert store.paths.root == paths.root
    assert not cache.exists(), "no copy is made"


def test_opening_again_asks_for_the_next_entries_only(
    paths: StorePaths, server: FileServer
) -> None:
    attnstore.open(server.url)
    first = server.take()
    head = len(list(paths.log.iterdir()))
    asked = {int(r[-15:-5]) for r in first if r.startswith("/commits/log/")}
    assert asked == {head, head + 1, head + 2}, "the catalog has the others"
    attnstore.open(server.url)
    assert sorted(server.take()) == [
        "/attnstore.json",
        *(f"/commits/log/{head + i:010d}.json" for i in range(3)),
    ]


@pytest.mark.parametrize("fresh", [True, False])
def test_every_commit_is_noticed(paths: StorePaths, server: FileServer, fresh: bool) -> None:
    attnstore.open(server.url)
    write_episode(paths, "success/d/e0", seed=5, replace=True, **SMALL)
    write_episode(paths, "new", seed=6, **SMALL)
    if fresh:
        refresh(paths)
    there = attnstore.open(server.url)
    assert_same_answers(attnstore.open(paths.root), there)
    assert [c.revision for c in there.base_commits()] == [1, 2, 1, 1]
    remove_part(paths, next(c.key for c in all_commits(paths) if c.summary["name"] == "new"))
    assert len(attnstore.open(server.url).episodes) == 3
    assert len(there.episodes) == 4, "what is open stays as it was"


def test_a_hole_in_the_log_is_named(paths: StorePaths, server: FileServer) -> None:
    entry_of(paths, "e1").unlink()
    shutil.rmtree(paths.catalog)
    store = attnstore.open(server.url)
    assert len(store.episodes) == 2
    result = CliRunner().invoke(cli, ["ls", server.url])
    assert isinstance(result.exception, PartialError)
    assert "missing" in result.stderr


def test_a_log_that_shrank_is_read_anew(paths: StorePaths, server: FileServer) -> None:
    assert len(attnstore.open(server.url).episodes) == 3
    max(paths.log.iterdir()).unlink()
    shutil.rmtree(paths.catalog)
    assert len(attnstore.open(server.url).episodes) == 2


class Answering(http.server.SimpleHTTPRequestHandler):
    """Serves files, and what is missing as `missing` says."""

    missing = 200

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        body = b"<!doctype html><title>lab</title>"
        self.send_response(self.missing if code == 404 else code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("missing", [200, 403])
@pytest.mark.parametrize("what", ["store", "no commits", "no store"])
def test_servers_that_do_not_say_404(
    paths: StorePaths, missing: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what != "store":
        shutil.rmtree(paths.log)
        shutil.rmtree(paths.catalog)
    if what == "no store":
        (paths.root / "attnstore.json").unlink()
    monkeypatch.setattr(Answering, "missing", missing)
    handler = functools.partial(Answering, directory=str(paths.root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_port}"
        try:
            if (missing, what) == (403, "store"):
                assert len(attnstore.open(url).episodes) == 3
                return
            with pytest.raises(AttnstoreError) as raised:
                attnstore.open(url)
        finally:
            httpd.shutdown()
    said = str(raised.value)
    assert url in said
    assert "token" not in said
    if what == "no store" and missing == 200:
        assert "a web page instead of attnstore.json" in said
    elif missing == 200:
        assert "nobody knows what is committed" in said


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (500, {}, "the server answers 500 (Internal Server Error)"),
        (302, {"Location": "/attnstore.json"}, "the server redirects in a circle"),
        (302, {"Location": "file:///etc/passwd"}, "redirects to file:///etc/passwd, which is no"),
        (200, {"Content-Length": "900"}, "ended within the file, or the server announces more"),
    ],
)
def test_what_a_server_does_is_said(status: int, headers: dict[str, str], says: str) -> None:
    class Wrong(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Wrong) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_port}"
        try:
            older = (
                "|redirect only to http" if "file:" in says else ""
            )  # aiohttp 3.9 says it itself
            with pytest.raises(AttnstoreError, match=re.escape(says) + older) as raised:
                attnstore.open(url)
        finally:
            httpd.shutdown()
    assert str(raised.value).count(url) == 1


def test_only_files_of_the_episodes_asked_for(paths: StorePaths, server: FileServer) -> None:
    store = attnstore.open(server.url)
    server.take()
    assert store.sql("SELECT count(*) FROM keyframes").fetchall() == [(6,)]
    assert server.take() == []
    episode = store.episode("e1")
    query = f"SELECT count(*) > 0 FROM head_stats WHERE episode = '{episode.id}'"
    assert store.sql(query).fetchall() == [(True,)]
    tables = [r for r in server.take() if r.endswith(".parquet")]
    assert len(tables) == 1
    assert tables[0].endswith("/head_stats.parquet")
    assert f"/{episode.id}/" in tables[0]
    relation = store.sql("SELECT count(DISTINCT episode) FROM head_stats")
    assert relation.fetchall() == [(3,)]
    assert len([r for r in server.take() if r.endswith(".parquet")]) == 2


def test_only_chunks_that_are_touched(paths: StorePaths, server: FileServer) -> None:
    episode = attnstore.open(server.url).episode("e1")
    shard = next(
        f for f in episode.part.commit.files if f.path.endswith("prefix/attention/c/1/0/0/0/0")
    )
    cost = episode.explain("prefix", layer=0, head=1, keyframe=1)
    # 2 layers x 2 heads, each one chunk; the index has 16 bytes for each and a CRC.
    index = 16 * 4 + 4
    assert cost.missing_bytes == index + round((shard.size - index) / 4)
    assert f"{cost.missing_bytes / 1e6:.2f} MB not here yet" in str(cost)
    server.take()
    server.take_sent()
    here = attnstore.open(paths.root).episode("e1")
    for _ in range(2):
        found = episode.attention("prefix", layer=0, head=1, keyframe=1).values
        np.testing.assert_array_equal(
            found, here.attention("prefix", layer=0, head=1, keyframe=1).values
        )
    assert [r.partition("/c/")[2] for r in server.take() if "/c/" in r] == ["1/0/0/0/0"] * 2
    assert index + shard.size / 8 < server.take_sent() < index + shard.size / 2
    assert episode.explain("prefix", layer=0, head=1, keyframe=1).missing_bytes == 0
    # Now that the index is here, the forecast is exact.
    rest = episode.explain("prefix", keyframe=1).missing_bytes
    np.testing.assert_array_equal(
        episode.attention("prefix", keyframe=1).values, here.attention("prefix", keyframe=1)
    )
    assert rest <= server.take_sent() <= rest + shard.size / 2, (
        "and a chunk that was here, between them"
    )
    assert episode.explain("suffix", camera="hand_camera", layer=0, head=0).missing_bytes > 0
    assert attnstore.open(paths.root).episode("e1").explain("suffix").missing_bytes == 0


def test_a_cut_list_of_pieces_is_no_harm(
    paths: StorePaths, server: FileServer, cache: Path
) -> None:
    """A process may be killed between the bytes and their record, or within it."""
    expected = attnstore.open(paths.root).episode("e1").attention("prefix").values
    attnstore.open(server.url).episode("e1").attention("prefix", layer=0)
    for record in cache.rglob("*.have"):
        record.write_bytes(record.read_bytes()[:-5])
    np.testing.assert_array_equal(
        attnstore.open(server.url).episode("e1").attention("prefix").values, expected
    )


def test_touched_chunks_by_counting() -> None:
    grid = Grid((20, 12), (6, 8), (3, 2), 2, True, True, True, True)
    blocks: list[tuple[int | slice, ...]] = [
        (slice(5, 11), slice(0, 4)), (slice(None), 7), (0, slice(4, None)), (slice(19, 20),),
        (slice(3, 3), 0),
    ]  # fmt: skip
    for index in blocks:
        rows, cols = np.indices(grid.shape)
        chosen = {
            ((int(r) // 6, int(c) // 8), (int(r) % 6 // 3, int(c) % 8 // 2))
            for r, c in zip(rows[index].flat, cols[index].flat, strict=True)
        }
        found = [(at, (i, j)) for at, (a, b) in grid.touched(index) for i in a for j in b]
        assert len(found) == len(set(found))
        assert set(found) == chosen


@pytest.mark.parametrize(
    "table", ["head_stats.parquet", "attention.zarr/prefix/attention/c/0/0/0/0/0"]
)
def test_damaged_bytes_are_never_used(paths: StorePaths, server: FileServer, table: str) -> None:
    (file,) = paths.data.glob(f"*/e1-*/base.*/{table}")
    flip_byte(file, file.stat().st_size // 2)
    store = attnstore.open(server.url)
    with pytest.raises(IntegrityError, match="SHA-256|CRC-32C"):
        if "attention" in table:
            store.episode("e1").attention("prefix", keyframe=0)
        else:
            store.episode("e1").stats("prefix", "hand_camera", "entropy")
    assert not list(store.paths.data.rglob(file.name)), "it is not kept"
    assert store.episode("e2").attention("prefix").values.shape


def test_sql_over_damaged_bytes_fails(paths: StorePaths, server: FileServer) -> None:
    (file,) = paths.data.glob("*/e1-*/base.*/head_stats.parquet")
    flip_byte(file, file.stat().st_size // 2)
    result = CliRunner().invoke(cli, ["sql", server.url, "SELECT avg(entropy) FROM head_stats"])
    assert isinstance(result.exception, AttnstoreError)
    text = str(result.exception)
    assert text.startswith(server.url)
    assert text.endswith("its bytes differ from what was committed (SHA-256)")
    assert "\n" not in text


def test_a_truncated_or_larger_file_is_refused(paths: StorePaths, server: FileServer) -> None:
    (file,) = paths.data.glob("*/e1-*/base.*/frames.parquet")
    whole = file.read_bytes()
    store = attnstore.open(server.url)
    file.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match="were committed"):
        store.episode("e1").image_bytes(0, "hand_camera")
    file.write_bytes(whole + b"x" * 100)
    with pytest.raises(IntegrityError, match="bytes"):
        store.episode("e1").image_bytes(0, "hand_camera")
    file.write_bytes(whole)
    assert store.episode("e1").image_bytes(0, "hand_camera")


def test_a_file_that_is_gone(paths: StorePaths, server: FileServer) -> None:
    store = attnstore.open(server.url)
    (file,) = paths.data.glob("*/e1-*/base.*/frames.parquet")
    file.unlink()
    with pytest.raises(NotFoundError, match=r"frames\.parquet: not found: .*open the store again"):
        store.episode("e1").image_bytes(0, "hand_camera")


@pytest.mark.parametrize("path", ["../../../../escaped", "/tmp/escaped", "a\\..\\b", ""])
def test_commits_cannot_name_files_outside(
    paths: StorePaths, server: FileServer, path: str, tmp_path: Path
) -> None:
    file = entry_of(paths, "e1")
    commit = read_json(file)
    commit["files"][0][0] = path
    file.write_bytes(sealed(commit))
    with pytest.raises(IntegrityError, match="must be relative|shorter than 1"):
        attnstore.open(server.url).episode("e1")
    assert not list(tmp_path.rglob("escaped"))


def test_commits_cannot_take_others_places(paths: StorePaths, server: FileServer) -> None:
    file = entry_of(paths, "e1")
    file.write_bytes(sealed(json.loads(file.read_text().replace("e1-", "e2-"))))
    with pytest.raises(IntegrityError, match="names"):
        attnstore.open(server.url).episode("e1")


@pytest.mark.parametrize("name", ["attnstore.json", "runs"])
def test_large_json_is_refused(
    paths: StorePaths, server: FileServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = paths.root / name if name.endswith("json") else next(paths.runs.glob("*.json"))
    file.write_text(file.read_text() + " " * (2 << 20))
    with pytest.raises(IntegrityError, match="at most 1048576 are expected"):
        attnstore.open(server.url)


def test_a_catalog_is_copied_and_not_trusted(
    paths: StorePaths, server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("x\n42\n")
    newest = generations(paths)[-1].path
    with duckdb.connect(str(newest)) as connection:
        connection.execute("ALTER TABLE sinks RENAME TO hidden")
        connection.execute(f"CREATE VIEW sinks AS SELECT * FROM hidden, read_csv('{secret}')")
    store = attnstore.open(server.url)
    assert store.sql("SELECT count(*) FROM sinks").fetchall() == [(3,)], "made from the commits"
    assert "is not attnstore's" in caplog.text


def test_a_catalog_in_layers_is_taken_over(
    paths: StorePaths, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["attnstore.store.catalog.generations"], "LAYER", 0)
    write_episode(paths, "success/d/e1", "success", 7, replace=True, **SMALL)
    query = "SELECT * EXCLUDE (run) FROM episode_stats ORDER BY ALL"
    here = attnstore.open(paths.root).sql(query).fetchall()
    layers = [file.name for file in refresh(paths).layers]
    assert layers, "the statistics of the replaced episode are in one, and gone"
    server.take()
    assert attnstore.open(server.url).sql(query).fetchall() == here
    asked = server.take()
    assert all(f"/catalog/{name}" in " ".join(asked) for name in layers)


def test_a_catalog_cannot_name_files_outside(
    paths: StorePaths, server: FileServer, caplog: pytest.LogCaptureFixture
) -> None:
    newest = generations(paths)[-1].path
    with duckdb.connect(str(newest)) as connection:
        connection.execute("UPDATE files SET path = '../../../etc/head_stats.parquet'")
    store = attnstore.open(server.url)
    assert store.sql("SELECT count(DISTINCT episode) FROM head_stats").fetchall() == [(3,)]
    assert "no commit puts there" in caplog.text


def test_a_damaged_catalog_is_made_anew(paths: StorePaths, server: FileServer) -> None:
    newest = generations(paths)[-1].path
    newest.write_bytes(newest.read_bytes()[:5000])
    assert_same_answers(attnstore.open(paths.root), attnstore.open(server.url))


def test_another_store_at_the_same_url_is_another_cache(
    paths: StorePaths, server: FileServer
) -> None:
    first = attnstore.open(server.url).paths
    shutil.rmtree(paths.root)
    write_episode(create_store(paths.root), "other", seed=3, **SMALL)
    second = attnstore.open(server.url)
    assert second.paths.root != first.root
    assert [c.summary["name"] for c in second.base_commits()] == ["other"]


def test_nothing_is_written_to_a_url(server: FileServer) -> None:
    store = attnstore.open(server.url)
    commit = next(iter(store.commits()))
    from attnstore.store.commits import Attempt
    from attnstore.store.garbage import collect

    for write in (lambda: Attempt(store.paths, *commit.key), lambda: collect(store.paths),
                  lambda: refresh(store.paths)):  # fmt: skip
        with pytest.raises(UsageError, match="read-only"):
            write()
    for command in (["gc"], ["catalog", "refresh"], ["catalog", "rebuild"]):
        result = CliRunner().invoke(cli, [*command, server.url])
        assert isinstance(result.exception, UsageError)
        assert "is read-only: this command writes to a store" in str(result.exception)


def test_commands_that_read(paths: StorePaths, server: FileServer, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli, [*arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    here, there = [str(paths.root)], [server.url]
    assert run("ls", "--json", *there) == run("ls", "--json", *here)
    assert len([r for r in server.take() if r.startswith("/commits/log/")]) == 3, (
        "the catalog knows"
    )
    assert run("ls", "--runs", "--json", *there) == run("ls", "--runs", "--json", *here)
    compare = [
        "compare",
        "groups",
        "--metric",
        "entropy",
        "--by",
        "outcome",
        "--phase",
        "suffix",
        "--csv",
    ]
    assert run(*compare, *there) == run(*compare, *here)
    assert "every file that is here is as it was committed" in run("verify", *there)
    attnstore.open(server.url).episode("e1").image_bytes(0, "hand_camera")
    (cached,) = Path(os.environ["ATTNSTORE_CACHE"]).glob("*/*/data/*/e1-*/base.*")
    flip_byte(cached / "frames.parquet", 100)
    result = CliRunner().invoke(cli, ["verify", *there])
    assert isinstance(result.exception, IntegrityError)
    assert "1 problems" in str(result.exception)
    assert "frames.parquet: its bytes differ" in result.stdout


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("ftp://host/x", UsageError, r"ftp://host/x: a store is a path, or a URL with s3://"),
        ("http://host/x?version=1", UsageError, r"http://host/x: a store's URL has no \?"),
        ("file://host/x", UsageError, "has no host"),
        (
            "http://u:secret@127.0.0.1:1/x",
            AttnstoreError,
            r"http://127\.0\.0\.1:1/x/attnstore.json",
        ),
    ],
)
def test_urls_that_cannot_be_opened(
    url: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnstore.store.remote.downloads.PAUSES", ())
    with pytest.raises(error, match=message) as raised:
        attnstore.open(url)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_store_at_a_url(tmp_path: Path) -> None:
    missing = r"is not an attnstore store: it has no attnstore"
    with file_server(tmp_path) as server, pytest.raises(NotFoundError, match=missing):
        attnstore.open(server.url)


@pytest.mark.parametrize(
    ("module", "url", "extra"), [("s3fs", "s3://b/x", "s3"), ("gcsfs", "gs://b/x", "gcs"),
                                 ("aiohttp", "http://h/x", "http")],
)  # fmt: skip
def test_a_missing_extra_names_the_command(
    module: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    _transport.cache_clear()
    with pytest.raises(
        MissingExtraError, match=rf"needs {module}: pip install 'attnstore\[{extra}\]'"
    ):
        attnstore.open(url)


def test_processes_share_a_cache(paths: StorePaths, server: FileServer) -> None:
    code = (
        "import sys, attnstore; s = attnstore.open(sys.argv[1]);"
        "print(s.sql('select count(*) from head_stats').fetchall(),"
        "float(s.episode('e1').attention('suffix').values.astype('f8').sum()))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, server.url], stdout=-1, stderr=-1, text=True)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [err for _, err in said] == ["", "", ""]
    assert len({out for out, _ in said}) == 1
    assert_same_answers(attnstore.open(paths.root), attnstore.open(server.url))


def test_threads_that_need_one_file_fetch_it_once(paths: StorePaths, server: FileServer) -> None:
    episode = attnstore.open(server.url).episode("e1")
    episode.phases  # noqa: B018  the description is here
    server.take()
    server.delay = 0.2
    threads = [
        threading.Thread(target=lambda: episode.attention("prefix", layer=0, keyframe=0).values)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([r for r in server.take() if "/c/" in r]) == 2, "the index, and a layer's chunks"


def test_another_process_opens_its_own_connection(paths: StorePaths, server: FileServer) -> None:
    episode = attnstore.open(server.url).episode("e1")
    copy = pickle.loads(pickle.dumps(episode.part))
    index = (0, 0, slice(0, 2), slice(0, 2), slice(0, 2))
    there = attnstore.open(paths.root).episode("e1").part.attention("prefix", index)
    np.testing.assert_array_equal(copy.attention("prefix", index), there)


def test_no_room_is_said_before_anything_is_fetched(
    paths: StorePaths, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = attnstore.open(server.url)
    assert isinstance(store.paths, MirrorPaths)
    episode = store.episode("e1")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: type("usage", (), {"free": 10}))
    server.take()
    with pytest.raises(AttnstoreError, match="GB free"):
        episode.image_bytes(0, "hand_camera")
    assert server.take() == []
    assert list(fetch_all(store.paths.transport, [], store.paths.scratch)) == []


def test_commits_lists_what_the_path_lists(paths: StorePaths, server: FileServer) -> None:
    assert list(attnstore.open(server.url).commits()) == list(all_commits(paths))


@pytest.fixture(scope="module")
def liar(template: Path) -> Iterator[FileServer]:
    with file_server(template) as server:
        yield server


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_server_that_lies_about_a_file(
    template: Path, liar: FileServer, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever it says: one of our errors, or the honest numbers, if a commit lists the file."""
    files = sorted(str(f.relative_to(template)) for f in template.rglob("*") if f.is_file())
    first = next(f for f in files if f.startswith("commits/log/"))
    path = data.draw(st.sampled_from([f for f in files if "catalog" not in f] + 20 * [first]))
    body = bytearray((template / path).read_bytes())
    match data.draw(st.sampled_from(["cut", "change", "other", "insert"])):
        case "cut":
            del body[data.draw(st.integers(0, max(len(body) - 1, 0))) :]
        case "change":
            for _ in range(data.draw(st.integers(1, 4))):
                body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        case "insert":
            at = data.draw(st.integers(0, len(body)))
            body[at:at] = data.draw(
                st.sampled_from([b"[" * 5000, b"\\ud800", b"1e999", b"-", b"0"])
            )
        case _:
            body = bytearray(data.draw(st.binary(max_size=40)))
    expected = attnstore.open(template).episode("e1").attention("prefix", layer=0, keyframe=1)
    liar.lies.clear()
    liar.lies[path] = bytes(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNSTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            episode = attnstore.open(liar.url).episode("e1")
            found = episode.attention("prefix", layer=0, keyframe=1).values
        except AttnstoreError:
            return
    if path.startswith("data/"):
        np.testing.assert_array_equal(found, expected)

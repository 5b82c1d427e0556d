"""What the query service refuses: DESIGN.md §10 sentence by sentence, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import duckdb
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from service_fixtures import HOSTILE, SCRIPT, TOKEN, Server, start, stop
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from store_fixtures import sealed, write_episode

import attnstore
from attnstore.commands.serve import serve
from attnstore.query import Episode
from attnstore.query.groups.difference import at_moments
from attnstore.query.service import ServiceConfig, create_app
from attnstore.query.service.config import Limits
from attnstore.query.service.guard.access import Access, Arrival, Head
from attnstore.query.service.guard.connections import CONNECTIONS, GuardedConnection
from attnstore.query.service.guard.middleware import Guard
from attnstore.query.service.guard.refusal import Refusal, without_paths
from attnstore.store.catalog import refresh
from attnstore.store.commits import StorePaths, all_commits
from attnstore.store.commits.part import Part
from attnstore.store.errors import IntegrityError, NotFoundError, UsageError
from attnstore.store.opening import create_store

JSON = {"Content-Type": "application/json"}
LEVENSHTEIN = "select levenshtein(repeat('ab', 300000), repeat('ba', 300000))"


@pytest.fixture(scope="module")
def base(served_stores: tuple[Path, Path, Path]) -> str:
    (commit,) = (c for c in all_commits(StorePaths(served_stores[1])) if c.part == "base")
    return f"/v1/stores/other/episodes/{commit.run}/{commit.episode}"


class TestToken:
    @pytest.mark.parametrize(
        "path", ["/", "/v1/stores", "/v1/stores/lab/files/attnstore.json", "/v1/openapi.json", "/x"]
    )
    def test_nothing_without_it(self, server: Server, path: str) -> None:
        assert server.ask("GET", path, token=None).status == 401
        assert server.ask("GET", path, token="wrong-token-0123456789").status == 401
        assert server.ask("GET", f"{path}?token=wrong", token=None).status == 401

    def test_into_a_cookie_and_out_of_the_address(self, server: Server) -> None:
        first = server.ask("GET", f"/?a=1&token={TOKEN}", token=None)
        assert (first.status, first.headers["location"]) == (303, "/?a=1")
        cookie = first.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert TOKEN not in cookie
        pair = cookie.partition(";")[0]
        with_it = server.ask("GET", "/v1/stores", headers={"Cookie": f"x=y; {pair}"}, token=None)
        assert with_it.status == 200
        forged = f"{pair.partition('=')[0]}={'0' * 64}"
        assert server.ask("GET", "/v1/stores", headers={"Cookie": forged}, token=None).status == 401

    def test_an_address_of_the_api_takes_none(self, server: Server) -> None:
        assert server.ask("GET", f"/v1/stores?token={TOKEN}", token=None).status == 401

    def test_the_redirect_stays_here(self, server: Server) -> None:
        answer = server.ask("GET", f"//evil.example/?token={TOKEN}", token=None)
        assert not answer.headers.get("location", "/").startswith(("//", "http"))

    def test_loopback_and_a_random_token_by_default(self, server: Server) -> None:
        assert server.url.startswith("http://127.0.0.1:")
        listening = psutil.Process(server.process.pid).net_connections()
        hosts = {c.laddr.ip for c in listening if c.status == "LISTEN"}
        assert hosts == {"127.0.0.1"}


class TestForeignPages:
    def test_dns_rebinding(self, server: Server) -> None:
        port = server.address[1]
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "0"):
            for path in ("/v1/health", "/v1/stores", f"/?token={TOKEN}"):
                assert server.ask("GET", path, headers={"Host": host}).status == 421
        for host in ("localhost", f"localhost:{port}", "[::1]:9", "127.0.0.1:1"):
            assert server.ask("GET", "/v1/stores", headers={"Host": host}).status == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ],
        ids=str,
    )
    def test_cross_origin(self, server: Server, headers: dict[str, str]) -> None:
        body = json.dumps({"query": "select 1"}).encode()
        assert server.ask("POST", "/v1/stores/lab/sql", body, JSON | headers).status == 403
        assert server.ask("GET", "/v1/stores", headers=headers).status == 403
        assert server.ask("OPTIONS", "/v1/stores/lab/sql", b"", JSON | headers).status == 403

    def test_its_own_pages(self, server: Server) -> None:
        host = "{}:{}".format(*server.address)
        own = {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        body = json.dumps({"query": "select 1"}).encode()
        assert server.ask("POST", "/v1/stores/lab/sql", body, JSON | own).status == 200
        answer = server.get("/v1/stores", own)
        assert "access-control-allow-origin" not in answer.headers

    def test_a_link_from_elsewhere_may_lead_to_the_page_only(self, server: Server) -> None:
        link = {
            "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
        }  # fmt: skip
        assert server.ask("GET", f"/?token={TOKEN}", headers=link, token=None).status == 303
        assert server.ask("GET", "/v1/stores", headers=link).status == 403
        frame = link | {"Sec-Fetch-Dest": "iframe"}
        assert server.ask("GET", "/", headers=frame).status == 403

    @pytest.mark.parametrize(
        "kind",
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "text/json"],
    )
    def test_only_json_bodies(self, server: Server, kind: str) -> None:
        body = json.dumps({"query": "select 1"}).encode()
        assert server.ask("POST", "/v1/stores/lab/sql", body, {"Content-Type": kind}).status == 415

    def test_headers_on_every_answer(self, server: Server, base: str) -> None:
        answers = [
            server.get("/v1/stores"), server.get("/nowhere"), server.get(f"{base}/frames/0/hand_camera"),
            server.ask("GET", "/", token=None), server.ask("GET", f"/?token={TOKEN}", token=None),
            server.sql("nonsense"), server.ask("GET", "/v1/health", headers={"Host": "x"}),
        ]  # fmt: skip
        for answer in answers:
            policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert "server" not in answer.headers


HOSTS = st.text(st.characters(codec="ascii"), max_size=30)


@given(HOSTS, HOSTS, st.sampled_from(["/", "/v1/stores", "/v1/health"]))
def test_no_other_host_gets_in(host: str, extra: str, path: str) -> None:
    access = Access(TOKEN, ("localhost",))
    headers = {"host": host, "authorization": f"Bearer {extra}"}
    name = host.strip().lower().split(":")[0].rstrip(".")
    if name == "localhost":
        return
    with pytest.raises(Refusal):
        access.check(Head("GET", path, f"token={TOKEN}", headers))


@given(st.text(max_size=60), st.text(st.characters(codec="ascii"), max_size=20))
def test_the_redirect_is_a_path_of_this_service(path: str, query: str) -> None:
    access = Access(TOKEN, ("localhost",))
    arrival = access.check(Head("GET", f"/{path}", f"token={TOKEN}&{query}", {"host": "localhost"}))
    if isinstance(arrival, Arrival) and not path.startswith("v1/"):
        assert arrival.location[0] == "/"
        assert arrival.location[1:2] not in ("/", "\\")


class TestBodies:
    def test_size(self, server: Server) -> None:
        body = json.dumps({"query": "select 1 -- " + "x" * 70_000}).encode()
        assert server.ask("POST", "/v1/stores/lab/sql", body, JSON).status == 413
        chunked = http.client.HTTPConnection(*server.address, timeout=30)
        headers = JSON | {"Authorization": f"Bearer {TOKEN}", "Transfer-Encoding": "chunked"}
        pieces = (b"x" * 10_000 for _ in range(10))
        chunked.request("POST", "/v1/stores/lab/sql", pieces, headers, encode_chunked=True)
        assert chunked.getresponse().status == 413
        chunked.close()

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"query": 1}', b'{"query": "x", "y": 1}'])
    def test_shape(self, server: Server, body: bytes) -> None:
        assert server.ask("POST", "/v1/stores/lab/sql", body, JSON).status == 422

    def test_a_question_is_one_thing(self, server: Server) -> None:
        for body in (b"{}", b'{"query": "select 1", "named": "step-drift"}'):
            assert server.ask("POST", "/v1/stores/lab/sql", body, JSON).status == 400

    def test_reading_takes_none(self, server: Server) -> None:
        assert server.ask("GET", "/v1/stores", b"x" * 10).status == 400
        for method in ("PUT", "DELETE", "PATCH"):
            assert server.ask(method, "/v1/stores", b"{}", JSON).status == 405


class TestIdsNeverPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/stores/lab/files/../../../../etc/passwd",
            "/v1/stores/lab/files/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
            "/v1/stores/lab/files//etc/passwd",
            "/v1/stores/lab/files/runs/..%2f..%2fx.json",
            "/v1/stores/lab/files/data/{run}/{episode}/{attempt}/../../../../attnstore.json",
            "/v1/stores/lab/files/data/{run}/{episode}/{attempt}/attempt.json",
            "/v1/stores/lab/files/data/{run}/{episode}/{attempt}/",
            "/v1/stores/lab/files/data/{run}/{episode}/{attempt}/..%5c..%5cx",
            "/v1/stores/lab/files/catalog/../attnstore.json",
            "/v1/stores/lab/files/quarantine/x",
            "/v1/stores/lab/files/commits",
            "/v1/stores/..%2flab/episodes",
            "/v1/stores/lab/episodes/..%2f../{episode}",
            "/v1/stores/lab/episodes/{run}/..",
            "/v1/stores/lab/episodes/{run}/%00",
            "/v1/stores/lab/runs/..%2f..%2fattnstore",
        ],
    )
    def test_traversal(
        self, server: Server, served_stores: tuple[Path, Path, Path], path: str
    ) -> None:
        commit = next(c for c in all_commits(StorePaths(served_stores[0])))
        path = path.format(
            run=commit.run, episode=commit.episode, attempt=f"{commit.part}.{commit.attempt}"
        )
        answer = server.ask("GET", path)
        assert answer.status in (404, 500), answer.body
        assert b"root:" not in answer.body
        assert str(served_stores[0].parent).encode() not in answer.body

    def test_errors_have_no_absolute_paths(
        self, server: Server, served_stores: tuple[Path, Path, Path], base: str
    ) -> None:
        asked = [
            server.get("/v1/stores/lab/runs/none"), server.get("/v1/stores/lab/episodes/a/b"),
            server.get(f"{base}/attention", phase="x"), server.get(f"{base}/maps", phase="prefix"),
            server.sql("from '/etc/passwd'"), server.sql("attach '/x/y'"),
            server.sql(f"from read_text('{served_stores[0]}/attnstore.json')"),
        ]  # fmt: skip
        for answer in asked:
            assert 400 <= answer.status < 500
            assert str(served_stores[0].parent) not in answer.message
            assert "/root" not in answer.message


@given(st.lists(st.text("abcé.-_ ", min_size=1, max_size=8), min_size=2, max_size=5))
def test_no_absolute_path_stays(parts: list[str]) -> None:
    words = [p.replace(" ", "") or "x" for p in parts]
    path = "/" + "/".join(words)
    assert path not in without_paths(f"cannot open {path}: no such file")


class TestStoredScripts:
    def test_json_is_never_html(self, server: Server, base: str) -> None:
        for path in (base, "/v1/stores/other/episodes", f"{base}/keyframes", f"{base}/tokens"):
            answer = server.get(path)
            assert answer.headers["content-type"] == "application/json"
        page = server.get("/v1/stores/other/episodes").json()
        assert page["rows"][0]["name"] == HOSTILE
        assert SCRIPT in server.get(base).json()["instruction"]

    def test_errors_repeat_it_as_json(self, server: Server) -> None:
        for answer in (
            server.get("/v1/stores/<script>alert(1)<"), server.get("/v1/stores/lab/episodes", order=SCRIPT),
            server.sql(f"select '{SCRIPT}' from nowhere"), server.get(f"/{SCRIPT}"),
        ):  # fmt: skip
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["error"]["message"]

    def test_rows_are_data(self, server: Server) -> None:
        answer = server.sql("select instruction from episodes", "text/csv", store="other")
        assert answer.headers["content-type"].startswith("text/csv")
        assert answer.headers["content-disposition"].startswith("attachment")

    def test_headers_cannot_be_split(self, server: Server) -> None:
        answer = server.ask("GET", f"/a%0d%0aSet-Cookie:x=y?token={TOKEN}", token=None)
        assert "x=y" not in answer.headers.get("set-cookie", "")


ATTACKS = {
    "reads": [
        "from read_csv('/etc/passwd')", "from read_text('/etc/passwd')", "from '/etc/passwd'",
        "from read_blob('{root}/attnstore.json')", "from read_parquet('{root}/data/**/*.parquet')",
        "from glob('/*')", "from read_json('/proc/self/environ')", "from sniff_csv('/etc/passwd')",
        "from parquet_metadata('{table}')", "select * from '{table}'", "from query_table('/etc/passwd')",
        "from query('from read_text(''/etc/passwd'')')", "select getenv('SECRET_OF_THE_HOST')",
        "from read_csv('https://example.com/x.csv')", "from read_text('attnstore.json')",
    ],
    "writes": [
        "copy episodes to '{out}/x.csv'", "with x as (copy (select 1) to '{out}/x') from x",
        "with x as (copy (select 1 a) to '{catalog}.wal' (format csv)) from x",
        "with x as (copy (select 1 a) to '{catalog}' (format csv, use_tmp_file false)) from x",
        "with x as (insert into catalog.main.episodes select * from catalog.main.episodes returning *) from x",
        "with x as (delete from catalog.main.episodes returning *) from x",
        "with x as (update catalog.main.episodes set name = 'x' returning *) from x",
        "create table t as select 1", "create temp table t as select 1", "insert into episodes from episodes",
        "export database '{out}/y'", "explain analyze copy episodes to '{out}/x.csv'",
        "create macro f() as 1", "drop view episodes", "alter table episodes add column x int",
        "from query('copy episodes to ''{out}/z''')", "merge into episodes using runs on true when matched then delete",
    ],
    "settings": [
        "attach '{out}/x.db'", "attach ':memory:' as m", "detach catalog", "use memory", "install httpfs",
        "load httpfs", "load '{out}/x.so'", "set threads = 1", "set enable_external_access = true",
        "set lock_configuration = false", "pragma threads = 1", "pragma database_list", "reset threads",
        "call pragma_version()", "set variable a = 1", "set secret_directory = '/'", "from enable_logging()",
        "create secret s (type s3)", "prepare p as select 1", "begin", "checkpoint", "vacuum",
        "import database '{out}'", "from enable_profiling()", "set disabled_filesystems = ''",
    ],
    "several": [
        "select 1; select 2", "select 1; copy episodes to '{out}/x.csv'", "", ";", "-- nothing",
        "select 1; --\n drop view episodes", "pivot episodes on outcome using count(*)",
    ],
    "memory": [
        "select list_sort(range(200000000))[1]", "select repeat('x', 2000000000)",
        "select length(repeat('x', 1000000000) || repeat('y', 1000000000))",
        "select max(len(l)) from (select array_agg(i) as l from range(50000000) t(i))",
        "with recursive r as (select 'x' as s union all select s || s from r where length(s) < 1e12) from r",
        "select max(a) from (select list(i || repeat('x', 1000)) a from range(1000000) t(i))",
    ],
    "time": [LEVENSHTEIN],
    "size": ["select repeat('x', 100000) from range(1000)"],
}  # fmt: skip


class TestSqlAttacks:
    @pytest.mark.parametrize("kind", list(ATTACKS))
    def test_attack(
        self, server: Server, served_stores: tuple[Path, Path, Path], tmp_path: Path, kind: str
    ) -> None:
        root = served_stores[0]
        assert server.sql("select count(*) from episodes").status == 200  # the catalog is there
        catalog = max((root / "catalog").glob("*.duckdb"))
        table = next(root.glob("data/*/*/*/head_stats.parquet"))
        before = {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.suffix != ".stamp"}
        places = {"root": root, "catalog": catalog, "table": table, "out": tmp_path}
        for attack in ATTACKS[kind]:
            began = time.monotonic()
            answer = server.sql(attack.format(**places))
            assert answer.status in (400, 413, 504), (attack, answer.status, answer.body[:300])
            assert time.monotonic() - began < 12, attack
            assert b"root:" not in answer.body
            assert b"hush" not in answer.body
        after = {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.suffix != ".stamp"}
        assert after == before
        assert not list(tmp_path.iterdir())
        found = server.sql("select count(*) from head_stats where layer = 0").json()
        assert found["rows"][0][0] > 0

    def test_the_deadline_says_so(self, server: Server) -> None:
        answer = server.sql(LEVENSHTEIN)
        assert answer.status == 504
        assert "2 s" in answer.message

    def test_a_too_large_result_says_so(self, server: Server) -> None:
        answer = server.sql(ATTACKS["size"][0])
        assert answer.status == 413
        assert "32 MB" in answer.message or "34 MB" in answer.message

    def test_nothing_is_left_from_one_statement_to_the_next(self, server: Server) -> None:
        server.sql("select setseed(0.5)")
        assert server.sql("select getvariable('a')").json()["rows"] == [[None]]
        assert server.sql("select count(*) from duckdb_tables() where temporary").json()[
            "rows"
        ] == [[0]]

    def test_the_process_has_no_environment_and_little_memory(self, server: Server) -> None:
        server.sql("select 1")
        children = list(psutil.Process(server.process.pid).children(recursive=True))
        limited = [p for p in children if p.rlimit(psutil.RLIMIT_AS)[0] != psutil.RLIM_INFINITY]
        assert limited
        for process in limited:
            assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
            assert TOKEN not in " ".join(process.cmdline())
        environment = server.sql("from duckdb_settings() where value like '%hush%'").json()
        assert environment["rows"] == []

    @pytest.mark.parametrize(
        "query", ["select '\ud800'", 'select 1 as "\udfff"', "select json_object('\ud800', 1)"]
    )
    def test_half_a_character(self, server: Server, query: str) -> None:
        for accept in ("application/json", "text/csv", "application/vnd.apache.arrow.stream"):
            answer = server.sql(query, accept)
            assert answer.status == 400
            assert answer.message.startswith("SQL is text in UTF-8; '\\ud")

    def test_what_a_statement_takes_of_the_machine(self, server: Server) -> None:
        """serve.md's bound, in resident memory: DuckDB's 128 MB and 512 MB beyond the start."""
        server.sql("select 1")
        start = max(p.memory_info().rss for p in _sql_processes(server))
        assert 0 < start < 400 << 20
        with _most_memory(server) as most:
            for statement in HUNGRY:
                answer = server.sql(statement)
                assert answer.status in (400, 504), (statement, answer.status, answer.body[:200])
        assert start < most[0] < start + (640 << 20)
        # Rows leave as they come: this gigabyte of them was in memory at once before.
        with _most_memory(server) as most:
            assert server.sql(WIDE, "text/csv").status in (413, 504)
        assert 0 < most[0] < start + (256 << 20)


WIDE = "select repeat('z', 10000) as a from range(100000)"
HUNGRY = [
    "select list(repeat('z', 1000)) from range(300000)",
    "select repeat('z', 100000000)::blob, repeat('y', 100000000)",
    "select max(len(l)) from (select list(i) as l from range(50000000) t(i))",
]


@contextlib.contextmanager
def _most_memory(server: Server) -> Iterator[list[int]]:
    """Watch the processes that run SQL: the largest resident memory of one, in bytes."""
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for process in _sql_processes(server):
                with contextlib.suppress(psutil.Error):
                    most[0] = max(most[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()


def _sql_processes(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    found = []
    for process in children:
        with contextlib.suppress(psutil.Error):
            if process.rlimit(psutil.RLIMIT_AS)[0] != psutil.RLIM_INFINITY:
                found.append(process)
    return found


class TestLimits:
    def test_slices(self, server: Server, base: str) -> None:
        answer = server.get(f"{base}/attention", phase="suffix", format="npy")
        assert answer.status == 200
        big = server.get(
            f"{base}/maps", phase="prefix", camera="hand_camera", query="image", layer=0
        )
        assert big.status in (200, 413)

    def test_busy_and_freed(self, server: Server) -> None:
        """2 statements run, 32 wait, the others are told to come back; all is free when they go."""
        request = (
            "POST /v1/stores/lab/sql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {TOKEN}\r\n"
        )
        body = json.dumps({"query": LEVENSHTEIN})
        request += f"Content-Length: {len(body)}\r\n\r\n{body}"
        clients = [socket.create_connection(server.address, timeout=10) for _ in range(44)]
        try:
            for client in clients:
                client.sendall(request.encode())
            refused: list[tuple[socket.socket, bytes]] = []
            until = time.monotonic() + 5
            while len(refused) < 10 and time.monotonic() < until:
                for client in clients:
                    client.settimeout(0.02)
                    try:
                        head = client.recv(4096, socket.MSG_PEEK)
                    except TimeoutError:
                        continue
                    if head and client not in [c for c, _ in refused]:
                        refused.append((client, head))
            heads = [h for _, h in refused]
            assert sum(b" 429 " in h for h in heads) >= 4
            assert all(b"retry-after: " in h.lower() for h in heads if b" 429 " in h)
            # the service's own questions have a process of their own
            began = time.monotonic()
            assert server.get("/v1/stores/lab/episodes").status == 200
            assert time.monotonic() - began < 5
        finally:
            for client in clients:
                client.close()
        # were they still run one after the other, this would take 34 seconds
        assert _soon(lambda: server.sql("select 1").status == 200, 8)

    def test_a_slow_reader_stops_nobody(self, server: Server) -> None:
        # 10 MB each: more than the 4 MB that Linux buffers, and made in time on a busy machine
        query = json.dumps({"query": "select repeat('x', 1000) from range(10000)"})
        clients = []
        for _ in range(4):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(server.address)
            client.sendall(
                f"POST /v1/stores/lab/sql HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}"
                f"\r\nContent-Type: application/json\r\nContent-Length: {len(query)}\r\n\r\n{query}".encode()
            )
            clients.append(client)
        try:
            for client in clients:
                client.settimeout(20)
                assert client.recv(200, socket.MSG_PEEK).startswith(b"HTTP/1.1 200")
            # each has its answer on the way, reads none of it, and holds no process
            for _ in range(3):
                assert server.sql("select 1").status == 200
            assert server.get("/v1/stores/lab/episodes").status == 200
        finally:
            for client in clients:
                client.close()

    def test_a_client_that_goes_away_frees_the_process(self, server: Server) -> None:
        assert server.sql("select 1").status == 200
        server_process = psutil.Process(server.process.pid)
        with pytest.raises(TimeoutError):
            server.ask(
                "POST", "/v1/stores/lab/sql", json.dumps({"query": LEVENSHTEIN}).encode(), JSON,
                timeout=0.5,
            )  # fmt: skip

        def busy() -> bool:
            used = [_cpu(p) for p in server_process.children(recursive=True)]
            time.sleep(0.3)
            return any(
                _cpu(p) - before > 0.1
                for p, before in zip(server_process.children(recursive=True), used, strict=False)
            )

        assert _soon(lambda: not busy(), 1.5)


def _cpu(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.NoSuchProcess:
        return 0.0


def _soon(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
    return condition()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = create_store(tmp_path_factory.mktemp("good") / "s.attn")
    write_episode(paths, "success/x", keyframes=1, layers=1, heads=1, steps=1)
    return paths.root


class TestMaliciousStores:
    @pytest.fixture
    def part(self, good: Path, tmp_path: Path) -> Part:
        copy = StorePaths(shutil.copytree(good, tmp_path / "s.attn"))
        return Part(copy, next(iter(all_commits(copy))))

    def change(self, part: Part, array: str, change: Callable[[dict[str, Any]], Any]) -> Part:
        """Change a description and commit it, as the author of a hostile store would."""
        file = part.path / "attention.zarr" / array / "zarr.json"
        node = json.loads(file.read_text())
        change(node)
        file.write_text(json.dumps(node))
        return Part(part._paths, sealed(part._paths, part.commit))

    def test_an_honest_one_passes(self, part: Part) -> None:
        part.check(1 << 30)  # raises nothing
        opened = Episode(part)
        assert np.isfinite(opened.maps("prefix", opened.cameras[0]).values).any()

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda n: n.update(data_type="object"), "not a plain number"),
            (lambda n: n.update(data_type={"name": "struct"}), "not a plain number"),
            (lambda n: n.update(data_type="variable_length_bytes"), "not a plain number"),
            (lambda n: n.update(shape=[1 << 39] * 5), "too many"),
            (lambda n: n.update(shape=[-1]), "no list of sizes"),
            (lambda n: n.update(shape="x"), "no list of sizes"),
            (lambda n: n["chunk_grid"]["configuration"].update(chunk_shape=[1, 1, 1, 1 << 20, 64]), "do not divide"),
            (lambda n: n["codecs"].append({"name": "pickle"}), "pickle"),
            (lambda n: n["codecs"].append({"name": "numcodecs.pickle"}), "numcodecs.pickle"),
            (lambda n: n["codecs"][0]["configuration"]["codecs"].append("vlen-bytes"), "vlen-bytes"),
            (lambda n: n["shape"].__setitem__(0, 2), "description says"),
        ],
    )  # fmt: skip
    def test_arrays(self, part: Part, change: Any, says: str) -> None:
        part = self.change(part, "prefix/attention", change)
        with pytest.raises(IntegrityError, match=says):
            part.check(1 << 30)

    def test_consolidated_metadata_is_checked_too(self, part: Part) -> None:
        def change(node: dict[str, Any]) -> None:
            nodes = node["consolidated_metadata"]["metadata"]
            nodes["prefix/attention"]["data_type"] = "object"

        part = self.change(part, ".", change)
        with pytest.raises(IntegrityError, match="not a plain number"):
            part.check(1 << 30)

    def test_links(self, part: Part, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("x")
        file = part.path / "frames.parquet"
        file.unlink()
        file.symlink_to(secret)
        with pytest.raises(IntegrityError, match="is a link"):
            part.check(1 << 30)

    def test_tables(self, part: Part) -> None:
        bomb = pa.table({"x": pa.array(["y" * 1_000_000]).take(pa.array([0] * 40))})
        pq.write_table(
            bomb, part.path / "head_stats.parquet", use_dictionary=False, compression="zstd"
        )
        assert (part.path / "head_stats.parquet").stat().st_size < 1 << 20
        with pytest.raises(IntegrityError, match="at most"):
            Part(part._paths, sealed(part._paths, part.commit)).check(1 << 23)

    def test_served(self, server: Server, served_stores: tuple[Path, Path, Path]) -> None:
        """Through a server: a damaged episode is one error, the others go on."""
        paths = StorePaths(served_stores[2])
        bad, fine = sorted(all_commits(paths), key=lambda c: str(c.summary["name"]))
        answer = server.get(f"/v1/stores/bad/episodes/{bad.run}/{bad.episode}")
        assert answer.status == 500
        assert "damaged" in answer.message
        assert str(paths.root.parent) not in answer.message
        leak = server.get(
            f"/v1/stores/bad/files/data/{bad.run}/{bad.episode}/base.{bad.attempt}/{bad.files[0].path}"
        )
        assert leak.status == 500
        assert b"root:x" not in leak.body
        url = f"/v1/stores/bad/episodes/{fine.run}/{fine.episode}/maps"
        assert server.get(url, phase="prefix", camera="hand_camera").status == 200
        assert len(server.get("/v1/stores/bad/episodes").json()["rows"]) == 2


def test_a_catalog_with_views_is_made_anew(good: Path, tmp_path: Path) -> None:
    """Else its SQL would run where the service opens it, before the sandbox is closed."""
    paths = StorePaths(shutil.copytree(good, tmp_path / "s.attn"))
    first = refresh(paths)
    secret = tmp_path / "secret"
    secret.write_text("x")
    with duckdb.connect(str(first.path)) as catalog:
        catalog.execute(f"create view trap as from read_text('{secret}')")
    assert refresh(paths).number == first.number + 1


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from attnstore.query.service.sql.sandbox import answer, open_catalog
from attnstore.store.opening import open_store
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
connection, version = open_catalog(open_store(Path(sys.argv[1])), 64 << 20, 5.0)
assert version
assert not list((Path(sys.argv[1]) / "catalog").glob("*.duckdb"))
print(answer(connection, "select count(*) as n from head_stats", "ndjson", 1 << 20).decode())
"""


def test_a_store_that_cannot_be_written(good: Path) -> None:
    # Not below pytest's own folder, which other users cannot enter.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(good, Path(folder) / "s.attn"))
        shutil.rmtree(root / "catalog")
        for path in (Path(folder), root, *root.rglob("*")):
            path.chmod(0o755)
        root.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, str(root)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        root.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n"] > 0


async def _silence() -> Message:
    await anyio.sleep_forever()
    raise AssertionError


def test_a_client_that_takes_nothing_is_left() -> None:
    """The guard alone, with a connection that never accepts a byte."""
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"x" * 10_000_000)(scope, receive, send)

    async def send(message: Message) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        if sent > 1 << 20:
            await anyio.sleep_forever()

    scope = {
        "type": "http", "method": "GET", "path": "/v1/stores", "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())],
    }  # fmt: skip
    guard = Guard(app, Access(TOKEN, ("localhost",)), Limits(send_seconds=0.05))
    anyio.run(guard, scope, _silence, send)
    assert sent < 2 << 20


ORPHAN = """
import os, signal, sys, threading
from pathlib import Path
from attnstore.query.service.sql.children import Children
from attnstore.query.service.config import Limits
from attnstore.store.opening import open_store

if __name__ == "__main__":
    def began(child):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
        print(child._process.pid, flush=True)

    Children(open_store(Path(sys.argv[1])), Limits()).ask(sys.argv[2], "json", began)
"""


def test_a_killed_service_leaves_no_process(good: Path, tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    done = subprocess.run(
        [sys.executable, str(script), str(good), LEVENSHTEIN],
        stdout=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    assert _soon(lambda: not psutil.pid_exists(int(done.stdout)), 5)


def test_a_rollout_of_too_many_weights_is_refused(tmp_path: Path) -> None:
    """A layer as large as no slice may be, or layers as many as no request may read."""
    paths = create_store(tmp_path / "deep.attn")
    write_episode(paths, "success/deep", keyframes=1, layers=40, heads=1, steps=1)
    episode = attnstore.open(paths.root).episode("success/deep")
    layer = episode.attention("prefix", keyframe=0, layer=0).nbytes

    def ask(most: int, phase: str, layer: int) -> tuple[int, str]:
        app = create_app(ServiceConfig((paths.root,), TOKEN, limits=Limits(slice_bytes=most)))
        messages: list[Message] = []

        async def send(message: Message) -> None:
            messages.append(message)

        path = f"/v1/stores/deep/episodes/{episode.run}/{episode.id}/rollout"
        asked = f"phase={phase}&camera={episode.cameras[0]}&keyframe=0&layer={layer}"
        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
            "query_string": asked.encode(), "root_path": "", "scheme": "http",
            "server": ("localhost", 80),
            "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())],
        }  # fmt: skip
        anyio.run(app, scope, _silence, send)
        body = b"".join(m.get("body", b"") for m in messages)
        return messages[0]["status"], body.decode()

    assert ask(layer, "prefix", 14)[0] == 200
    assert ask(layer, "suffix", 2)[0] == 200
    status, said = ask(layer - 1, "prefix", 0)
    assert (status, "select fewer" in said) == (413, True)
    for phase, last in (("prefix", 39), ("suffix", 14)):  # whose prefix is read, too
        status, said = ask(layer, phase, last)
        assert (status, "ask for a lower layer" in said) == (413, True)


def test_the_page_of_a_viewer(good: Path, tmp_path: Path) -> None:
    """Its files are served to who has the token, and nothing beside them."""
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><title>viewer</title>")
    (tmp_path / "secret").write_text("x")
    app = create_app(ServiceConfig((good,), TOKEN, page=page))

    def get(path: str, token: str = TOKEN) -> tuple[int, dict[bytes, bytes], bytes]:
        messages: list[Message] = []

        async def send(message: Message) -> None:
            messages.append(message)

        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
            "query_string": b"", "root_path": "", "scheme": "http", "server": ("localhost", 80),
            "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())],
        }  # fmt: skip
        anyio.run(app, scope, _silence, send)
        body = b"".join(m.get("body", b"") for m in messages)
        return messages[0]["status"], dict(messages[0]["headers"]), body

    status, headers, body = get("/")
    assert (status, body) == (200, (page / "index.html").read_bytes())
    assert headers[b"cache-control"] == b"private, no-cache"
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert get("/", token="x")[0] == 401
    assert get("/../secret")[0] == 404
    assert get("/v1/health")[0] == 200


class TestCommand:
    def test_mistakes(
        self,
        tmp_path: Path,
        served_stores: tuple[Path, Path, Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def run(*arguments: object) -> None:
            serve.main([str(a) for a in arguments], standalone_mode=False)

        with pytest.raises(NotFoundError, match="not an attnstore store"):
            run(tmp_path)
        with pytest.raises(UsageError, match="named twice"):
            run(served_stores[0], served_stores[0])
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(UsageError, match="choose another --port"):
                run(served_stores[0], "--port", taken.getsockname()[1])
        monkeypatch.setenv("ATTNSTORE_TOKEN", "short")
        with pytest.raises(UsageError, match="16 printable"):
            run(served_stores[0])


def test_moments_against_numpy() -> None:
    maps = np.random.default_rng(0).random((7, 3, 4))
    found = at_moments(maps, 13)
    for row in range(3):
        for col in range(4):
            expected = np.interp(np.linspace(0, 6, 13), np.arange(7), maps[:, row, col])
            np.testing.assert_allclose(found[:, row, col], expected)


class TestOddRequests:
    @pytest.mark.parametrize("origin", ["http://[::1", "http://[::1]:x]", "//", "http://\x7f"])
    def test_an_origin_that_is_none(self, server: Server, origin: str) -> None:
        for token in (None, TOKEN):
            answer = server.ask("GET", "/v1/stores", headers={"Origin": origin}, token=token)
            assert answer.status == 403

    @pytest.mark.parametrize(
        "host", ["[::1].evil", "[::1]x", "[::1", "localhost:80:80", "localhost@x"]
    )
    def test_a_host_that_is_none(self, server: Server, host: str) -> None:
        assert server.ask("GET", "/v1/stores", headers={"Host": host}).status == 421

    def test_numbers(self, server: Server, base: str) -> None:
        for number in ("9" * 30, str(-(1 << 63) - 1)):
            answer = server.get(f"{base}/attention", phase="prefix", frame=number)
            assert answer.status in (400, 422)  # older pydantic takes an integer of any length
            assert server.get(f"{base}/frames/{number}/hand_camera").status in (400, 422)
        assert server.get(f"{base}/overlays/hand_camera", phase="prefix", layer=0).status == 422
        assert server.get(f"/v1/stores/lab/runs/{'x' * 5000}").status == 404

    @pytest.mark.parametrize(
        ("query", "shown"),
        [
            ("""select '{"a": NaN}'::json""", {"a": None}),
            ("""select '{"a": [1e999, -Infinity]}'::json""", {"a": [None, None]}),
            ("select (repeat('[', 5000) || repeat(']', 5000))::json", "[" * 5000 + "]" * 5000),
        ],
    )
    def test_json_that_is_none(self, server: Server, query: str, shown: Any) -> None:
        for accept in ("application/json", "application/x-ndjson", "text/csv"):
            answer = server.sql(query, accept)
            assert answer.status == 200, answer.body
        assert server.sql(query).json()["rows"] == [[shown]]

    def test_a_value_that_python_has_not(self, server: Server) -> None:
        answer = server.sql("select 'infinity'::date as d")
        assert answer.status == 400
        assert "cast it: d::VARCHAR" in answer.message
        assert server.sql("select 1").status == 200

    def test_an_error_is_the_statements_own(self, server: Server) -> None:
        assert "not this" in server.sql("select error('not this') from range(10000)").message


def test_half_a_request_shuts_nobody_out(
    served_stores: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """600 of them, without a token: the oldest give way, and honest requests are answered."""
    server = start(served_stores[0], log=tmp_path / "log")
    clients = []
    try:
        for _ in range(600):
            client = socket.create_connection(server.address, timeout=10)
            client.sendall(b"GET /v1/health HTTP/1.1\r\nHost: loc")
            clients.append(client)
        for _ in range(5):
            assert server.get("/v1/stores").status == 200
            assert server.ask("GET", "/v1/health", token=None).status == 200
        used = [
            c
            for c in psutil.Process(server.process.pid).net_connections()
            if c.status == "ESTABLISHED"
        ]
        assert len(used) <= 520
    finally:
        for client in clients:
            client.close()
        stop(server)


def test_a_burst_of_connections_is_cut_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 beyond the cap in one turn of asyncio's loop: as many older ones go, not one of them.

    And one that stays is closed when its time is up.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("nothing was asked")

    async def crowd() -> tuple[int, bytes]:
        listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        config = uvicorn.Config(app, http=Counted, lifespan="off", log_level="error")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        clients: list[socket.socket] = []

        def connect(count: int) -> None:
            for _ in range(count):
                clients.append(socket.create_connection(listening.getsockname(), timeout=10))

        async def come(count: int) -> None:
            while len(made) < count:
                await asyncio.sleep(0.01)

        await asyncio.to_thread(connect, CONNECTIONS)
        await come(CONNECTIONS)
        connect(100)  # the loop stands still meanwhile
        await come(CONNECTIONS + 100)
        await asyncio.sleep(0.1)
        left = len(server.server_state.connections)
        monkeypatch.setattr("attnstore.query.service.guard.connections.HEAD_SECONDS", 0.1)
        connect(1)
        heard = await asyncio.to_thread(clients[-1].recv, 1)
        server.should_exit = server.force_exit = True
        for client in clients:
            client.close()
        await serving
        return left, heard

    made: list[float] = []

    class Counted(GuardedConnection):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            made.append(self._since)

    assert asyncio.run(crowd()) == (CONNECTIONS, b"")


def outgoing(size: int, limits: Limits, clients: list[str]) -> list[int]:
    """Send an answer to clients of which all but the last take nothing; return their statuses."""
    statuses: list[int] = [0] * len(clients)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"x" * size)(scope, receive, send)

    guard = Guard(app, Access(TOKEN, ("localhost",)), limits)

    async def ask(number: int, client: str) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses[number] = message["status"]
            elif statuses[number] == 200 and number < len(clients) - 1:
                await anyio.sleep_forever()

        scope = {
            "type": "http", "method": "GET", "path": "/v1/stores", "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {TOKEN}".encode())],
            "client": (client, number),
        }  # fmt: skip
        await guard(scope, _silence, send)

    async def main() -> None:
        with anyio.move_on_after(1):
            async with anyio.create_task_group() as group:
                for number, client in enumerate(clients):
                    group.start_soon(ask, number, client)
                    await anyio.sleep(0.01)

    anyio.run(main)
    return statuses


def test_unread_answers_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(unread_bytes=3_000_000, unread_bytes_of_client=2_000_000)
    assert outgoing(1_000_000, limits, ["a"] * 3) == [200, 200, 429]
    assert outgoing(1_000_000, limits, ["a", "a", "b", "c"]) == [200, 200, 200, 429]
    # One answer is let through, however large.
    assert outgoing(9_000_000, limits, ["a"]) == [200]
    # Readers that have stopped give way.
    monkeypatch.setattr("attnstore.query.service.guard.outgoing.STALLED_SECONDS", 0.0)
    assert outgoing(1_000_000, limits, ["a"] * 6) == [200] * 6

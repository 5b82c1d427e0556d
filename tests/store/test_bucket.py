"""Stores in a bucket that are written: against a real S3 server, behind a proxy that spoils requests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import FIXTURES
from cli_fixtures import on_a_terminal
from click.testing import CliRunner
from remote_servers import REAL_S3, S3_CREDENTIALS, FaultyProxy
from store_fixtures import flip_byte, run_config, write_episode

from attnstore.cli import cli
from attnstore.query import open as open_for_reading
from attnstore.store.catalog import rebuild, refresh
from attnstore.store.commits import StoredFile, StorePaths, all_commits, hash_file, log_of
from attnstore.store.errors import (
    AttnstoreError,
    ConflictError,
    DeniedError,
    IntegrityError,
    NotFoundError,
    UsageError,
)
from attnstore.store.garbage import collect
from attnstore.store.opening import create_store, open_store
from attnstore.store.remote import bucket as bucket_module
from attnstore.store.remote import spool
from attnstore.store.remote.bucket import Bucket
from attnstore.store.remote.mirror import MirrorPaths
from attnstore.store.remote.push import plan_push, push
from attnstore.store.remote.source import verify_source


@pytest.fixture(scope="module")
def server(s3_server: tuple[str, Path]) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(s3_server[0])
    yield proxy
    proxy.close()


@pytest.fixture
def s3(
    server: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    for name, value in {**S3_CREDENTIALS, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bucket_module, "PAUSES", (0.05, 0.1, 0.2, 0.4))
    monkeypatch.setattr(bucket_module, "RETRIES", 2)
    spool.forget_buckets()
    server.fault = lambda method, path: None
    server.requests.clear()
    yield server
    server.fault = lambda method, path: None


@pytest.fixture
def bucket(s3: FaultyProxy, request: pytest.FixtureRequest) -> str:
    """URL of a place in a new bucket."""
    name = f"b{re.sub(r'[^a-z0-9]', '', request.node.name.lower())[:40]}-{uuid.uuid4().hex[:8]}"
    client().create_bucket(Bucket=name)
    return f"s3://{name}/lab/pi05.attn"


def client() -> Any:
    import botocore.session

    return botocore.session.get_session().create_client("s3")


def objects(url: str) -> dict[str, int]:
    """Every object below a URL and its size, as another client lists it."""
    name, _, prefix = url.removeprefix("s3://").partition("/")
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=name, Prefix=prefix)
    return {
        each["Key"].removeprefix(f"{prefix}/"): each["Size"]
        for page in pages
        for each in page.get("Contents", ())
    }


def uploads(url: str) -> list[Any]:
    name = url.removeprefix("s3://").partition("/")[0]
    return list(client().list_multipart_uploads(Bucket=name).get("Uploads", ()))


SMALL: dict[str, Any] = {"keyframes": 2, "grid": (2, 2)}


def names_at(url: str) -> set[str]:
    """Names of the episodes that are committed."""
    return {str(c.summary["name"]) for c in all_commits(open_for_reading(url).paths)}


def assert_same(url: str, local: StorePaths) -> None:
    """Every array and table read from a bucket, with an empty cache, is that of a local store."""
    here, there = open_for_reading(local.root), open_for_reading(url)
    assert there.sql(
        "SELECT * EXCLUDE (committed, attempt) FROM episodes ORDER BY ALL"
    ).fetchall() == (
        here.sql("SELECT * EXCLUDE (committed, attempt) FROM episodes ORDER BY ALL").fetchall()
    )
    query = "SELECT * FROM head_stats ORDER BY ALL"
    assert there.sql(query).fetchall() == here.sql(query).fetchall()
    for commit in all_commits(local):
        name = str(commit.summary["name"])
        for phase in ("prefix", "suffix"):
            np.testing.assert_array_equal(
                here.episode(name).attention(phase, layer=1, keyframe=1).values,
                there.episode(name).attention(phase, layer=1, keyframe=1).values,
            )


def test_a_store_in_a_bucket_is_that_of_a_disk(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, local = create_store(bucket), create_store(tmp_path / "local.attn")
    for name, seed in (("success/d/e0", 0), ("failure/d/e1", 1)):
        made = write_episode(paths, name, seed=seed, **SMALL)
        write_episode(local, name, seed=seed, **SMALL)
        below = made.directory(paths).relative_to(paths.root).as_posix()
        # Just what the entry lists, and who wrote it; nothing large is left here.
        there = {p: n for p, n in objects(bucket).items() if p.startswith(below)}
        assert there.pop(f"{below}/attempt.json") > 0
        assert there == {f"{below}/{f.path}": f.size for f in made.files}
        left = [p for p in made.directory(paths).rglob("*") if p.is_file()]
        assert left
        assert not any("attention/c" in p.as_posix() for p in left)
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "another"))
    assert_same(bucket, local)
    # The marker, two commits, a run, and the run's own file.
    names = {p for p in objects(bucket) if not p.startswith("data/")}
    run = f"runs/{run_config().id}.json"
    assert names == {"attnstore.json", run} | {f"commits/log/{n:010d}.json" for n in (1, 2, 3)}
    assert uploads(bucket) == []


WRITER = """
import sys
from store_fixtures import write_episode
from attnstore.store.errors import ConflictError
from attnstore.store.garbage import collect
from attnstore.store.opening import open_store

url, me = sys.argv[1:]
paths = open_store(url)
print("ready", flush=True)
sys.stdin.readline()
for name in ("shared0", f"own{me}", "shared1"):
    try:
        print(name, write_episode(paths, name, seed=int(me), keyframes=1, grid=(2, 2)).attempt)
    except ConflictError:
        print(name, "lost")
"""


def test_of_many_writers_one_wins(bucket: str, s3: FaultyProxy, tmp_path: Path) -> None:
    create_store(bucket)
    turn = iter(range(10**6))
    # Some puts of entries are delivered twice, or their answer is lost: both are ordinary on S3.
    s3.fault = lambda method, path: (
        (None, "twice", "unanswered")[next(turn) % 3]
        if method == "PUT" and "/commits/log/" in path
        else None
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, bucket, str(i)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(FIXTURES),
                 "ATTNSTORE_CACHE": str(tmp_path / f"cache{i}")},
        )
        for i in range(3)
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    answers = [writer.communicate("go\n", timeout=120)[0] for writer in writers]
    said = [tuple(line.split()) for answer in answers for line in answer.splitlines()]
    assert len(said) == 9
    s3.fault = lambda method, path: None
    store = open_for_reading(bucket)
    kept = {str(c.summary["name"]): c.attempt for c in all_commits(store.paths)}
    assert set(kept) == {"shared0", "shared1", "own0", "own1", "own2"}
    for name, attempt in kept.items():
        assert [a for n, a in said if n == name and a != "lost"] == [attempt]
    # Every entry is there once, none is missing, and each was written after the one before.
    history = log_of(store.paths).update()
    assert history.head == 6
    assert not history.unreadable


@pytest.mark.parametrize("fault", ["lost", "unanswered", "busy", "slow", "twice"])
def test_what_networks_do_changes_nothing(
    bucket: str, s3: FaultyProxy, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = create_store(tmp_path / "local.attn")
    write_episode(local, "e0", **SMALL)
    turn = iter(range(10**6))
    every = 7 if fault == "slow" else 3
    spoiled: list[str] = []

    def spoil(method: str, path: str) -> str | None:
        if method in ("PUT", "POST") and next(turn) % every == 0:
            spoiled.append(path)
            return fault
        return None

    s3.fault = spoil
    write_episode(create_store(bucket), "e0", **SMALL)
    assert len(spoiled) >= 3
    s3.fault = lambda method, path: None
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "another"))
    assert_same(bucket, local)
    assert uploads(bucket) == []


def test_what_cannot_be_written_is_said_before_anything_is(
    bucket: str, s3: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kind: type[AttnstoreError], url: str = bucket) -> str:
        spool.forget_buckets()
        with pytest.raises(kind) as said:
            create_store(url)
        assert "\n" not in str(said.value)
        return str(said.value)

    assert "there is no bucket nowhere at http://127" in refused(NotFoundError, "s3://nowhere/a")
    assert "at s3://BUCKET/PATH" in refused(UsageError, "gs://bucket/a")
    assert "at s3://BUCKET/PATH" in refused(UsageError, "s3:///a")
    if REAL_S3 is None:  # there, a header that is taken off is one that was signed
        s3.fault = lambda method, path: "unconditional"
        assert "does not put on a condition (of 5 writers of one name, 5 won" in refused(UsageError)
    s3.fault = lambda method, path: "denied" if method in ("PUT", "POST", "DELETE") else None
    assert "the credentials may not write this bucket" in refused(DeniedError)
    s3.fault = lambda method, path: None
    assert objects(bucket) == {}
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "http://127.0.0.1:9 cannot be reached (no connection)" in refused(AttnstoreError)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_PROFILE", "nobody")
        assert "AWS_PROFILE is a profile of AWS's configuration file; got 'nobody'" in refused(
            UsageError
        )
    with monkeypatch.context() as patch:
        for name in S3_CREDENTIALS:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        assert "no credentials were found; set AWS_ACCESS_KEY_ID" in refused(DeniedError)
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    client().put_object(Bucket=name, Key=f"{prefix}/thesis.tex", Body=b"")
    assert "is not empty and has no attnstore.json: thesis.tex lies there" in refused(UsageError)
    assert objects(bucket) == {"thesis.tex": 0}
    with pytest.raises(NotFoundError, match="is not an attnstore store"):
        open_store(bucket)


def test_an_upload_that_fails_leaves_no_part(
    bucket: str, s3: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "PARTED", 1 << 20)
    file = tmp_path / "large"
    file.write_bytes(os.urandom(21 << 20))
    expected = StoredFile("large", file.stat().st_size, hash_file(file))
    place = Bucket(bucket)
    place.upload("data/large", file, expected)
    assert objects(bucket) == {"data/large": expected.size}
    s3.fault = lambda method, path: "denied" if "partNumber=3" in path else None
    with pytest.raises(DeniedError):
        place.upload("data/broken", file, expected)
    s3.fault = lambda method, path: None
    assert uploads(bucket) == []
    assert set(objects(bucket)) == {"data/large"}
    file.write_bytes(b"other bytes")
    with pytest.raises(IntegrityError, match="differ from what was committed"):
        place.upload("data/large", file, expected)


def test_an_answer_that_never_comes_loses_nothing(bucket: str, s3: FaultyProxy) -> None:
    paths = create_store(bucket)
    entry = "0000000002.json"

    def silent_from_its_put_on(method: str, path: str) -> str | None:
        asked = path.endswith(entry) and ("PUT", path) in s3.requests
        return "unanswered" if asked else None

    s3.fault = silent_from_its_put_on
    # The entry arrived, but nobody says so: the writer gives up, and its files stay.
    with pytest.raises(AttnstoreError):
        write_episode(paths, "e0", **SMALL)
    s3.fault = lambda method, path: None
    spool.forget_buckets()
    again = open_store(bucket)
    (commit,) = all_commits(again)
    assert {
        f"{commit.attempt}" in path for path in objects(bucket) if path.startswith("data/")
    } == {True}
    with pytest.raises(ConflictError):
        write_episode(again, "e0", **SMALL)
    assert open_for_reading(bucket).episode("e0").attention("prefix", layer=0, keyframe=0).size


def test_gc_takes_what_no_entry_names_and_nothing_else(
    bucket: str, s3: FaultyProxy, tmp_path: Path
) -> None:
    paths = create_store(bucket)
    kept = write_episode(paths, "e0", **SMALL)
    old = write_episode(paths, "e1", **SMALL)
    new = write_episode(paths, "e1", replace=True, **SMALL)
    # A writer that dies between its files and its entry.
    s3.fault = lambda method, path: "denied" if "/commits/log/" in path else None
    with pytest.raises(DeniedError):
        write_episode(paths, "e2", **SMALL)
    s3.fault = lambda method, path: None
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    begun = client().create_multipart_upload(Bucket=name, Key=f"{prefix}/data/r/e/base.a/shard")
    client().create_multipart_upload(Bucket=name, Key=f"{prefix}2/of/another/store")
    client().put_object(Bucket=name, Key=f"{prefix}/.tmp-0", Body=b"")
    before = objects(bucket)
    # This process lives, and may go on.
    assert collect(paths, timedelta(0), dry_run=True).attempts == ()
    (dead,) = {
        p.rpartition("/")[0] for p in before if p.endswith("attempt.json") and "/e2-" in p
    }  # fmt: skip
    owner = {"host": "another", "pid": 1, "created": "2025-01-01T00:00:00.000+00:00"}
    client().put_object(
        Bucket=name, Key=f"{prefix}/{dead}/attempt.json", Body=json.dumps(owner).encode()
    )
    # Younger than a day; of uploads, moto says 2010.
    assert collect(paths, dry_run=True).attempts == ()
    there = set(objects(bucket))
    said = collect(paths, timedelta(0), dry_run=True)
    assert said.attempts == (dead,)
    assert said.uploads == ("data/r/e/base.a/shard",)
    assert set(objects(bucket)) == there
    done = collect(paths, timedelta(0))
    assert done.attempts == (dead,)
    left = {p.split("/")[3] for p in objects(bucket) if p.startswith("data/")}
    assert left == {f"base.{kept.attempt}", f"base.{new.attempt}"}
    assert old.attempt not in str(objects(bucket))
    assert [u["Key"] for u in uploads(bucket)] == [f"{prefix}2/of/another/store"]
    assert begun["UploadId"] not in str(uploads(bucket))
    # What gc gave up is in the log, where a writer that was only slow finds it.
    assert dead.rpartition(".")[2] in log_of(paths).update().discarded


def test_a_catalog_in_the_bucket_spares_the_log(
    bucket: str, s3: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = create_store(bucket)
    for i in range(4):
        write_episode(paths, f"e{i}", keyframes=1, grid=(2, 2))
    refresh(paths)
    refresh(paths)
    there = [p for p in objects(bucket) if p.startswith("catalog/")]
    assert len(there) == 2  # the catalog, and which is the newest
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "another"))
    s3.requests.clear()
    store = open_for_reading(bucket)
    assert store.sql("SELECT count(*) FROM episodes").fetchall() == [(4,)]
    entries = [path for method, path in s3.requests if "/commits/log/" in path]
    assert len({p.rpartition("/")[2] for p in entries}) <= 3
    for _ in range(3):
        rebuild(paths)
    assert len([p for p in objects(bucket) if p.endswith(".duckdb")]) == 4
    collect(paths)
    assert len([p for p in objects(bucket) if p.endswith(".duckdb")]) == 2
    assert open_for_reading(bucket).sql("SELECT count(*) FROM episodes").fetchall() == [(4,)]


def test_push_brings_a_store_to_a_bucket_and_resumes(
    bucket: str, s3: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = create_store(tmp_path / "local.attn")
    for i in range(3):
        write_episode(local, f"e{i}", seed=i, **SMALL)
    files = sum(len(c.files) for c in all_commits(local))
    plan = plan_push(local, bucket)
    assert (plan.episodes, plan.files) == (3, files)
    assert objects(bucket) == {}
    # It ends in the middle of the second episode.
    puts = iter(range(10**6))
    s3.fault = lambda method, path: (
        "denied" if method == "PUT" and "/data/" in path and next(puts) > files // 2 else None
    )
    with pytest.raises(DeniedError):
        push(plan)
    s3.fault = lambda method, path: None
    half = objects(bucket)
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "another"))
    assert names_at(bucket) == {"e0"}
    s3.requests.clear()
    again = plan_push(local, bucket)
    assert again.files == files - sum(p.startswith("data/") for p in half)
    done = push(again)
    assert (done.parts, done.bytes, done.failed) == (2, again.bytes, ())
    assert sum(m == "PUT" and "/data/" in p for m, p in s3.requests) == again.files
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "third"))
    assert_same(bucket, local)
    ours, theirs = log_of(local).update(), log_of(open_for_reading(bucket).paths).update()
    assert set(ours.attempts) == set(theirs.attempts)
    # What is committed there, by an ingest of its own, and here as well: theirs stays.
    write_episode(open_store(bucket), "e3", seed=3, **SMALL)
    write_episode(local, "e3", seed=4, **SMALL)
    write_episode(local, "e4", seed=4, **SMALL)
    last = plan_push(local, bucket)
    assert [c.split(" ")[0] for c in last.conflicts] == ["e3"]
    (damaged,) = (c for c in all_commits(local) if c.summary["name"] == "e4")
    flip_byte(damaged.directory(local) / "keyframes.parquet", 20)
    (line,) = push(last).failed
    assert line.startswith("e4 (")
    assert "keyframes.parquet: its bytes differ from what was committed" in line
    assert names_at(bucket) == {"e0", "e1", "e2", "e3"}
    other = create_store(tmp_path / "other.attn")
    with pytest.raises(UsageError, match="is another store than"):
        plan_push(other, bucket)
    with pytest.raises(UsageError, match="a store on this machine"):
        plan_push(open_for_reading(bucket).paths, bucket)


def test_push_on_the_command_line(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = create_store(tmp_path / "local.attn")
    for i in range(2):
        write_episode(local, f"e{i}", seed=i, **SMALL)

    def run(*more: str) -> tuple[int, list[dict[str, Any]], str]:
        done = CliRunner().invoke(cli, ["push", str(local.root), bucket, "--json", *more])
        return done.exit_code, [json.loads(row) for row in done.stdout.splitlines()], done.stderr

    files = sum(len(c.files) for c in all_commits(local))
    code, (planned,), _ = run("--dry-run")
    assert (code, planned["files"], "new_parts" in planned) == (0, files, False)
    assert objects(bucket) == {}
    code, (done,), said = run("--where", "name = 'e1'")
    assert (code, done["new_parts"], said) == (0, 1, "")
    assert names_at(bucket) == {"e1"}
    assert run()[1][0]["new_parts"] == 1
    assert_same(bucket, local)
    code, (again,), _ = run()
    assert (code, again["files"], again["new_parts"]) == (0, 0, 0)
    write_episode(local, "e2", seed=2, **SMALL)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    code, shown = on_a_terminal(["push", str(local.root), bucket], tmp_path)
    # how much of it, how fast, and the time left: of so little neither is known yet
    assert (code, re.search(r"0\.0/[\d.]+ kB \S+ [-\d]", shown) is not None) == (0, True), shown
    assert f"next: attnstore verify {bucket} --source" in shown.splitlines()[-1]


def test_what_was_damaged_in_the_bucket_is_named(bucket: str, tmp_path: Path) -> None:
    paths = create_store(bucket)
    commit = write_episode(paths, "e0", **SMALL)
    write_episode(paths, "e1", seed=1, **SMALL)
    source = open_for_reading(bucket).paths
    assert isinstance(source, MirrorPaths)
    assert list(verify_source(source)) == []
    below = commit.directory(paths).relative_to(paths.root).as_posix()
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    lost, changed = (f.path for f in sorted(commit.files, key=lambda f: f.size)[-2:])
    client().delete_object(Bucket=name, Key=f"{prefix}/{below}/{lost}")
    body = client().get_object(Bucket=name, Key=f"{prefix}/{below}/{changed}")["Body"].read()
    client().put_object(
        Bucket=name, Key=f"{prefix}/{below}/{changed}", Body=bytes([body[0] ^ 1]) + body[1:]
    )
    client().put_object(Bucket=name, Key=f"{prefix}/commits/log/0000000002.json", Body=b"{}")
    found = {(p.file.removeprefix(f"{below}/"), p.reason) for p in verify_source(source)}
    assert found == {
        (lost, "not found"),
        (changed, "its bytes differ from what was committed (SHA-256)"),
        ("commits/log/0000000002.json", "its bytes differ from those read before"),
    }
    assert not list(source.scratch.glob("*"))

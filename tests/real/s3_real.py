"""A user's walk through a bucket of a real S3 server, by the command line: ``make test-s3``.

Not collected by `make test`. The server is that of ``ATTNSTORE_TEST_S3``, with the credentials of the
environment; tests/store/test_bucket.py runs against it as well.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ingest_fixtures import assert_same_store, attnstore_command, problems
from remote_servers import REAL_S3, S3_CREDENTIALS

from attnstore.sample import checkpoint_path, episodes_path
from attnstore.store.commits import StorePaths, all_commits
from attnstore.store.remote.bucket import Bucket

ROUNDS, RIVALS = 50, 8


@pytest.fixture(autouse=True)
def access(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert REAL_S3 is not None, "make test-s3 sets ATTNSTORE_TEST_S3"
    for name, value in {**S3_CREDENTIALS, "AWS_ENDPOINT_URL": REAL_S3}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def client() -> Any:
    import botocore.session

    return botocore.session.get_session().create_client("s3")


@pytest.fixture
def bucket() -> Iterator[str]:
    name = f"attnstore-{uuid.uuid4().hex[:12]}"
    client().create_bucket(Bucket=name)
    yield name
    s3 = client()
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name):
        for each in page.get("Contents", ()):
            s3.delete_object(Bucket=name, Key=each["Key"])
    s3.delete_bucket(Bucket=name)


def run(*arguments: object, code: int = 0, cache: Path | None = None) -> str:
    environment = os.environ | ({} if cache is None else {"ATTNSTORE_CACHE": str(cache)})
    done = subprocess.run(
        attnstore_command(*arguments), env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_of_many_who_put_one_name_one_wins(bucket: str) -> None:
    place = Bucket(f"s3://{bucket}/rivals")
    place.check()
    for number in range(ROUNDS):
        won: list[int] = []

        def rival(me: int, name: str = f"{number}", won: list[int] = won) -> None:
            if place.create(name, f"{me}".encode()):
                won.append(me)

        threads = [threading.Thread(target=rival, args=(me,)) for me in range(RIVALS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert place.read(f"{number}") == f"{won[0]}".encode()


def rows_of(store: object, sql: str, cache: Path | None = None) -> list[str]:
    return sorted(run("sql", store, sql, "--json", cache=cache).splitlines())


def test_every_command_that_writes(bucket: str, tmp_path: Path) -> None:
    """The same commands on a disk and in a bucket give the same store."""
    url, local, cache = f"s3://{bucket}/lab.attn", tmp_path / "local.attn", tmp_path / "another"
    model = "--checkpoint", checkpoint_path()
    network = "--network", "squeezenet1_1", "--weights", "random", "--layer", "@2", "--filters", "0"
    view = "--episode", "*", "--camera", "hand_camera", "--keyframes", 0, "--size", 64
    some = "--tolerance", 0.1, "--limit", 1, "--every", 4, "--by", "camera", "--camera", "all"
    for store in (local, url):
        run("ingest", "droid", store, episodes_path(), "--policy", "pi0", *model,
            "--dataset-name", "sample", "--stride", 8, "--limit", 3)  # fmt: skip
    run("pull", url, tmp_path / "pulled.attn", "--tier", "full", cache=cache)
    assert_same_store(tmp_path / "pulled.attn", local)
    for store in (local, url):
        run("objects", "add", store, "--masks", episodes_path())
        run("probe", "regions", store, *model, *some)
        run("cnn", "filters", store, *network, "--size", 32, "--iterations", 2, "--shots", 0)
        run("cnn", "activations", store, *network, *view)
    rows = map(json.loads, run("ls", url, "--json", cache=cache).splitlines())
    names = [row["episode"] for row in rows if row["part"] == "base"]
    assert len(names) == 3
    for table in ("object_stats", "interventions", "head_stats"):
        sql = (
            f"SELECT COLUMNS(lambda c: c NOT IN ('attempt', 'part', 'run', 'seconds')) FROM {table}"
        )
        here, there = rows_of(local, sql), rows_of(url, sql, cache)
        assert len(here) > 0
        assert here == there, table
    assert run("verify", url, "--source", cache=cache).startswith("every committed file is as it")
    other = f"s3://{bucket}/pushed.attn"
    run("push", local, other)
    shutil.rmtree(cache)
    run("pull", url, tmp_path / "pulled.attn", "--tier", "full", cache=cache)
    run("pull", other, tmp_path / "again.attn", "--tier", "full", cache=cache)
    parts = Counter(str(c.part) for c in all_commits(StorePaths(local)))
    for copy in (tmp_path / "pulled.attn", tmp_path / "again.attn"):
        assert Counter(str(c.part) for c in all_commits(StorePaths(copy))) == parts
        assert problems(copy) == []
    run("catalog", "refresh", url)
    run("remove", url, "--episode", names[0])
    # The part of an episode that nobody committed, of long ago, and an upload that nobody ended.
    dead = "lab.attn/data/r/e/base.00000000000000000000000000"
    owner = {"host": "another", "pid": 1, "created": "2025-01-01T00:00:00.000+00:00"}
    client().put_object(Bucket=bucket, Key=f"{dead}/attempt.json", Body=json.dumps(owner).encode())
    client().create_multipart_upload(Bucket=bucket, Key=f"{dead}/shard")
    run("gc", url, "--lease", 0)
    left = client().list_objects_v2(Bucket=bucket, Prefix="lab.attn/data/r/").get("Contents", ())
    assert not left
    assert not client().list_multipart_uploads(Bucket=bucket).get("Uploads")
    shutil.rmtree(cache)
    rows = map(json.loads, run("ls", url, "--json", cache=cache).splitlines())
    assert [row["episode"] for row in rows if row["part"] == "base"] == names[1:]
    assert run("verify", url, "--source", cache=cache).startswith("every committed file is as it")

"""The commit log: nothing is lost or committed twice, whoever writes at once, and readers see it grow."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import duckdb
import pytest
from checkout import CHECKOUT, FIXTURES

from attnstore.store.catalog import connect, generations, refresh
from attnstore.store.commits import (
    Attempt,
    StorePaths,
    all_commits,
    committed_names,
    latest_commit,
    log_of,
    remove_part,
    unreadable_entries,
)
from attnstore.store.commits import log as log_module
from attnstore.store.commits.entry import sealed
from attnstore.store.commits.verify import verify
from attnstore.store.errors import IntegrityError, NotFoundError
from attnstore.store.opening import create_store, open_store

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(FIXTURES), str(Path(__file__).parent)]),
}
WRITER = """
import random, sys
from pathlib import Path
from attnstore.store.commits import Attempt
from attnstore.store.errors import ConflictError
from attnstore.store.opening import open_store

paths, name, parts, once = open_store(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), sys.argv[4]
order = list(range(parts))
random.Random(int(name)).shuffle(order)
for i in order:
    while True:
        attempt = Attempt(paths, "run", f"e{i}", "base")
        (attempt.path / "data").write_text(name)
        try:
            commit = attempt.publish({"name": name}, after=0 if once == "once" else None)
        except ConflictError:
            if once == "once":
                break
        else:
            print(i, commit.revision, attempt.id, flush=True)
            break
"""


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    return create_store(tmp_path / "toy.attn")


def publish(paths: StorePaths, episode: str = "e") -> None:
    attempt = Attempt(paths, "run", episode, "base")
    (attempt.path / "data").write_text("x")
    attempt.publish({"name": episode})


@pytest.mark.parametrize(("parts", "once"), [(1, "again"), (200, "once")])
def test_eight_writers_at_once(paths: StorePaths, parts: int, once: str) -> None:
    writers = 8
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(paths.root), str(w), str(parts), once],
            stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=CHECKOUT,
        )
        for w in range(writers)
    ]  # fmt: skip
    seen: set[str] = set()
    while any(p.poll() is None for p in processes):
        attempts = set(log_of(paths).update().attempts)
        assert seen <= attempts, "what was seen once stays"
        assert unreadable_entries(paths) == []
        for commit in all_commits(paths):
            assert (commit.directory(paths) / "data").read_text() == commit.summary["name"]
        seen = attempts
    said = [line.split() for p in processes for line in p.communicate()[0].splitlines()]
    assert [p.returncode for p in processes] == [0] * writers
    # The log, read without any code of the store.
    entries = [json.loads(f.read_text()) for f in sorted(paths.log.iterdir())]
    assert [e["number"] for e in entries] == list(range(1, len(entries) + 1))
    assert sorted(e["attempt"] for e in entries) == sorted(id for _, _, id in said)
    by_part = Counter((e["episode"], e["revision"]) for e in entries)
    assert set(by_part.values()) == {1}
    if once == "once":
        assert len(entries) == parts
    else:
        assert sorted(e["revision"] for e in entries) == list(range(1, writers + 1))


def test_a_hole_is_named_and_what_comes_back_counts(paths: StorePaths) -> None:
    for name in "abc":
        publish(paths, name)
    whole = paths.entry(2).read_bytes()
    paths.entry(2).unlink()
    other = StorePaths(Path(shutil.copytree(paths.root, paths.root.with_name("copy"))))
    ((file, reason),) = unreadable_entries(other)
    assert file == "commits/log/0000000002.json"
    assert "missing, though later ones are there" in reason
    assert committed_names(other, "run") == ["a", "c"]
    with connect(other) as connection:
        assert len(connection.sql("FROM commits").fetchall()) == 2
        assert len(connection.sql("FROM unreadable").fetchall()) == 1
    assert any("missing, though" in p.reason for p in verify(other))
    other.entry(2).write_bytes(whole)
    assert committed_names(other, "run") == ["a", "b", "c"]
    with connect(other) as connection:
        assert len(connection.sql("FROM commits").fetchall()) == 3


def test_a_log_that_shrank_or_was_exchanged_is_read_anew(paths: StorePaths) -> None:
    for name in "ab":
        publish(paths, name)
    refresh(paths)
    paths.entry(2).unlink()
    assert committed_names(paths, "run") == ["a"]
    publish(paths, "c")  # the same number
    assert committed_names(paths, "run") == ["a", "c"]
    with connect(paths) as connection:
        shown = connection.sql("SELECT episode FROM commits ORDER BY 1").fetchall()
    assert shown == [("a",), ("c",)]


def test_a_changed_byte_of_the_newest_entry_is_seen(paths: StorePaths) -> None:
    for name in "ab":
        publish(paths, name)
    last = max(paths.log.glob("*.json"))
    honest = last.read_bytes()
    place = honest.index(b'"revision": 1') + len('"revision": ')
    for damaged in (
        honest[:place] + b"3" + honest[place + 1 :],
        honest.replace(b'"previous"', b'"prefious"'),  # a bit, and no longer as an entry is spelled
        honest.replace(b"sha256", b"sha255"),
        honest[: honest.rindex(b",")] + b"\n}\n",
    ):
        last.write_bytes(damaged)
        copy = StorePaths(paths.root)
        with pytest.raises(IntegrityError, match="(?i)sha-?256"):
            latest_commit(copy, "run", "b")
        assert latest_commit(copy, "run", "a") is not None
        assert any("sha" in str(problem).lower() for problem in verify(copy))
    last.write_bytes(honest)
    assert latest_commit(StorePaths(paths.root), "run", "b") is not None


def test_a_changed_entry_does_not_fit_the_one_after(paths: StorePaths) -> None:
    for name in "ab":
        publish(paths, name)
    raw = paths.entry(1).read_text()
    copy = create_store(paths.root.with_name("copy"))
    shutil.copytree(paths.root, copy.root, dirs_exist_ok=True)
    copy.entry(1).write_bytes(sealed(json.loads(raw.replace(",\n   1,", ",\n   2,"))))
    assert copy.entry(1).read_text() != raw
    with pytest.raises(IntegrityError, match="its bytes are not those that 0000000002"):
        latest_commit(copy, "run", "a")
    assert latest_commit(copy, "run", "b") is not None


def test_what_is_removed_may_come_again(paths: StorePaths) -> None:
    publish(paths, "a")
    assert remove_part(paths, ("run", "a", "base")) == 2
    assert latest_commit(paths, "run", "a") is None
    with pytest.raises(NotFoundError):
        remove_part(paths, ("run", "a", "base"))
    attempt = Attempt(paths, "run", "a", "base")
    assert attempt.publish({}, after=0).revision == 3


def as_pipe(file: Path) -> None:
    os.mkfifo(file)


def as_socket(file: Path) -> None:
    here = Path.cwd()
    os.chdir(file.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(file.name)
    finally:
        os.chdir(here)


def as_directory(file: Path) -> None:
    file.mkdir()


def as_device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def as_circle(file: Path) -> None:
    file.symlink_to(file.name)


@pytest.mark.parametrize("make", [as_pipe, as_socket, as_directory, as_device, as_circle])
@pytest.mark.timeout(60)
def test_what_is_no_file_is_named_and_never_waited_for(paths: StorePaths, make: object) -> None:
    publish(paths, "a")
    publish(paths, "b")
    refresh(paths)
    assert callable(make)
    for file in (paths.entry(1), generations(paths)[-1].path):
        file.unlink()
        make(file)
    log_of(paths)._forget()
    ((name, reason),) = unreadable_entries(paths)
    assert name == "commits/log/0000000001.json"
    assert "and no file" in reason
    with connect(paths) as connection:
        assert connection.sql("SELECT episode FROM commits").fetchall() == [("b",)]
    paths.marker.unlink()
    make(paths.marker)
    with pytest.raises(IntegrityError, match="and no file"):
        open_store(paths.root)


HOSTILE = (
    "CREATE MACRO evil(x) AS (SELECT content FROM read_text('{secret}')); "
    "ALTER TABLE sinks RENAME TO s2; "
    "CREATE TABLE sinks AS FROM s2; ALTER TABLE sinks ADD COLUMN z VARCHAR",
    "CREATE VIEW more AS FROM read_text('{secret}')",
    "ALTER TABLE episodes ALTER COLUMN name SET DEFAULT 'x'",
    "CREATE INDEX i ON episodes (name)",
    "CREATE SEQUENCE s",
    "CREATE SCHEMA other",
    "DROP TABLE episodes; CREATE TABLE episodes (run VARCHAR, name VARCHAR GENERATED ALWAYS AS (run))",
    "INSERT INTO files VALUES ('run', 'a', 'base', 'frames', 'data/run/a/../../../secret.parquet', 1, 'x')",
    "INSERT INTO files VALUES (NULL, NULL, 'base', 'frames', '/etc/frames.parquet', 1, 'x')",
)


@pytest.mark.parametrize("sql", HOSTILE)
def test_a_catalog_with_anything_of_its_own_is_made_anew(
    paths: StorePaths, sql: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(paths, "a")
    first = refresh(paths).path
    with duckdb.connect(str(first)) as connection:
        connection.execute(sql.format(secret=tmp_path / "secret"))
    with connect(paths) as connection:
        assert connection.sql("SELECT episode FROM commits").fetchall() == [("a",)]
    assert "cannot be used and is made anew" in caplog.text
    assert len(generations(paths)) == 2


@pytest.mark.parametrize("quick", [0.0, 1e9])
@pytest.mark.parametrize("count", [0, 3, 16, 17, 600])
def test_entries_are_read_in_their_order_in_threads_or_without(
    quick: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = set()

    def read(number: int) -> int:
        readers.add(threading.current_thread().name)
        return 2 * number

    monkeypatch.setattr(log_module, "QUICK", quick)
    assert list(log_module._in_batches(read, range(count))) == list(range(0, 2 * count, 2))
    assert (len(readers) > 1) == (count > 16 and quick == 0)

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Any

import pytest
from store_fixtures import write_episode

from attnstore.store import garbage as module
from attnstore.store.catalog import connect, generations, rebuild, refresh
from attnstore.store.commits import (
    Attempt,
    Commit,
    StorePaths,
    all_commits,
    create_exclusive,
    latest_commit,
)
from attnstore.store.commits.verify import verify
from attnstore.store.errors import ConflictError
from attnstore.store.garbage import collect
from attnstore.store.opening import create_store

SMALL: dict[str, Any] = {"keyframes": 1, "layers": 1, "heads": 1, "steps": 1, "grid": (2, 2)}
DAY = timedelta(hours=24)


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    return create_store(tmp_path / "toy.attn")


def publish(paths: StorePaths, episode: str = "e") -> Commit:
    attempt = Attempt(paths, "run", episode, "base")
    (attempt.path / "data").write_text("x" * 1000)
    return attempt.publish({"name": episode})


def abandoned(paths: StorePaths, episode: str = "e", age: timedelta = 2 * DAY) -> Path:
    """What a process that died leaves behind."""
    attempt = Attempt(paths, "run", episode, "base")
    (attempt.path / "deep" / "er").mkdir(parents=True)
    (attempt.path / "deep" / "er" / "data").write_text("x" * 1000)
    own(attempt.path, pid=dead_pid())
    grow_old(attempt.path, age)
    return attempt.path


def own(attempt: Path, **changed: object) -> None:
    file = attempt / "attempt.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def grow_old(path: Path, age: timedelta = 2 * DAY) -> None:
    then = time.time() - age.total_seconds()
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then))


def test_an_abandoned_attempt_is_removed(paths: StorePaths) -> None:
    commit = publish(paths)
    attempt = abandoned(paths)
    size = sum(f.stat().st_size for f in (attempt, *attempt.rglob("*")))
    planned = collect(paths, dry_run=True)
    assert attempt.exists()
    assert collect(paths) == planned
    assert planned.attempts == (attempt.relative_to(paths.root).as_posix(),)
    assert planned.bytes == size >= 1000
    assert not attempt.exists()
    assert latest_commit(paths, "run", "e") == commit
    assert not list(verify(paths, run="run", episode="e"))[:-1], "only its run's file is missing"
    assert collect(paths).bytes == 0


def test_what_is_removed_and_what_is_kept(paths: StorePaths) -> None:
    publish(paths)
    young = abandoned(paths, age=timedelta(hours=23))
    one_young_file = abandoned(paths)
    (one_young_file / "deep" / "er" / "data").touch()
    alive = abandoned(paths)
    own(alive, pid=os.getpid())
    grow_old(alive)
    elsewhere = abandoned(paths)
    own(elsewhere, pid=os.getpid(), host="another-host")
    grow_old(elsewhere)
    no_owner = abandoned(paths)
    (no_owner / "attempt.json").unlink()
    grow_old(no_owner)
    other_episode = abandoned(paths, "lost")
    collected = collect(paths)
    kept = {young, one_young_file, alive}
    removed = {elsewhere, no_owner, other_episode}
    assert {p for p in kept | removed if p.exists()} == kept
    assert set(collected.attempts) == {p.relative_to(paths.root).as_posix() for p in removed}
    collect(paths, timedelta(0))
    assert {p for p in kept if p.exists()} == {alive}, "a living process keeps its attempt"


def test_superseded_revisions_go_after_the_lease(paths: StorePaths) -> None:
    first, second = publish(paths), publish(paths)
    grow_old(first.directory(paths))
    assert collect(paths).revisions == (), "readers may still use what was replaced a moment ago"
    assert first.directory(paths).exists()
    grow_old(paths.log)
    collected = collect(paths)
    assert collected.revisions == (first.directory(paths).relative_to(paths.root).as_posix(),)
    assert collected.attempts == ()
    assert not first.directory(paths).exists()
    assert latest_commit(paths, "run", "e") == second
    assert publish(paths).revision == 3


def test_the_latest_revision_is_never_touched_however_old(paths: StorePaths) -> None:
    commits = [publish(paths, f"e{i}") for i in range(3)]
    grow_old(paths.root)
    collect(paths, timedelta(0))
    assert list(all_commits(paths)) == commits
    assert all((c.directory(paths) / "data").exists() for c in commits)


def test_parts_whose_commits_cannot_be_read_are_left_alone(paths: StorePaths) -> None:
    first, second = publish(paths), publish(paths)
    stray = abandoned(paths)
    file = paths.entry(2)
    whole = file.read_text()
    file.write_text(whole[:50])
    grow_old(paths.root)
    collected = collect(paths, timedelta(0))
    assert collected.attempts == collected.revisions == ()
    assert all(p.exists() for p in (stray, first.directory(paths), second.directory(paths)))
    file.write_text(whole)
    grow_old(paths.root)
    collected = collect(paths, timedelta(0))
    assert (len(collected.attempts), len(collected.revisions)) == (1, 1)
    assert latest_commit(paths, "run", "e") == second


def test_a_torn_commit_does_not_hide_the_latest(paths: StorePaths) -> None:
    commit = publish(paths)
    paths.entry(2).touch()
    grow_old(paths.root)
    collect(paths, timedelta(0))
    assert latest_commit(paths, "run", "e") == commit
    assert commit.directory(paths).exists()


def test_a_writer_that_commits_meanwhile_keeps_its_data(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It commits after gc has decided and before gc removes."""
    attempt = Attempt(paths, "run", "e", "base")
    (attempt.path / "data").write_text("x")
    own(attempt.path, pid=dead_pid())
    grow_old(attempt.path)
    give_up = module._give_up

    def commit_first(paths: StorePaths, attempts: list[PurePath]) -> set[PurePath]:
        attempt.publish({})
        return give_up(paths, attempts)

    monkeypatch.setattr(module, "_give_up", commit_first)
    assert collect(paths).attempts == ()
    commit = latest_commit(paths, "run", "e")
    assert commit is not None
    assert (commit.directory(paths) / "data").exists()


def test_a_writer_that_comes_too_late_commits_nothing(paths: StorePaths) -> None:
    attempt = Attempt(paths, "run", "e", "base")
    (attempt.path / "data").write_text("x")
    own(attempt.path, pid=dead_pid())
    grow_old(attempt.path)
    assert len(collect(paths).attempts) == 1
    with pytest.raises(ConflictError, match="gc takes attempts that are older than its lease"):
        attempt.publish({})
    assert latest_commit(paths, "run", "e") is None


def test_a_writer_between_whose_commit_and_check_gc_comes(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was about to claim a number: gc takes that, and the writer reads in it that it lost."""
    attempt = Attempt(paths, "run", "e", "base")
    (attempt.path / "data").write_text("x")
    own(attempt.path, pid=dead_pid())
    grow_old(attempt.path)
    create = create_exclusive
    collected = []

    def gc_in_between(path: Path, data: Any) -> bool:
        monkeypatch.undo()
        collected.append(collect(paths))
        return create(path, data)

    monkeypatch.setattr("attnstore.store.commits.holding.create_exclusive", gc_in_between)
    with pytest.raises(ConflictError, match="gc takes attempts"):
        attempt.publish({})
    assert len(collected[0].attempts) == 1
    assert not attempt.path.exists()
    assert latest_commit(paths, "run", "e") is None


def test_temporary_files_go(paths: StorePaths) -> None:
    publish(paths)
    places = (
        paths.root, paths.runs, paths.catalog, paths.log,
    )  # fmt: skip
    old = [place / ".tmp-1234" for place in places] + [paths.catalog / ".tmp-5.duckdb.wal"]
    for file in old:
        file.write_text("x")
        grow_old(file)
    fresh = paths.catalog / ".tmp-6.duckdb"
    fresh.touch()
    assert len(collect(paths, dry_run=True).temporary) == 5
    collected = collect(paths, timedelta(0))
    assert set(collected.temporary) == {f.relative_to(paths.root).as_posix() for f in old}
    assert not any(f.exists() for f in old)
    assert fresh.exists(), "a catalog that another process builds at this moment"


def test_what_a_catalog_stands_on_stays(paths: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generations that are layers of the newest ones are as much in use as these."""
    monkeypatch.setattr(sys.modules["attnstore.store.catalog.generations"], "LAYER", 0)
    for i in range(4):
        write_episode(paths, f"{i}", **SMALL)
        refresh(paths)
    assert collect(paths, timedelta(0)).generations == ()
    with connect(paths) as connection:
        found = connection.sql("SELECT count(DISTINCT episode) FROM episode_stats").fetchall()
    assert found == [(4,)]
    for _ in range(2):
        rebuild(paths)
    assert len(collect(paths, timedelta(0)).generations) == 4


def test_the_newest_two_catalog_generations_stay(paths: StorePaths) -> None:
    reader = None
    for i in range(4):
        write_episode(paths, f"{i}", **SMALL)
        refresh(paths)
        reader = reader or connect(paths)
    collected = collect(paths, timedelta(0))
    assert collected.generations == (
        "catalog/catalog-000001.duckdb",
        "catalog/catalog-000002.duckdb",
    )
    assert [g.number for g in generations(paths)] == [3, 4]
    assert reader is not None
    assert reader.sql("SELECT name FROM episodes").fetchall() == [("0",)]
    reader.close()
    with connect(paths) as connection:
        assert len(connection.sql("FROM episodes").fetchall()) == 4


def test_other_things_below_data_are_not_ours(paths: StorePaths) -> None:
    publish(paths)
    folder = paths.data / "run" / "e"
    (folder / "notes.txt").write_text("a file, and not an attempt")
    (folder / ".hidden.dir").mkdir()
    (folder / "no-attempt").mkdir()
    grow_old(paths.root)
    assert collect(paths, timedelta(0)).attempts == ()
    assert len(list(folder.iterdir())) == 4

"""Copies of a store: what was asked for, whole, from anywhere, however often it is interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from remote_servers import S3_CREDENTIALS, FileServer, file_server, files_of
from store_fixtures import flip_byte, write_episode

import attnstore
from attnstore.cli import cli
from attnstore.store.catalog import rebuild, refresh
from attnstore.store.commits import Attempt, StorePaths, all_commits, log_of
from attnstore.store.commits.entry import PLACE, sealed
from attnstore.store.commits.verify import verify
from attnstore.store.errors import (
    AttnstoreError,
    IntegrityError,
    NotFoundError,
    NotPulledError,
    PartialError,
    UsageError,
)
from attnstore.store.format.version import FORMAT_MAJOR, FORMAT_MINOR
from attnstore.store.opening import create_store, open_store
from attnstore.store.remote.mirror import transport_for
from attnstore.store.remote.pull import plan_pull, pull
from attnstore.store.remote.pulled import PulledPaths
from attnstore.store.remote.tiers import TIERS, Tier, includes, tier_of
from attnstore.store.tables.columns import ACROSS

SMALL: dict[str, Any] = {"keyframes": 2, "grid": (2, 2)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pull") / "toy.attn"
    paths = create_store(root)
    for i in range(3):
        write_episode(paths, f"success/d/e{i}", ("success", "failure")[i % 2], i, **SMALL)
    refresh(paths)
    return root


@pytest.fixture
def paths(template: Path, tmp_path: Path) -> StorePaths:
    return StorePaths(shutil.copytree(template, tmp_path / "source" / "toy.attn"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNSTORE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(paths: StorePaths) -> Iterator[FileServer]:
    with file_server(paths.root) as server:
        yield server


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy.attn"


def run(*arguments: object, fails: type[Exception] | None = None) -> str:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    if fails is None:
        assert result.exception is None, result.exception
        return result.stdout
    assert isinstance(result.exception, fails), result.output
    return str(result.exception)


def expected(paths: StorePaths, tier: Tier, only: str = "") -> dict[str, bytes]:
    """Files of commits up to a tier, and what makes a store of them; without any code of `pull`."""
    found = {}
    for commit in all_commits(paths):
        if only in str(commit.summary["name"]):
            directory = commit.directory(paths)
            for file in commit.files:
                if includes(tier, file.path):
                    path = directory / file.path
                    found[path.relative_to(paths.root).as_posix()] = path.read_bytes()
            found[f"commit {commit.key} {commit.revision}"] = repr(commit).encode()
    for other in (*paths.runs.iterdir(), paths.root / "attnstore.json"):
        found[other.relative_to(paths.root).as_posix()] = other.read_bytes()
    return found


def held(copy: Path) -> dict[str, bytes]:
    files = {
        name: data
        for name, data in files_of(StorePaths(copy)).items()
        if not name.startswith(("pulled/", "commits/"))
    }
    commits = all_commits(open_store(copy)) if (copy / "attnstore.json").exists() else []
    return files | {f"commit {c.key} {c.revision}": repr(c).encode() for c in commits}


def test_tiers_of_a_real_part(paths: StorePaths) -> None:
    commit = next(all_commits(paths))
    by_tier = {t: {f.path for f in commit.files if tier_of(f.path) == t} for t in TIERS}
    assert by_tier["catalog"] == {
        "attention.zarr/zarr.json", "episode_stats.parquet", "keyframes.parquet", "sinks.parquet",
        "spans.parquet", "tokens.parquet",
    }  # fmt: skip
    assert {"frames.parquet", "head_stats.parquet"} < by_tier["maps"]
    assert all("/attention/c/" in name for name in by_tier["full"])
    assert len(by_tier["full"]) == 2 + 2, "a keyframe of a phase is a file"


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("kind", ["path", "http"])
def test_a_copy_holds_what_was_asked_for(
    paths: StorePaths, server: FileServer, copy: Path, tier: Tier, kind: str
) -> None:
    source = paths.root if kind == "path" else server.url
    forecast = json.loads(run("pull", source, copy, "--tier", tier, "--dry-run", "--json"))
    assert not copy.exists()
    said = json.loads(run("pull", source, copy, "--tier", tier, "--json"))
    assert held(copy) == expected(paths, tier)
    data = [d for n, d in held(copy).items() if n.startswith("data/")]
    assert said["copied_bytes"] == forecast["bytes"] == sum(map(len, data))
    assert said["files"] == len(data)
    assert list(verify(open_store(copy))) == []
    assert not list((copy / "pulled" / "unfinished").iterdir())
    shutil.rmtree(paths.root)
    server.close()  # from here on without the source
    rebuild(open_store(copy))
    store = attnstore.open(copy)
    assert store.sql("SELECT count(*) FROM episodes").fetchall() == [(3,)]
    assert len(store.episodes) == 3
    assert store.episode("e1").cameras


def test_from_s3(paths: StorePaths, copy: Path, s3_server: tuple[str, Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**S3_CREDENTIALS, "AWS_ENDPOINT_URL": s3_server[0]}.items():
            patch.setenv(name, value)
        import s3fs

        files = s3fs.S3FileSystem(skip_instance_cache=True)
        files.mkdir("pulls")
        files.put(f"{paths.root}/", "pulls/toy.attn/", recursive=True)
        run("pull", "s3://pulls/toy.attn", copy, "--tier", "full", "--where", "outcome = 'success'")
    wanted = expected(paths, "full", "e0") | expected(paths, "full", "e2")
    assert held(copy) == wanted
    a, b = (
        attnstore.open(root).episode("e2").attention("suffix").values for root in (paths.root, copy)
    )
    np.testing.assert_array_equal(a, b)


def test_a_second_pull_copies_only_what_is_new(
    paths: StorePaths, server: FileServer, copy: Path
) -> None:
    run("pull", server.url, copy, "--tier", "full")
    server.take()
    again = json.loads(run("pull", server.url, copy, "--tier", "full", "--json"))
    assert (again["bytes"], again["new_parts"]) == (0, 0)
    assert [r for r in server.take() if r.startswith("/data/")] == []
    write_episode(paths, "new", seed=7, **SMALL)
    write_episode(paths, "success/d/e1", seed=8, replace=True, **SMALL)
    said = json.loads(run("pull", server.url, copy, "--tier", "full", "--json"))
    assert said["new_parts"] == 2
    shown = "SELECT name, revision FROM episodes ORDER BY ALL"
    a, b = (attnstore.open(root).sql(shown).fetchall() for root in (paths.root, copy))
    assert a == b
    assert list(verify(open_store(copy))) == []


def test_tiers_add_up(paths: StorePaths, copy: Path) -> None:
    run("pull", paths.root, copy, "--tier", "catalog")
    run("pull", paths.root, copy, "--tier", "maps", "--where", "name LIKE '%e1'")
    run("pull", paths.root, copy, "--tier", "full", "--where", "name LIKE '%e2'")
    run("pull", paths.root, copy, "--tier", "catalog")
    assert held(copy) == (
        expected(paths, "catalog") | expected(paths, "maps", "e1") | expected(paths, "full", "e2")
    )
    assert list(verify(open_store(copy))) == []


def test_what_was_not_pulled_is_said_and_how_to_get_it(paths: StorePaths, copy: Path) -> None:
    run("pull", paths.root, copy, "--tier", "maps", "--where", "name LIKE '%e1'")
    run("pull", paths.root, copy, "--tier", "catalog")
    store = attnstore.open(copy)
    episode = store.episode("e1")
    assert episode.maps("suffix", "hand_camera").values.size
    assert episode.explain("prefix").missing_bytes > 0
    with pytest.raises(NotPulledError, match=r"only tier maps was pulled; get it with: ") as raised:
        episode.attention("prefix", layer=0)
    command = str(raised.value).partition("get it with: attnstore ")[2]
    assert command == f"pull {paths.root} {copy} --tier full --where \"episode = '{episode.id}'\""
    with pytest.raises(NotPulledError, match="--tier maps"):
        store.episode("e2").image_bytes(0, "hand_camera")
    import shlex

    run(*shlex.split(command))
    np.testing.assert_array_equal(
        attnstore.open(copy).episode("e1").attention("prefix").values,
        attnstore.open(paths.root).episode("e1").attention("prefix").values,
    )


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM head_stats",
        "SELECT avg(entropy) FROM head_stats WHERE layer = 1",
        "SELECT max(camera_mass) FROM head_stats WHERE mass['task'] > 2",
        "SELECT count(*) FROM episodes e WHERE EXISTS (FROM head_stats h WHERE h.episode = e.episode)",
        "SELECT DISTINCT camera FROM frames",
        "FROM head_stats WHERE keyframe > 1000",
    ],
)
def test_sql_never_answers_without_what_is_missing(
    paths: StorePaths, copy: Path, query: str
) -> None:
    run("pull", paths.root, copy, "--tier", "maps", "--where", "name LIKE '%e1'")
    run("pull", paths.root, copy, "--tier", "catalog")
    said = run("sql", copy, query, fails=AttnstoreError)
    assert "is not here; get it with: attnstore pull" in said
    ids = "SELECT episode FROM episodes WHERE name LIKE '%e1'"
    ((wanted,),) = attnstore.open(copy).sql(ids).fetchall()
    one = f"SELECT count(*), avg(entropy) FROM head_stats WHERE episode = '{wanted}'"
    a, b = (attnstore.open(root).sql(one).fetchall() for root in (paths.root, copy))
    assert a == b


def test_verify_tells_not_pulled_from_damaged(paths: StorePaths, copy: Path) -> None:
    run("pull", paths.root, copy, "--tier", "maps")
    said = run("verify", copy)
    count = sum(not includes("maps", f.path) for c in all_commits(paths) for f in c.files)
    assert f"{count} files, " in said
    assert "were not pulled" in said
    (table,) = copy.glob("data/*/e1-*/base.*/head_stats.parquet")
    (frames,) = copy.glob("data/*/e2-*/base.*/frames.parquet")
    flip_byte(table, 50)
    frames.unlink()
    problems = {p.file.rpartition("/")[2]: p.reason for p in verify(open_store(copy))}
    assert problems.keys() == {"head_stats.parquet", "frames.parquet"}
    assert problems["frames.parquet"] == "missing"
    assert "pulling again" in run("verify", copy, fails=IntegrityError)
    with pytest.raises(IntegrityError, match="it was pulled: .* again repairs it"):
        attnstore.open(copy).episode("e2").image_bytes(0, "hand_camera")
    table.unlink()
    run("pull", paths.root, copy, "--tier", "maps")
    assert list(verify(open_store(copy))) == []


@pytest.mark.parametrize("kind", ["path", "http"])
def test_damaged_bytes_at_the_source(
    paths: StorePaths, server: FileServer, copy: Path, kind: str
) -> None:
    source = paths.root if kind == "path" else server.url
    (table,) = paths.data.glob("*/e1-*/base.*/head_stats.parquet")
    whole = table.read_bytes()
    flip_byte(table, 60)
    said = run("pull", source, copy, "--tier", "maps", fails=PartialError)
    assert "1 of 3 parts were not pulled" in said
    assert {c.summary["name"] for c in all_commits(open_store(copy))} == {
        "success/d/e0", "success/d/e2",
    }  # fmt: skip
    assert not list(copy.glob("data/*/e1-*/base.*/head_stats.parquet"))
    table.write_bytes(whole)
    run("pull", source, copy, "--tier", "maps")
    assert held(copy) == expected(paths, "maps")


def test_what_a_newer_minor_version_says_is_copied(paths: StorePaths, copy: Path) -> None:
    """Keys that are not known here, of runs and of entries; only the place in the log is the copy's."""
    newer = {"major": FORMAT_MAJOR, "minor": FORMAT_MINOR + 1}
    previous = None
    for file in (*sorted(paths.runs.iterdir()), *sorted(paths.log.iterdir())):
        value = json.loads(file.read_text()) | {
            "format": newer,
            "colour": {"of": ["the", "future"]},
        }
        if file.parent == paths.log:
            value["previous"] = previous
        file.write_bytes(sealed(value))
        if file.parent == paths.log:
            previous = hashlib.sha256(file.read_bytes()).hexdigest()
    run("pull", paths.root, copy, "--tier", "maps")
    ours = PulledPaths(copy)
    assert list(verify(ours)) == []
    assert log_of(ours).update().unreadable == {}
    for file in paths.runs.iterdir():
        assert (ours.runs / file.name).read_bytes() == file.read_bytes()

    def said(log: Path) -> list[Any]:
        entries = [json.loads(f.read_text()) for f in sorted(log.iterdir())]
        return [{k: v for k, v in e.items() if k not in PLACE} for e in entries]

    assert sorted(map(str, said(ours.log))) == sorted(map(str, said(paths.log)))
    assert all(e["colour"] == {"of": ["the", "future"]} for e in said(ours.log))


def test_commits_cannot_name_files_outside(paths: StorePaths, copy: Path, tmp_path: Path) -> None:
    (file,) = (f for f in paths.log.iterdir() if '"episode": "e1-' in f.read_text())
    commit = json.loads(file.read_text())
    commit["files"][0][0] = "../../../../../../escaped"
    file.write_bytes(sealed(commit))
    with file_server(paths.root) as server:
        for source in (paths.root, server.url):
            assert "1 of 3 parts were not pulled" in run("pull", source, copy, fails=PartialError)
    assert not list(tmp_path.rglob("escaped"))


def test_links_at_the_source_do_not_leave_it(paths: StorePaths, copy: Path, tmp_path: Path) -> None:
    (table,) = paths.data.glob("*/e1-*/base.*/head_stats.parquet")
    secret = tmp_path / "secret"
    secret.write_bytes(table.read_bytes())
    table.unlink()
    table.symlink_to(secret)
    run("pull", paths.root, copy, fails=PartialError)
    assert not list(copy.glob("data/*/e1-*/base.*/head_stats.parquet"))


KILLED = (
    "import sys; from attnstore.cli import main; main(['pull', *sys.argv[1:], '--tier', 'full'])"
)


def test_kill_9_and_resume(paths: StorePaths, server: FileServer, copy: Path) -> None:
    server.delay = 0.01
    total = len([n for n in expected(paths, "full") if n.startswith("data/")])
    kills = 0
    for wanted in (5, 60, 160):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, server.url, str(copy)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and len(list(copy.glob("data/**/*.*"))) < wanted:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        # What is there is right, at any moment.
        if (copy / "attnstore.json").exists():
            assert list(verify(open_store(copy))) == []
            for commit in all_commits(open_store(copy)):
                assert attnstore.open(copy).from_commit(commit).attention("prefix").values.size
    assert kills >= 2
    server.delay = 0.0
    server.take()
    run("pull", server.url, copy, "--tier", "full")
    assert len([r for r in server.take() if r.startswith("/data/")]) < total
    assert held(copy) == expected(paths, "full")
    assert list(verify(open_store(copy))) == []


def test_a_full_disk_is_the_copys(paths: StorePaths, copy: Path) -> None:
    """The source's file is not what has no room; with room again, the same command ends it."""
    transport = transport_for(paths)
    plan = plan_pull(paths, copy, "maps")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        failed = pull(plan, transport, "here", lambda size, commit: None).failed
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(failed) == 3
    for said in failed:
        assert re.search(
            rf"{re.escape(str(copy))}/data/\S+ cannot be written: File too large", said
        )
        assert str(paths.root) not in said
    run("pull", paths.root, copy)
    assert list(verify(open_store(copy))) == []


def test_targets_that_are_something_else(paths: StorePaths, copy: Path, tmp_path: Path) -> None:
    assert "is the source itself" in run("pull", paths.root, paths.root, fails=UsageError)
    own = create_store(tmp_path / "own.attn")
    assert "no pulled copy" in run("pull", paths.root, own.root, fails=UsageError)
    copy.mkdir()
    (copy / "thesis.tex").write_text("years of work")
    assert "not empty" in run("pull", paths.root, copy, fails=UsageError)
    assert sorted(p.name for p in copy.iterdir()) == ["thesis.tex"]
    first = tmp_path / "first"
    run("pull", paths.root, first, "--tier", "catalog")
    write_episode(own, "x", **SMALL)
    assert "copy of another store" in run("pull", own.root, first, fails=UsageError)
    run("pull", paths.root, copy / "x", "--where", "outcome = 'nope'", fails=NotFoundError)


def test_parts_committed_in_the_copy_stay(paths: StorePaths, copy: Path) -> None:
    run("pull", paths.root, copy, "--tier", "maps")
    commit = next(all_commits(open_store(copy)))
    attempt = Attempt(open_store(copy), commit.run, commit.episode, "objects-1")
    (attempt.path / "note.json").write_text("{}")
    attempt.publish({"name": commit.summary["name"]})
    Attempt(paths, commit.run, commit.episode, "objects-1").publish({})
    plan = plan_pull(paths, copy, "maps")
    assert len(plan.conflicts) == 1
    run("pull", paths.root, copy, "--tier", "maps")
    assert list(verify(open_store(copy))) == []
    (copy / "data" / commit.run / commit.episode / f"objects-1.{attempt.id}" / "note.json").unlink()
    assert [p.reason for p in verify(open_store(copy))] == ["missing"]


def test_what_is_of_all_episodes_of_a_run_comes_with_all_of_them(
    paths: StorePaths, copy: Path, tmp_path: Path
) -> None:
    """Probes and predictions over episodes that are not there would be numbers of nobody knows what."""
    commit = next(all_commits(paths))
    attempt = Attempt(paths, commit.run, ACROSS, "failure-1")
    (attempt.path / "note.json").write_text("{}")
    attempt.publish({"name": ACROSS})
    asked = ["pull", str(paths.root), str(copy), "--episode", "e1", "--json"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0
    said = f"failure-1 ({commit.run}): it is of all episodes of its run, of which 2 are not chosen"
    assert f"not taken: {said}" in done.stderr
    row = json.loads(done.stdout)
    assert (row["left_out"], row["episodes"]) == ([said], 1)
    assert [c.part for c in all_commits(open_store(copy))] == ["base"]
    # all of them by a choice, and without one
    for number, more in enumerate((["--where", "true"], [])):
        whole = tmp_path / f"whole{number}"
        row = json.loads(run("pull", paths.root, whole, "--json", *more))
        assert (row["left_out"], row["episodes"]) == ([], 3)
        assert sorted(c.part for c in all_commits(open_store(whole))) == ["base"] * 3 + [
            "failure-1"
        ]


def test_a_copy_of_a_copy(paths: StorePaths, copy: Path, tmp_path: Path) -> None:
    run("pull", paths.root, copy, "--tier", "maps")
    second = tmp_path / "second"
    run("pull", copy, second, "--tier", "catalog")
    assert held(second) == expected(paths, "catalog")
    said = run("pull", copy, second, "--tier", "full", fails=PartialError)
    assert "3 of 3 parts" in said
    assert isinstance(open_store(second), PulledPaths)
    assert list(verify(open_store(second))) == []

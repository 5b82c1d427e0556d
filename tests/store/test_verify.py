from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_fixtures import flip_byte, write_episode

from attnstore.store.commits import (
    MARKER,
    Commit,
    StorePaths,
    all_commits,
    committed_names,
    latest_commit,
    register_run,
)
from attnstore.store.commits import verify as verify_module
from attnstore.store.commits.entry import sealed
from attnstore.store.commits.log import Log
from attnstore.store.commits.verify import verify
from attnstore.store.errors import NotFoundError
from attnstore.store.opening import create_store

SMALL: dict[str, Any] = {"keyframes": 1, "layers": 1, "heads": 1, "steps": 1, "grid": (2, 2)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = create_store(tmp_path_factory.mktemp("verify") / "toy.attn")
    for name in ("success/a", "success/b"):
        write_episode(paths, name, **SMALL)
    write_episode(paths, "success/a", run_seed=1, **SMALL)
    return paths.root


@pytest.fixture
def paths(template: Path, tmp_path: Path) -> StorePaths:
    return StorePaths(shutil.copytree(template, tmp_path / "toy.attn"))


def entry_of(paths: StorePaths, commit: Commit) -> Path:
    (file,) = (f for f in paths.log.iterdir() if f'"attempt": "{commit.attempt}"' in f.read_text())
    return file


def flip(file: Path) -> None:
    flip_byte(file, file.stat().st_size // 2)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def test_a_sound_store_has_no_problems(paths: StorePaths) -> None:
    assert list(verify(paths)) == []
    assert list(verify(paths, quick=True)) == []


@pytest.mark.parametrize(
    ("damage", "seen"),
    [(truncate, True), (Path.unlink, True), (replace_by_directory, True), (flip, False)],
)
def test_a_quick_look_sees_what_is_there_and_no_bytes(
    paths: StorePaths, damage: Callable[[Path], None], seen: bool
) -> None:
    commit = next(all_commits(paths))
    damage(commit.directory(paths) / "head_stats.parquet")
    assert [Path(p.file).name for p in verify(paths, quick=True)] == ["head_stats.parquet"] * seen
    assert len(list(verify(paths))) == 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "its bytes differ from what was committed (SHA-256)"),
        (truncate, "bytes, "),
        (Path.unlink, "missing"),
        (replace_by_directory, "no regular file"),
    ],
)
@pytest.mark.parametrize(
    "file",
    [
        "attention.zarr/prefix/attention/c/0/0/0/0/0",
        "attention.zarr/zarr.json",
        "head_stats.parquet",
    ],
)
def test_every_damaged_file_is_named(
    paths: StorePaths, file: str, damage: Callable[[Path], None], reason: str
) -> None:
    commit = next(c for c in all_commits(paths) if c.summary["name"] == "success/b")
    damage(commit.directory(paths) / file)
    (problem,) = verify(paths)
    assert (problem.run, problem.episode, problem.part) == (commit.run, "success/b", "base")
    assert problem.file == f"data/{commit.run}/{commit.episode}/base.{commit.attempt}/{file}"
    assert reason in problem.reason
    assert str(problem) == f"{problem.file}: {problem.reason} (success/b, base, {commit.run})"


@pytest.mark.parametrize("kept", [0, 50])
def test_what_is_remembered_of_the_log_changes_nothing(
    paths: StorePaths, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits are kept while the log is read, as many as there is room for; others are read again."""
    commits = list(all_commits(paths))
    for commit in commits:
        (commit.directory(paths) / "tokens.parquet").unlink()
    log = Log(paths, keep=kept)
    for (_, revision), commit in zip(log.update().parts(), commits, strict=True):
        assert log.commit(revision) == commit
    assert kept < 2 * len(commits[0].files), "room for one"
    assert len(log._commits) == (1 if kept else len(commits))
    expected = [str(problem) for problem in verify(paths, quick=True)]
    assert len(expected) == len(commits)
    monkeypatch.setattr(verify_module, "KEPT_FILES", kept)
    assert [str(problem) for problem in verify(paths, quick=True)] == expected


def test_any_flipped_byte_of_any_file_is_found(paths: StorePaths) -> None:
    for commit in all_commits(paths):
        for file in commit.files[::7]:
            flip_byte(commit.directory(paths) / file.path, file.size - 1)
            found = [p.file.partition(f"{commit.attempt}/")[2] for p in verify(paths)]
            assert found == [file.path]
            flip_byte(commit.directory(paths) / file.path, file.size - 1)


def test_an_unreadable_commit_is_a_problem_and_the_others_are_checked(paths: StorePaths) -> None:
    first, second = list(all_commits(paths))[:2]
    file = entry_of(paths, first)
    file.write_text(file.read_text()[:200])
    (second.directory(paths) / "tokens.parquet").unlink()
    one, other = verify(paths)
    assert one.file == file.relative_to(paths.root).as_posix()
    assert "not JSON" in one.reason
    assert other.file.endswith("tokens.parquet")


def test_an_only_commit_that_is_torn(paths: StorePaths) -> None:
    paths.entry(max(int(f.stem) for f in paths.log.iterdir()) + 1).touch()
    (problem,) = verify(paths)
    assert problem.reason.startswith("empty: a writer claimed the number and died")


def test_runs_that_are_missing_or_changed(paths: StorePaths) -> None:
    first, second = sorted(paths.runs.glob("*.json"))
    first.unlink()
    raw = json.loads(second.read_text())
    raw["config"]["stride"] = 4
    second.write_bytes(sealed(raw))
    one, other = verify(paths)
    assert (one.file, one.reason) == (f"runs/{first.name}", "missing")
    assert "its configuration is that of run pi0-" in other.reason
    (paths.runs / "third.json").write_text("[]")
    register_run(paths, "third")
    assert "JSON object" in list(verify(paths))[2].reason


def test_the_marker(paths: StorePaths) -> None:
    (paths.root / MARKER).write_text("{}")
    (problem,) = verify(paths)
    assert (problem.file, problem.run) == (MARKER, None)
    (paths.root / MARKER).unlink()
    (problem,) = verify(paths)
    assert str(problem).startswith(f"{MARKER}: ")


def test_only_the_latest_revision_counts(paths: StorePaths) -> None:
    commit = next(all_commits(paths))
    write_episode(
        paths,
        str(commit.summary["name"]),
        run_seed=0 if commit.run == _run(paths, "success/b") else 1,
        replace=True,
        **SMALL,
    )
    shutil.rmtree(commit.directory(paths))
    assert list(verify(paths)) == []


def _run(paths: StorePaths, name: str) -> str:
    return next(c.run for c in all_commits(paths) if c.summary["name"] == name)


def test_a_selection_checks_only_that(paths: StorePaths) -> None:
    for commit in all_commits(paths):
        (commit.directory(paths) / "sinks.parquet").unlink()
    runs = sorted({c.run for c in all_commits(paths)})
    assert len(list(verify(paths))) == 3
    assert [p.run for p in verify(paths, run=runs[0])] == [runs[0]] * len(
        committed_names(paths, runs[0])
    )
    assert [p.episode for p in verify(paths, episode="success/a")] == ["success/a"] * 2
    commit = next(c for c in all_commits(paths) if c.summary["name"] == "success/b")
    assert latest_commit(paths, commit.run, commit.episode) == commit
    assert len(list(verify(paths, commit.run, commit.episode))) == 1
    with pytest.raises(NotFoundError, match="nothing is committed for episode 'nothing'"):
        list(verify(paths, episode="nothing"))
    with pytest.raises(NotFoundError, match="run 'nothing'"):
        list(verify(paths, run="nothing"))

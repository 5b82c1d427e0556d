from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from checkout import CHECKOUT, FIXTURES
from store_fixtures import write_episode

import attnstore.store as package
from attnstore.store.commits import (
    MARKER,
    Attempt,
    Commit,
    StorePaths,
    all_commits,
    check_id,
    check_relative,
    give_up_entry,
    latest_commit,
    log,
    read_commits,
    slug,
    unreadable_entries,
)
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import load_run, run_ids
from attnstore.store.commits.verify import verify
from attnstore.store.errors import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    UnsupportedFormatError,
    UsageError,
)
from attnstore.store.garbage import collect
from attnstore.store.opening import create_store, open_store

KILLS = 6
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(FIXTURES), str(Path(__file__).parent)]),
}

PUBLISHER = """
import sys, time
from pathlib import Path
from attnstore.store.commits import Attempt
from attnstore.store.errors import ConflictError
from attnstore.store.opening import open_store

root, name, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
paths = open_store(root)
for i in range(rounds):
    attempt = Attempt(paths, "run", f"episode-{i}", "base")
    (attempt.path / "data").write_text(name)
    (root.parent / f"ready-{i}-{name}").touch()
    while not (root.parent / f"go-{i}").exists():
        pass
    try:
        attempt.publish({"name": name}, after=0)
    except ConflictError:
        print("lost", i)
    else:
        print("won", i)
"""

WRITER = """
import sys
from itertools import count
from pathlib import Path
from attnstore.store.opening import open_store
from store_fixtures import write_episode

paths, worker = open_store(Path(sys.argv[1])), int(sys.argv[2])
for i in count():
    write_episode(paths, f"{worker}/{i}", seed=i, keyframes=2, layers=1, heads=1, grid=(2, 2))
    print(i, flush=True)
"""


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    return create_store(tmp_path / "toy.attn")


def commit_text(paths: StorePaths, text: str = "x", episode: str = "e") -> Any:
    attempt = Attempt(paths, "run", episode, "base")
    (attempt.path / "data").write_text(text)
    return attempt.publish({"name": text})


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=CHECKOUT
    )


def test_a_commit_is_read_back_as_it_was_written(paths: StorePaths) -> None:
    commit = commit_text(paths)
    assert latest_commit(paths, "run", "e") == commit
    assert [(f.path, f.size) for f in commit.files] == [("data", 1)]
    assert list(all_commits(paths)) == [commit]


def test_one_of_many_concurrent_publishers_wins(paths: StorePaths, tmp_path: Path) -> None:
    rounds, names = 8, ["a", "b", "c", "d"]
    processes = [start(PUBLISHER, paths.root, name, rounds) for name in names]
    for i in range(rounds):
        while not all((tmp_path / f"ready-{i}-{name}").exists() for name in names):
            assert all(p.poll() in (None, 0) for p in processes)
            time.sleep(0.001)
        (tmp_path / f"go-{i}").touch()
    outcomes = [p.communicate(timeout=60)[0].splitlines() for p in processes]
    for i in range(rounds):
        winners = [n for n, lines in zip(names, outcomes, strict=True) if lines[i] == f"won {i}"]
        commit = latest_commit(paths, "run", f"episode-{i}")
        assert commit is not None
        assert winners == [commit.summary["name"]]
        assert commit.revision == 1
        assert (commit.directory(paths) / "data").read_text() == winners[0]
    assert not list(paths.log.glob(".tmp-*"))


def test_the_highest_revision_wins_and_a_stale_writer_loses(paths: StorePaths) -> None:
    commit_text(paths, "first")
    late = Attempt(paths, "run", "e", "base")
    second = commit_text(paths, "second")
    assert second.revision == 2
    with pytest.raises(ConflictError, match="revision 2 was committed by another writer"):
        late.publish({}, after=1)
    assert latest_commit(paths, "run", "e") == second


@pytest.mark.slow
def test_killed_writers_leave_only_whole_commits(paths: StorePaths) -> None:
    rng = random.Random(20250101)
    said: set[str] = set()
    for kill in range(KILLS):
        process = start(WRITER, paths.root, kill)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(rng.uniform(0, 0.5))
        # While it is being killed, readers go on.
        assert not list(verify(paths))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=30)
        said |= {f"{kill}/{line}" for line in (first + rest).split()}
    commits = list(all_commits(paths))
    assert not list(verify(paths))
    assert said <= {str(c.summary["name"]) for c in commits}, "what was said to be committed, is"
    assert len(commits) >= KILLS
    unfinished = set(paths.data.glob("*/*/*.*")) - {c.directory(paths) for c in commits}
    assert unfinished, "no kill hit a writer at work: the test shows nothing"
    for commit in commits:
        part = Part(paths, commit)
        assert part.attention("prefix", (slice(None),)).shape[0] == len(part.spec.frames)
        assert part.table("head_stats").num_rows > 0
    write_episode(paths, "0/0-again", keyframes=1)
    assert len(list(all_commits(paths))) == len(commits) + 1


def test_an_empty_torn_commit_is_ignored(paths: StorePaths) -> None:
    first = commit_text(paths)
    paths.entry(2).touch()
    assert latest_commit(paths, "run", "e") == first
    third = commit_text(paths, "third")
    assert latest_commit(paths, "run", "e") == third
    assert paths.entry(3).is_file()
    ((file, reason),) = unreadable_entries(paths)
    assert (file, reason.partition(":")[0]) == ("commits/log/0000000002.json", "empty")


def test_a_damaged_commit_is_an_error_and_not_an_older_revision(paths: StorePaths) -> None:
    commit_text(paths)
    commit_text(paths)
    other = commit_text(paths, "other", "another")
    file = paths.entry(2)
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    log._logs.clear()  # as another process sees it
    with pytest.raises(
        IntegrityError, match=r"0000000002\.json: not JSON.*attnstore remove --entry 2"
    ):
        latest_commit(paths, "run", "e")
    assert latest_commit(paths, "run", "another") == other, "the others are not affected"
    assert list(all_commits(paths)) == [other]
    file.write_bytes(whole)
    assert len(list(all_commits(paths))) == 2, "put back, it counts again"
    file.write_bytes(whole[:100])
    log._logs.clear()
    give_up_entry(paths, 2)
    first = latest_commit(paths, "run", "e")
    assert first is not None
    assert first.revision == 1
    assert unreadable_entries(paths) == []
    with pytest.raises(UsageError, match="not one of the entries that cannot be read"):
        give_up_entry(paths, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", "../other"),
        ("episode", ".."),
        ("part", "base/../.."),
        ("attempt", "../../../etc"),
        ("attempt", "a/b"),
        ("revision", "first"),
        ("summary", None),
        ("files", [["../../secret", 1, "0"]]),
        ("files", [["/etc/passwd", 1, "0"]]),
        ("files", [["a\\..\\b", 1, "0"]]),
        ("files", [["", 1, "0"]]),
        ("files", [["a"]]),
    ],
)
def test_ids_and_paths_that_leave_the_store_are_refused(
    paths: StorePaths, field: str, value: object
) -> None:
    commit_text(paths)
    file = paths.entry(1)
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    assert not [c for c in all_commits(paths) if c.attempt == value or c.revision == value]
    bad = [c for _, c in read_commits(paths) if not isinstance(c, Commit)]
    assert bad or unreadable_entries(paths)
    if not isinstance(value, str) or value == "first":  # else it is of no part, or of another one
        with pytest.raises(IntegrityError, match="0000000001"):
            latest_commit(paths, "run", "e")


@pytest.mark.parametrize("value", ["", ".", "..", "a/b", "/a", "-a", "a\0", "ä", "x" * 200, "a\n"])
def test_unsafe_ids(value: str, paths: StorePaths) -> None:
    with pytest.raises(IntegrityError, match="episode id must match"):
        check_id(value, "episode id")
    with pytest.raises(IntegrityError):
        Attempt(paths, "run", value, "base")


@pytest.mark.parametrize("value", ["", "/a", "../a", "a/../../b", "a\\b", "a\0b"])
def test_unsafe_relative_paths(value: str) -> None:
    with pytest.raises(IntegrityError):
        check_relative(value)


def test_slugs_are_safe_and_tell_names_apart() -> None:
    names = ["a/b", "c/b", "b", "b ", "B", "ü", "..", "a/..", "", "x" * 300, "con\nb"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    for each in slugs:
        check_id(each, "episode id")


def test_gc_and_a_late_writer_never_both_go_on(paths: StorePaths) -> None:
    """gc claims an attempt by deleting attempt.json; its writer notices before and after."""
    attempt = Attempt(paths, "run", "e", "base")
    (attempt.path / "data").write_text("x")
    (attempt.path / "attempt.json").unlink()
    with pytest.raises(ConflictError, match="gc takes attempts"):
        attempt.publish({})
    assert latest_commit(paths, "run", "e") is None


def test_create_store_never_takes_over_a_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"is not empty and has no attnstore\.json"):
        create_store(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        create_store(tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_create_store_opens_one_that_is_there(paths: StorePaths) -> None:
    marker = (paths.root / MARKER).read_bytes()
    assert create_store(paths.root) == paths
    assert (paths.root / MARKER).read_bytes() == marker


def test_a_newer_major_format_is_refused(paths: StorePaths) -> None:
    marker = json.loads((paths.root / MARKER).read_text())
    marker["format"]["minor"] = 99
    (paths.root / MARKER).write_text(json.dumps(marker))
    open_store(paths.root)
    marker["format"]["major"] = 2
    (paths.root / MARKER).write_text(json.dumps(marker))
    for opening in (open_store, create_store):
        with pytest.raises(
            UnsupportedFormatError,
            match="has format version 2; this attnstore reads up to 1: pip install --upgrade",
        ):
            opening(paths.root)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": {"major": "x"}}'])
def test_a_damaged_marker_is_an_integrity_error(paths: StorePaths, text: str) -> None:
    (paths.root / MARKER).write_text(text)
    with pytest.raises(IntegrityError, match=r"attnstore\.json"):
        open_store(paths.root)


def test_what_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such directory"):
        open_store(tmp_path / "nothing")
    with pytest.raises(NotFoundError, match=r"it has no attnstore\.json"):
        open_store(tmp_path)


def test_runs_are_resumed_by_their_configuration(paths: StorePaths) -> None:
    first = write_episode(paths, "a", keyframes=1)
    second = write_episode(paths, "b", keyframes=1)
    other = write_episode(paths, "a", keyframes=1, run_seed=1)
    assert first.run == second.run != other.run
    assert run_ids(paths) == sorted({first.run, other.run})
    config, provenance = load_run(paths, first.run)
    assert config.id == first.run
    assert provenance["host"] == "test"
    with pytest.raises(NotFoundError, match=f"has no run 'nothing'; it has: .*{first.run}"):
        load_run(paths, "nothing")


def test_a_finished_store_has_no_garbage(paths: StorePaths) -> None:
    write_episode(paths, "a", keyframes=1)
    collected = collect(paths)
    assert collected.bytes == 0
    assert collected.attempts == collected.revisions == collected.temporary == ()


def test_the_public_names_are_sorted_and_exist() -> None:
    assert package.__all__ == sorted(package.__all__, key=_isort_style)
    assert set(package._HOME) == set(package.__all__)
    for name in package.__all__:
        value = getattr(package, name)
        assert value.__module__.startswith("attnstore.store.")
        assert value.__name__ == name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def _isort_style(name: str) -> tuple[bool, str]:
    return name[0].islower(), name

"""A current catalog is opened without a look at the commits, and no change escapes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from store_fixtures import write_episode

import attnstore
from attnstore.store import catalog as module
from attnstore.store import catalog_stamp
from attnstore.store.catalog import connect, generations, rebuild, refresh
from attnstore.store.catalog.changes import changes_since
from attnstore.store.catalog_stamp import stamp_path
from attnstore.store.commits import Attempt, Commit, StorePaths
from attnstore.store.commits.garbage import collect
from attnstore.store.errors import ConflictError
from attnstore.store.opening import create_store
from attnstore.store.pending import PREFIX, pending

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
SMALL: dict[str, Any] = {"keyframes": 1, "layers": 1, "heads": 1, "steps": 1, "grid": (2, 2)}
TICK = 0.05
Parts = set[tuple[str, str, str, int]]
"""(run, episode, part, revision)"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = create_store(tmp_path_factory.mktemp("stamp") / "toy.attn")
    for name in "ab":
        write_episode(paths, name, **SMALL)
    return paths.root


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per scan of the commits."""
    seen: list[int] = []
    scan = changes_since

    def counted(*arguments: Any) -> Any:
        seen.append(1)
        return scan(*arguments)

    monkeypatch.setattr(module, "changes_since", counted)
    return seen


@pytest.fixture
def paths(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorePaths:
    """A store whose catalog is trusted; ticks are short, so that tests need not wait."""
    monkeypatch.setattr(catalog_stamp, "RACY", int(TICK * 1e9))
    paths = StorePaths(shutil.copytree(template, tmp_path / "toy.attn"))
    settle(paths)
    return paths


def settle(paths: StorePaths) -> None:
    refresh(paths)
    time.sleep(2 * TICK)
    refresh(paths)


def shown(paths: StorePaths) -> Parts:
    with connect(paths) as connection:
        return set(connection.sql("SELECT run, episode, part, revision FROM commits").fetchall())


def expected(paths: StorePaths) -> Parts:
    """What the commit files say, without any code of the store."""
    found: dict[tuple[str, str, str], int] = {}
    for file in paths.commits.glob("*/*/*/*.json"):
        key = file.parts[-4], file.parts[-3], file.parts[-2]
        found[key] = max(found.get(key, 0), int(file.stem))
    return {(*key, revision) for key, revision in found.items()}


def marks(paths: StorePaths) -> list[Path]:
    return list(paths.commits.glob(f"{PREFIX}*"))


def test_a_current_catalog_needs_no_scan(paths: StorePaths, scans: list[int]) -> None:
    for _ in range(3):
        assert shown(paths) == expected(paths)
        assert len(refresh(paths).path.read_bytes())
    assert attnstore.open(paths.root).sql("SELECT count(*) FROM episodes").fetchall() == [(2,)]
    assert scans == []
    with connect(paths) as connection:
        assert connection.sql("SELECT count(*) FROM head_stats").fetchall() > [(0,)]


def test_with_the_ticks_of_real_file_systems(
    template: Path, tmp_path: Path, scans: list[int]
) -> None:
    paths = StorePaths(shutil.copytree(template, tmp_path / "toy.attn"))
    assert shown(paths) == expected(paths)
    assert not list(paths.catalog.glob("*.stamp")), "the commits are too young to be sure"
    time.sleep(2.1)
    shown(paths)
    assert stamp_path(generations(paths)[-1].path).exists()
    scans.clear()
    assert shown(paths) == expected(paths)
    assert scans == []


def new_episode(paths: StorePaths) -> None:
    write_episode(paths, "new", **SMALL)


def new_run(paths: StorePaths) -> None:
    write_episode(paths, "a", run_seed=1, **SMALL)


def new_revision(paths: StorePaths) -> None:
    write_episode(paths, "a", replace=True, **SMALL)


def new_part(paths: StorePaths) -> None:
    (run,) = (d.name for d in paths.commits.iterdir())
    episode = sorted((paths.commits / run).iterdir())[0].name
    Attempt(paths, run, episode, "probe-x").publish({})


def removed_episode(paths: StorePaths) -> None:
    shutil.rmtree(sorted(paths.commits.glob("*/a-*"))[0])


def removed_run(paths: StorePaths) -> None:
    shutil.rmtree(next(paths.commits.iterdir()))


def exchanged_folder(paths: StorePaths) -> None:
    """As a copy that keeps times would do it."""
    (run,) = paths.commits.iterdir()
    status = run.stat(), paths.commits.stat()
    removed_episode(paths)
    for directory, times in zip((run, paths.commits), status, strict=True):
        os.utime(directory, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = [
    new_episode,
    new_run,
    new_revision,
    new_part,
    removed_episode,
    removed_run,
    exchanged_folder,
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(
    paths: StorePaths, scans: list[int], change: Callable[[StorePaths], None]
) -> None:
    before = shown(paths)
    assert scans == []
    change(paths)
    assert shown(paths) == expected(paths) != before
    settle(paths)
    scans.clear()
    assert shown(paths) == expected(paths)
    assert scans == [], "and the new generation is trusted as the old one was"
    assert marks(paths) == []


def test_a_run_without_episodes_is_noticed(paths: StorePaths) -> None:
    write_episode(paths, "a", run_seed=1, **SMALL)
    shutil.rmtree(sorted(paths.commits.iterdir())[0])
    settle(paths)
    next(paths.runs.glob("*.json")).unlink()
    with connect(paths) as connection:
        assert connection.sql("SELECT count(*) FROM runs").fetchall() == [(1,)]


@pytest.mark.parametrize("change", [new_episode, new_revision, new_part])
def test_changes_within_one_tick_are_not_missed(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch, change: Callable[[StorePaths], None]
) -> None:
    """On a file system with coarse times, a scan between two commits sees the same times twice."""
    real = catalog_stamp._times_of
    monkeypatch.setattr(catalog_stamp, "RACY", 2_000_000_000)
    monkeypatch.setattr(catalog_stamp, "_times_of", lambda directory: real(directory)[:1])
    tick = time.time_ns() + 60_000_000_000  # however slow this machine is, it does not end

    def same_tick() -> None:
        for directory in (paths.runs, paths.commits, *paths.commits.iterdir()):
            os.utime(directory, ns=(tick, tick))

    write_episode(paths, "first", **SMALL)
    same_tick()
    before = shown(paths)
    change(paths)
    same_tick()
    assert shown(paths) == expected(paths) != before


KILLED = """
import os, sys
from pathlib import Path
from attnstore.store import commit
from attnstore.store.opening import open_store

when, run, episode = sys.argv[2:]
create = commit.create_exclusive

def dying(path, value):
    if when == "after":
        create(path, value)
    os.kill(os.getpid(), 9)

attempt = commit.Attempt(open_store(Path(sys.argv[1])), run, episode, "probe-x")
commit.create_exclusive = dying
attempt.publish({})
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_that_is_killed_leaves_its_mark(
    paths: StorePaths, scans: list[int], when: str
) -> None:
    ((run, episode),) = [f.parts[-2:] for f in paths.commits.glob("*/a-*")]
    command = [sys.executable, "-c", KILLED, str(paths.root), when, run, episode]
    assert subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=False).returncode == -9
    (mark,) = marks(paths)
    for _ in range(3):
        settle(paths)
        scans.clear()
        assert shown(paths) == expected(paths)
        assert scans, "while somebody may be committing, only the commits tell"
    assert any(part == "probe-x" for _, _, part, _ in shown(paths)) == (when == "after")
    collect(paths)
    collect(paths, timedelta(0))
    assert mark.exists(), "it may be of a moment ago"
    then = time.time() - 48 * 3600
    for each in (mark, *paths.data.glob(f"{run}/{episode}/probe-x.*"), *paths.data.rglob("*.json")):
        os.utime(each, (then, then))
    relative = mark.relative_to(paths.root).as_posix()
    assert relative in collect(paths, timedelta(0), dry_run=True).temporary
    assert mark.exists()
    assert relative in collect(paths, timedelta(0)).temporary
    assert not mark.exists()
    settle(paths)
    scans.clear()
    assert shown(paths) == expected(paths)
    assert scans == []


def test_the_mark_of_a_living_writer_stays(paths: StorePaths) -> None:
    attempt = Attempt(paths, "run", "e", "base")
    mark = paths.commits / f"{PREFIX}{attempt.id}"
    foreign = paths.commits / f"{PREFIX}0123456789ab"
    for each in (mark, foreign, attempt.path / "attempt.json", attempt.path):
        each.touch()
        os.utime(each, (0, 0))
    collected = collect(paths)
    assert marks(paths) == [mark], "its process lives; nobody owns the other"
    assert foreign.relative_to(paths.root).as_posix() in collected.temporary


def test_a_mark_that_gc_took_is_made_up_for(paths: StorePaths) -> None:
    with pending(paths.commits, "0123456789ab"):
        marks(paths)[0].unlink()
        settle(paths)
        before = paths.commits.stat().st_mtime_ns
        file = next(paths.commits.glob("*/a-*/base/000001.json"))
        content = json.loads(file.read_text())
        file.with_name("000002.json").write_text(json.dumps({**content, "revision": 2}))
    assert paths.commits.stat().st_mtime_ns > before
    assert shown(paths) == expected(paths)


def test_a_commit_that_is_refused_leaves_no_mark(paths: StorePaths) -> None:
    ((run, episode),) = [f.parts[-2:] for f in paths.commits.glob("*/a-*")]
    attempt = Attempt(paths, run, episode, "base")
    with pytest.raises(ConflictError):
        attempt.publish({}, after=0)
    assert marks(paths) == []
    assert shown(paths) == expected(paths)


def test_gc_between(paths: StorePaths, scans: list[int]) -> None:
    first = generations(paths)[-1]
    for _ in range(3):
        new_revision(paths)
        settle(paths)
    then = time.time() - 48 * 3600
    for file in paths.commits.glob("*/*/*/*.json"):
        os.utime(file, (then, then))
    assert stamp_path(first.path).exists()
    orphan = paths.catalog / "catalog-000000.stamp"
    orphan.touch()
    collected = collect(paths)
    assert len(collected.revisions) == 3
    kept = [g.path for g in generations(paths)]
    assert sorted(paths.catalog.iterdir()) == sorted([*kept, *map(stamp_path, kept)])
    assert shown(paths) == expected(paths)


def as_garbage(file: Path) -> None:
    file.write_bytes(b"\xff{")


def as_another_object(file: Path) -> None:
    file.write_text('{"times": 3}')


def as_nothing(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("spoil", [as_garbage, as_another_object, as_nothing])
def test_a_damaged_stamp_is_written_again(
    paths: StorePaths, scans: list[int], spoil: Callable[[Path], None]
) -> None:
    stamp = stamp_path(generations(paths)[-1].path)
    content = stamp.read_bytes()
    spoil(stamp)
    assert shown(paths) == expected(paths)
    assert len(scans) == 1
    assert stamp.read_bytes() == content
    shown(paths)
    assert len(scans) == 1
    assert not list(paths.catalog.glob(".tmp-*"))


def test_a_stamp_belongs_to_its_generation(paths: StorePaths) -> None:
    """Not to an older one that somebody put in its place."""
    (first,) = generations(paths)
    old = first.path.read_bytes()
    first.path.unlink()
    new_episode(paths)
    settle(paths)
    assert generations(paths) == [first]
    first.path.write_bytes(old)
    assert shown(paths) == expected(paths)


def test_rebuild_is_trusted_at_once(paths: StorePaths, scans: list[int]) -> None:
    rebuild(paths)
    scans.clear()
    assert shown(paths) == expected(paths)
    assert scans == []


def test_a_file_system_without_times_of_directories(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some that imitate object stores: the time is that of mounting."""
    paths = StorePaths(shutil.copytree(template, tmp_path / "toy.attn"))
    monkeypatch.setattr(catalog_stamp, "_times_of", lambda directory: [1, 1])
    before: Parts = set()
    for name in "cde":
        write_episode(paths, name, **SMALL)
        assert before < shown(paths) == expected(paths)
        before = shown(paths)
    assert not list(paths.catalog.glob("*.stamp"))


def test_a_store_that_cannot_be_stamped_is_scanned(
    paths: StorePaths, scans: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    stamp_path(generations(paths)[-1].path).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert shown(paths) == expected(paths)
        patch.setattr(Path, "touch", full)
        assert shown(paths) == expected(paths)
    assert len(scans) == 2
    assert not list(paths.catalog.glob("*.stamp"))
    assert not list(paths.catalog.glob(".tmp-*"))


WRITER = """
import sys
from pathlib import Path
from attnstore.store.commits import Attempt
from attnstore.store.opening import open_store

paths = open_store(Path(sys.argv[1]))
for _ in range(int(sys.argv[4])):
    print(Attempt(paths, sys.argv[2], sys.argv[3], "probe-x").publish({}).revision, flush=True)
"""


def test_readers_beside_a_writer_never_fall_behind(paths: StorePaths) -> None:
    """A connection shows at least what was committed before it was asked for."""
    ((run, episode),) = [f.parts[-2:] for f in paths.commits.glob("*/a-*")]
    command = [sys.executable, "-c", WRITER, str(paths.root), run, episode, "20"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            revisions = {part: r for _, e, part, r in shown(paths) if e == episode}
            assert revisions["probe-x"] >= int(line)
    assert process.returncode == 0
    assert revisions["probe-x"] == 20


def test_a_mark_is_no_run(paths: StorePaths) -> None:
    (paths.commits / f"{PREFIX}0123456789ab").mkdir()
    commits: list[Commit] = list(attnstore.open(paths.root).commits())
    assert len(commits) == 2

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkout import CHECKOUT, FIXTURES
from click.testing import CliRunner
from store_fixtures import flip_byte, run_config, sealed, write_episode

import attnstore
import attnstore.store.catalog.generations
from attnstore.cli import cli
from attnstore.query.service.sql.sandbox import open_catalog
from attnstore.query.sql.chosen import choose
from attnstore.store.catalog import Generation, connect, generations, rebuild, refresh
from attnstore.store.catalog.committed_files import _Reader
from attnstore.store.catalog.foreign import attach_vetted
from attnstore.store.catalog.rows import all_layers, catalog_part
from attnstore.store.catalog.tables import CATALOG, COPIED, VIEWED
from attnstore.store.commits import (
    Attempt,
    Commit,
    StorePaths,
    all_commits,
    log_of,
    register_run,
    remove_part,
)
from attnstore.store.commits.entry import sealed as sealed_entry
from attnstore.store.commits.run import load_run, run_ids, save_run
from attnstore.store.errors import (
    IntegrityError,
    PartialError,
    UnsupportedFormatError,
    UsageError,
)
from attnstore.store.opening import create_store
from attnstore.store.tables.inventory import ALL_TABLES, TABLES
from attnstore.store.tables.ledger import LEDGER

module = sys.modules["attnstore.store.catalog.generations"]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(FIXTURES), str(Path(__file__).parent)]),
}
SMALL: dict[str, Any] = {"keyframes": 1, "layers": 1, "heads": 1, "steps": 1, "grid": (2, 2)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small episodes in two runs, without a catalog."""
    paths = create_store(tmp_path_factory.mktemp("catalog") / "toy.attn")
    for i in range(3):
        write_episode(paths, f"success/day one/{i}", "success", i, **SMALL)
    write_episode(paths, "failure/x", "failure", 9, run_seed=1, **SMALL)
    return paths.root


@pytest.fixture
def paths(template: Path, tmp_path: Path) -> StorePaths:
    # Characters that mean something to SQL, to globs, and to Hive partitioning.
    return StorePaths(shutil.copytree(template, tmp_path / "it's=[a] *.attn"))


def newest_entry(paths: StorePaths) -> Path:
    return max(paths.log.glob("*.json"))


def names(paths: StorePaths) -> list[str]:
    with connect(paths) as connection:
        return [n for (n,) in connection.sql("SELECT name FROM episodes ORDER BY ALL").fetchall()]


def assert_same(one: Generation, other: Generation) -> None:
    """Table by table, whatever the order of the rows."""
    with duckdb.connect() as connection:
        for name, generation in (("one", one), ("other", other)):
            attach_vetted(connection, generation.path, name, layers=generation.layers)
        tables = connection.sql("SELECT table_name FROM duckdb_tables()").fetchall()
        assert {t for (t,) in tables} == {*CATALOG, *COPIED, "generation", "layers", "gone"}
        for table in (*CATALOG, *COPIED):
            for a, b in (("one", "other"), ("other", "one")):
                rows = {
                    name: all_layers(connection, table, name)
                    if table in COPIED
                    else f"FROM {name}.main.{table}"
                    for name in (a, b)
                }
                more = f"({rows[a]}) EXCEPT ALL ({rows[b]})"
                assert connection.sql(more).fetchall() == [], f"{table}: only in {a}"


def test_every_table_is_there_with_its_columns(paths: StorePaths) -> None:
    with connect(paths) as connection:
        shown = {name for (name,) in connection.sql("SHOW TABLES").fetchall()}
        assert shown == {*CATALOG, *ALL_TABLES, "ledger", "standing_steps"}
        for name, table in {**CATALOG, **TABLES}.items():
            assert connection.table(name).columns == [c.name for c in table.columns]
            if name != "unreadable":
                assert connection.sql(f"FROM {name}").fetchall()


def test_no_column_needs_quotes(paths: StorePaths) -> None:
    with connect(paths) as connection:
        for name, table in {**CATALOG, **TABLES}.items():
            for column in (c.name for c in table.columns):
                found = connection.sql(
                    f"SELECT {column}, {name}.{column} FROM {name} WHERE {column} IS NOT NULL "
                    f"GROUP BY {column} ORDER BY {column}"
                )
                # a keyword would be a function or a constant instead of the column
                assert found.columns == [column, column], (name, column)
                quoted = connection.sql(f'SELECT "{column}" FROM {name}')
                assert found.types == quoted.types * 2, (name, column)


def test_what_an_episode_row_says(paths: StorePaths) -> None:
    commit = write_episode(paths, "new", "unknown", **SMALL)
    with connect(paths) as connection:
        relation = connection.sql("FROM episodes WHERE name = 'new'")
        row = dict(zip(relation.columns, relation.fetchall()[0], strict=True))
        assert row.pop("committed").isoformat(timespec="milliseconds") + "+00:00" == commit.created
        assert row == {
            "run": commit.run,
            "episode": commit.episode,
            "name": "new",
            "outcome": "unknown",
            "instruction": "put the cube in the bowl",
            "task": "cube",
            "date": "2025-01-01",
            "rate": 15.0,
            "frames": 8,
            "keyframes": 1,
            "precision": "float16",
            "revision": 1,
            "attempt": commit.attempt,
            "bytes": sum(f.size for f in commit.files),
        }
        policy, cameras, provenance = connection.sql(
            f"SELECT policy, cameras, provenance FROM runs WHERE run = '{commit.run}'"
        ).fetchall()[0]
        assert (policy, cameras) == ("pi0", ["hand_camera", "varied_camera_1"])
        assert json.loads(provenance) == {"host": "test", "code": "0"}


def test_views_show_the_rows_of_the_files(paths: StorePaths) -> None:
    with connect(paths) as connection:
        for name in set(VIEWED) & set(TABLES):
            files = paths.data.glob(f"*/*/*/{name}.parquet")
            tables = pa.concat_tables(pq.ParquetFile(file).read() for file in files)
            order = [(c, "ascending") for c in ("run", "episode", "keyframe", "camera")]
            keys = [k for k in ("phase", "layer", "head") if k in tables.column_names]
            order += [(k, "ascending") for k in keys]
            found = connection.table(name).to_arrow_table()
            assert found.num_rows > 0
            for one, other in zip(
                found.sort_by(order).to_pylist(), tables.sort_by(order).to_pylist(), strict=True
            ):
                assert repr(one) == repr(other)
        rows = connection.sql(
            "SELECT name, count(*) FROM head_stats JOIN episodes USING (run, episode) GROUP BY ALL"
        ).fetchall()
        assert len(rows) == 4


def test_a_filter_on_the_episode_opens_that_file_only(paths: StorePaths) -> None:
    with connect(paths) as connection:
        ((episode,),) = connection.sql(
            "SELECT episode FROM episodes ORDER BY run, episode LIMIT 1"
        ).fetchall()
        for file in paths.data.glob("*/*/*/head_stats.parquet"):
            if file.parts[-3] != episode:
                os.truncate(file, 0)
        # The first file in order gives the schema, so it has to be the one.
        count = connection.sql(f"SELECT count(*) FROM head_stats WHERE episode = '{episode}'")
        assert count.fetchall() > [(0,)]
        with pytest.raises(duckdb.Error):
            connection.sql("SELECT max(entropy) FROM head_stats").fetchall()


def test_nothing_to_do_makes_no_generation(paths: StorePaths) -> None:
    first = refresh(paths)
    stat = first.path.stat()
    assert refresh(paths) == first
    with connect(paths):
        pass
    assert generations(paths) == [first]
    assert (first.path.stat().st_mtime_ns, first.path.stat().st_ino) == (
        stat.st_mtime_ns,
        stat.st_ino,
    )
    others = {p.name for p in paths.catalog.iterdir()} - {"catalog-000001.duckdb"}
    assert others == {"newest.json"}


def other_part(paths: StorePaths, base: Commit, part: str) -> Commit:
    """A part that brings rows of a table that the base part has, too."""
    attempt = Attempt(paths, base.run, base.episode, part)
    table = base.directory(paths) / "keyframes.parquet"
    shutil.copyfile(table, attempt.path / "keyframes.parquet")
    return attempt.publish({})


@pytest.mark.parametrize("layer", [1_000_000, 0])
def test_incremental_equals_rebuilt(
    paths: StorePaths, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happened to the store, table by table; each generation a copy, or a layer of the next."""
    monkeypatch.setattr(module, "LAYER", layer)
    rng = random.Random(4)
    refresh(paths)
    base = write_episode(paths, "with parts", "success", 1, **SMALL)
    steps = 6 if layer else 5
    for step in range(steps):
        what = step if step < 5 else rng.randrange(5)
        if what == 0:
            write_episode(paths, f"added {step}", "failure", step, **SMALL)
        elif what == 1:
            write_episode(paths, "success/day one/1", "failure", 50 + step, replace=True, **SMALL)
        elif what == 2:
            other_part(paths, base, f"probe-{step}")
        elif what == 3:
            write_episode(paths, f"new run {step}", run_seed=step, **SMALL)
        else:
            commits = [c for c in all_commits(paths) if not c.episode.startswith("with")]
            remove_part(paths, rng.choice(commits).key)
        generation = refresh(paths)
        copy = StorePaths(shutil.copytree(paths.root, paths.root.parent / f"copy {step}"))
        for old in generations(copy):
            old.path.unlink()
        assert_same(generation, rebuild(copy))
        assert bool(generation.layers) == (layer == 0)
    assert len(generations(paths)) == steps + 1


def test_layers_that_are_lost_are_made_anew(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LAYER", 0)
    refresh(paths)
    write_episode(paths, "added", "failure", 5, **SMALL)
    (layer,) = refresh(paths).layers
    with connect(paths) as connection:
        whole = connection.sql("FROM episode_stats ORDER BY ALL").fetchall()
    assert len({row[1] for row in whole}) == 5
    layer.write_bytes(layer.read_bytes()[:5000])
    with connect(paths) as connection:
        assert connection.sql("FROM episode_stats ORDER BY ALL").fetchall() == whole
    assert "stands on what cannot be used" in caplog.text
    assert refresh(paths).layers == ()


def test_the_service_asks_a_catalog_in_layers(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB opens no file once it is locked: layers were attached before."""
    monkeypatch.setattr(module, "LAYER", 0)
    refresh(paths)
    write_episode(paths, "success/day one/1", "failure", 50, replace=True, **SMALL)
    query = "SELECT count(*) AS n, sum(entropy_mean) AS s FROM episode_stats"
    with connect(paths) as connection:
        expected = connection.sql(query).fetchall()
    connection, _ = open_catalog(paths, 1 << 30, 60.0)
    with connection:
        assert connection.sql(query).fetchall() == expected
        with pytest.raises(duckdb.Error):
            connection.execute(f"ATTACH '{paths.catalog / 'catalog-000001.duckdb'}' AS again")


def test_a_replaced_revision_takes_its_rows_along(paths: StorePaths) -> None:
    refresh(paths)
    with connect(paths) as connection:
        before = connection.sql("SELECT count(*) FROM keyframes").fetchall()
    larger = {**SMALL, "keyframes": 3}
    write_episode(paths, "success/day one/0", "failure", replace=True, **larger)
    with connect(paths) as connection:
        after = connection.sql("SELECT count(*) FROM keyframes").fetchall()
        assert (before, after) == ([(4,)], [(6,)])
        row = connection.sql(
            "SELECT outcome, revision FROM episodes WHERE name = 'success/day one/0'"
        )
        assert row.fetchall() == [("failure", 2)]
        assert connection.sql("SELECT count(*) FROM frames").fetchall() == [(12,)]


def test_an_episode_that_was_removed_and_ingested_again(paths: StorePaths) -> None:
    """The removal is a revision, and what comes again is the one after."""
    first = write_episode(paths, "again", seed=1, **SMALL)
    refresh(paths)
    assert remove_part(paths, first.key) == 2
    assert "again" not in names(paths)
    refresh(paths)
    second = write_episode(paths, "again", seed=2, **SMALL)
    with connect(paths) as connection:
        query = "SELECT attempt FROM episodes WHERE name = 'again'"
        assert connection.sql(query).fetchall() == [(second.attempt,)]
        remove_part(paths, first.key)
        third = write_episode(paths, "again", seed=3, **SMALL)
    with connect(paths) as connection:
        assert connection.sql(query).fetchall() == [(third.attempt,)]


def test_an_empty_store_has_empty_tables(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "empty.attn")
    with connect(paths) as connection:
        for name, table in {**CATALOG, **ALL_TABLES, LEDGER.name: LEDGER}.items():
            relation = connection.table(name)
            assert relation.columns == [c.name for c in table.columns]
            assert relation.fetchall() == []
        types = dict(zip(connection.table("head_stats").columns,
                         map(str, connection.table("head_stats").types), strict=True))  # fmt: skip
        assert types["mass"] == "MAP(VARCHAR, FLOAT)"
    write_episode(paths, "a", **SMALL)
    with connect(paths) as connection:
        again = connection.table("head_stats")
        assert dict(zip(again.columns, map(str, again.types), strict=True)) == types
    shutil.rmtree(paths.catalog)
    assert names(paths) == ["a"]


def spoil_with_garbage(file: Path) -> None:
    file.write_bytes(b"no database" * 1000)


def spoil_by_emptying(file: Path) -> None:
    os.truncate(file, 0)


def spoil_by_truncating(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def spoil_with_other_tables(file: Path) -> None:
    file.unlink()
    with duckdb.connect(str(file)) as connection:
        connection.execute("CREATE TABLE generation AS SELECT 'of another version' AS version")


def spoil_with_foreign_tables(file: Path) -> None:
    file.unlink()
    with duckdb.connect(str(file)) as connection:
        connection.execute("CREATE TABLE something AS SELECT 1 AS a")


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_with_garbage,
        spoil_by_emptying,
        spoil_by_truncating,
        spoil_with_other_tables,
        spoil_with_foreign_tables,
    ],
)
def test_an_unreadable_generation_is_rebuilt(paths: StorePaths, spoil: object) -> None:
    expected = names(paths)
    first = refresh(paths)
    assert callable(spoil)
    spoil(first.path)
    assert names(paths) == expected
    assert [g.number for g in generations(paths)] == [1, 2]
    refresh(paths)
    assert len(generations(paths)) == 2


def test_a_damaged_block_that_only_use_shows(paths: StorePaths) -> None:
    refresh(paths)
    (first,) = generations(paths)
    size = first.path.stat().st_size
    expected = sorted([*names(paths), "b"])
    write_episode(paths, "b", **SMALL)
    for position in range(3 * 4096, size, 64 * 1024):
        flip_byte(first.path, position + 5000)
    assert names(paths) == expected


def test_a_reader_keeps_what_it_saw(paths: StorePaths) -> None:
    reader = connect(paths)
    cursor = reader.cursor()
    query = "SELECT name, outcome, keyframes FROM episodes ORDER BY ALL"
    before = reader.sql(query).fetchall()
    rows = reader.sql("SELECT count(*) FROM head_stats").fetchall()
    for i in range(3):
        write_episode(paths, f"more {i}", **SMALL)
        write_episode(paths, "success/day one/2", "failure", i, replace=True, **SMALL)
        refresh(paths)
    for old in generations(paths)[:-2]:
        old.path.unlink()
    assert reader.sql(query).fetchall() == cursor.sql(query).fetchall() == before
    assert reader.sql("SELECT count(*) FROM head_stats").fetchall() == rows
    with connect(paths) as late:
        assert len(late.sql(query).fetchall()) == len(before) + 3
    reader.close()


REFRESHER = """
import sys, time
from pathlib import Path
from attnstore.store.catalog import connect
from attnstore.store.opening import open_store
from store_fixtures import write_episode

root, worker, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
paths = open_store(root)
for i in range(rounds):
    name = f"{worker}-{i}"
    write_episode(paths, name, keyframes=1, layers=1, heads=1, steps=1, grid=(2, 2))
    with connect(paths) as connection:
        assert connection.sql(f"FROM episodes WHERE name = '{name}'").fetchall()
"""


def test_processes_that_refresh_at_once(paths: StorePaths) -> None:
    """Each sees its own commit, none fails, and the last generation has everything."""
    workers, rounds = 3, 3
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REFRESHER, str(paths.root), str(w), str(rounds)],
            env=ENVIRONMENT,
            cwd=CHECKOUT,
        )
        for w in range(workers)
    ]
    seen = [names(paths)]
    while any(p.poll() is None for p in processes):
        seen.append(names(paths))
        time.sleep(0.1)
    assert [p.returncode for p in processes] == [0] * workers
    assert len(names(paths)) == 4 + workers * rounds
    assert all(set(a) <= set(b) for a, b in pairwise(seen))
    assert not list(paths.catalog.glob(".tmp-*"))
    incremental = refresh(paths)
    assert_same(incremental, rebuild(paths))


def test_whoever_loses_the_race_takes_the_winners(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, rivals = module._claim, [1]

    def late(temporary: Path, target: Path) -> bool:
        if rivals:
            rivals.pop()
            rebuild(paths)
        return bool(claim(temporary, target))

    monkeypatch.setattr(module, "_claim", late)
    assert refresh(paths).number == 1
    assert len(generations(paths)) == 1
    monkeypatch.undo()
    rivals.append(1)
    monkeypatch.setattr(module, "_claim", late)
    assert rebuild(paths).number == 3


def test_a_file_system_without_hard_links(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    write_episode(paths, "b", **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_link)
        assert refresh(paths).number == 1
        remove_part(paths, next(c.key for c in all_commits(paths) if c.summary["name"] == "b"))
        assert "b" not in names(paths)
    assert [g.number for g in generations(paths)] == [1, 2]


UNPRIVILEGED = """
import json, os, sys
from pathlib import Path
import pyarrow, duckdb
from attnstore.store.catalog import connect, generations, refresh
from attnstore.store.commits.run import load_run, run_ids, save_run
from attnstore.store.errors import IntegrityError, UnsupportedFormatError, UsageError
from attnstore.store.opening import open_store

if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
paths = open_store(Path(sys.argv[1]))
before = generations(paths)
with connect(paths) as connection:
    names = [n for n, in connection.sql("SELECT name FROM episodes ORDER BY name").fetchall()]
    rows = len(connection.sql("FROM head_stats").fetchall())
assert generations(paths) == before
try:
    refresh(paths)
except UsageError as error:
    print(json.dumps([names, rows, str(error)]))
"""


@pytest.fixture
def readable_by_all(template: Path) -> Iterator[StorePaths]:
    """Not below pytest's own folder, which other users cannot enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(shutil.copytree(template, Path(folder) / "toy.attn"))
        yield StorePaths(root)
        for directory in (root, *root.rglob("*")):
            directory.chmod(0o755)


@pytest.mark.parametrize("state", ["none", "old", "deleted"])
def test_a_store_that_cannot_be_written(readable_by_all: StorePaths, state: str) -> None:
    paths = readable_by_all
    if state == "old":
        refresh(paths)
        write_episode(paths, "b", **SMALL)
    elif state == "deleted":
        paths.catalog.rmdir()
    for path in (paths.root, *paths.root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(paths.root)],
        env=ENVIRONMENT, cwd=CHECKOUT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, rows, error = json.loads(done.stdout)
    assert len(found) == (5 if state == "old" else 4)
    assert ("b" in found) == (state == "old")
    assert rows > 0
    assert error.startswith(f"{paths.catalog} cannot be written: ")


def test_a_part_whose_table_is_missing_is_named_and_left_out(paths: StorePaths) -> None:
    commit = write_episode(paths, "b", **SMALL)
    (commit.directory(paths) / "sinks.parquet").unlink()
    other = write_episode(paths, "c", **SMALL)
    (other.directory(paths) / "tokens.parquet").write_bytes(b"PAR1 torn")
    with connect(paths) as connection:
        assert len(connection.sql("FROM episodes").fetchall()) == 4
        reasons = dict(connection.sql("SELECT episode, reason FROM unreadable").fetchall())
        assert set(reasons) == {commit.episode, other.episode}
        assert reasons[commit.episode].endswith("sinks.parquet is missing")
        assert "tokens.parquet" in reasons[other.episode]
        for table in COPIED:
            rows = connection.sql(f"SELECT count(*) FROM {table} WHERE episode = '{other.episode}'")
            assert rows.fetchall() == [(0,)]
    assert len(generations(paths)) == 1, "what is unreadable is known, and not tried every time"
    refresh(paths)
    assert len(generations(paths)) == 1
    write_episode(paths, "b", replace=True, **SMALL)
    with connect(paths) as connection:
        assert connection.sql("SELECT episode FROM unreadable").fetchall() == [(other.episode,)]


def left_out(paths: StorePaths) -> set[str]:
    with connect(paths) as connection:
        rows = connection.sql("SELECT coalesce(episode, run) FROM unreadable").fetchall()
        kept = {e for (e,) in connection.sql("SELECT episode FROM episodes").fetchall()}
    return {name for (name,) in rows if name not in kept}


def test_what_was_left_out_is_there_once_its_file_is(paths: StorePaths) -> None:
    one, other = (write_episode(paths, name, **SMALL) for name in ("b", "c"))
    table = one.directory(paths) / "sinks.parquet"
    whole = table.read_bytes()
    table.unlink()
    (other.directory(paths) / "tokens.parquet").write_bytes(b"PAR1 torn")
    config = paths.run_file(save_run(paths, run_config(99), {}))
    honest = config.read_bytes()
    config.write_bytes(b"{}")
    assert left_out(paths) == {one.episode, other.episode, config.stem}
    table.write_bytes(whole)
    assert left_out(paths) == {other.episode, config.stem}
    config.write_bytes(honest)
    assert left_out(paths) == {other.episode}
    with connect(paths) as connection:
        runs = connection.sql("SELECT run FROM runs").fetchall()
        assert runs.count((config.stem,)) == 1
        for name in COPIED:
            sql = f"SELECT count(*) FROM {name} WHERE episode = ?"
            ((rows,),) = connection.execute(sql, [one.episode]).fetchall()
            assert rows == pq.read_metadata(one.directory(paths) / f"{name}.parquet").num_rows
    assert len(generations(paths)) == 3


def test_a_flipped_bit_of_a_run(paths: StorePaths) -> None:
    """Each is refused, whether it is of what changes numbers or of what does not."""
    run, *others = run_ids(paths)
    file = paths.run_file(run)
    honest = file.read_bytes()
    config, provenance = load_run(paths, run)
    for place in range(len(honest)):
        damaged = bytearray(honest)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises((IntegrityError, UnsupportedFormatError)):
            load_run(paths, run)
    file.write_bytes(honest.replace(b'"stride": 8', b'"stride": 9'))
    assert file.read_bytes() != honest
    with connect(paths) as connection:
        assert connection.sql("SELECT run FROM runs ORDER BY run").fetchall() == [
            (o,) for o in others
        ]
        ((reason,),) = connection.sql("SELECT reason FROM unreadable").fetchall()
    assert reason.startswith(f"{file}: its bytes are not those that were written")
    file.write_bytes(honest)
    assert load_run(paths, run) == (config, provenance)
    with connect(paths) as connection:
        sql = f"SELECT stride, provenance FROM runs WHERE run = '{run}'"
        ((stride, made),) = connection.sql(sql).fetchall()
    created = {"created": provenance["created"]}
    assert (stride, {**json.loads(made), **created}) == (config.stride, provenance)


def test_another_release_tries_again(paths: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = write_episode(paths, "b", **SMALL)
    tried = []

    def older(*arguments: Any) -> Any:
        tried.append(arguments[1].episode)
        if arguments[1].episode == commit.episode:
            raise IntegrityError("not of my time")
        return catalog_part(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("attnstore.store.catalog.changes.catalog_part", older)
        assert left_out(paths) == {commit.episode}
        for _ in range(3):  # twice by this process, and then it knows
            assert left_out(paths) == {commit.episode}
        assert tried.count(commit.episode) == 2
    assert left_out(paths) == {commit.episode}
    monkeypatch.setattr(module, "_tried", {})  # another process
    assert left_out(paths) == set()
    assert len(generations(paths)) == 2


def test_a_store_that_cannot_be_written_is_read_as_it_is_now(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = write_episode(paths, "b", **SMALL)
    table = commit.directory(paths) / "sinks.parquet"
    whole = table.read_bytes()
    table.unlink()
    assert left_out(paths) == {commit.episode}
    table.write_bytes(whole)

    def full(*_: Any) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(module, "_publish", full)
    for _ in range(2):
        assert left_out(paths) == set()


def test_unreadable_commits_and_runs_are_named(paths: StorePaths) -> None:
    write_episode(paths, "b", **SMALL)
    file = newest_entry(paths)
    (paths.runs / "broken.json").write_text("{}")
    register_run(paths, "broken")
    other = write_episode(paths, "c", **SMALL)
    file.write_text(file.read_text()[:-100])
    log_of(paths)._forget()
    raw = newest_entry(paths)
    content = json.loads(raw.read_text())
    content["summary"]["keyframes"] = "many"
    raw.write_bytes(sealed_entry(content))
    for _ in range(2):
        with connect(paths) as connection:
            assert len(connection.sql("FROM episodes").fetchall()) == 4
            query = "SELECT coalesce(episode, run), reason FROM unreadable"
            reasons = dict(connection.sql(query).fetchall())
        assert set(reasons) == {None, other.episode, "broken"}
        assert "not JSON" in reasons[None]
        assert file.name in reasons[None]
        assert "many" in reasons[other.episode]
        assert "broken.json: no format version in it" in reasons["broken"]
    assert len(generations(paths)) == 1


def test_an_older_versions_table_is_named_wherever_episodes_are_looked_up(
    paths: StorePaths, tmp_path: Path
) -> None:
    """A column that came since is no reason to say that there are no episodes."""
    old = create_store(tmp_path / "old.attn")
    commit = write_episode(old, "success/b", **SMALL)
    file = commit.directory(old) / "tokens.parquet"
    table = pq.read_table(file).drop_columns(["action_coefficient"])
    pq.write_table(table, file)
    sealed(old, commit)
    for words in (["--episode", "b"], ["--where", "true"]):
        done = CliRunner().invoke(cli, ["pull", str(old.root), str(tmp_path / "copy"), *words])
        assert isinstance(done.exception, PartialError), done.output
        assert done.exception.exit_code == 5
        said = str(done.exception)
        assert "1 is left out, since it cannot be read" in said
        assert f"{commit.episode}/" in said
        assert "no column action_coefficient: another version of attnstore wrote it" in said
    # beside one that can be read, a name that names nothing may be it
    write_episode(old, "success/c", **SMALL)
    store = attnstore.open(old.root)
    assert [each.names for each in choose(store)] == [("success/c",)]
    with pytest.raises(PartialError, match=r"no episode 'success/b'; there are 1: success/c; 1 is"):
        choose(store, names=["success/b"])


def test_ids_come_from_the_commit_and_not_from_the_file(paths: StorePaths) -> None:
    """Else a file could put rows under another episode, where nothing would delete them."""
    foreign = write_episode(paths, "c", seed=3, **SMALL)
    commit = write_episode(paths, "b", **SMALL)
    for table in TABLES:
        shutil.copyfile(
            foreign.directory(paths) / f"{table}.parquet",
            commit.directory(paths) / f"{table}.parquet",
        )
    sealed(paths, commit)
    with connect(paths) as connection:
        for table in TABLES:
            rows = connection.sql(
                f"SELECT episode, count(*) FROM {table} "
                f"WHERE episode IN ('{commit.episode}', '{foreign.episode}') GROUP BY ALL"
            ).fetchall()
            assert len({count for _, count in rows}) == 1
            assert {episode for episode, _ in rows} == {commit.episode, foreign.episode}


def test_a_missing_store_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises((OSError, UsageError)):
        refresh(StorePaths(tmp_path / "nothing"))


def test_batches_are_joined(paths: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    one = refresh(paths)
    monkeypatch.setattr("attnstore.store.catalog.changes.BATCH", 1)
    assert_same(one, rebuild(paths))


def test_threads_that_share_a_table_read_what_they_asked_for(tmp_path: Path) -> None:
    """A seek of another thread between a seek and a read changes nothing: DuckDB's threads share handles."""
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 64)
    for shared in (_Reader(file), _Reader(file.read_bytes())):
        with shared, ThreadPoolExecutor(1) as other:
            shared.seek(7)
            other.submit(shared.seek, 1000).result()
            assert shared.read(3) == bytes((7, 8, 9))
            assert shared.tell() == 10
            assert other.submit(shared.read, 2).result() == bytes((1000 % 256, 1000 % 256 + 1))
            assert len(shared.read()) == 256 * 64 - 10
            assert shared.seek(-2, 2) == 256 * 64 - 2
            assert shared.read(9) == bytes((254, 255))

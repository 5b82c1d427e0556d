from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_fixtures import flip_byte, write_episode

import attnstore
from attnstore.query.sql.run import (
    FORMATS,
    TABLE_ROWS,
    Format,
    json_rows,
    run_query,
    write_result,
)
from attnstore.store.catalog import connect
from attnstore.store.errors import AttnstoreError, IntegrityError, UsageError
from attnstore.store.opening import create_store

EVERYTHING = """
SELECT 1 AS int, 12345678901234567890::UBIGINT AS big, 1::HUGEINT AS huge, 0.1::FLOAT AS float,
  'nan'::DOUBLE AS nan, '-inf'::FLOAT AS inf, 1.25::DECIMAL(4, 2) AS decimal,
  MAP {'text:task': 0.1::FLOAT, 'gone': NULL, 'nan': 'nan'::FLOAT} AS map, MAP {[1]: [2]} AS odd_map,
  [0.5::FLOAT, NULL, 'nan'::FLOAT] AS list, {'a': [1], 'b': NULL} AS struct,
  TIMESTAMP '2025-01-02 03:04:05.678' AS time, DATE '2025-01-02' AS date,
  '{"a": [1, null]}'::JSON AS json, '\\xFF\\xD8'::BLOB AS blob, NULL AS null, true AS bool,
  'x'::ENUM('x') AS enum, 'ü "q", line\nnext' AS text
"""
AS_JSON = {
    "int": 1, "big": 12345678901234567890, "huge": 1, "float": 0.1, "nan": None, "inf": None,
    "decimal": 1.25, "map": {"text:task": 0.1, "gone": None, "nan": None}, "odd_map": {"[1]": [2]},
    "list": [0.5, None, None], "struct": {"a": [1], "b": None}, "time": "2025-01-02T03:04:05.678000",
    "date": "2025-01-02", "json": {"a": [1, None]}, "blob": base64.b64encode(b"\xff\xd8").decode(),
    "null": None, "bool": True, "enum": "x", "text": 'ü "q", line\nnext',
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    paths = create_store(tmp_path_factory.mktemp("sql") / "toy.attn")
    write_episode(paths, "success/a", "success", 1)
    write_episode(paths, "failure/b", "failure", 2, keyframes=2)
    with connect(paths) as connection:
        yield connection


def written(connection: duckdb.DuckDBPyConnection, sql: str, format: Format) -> bytes:
    stream = io.BytesIO()
    write_result(run_query(connection, sql), format, stream)
    return stream.getvalue()


def ndjson(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    lines = written(connection, sql, "ndjson").decode().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def test_a_relation_can_be_asked_again(store: duckdb.DuckDBPyConnection) -> None:
    relation = run_query(store, "SELECT outcome, count(*) AS n FROM episodes GROUP BY ALL")
    for _ in range(2):
        assert sorted(relation.fetchall()) == [("failure", 1), ("success", 1)]
    assert relation.to_arrow_table().column_names == ["outcome", "n"]


def test_ndjson_has_every_type(store: duckdb.DuckDBPyConnection) -> None:
    (row,) = ndjson(store, EVERYTHING)
    assert row == AS_JSON


def test_csv_has_every_type(store: duckdb.DuckDBPyConnection) -> None:
    text = written(store, EVERYTHING, "csv").decode()
    names, row = csv.reader(io.StringIO(text))
    assert names == list(AS_JSON)
    for found, expected in zip(row, AS_JSON.values(), strict=True):
        nested = isinstance(expected, dict | list)
        plain = "" if expected is None else str(expected)
        assert found == (json.dumps(expected) if nested else plain)


@pytest.mark.parametrize("format", ["arrow", "parquet"])
def test_binary_formats_keep_types(store: duckdb.DuckDBPyConnection, format: Format) -> None:
    query = "FROM head_stats ORDER BY ALL"
    data = pa.BufferReader(written(store, query, format))
    table = pa.ipc.open_stream(data).read_all() if format == "arrow" else pq.read_table(data)
    assert table.schema.field("mass").type == pa.map_(pa.string(), pa.float32())
    assert table.schema.field("entropy").type == pa.float32()
    assert table.num_rows == len(run_query(store, query).fetchall())


def test_text_and_binary_formats_agree(store: duckdb.DuckDBPyConnection) -> None:
    query = "SELECT name, layer, entropy, mass FROM head_stats JOIN episodes USING (run, episode) ORDER BY ALL"
    data = pa.BufferReader(written(store, query, "arrow"))
    table = pa.ipc.open_stream(data).read_all().to_pylist()
    for one, other in zip(ndjson(store, query), table, strict=True):
        assert one["entropy"] == pytest.approx(other["entropy"], rel=1e-6)
        assert (one["name"], one["layer"]) == (other["name"], other["layer"])
        assert list(one["mass"]) == [k for k, _ in other["mass"]]


def test_a_table_for_people(store: duckdb.DuckDBPyConnection) -> None:
    query = (
        """SELECT * FROM (VALUES ('a', 1.23456789, NULL), ('日本', 20.0, [1])) t("name", x, l)"""
    )
    assert written(store, query, "table").decode().splitlines() == [
        "name        x  l",
        "----  -------  ----",
        "a     1.23457  NULL",
        "日本       20  [1]",
        "(2 rows)",
    ]


def test_a_table_is_cut_and_says_so(store: duckdb.DuckDBPyConnection) -> None:
    lines = written(store, f"SELECT * FROM range({TABLE_ROWS})", "table").decode().splitlines()
    assert (len(lines), lines[-1]) == (TABLE_ROWS + 3, f"({TABLE_ROWS} rows)")
    lines = written(store, f"SELECT * FROM range({TABLE_ROWS + 1})", "table").decode().splitlines()
    assert len(lines) == TABLE_ROWS + 3
    assert lines[-1] == f"(the first {TABLE_ROWS} rows; the other formats write all)"
    wide = written(store, "SELECT repeat('x', 1000) AS x", "table").decode().splitlines()
    assert max(map(len, wide)) == 60
    assert wide[2].endswith("…")


def test_a_cell_cannot_move_the_cursor(store: duckdb.DuckDBPyConnection) -> None:
    text = written(store, "SELECT chr(27) || '[2J' || chr(13) || chr(10) AS x", "table").decode()
    assert "\x1b" not in text
    assert r"\x1b[2J\r\n" in text


def test_every_row_is_written_once(store: duckdb.DuckDBPyConnection) -> None:
    query = "SELECT range AS i FROM range(25000) ORDER BY i"
    assert [row["i"] for row in ndjson(store, query)] == list(range(25000))
    assert written(store, query, "csv").decode().split() == ["i", *map(str, range(25000))]


def test_columns_of_one_name_all_arrive(store: duckdb.DuckDBPyConnection) -> None:
    assert ndjson(store, "SELECT 1 AS a, 2 AS a, 3 AS a_1") == [{"a": 1, "a_1": 2, "a_1_1": 3}]


@pytest.mark.parametrize("format", FORMATS)
def test_no_rows(store: duckdb.DuckDBPyConnection, format: Format) -> None:
    data = written(store, "SELECT * FROM episodes WHERE false", format)
    assert (data == b"") == (format == "ndjson")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT outcom FROM episodes", r'Referenced column "outcom" not found.*"outcome"'),
        ("FROM episode", r'Table with name episode does not exist!; Did you mean "episodes'),
        ("SELECT 1 +", r'syntax error at or near "\+" \(line 1, column 10\)'),
        ("SELECT\n  lenght('a')", r'name lenght does not exist!; Did you mean "length'),
        ("SELECT name::INTEGER FROM episodes", "Could not convert string '.*/.' to INT32"),
        ("SELECT error('on purpose') FROM episodes", "on purpose"),
        (
            "SELECT CASE WHEN i > 300000 THEN error('late') ELSE i END FROM range(400000) t(i)",
            "late",
        ),
        ("", "there is no SQL statement"),
        ("-- only a comment", "there is no SQL statement"),
        ("DROP TABLE catalog.main.episodes", "read-only"),
    ],
)
def test_errors_are_one_line_with_a_hint(
    store: duckdb.DuckDBPyConnection, sql: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        written(store, sql, "ndjson")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_not_a_wrong_argument(store: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(AttnstoreError, match="No files found") as caught:
        written(store, "FROM read_csv('no-such-file.csv')", "csv")
    assert not isinstance(caught.value, UsageError)


def test_an_interval_has_no_parquet_type(store: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(UsageError, match="interval"):
        written(store, "SELECT INTERVAL 1 DAY", "parquet")


def test_an_unknown_format(store: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(UsageError, match=r"a format is one of table, .*; got 'xml'"):
        write_result(run_query(store, "SELECT 1"), "xml", io.BytesIO())  # type: ignore[arg-type]


def test_a_closed_pipe_is_not_an_sql_error(store: duckdb.DuckDBPyConnection) -> None:
    class Closed(io.BytesIO):
        def write(self, _: Any) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    for format in ("ndjson", "csv", "arrow", "parquet"):
        with pytest.raises(BrokenPipeError) as caught:
            write_result(run_query(store, "FROM range(100000)"), format, Closed())
        # nothing of the answer is left open, also while the error is held
        assert caught.value.errno == 32
        assert ndjson(store, "SELECT 1 AS a") == [{"a": 1}]


def test_statements_without_rows(store: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    run_query(store, f"COPY (SELECT name FROM episodes) TO '{target}'")
    assert pq.read_table(target).num_rows == 2
    relation = run_query(store, "CREATE OR REPLACE TEMP TABLE mine AS SELECT 1 AS a")
    assert isinstance(relation.columns, list)
    assert ndjson(store, "SELECT 2 AS ignored; FROM mine") == [{"a": 1}]


def test_python_variables_are_not_tables(store: duckdb.DuckDBPyConnection) -> None:
    # `connection` is a variable where the statement runs.
    with pytest.raises(UsageError, match="Table with name connection does not exist"):
        run_query(store, "FROM connection")
    store.register("registered", pa.table({"a": [1]}))
    assert ndjson(store, "FROM registered") == [{"a": 1}]


def test_times_with_a_zone_and_intervals_are_spelled() -> None:
    """Arrow has no time with a zone: 12:00:00+02 became 12:00:00 without a word."""
    relation = run_query(
        duckdb.connect(),
        "select TIMETZ '12:00:00+02' t, INTERVAL 3 DAY t, 1 n, [TIMETZ '01:00:00-05'] l, "
        "TIMESTAMPTZ '2026-01-01 00:00:00+00' at time zone 'UTC' u",
    )
    ((zoned, days, number, nested, _),) = json_rows(relation)
    assert (zoned, days, number, nested) == ("12:00:00+02", "3 days", 1, "['01:00:00-05']")


def test_a_refused_file_is_an_error_of_ours(tmp_path: Path) -> None:
    """However the rows are asked for; DuckDB's own has the text of a traceback in it."""
    paths = create_store(tmp_path / "s.attn")
    commit = write_episode(paths, "success/a", keyframes=1)
    opened = attnstore.open(paths.root)
    sound = opened.sql("SELECT * FROM head_stats")
    names, rows = sound.columns, len(sound)
    assert rows == len(sound.fetchall()) == pa.table(sound).num_rows == len(sound.df())
    table = commit.directory(paths) / "head_stats.parquet"
    flip_byte(table, table.stat().st_size // 2)
    relation = opened.sql("SELECT * FROM head_stats")
    ways: list[Callable[[Any], Any]] = [
        lambda r: r.fetchall(),
        lambda r: r.df(),
        lambda r: r.to_arrow_table(),
        lambda r: r.filter("layer = 0").aggregate("count(DISTINCT entropy)").fetchall(),
        lambda r: r.shape,
        pa.table,
        repr,
    ]
    for ask in ways:
        with pytest.raises(IntegrityError, match="SHA-256") as caught:
            ask(relation)
        assert str(caught.value).startswith(f"{commit.run}/{commit.episode}/")
        assert "Traceback" not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="line 1, column|Binder"):
        sound.filter("no_such_column = 1").fetchall()
    assert relation.columns == names

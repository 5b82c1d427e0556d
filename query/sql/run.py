"""The user's own SQL: run it, and write what it returns."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import IO, Any, Literal, get_args

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.cells import cell_len, set_cell_size

from attnstore.store.commits.files import MAX_DEPTH
from attnstore.store.errors import AttnstoreError, IntegrityError, UsageError
from attnstore.store.tables.parquet import ROW_GROUP

Format = Literal["table", "ndjson", "csv", "arrow", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
ROWS = 2048
"""Rows of a result that are in memory at a time, beyond what DuckDB keeps: one of its vectors."""
GROUP_BYTES = 16 << 20
"""Rows that are a row group of Parquet; fewer, if they are `ROW_GROUP`."""
TABLE_ROWS = 200
"""Rows that ``table`` shows; the other formats write all."""
CELL = 60
"""Widest cell of ``table``, in characters."""


@contextmanager
def sql_errors() -> Iterator[None]:
    """Turn DuckDB's errors into one line each, with DuckDB's own hints.

    Raises
    ------
    UsageError
        If the statement is at fault.
    AttnstoreError
        If memory, a file or DuckDB itself is.
    """
    try:
        yield
    except duckdb.Error as error:
        raise _one_line(error) from None
    except (pa.ArrowException, OSError) as error:
        # What DuckDB meets in the middle of a stream comes through Arrow, as an OSError without
        # number; a broken pipe has one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UsageError(" ".join(str(error).split())) from None


def _one_line(error: duckdb.Error) -> AttnstoreError:
    message, _, quotation = str(error).partition("\n\nLINE ")
    if message.startswith("Traceback "):
        # A file that DuckDB asked Python for: its last line is the reason.
        kind, _, message = message.strip().splitlines()[-1].partition("Error: ")
        if kind.rpartition(".")[2] == "Integrity":
            return IntegrityError(message)
    text = "; ".join(line.strip() for line in message.splitlines() if line.strip())
    if quotation:
        # DuckDB points at the place with a caret on the line below; say its column instead.
        head, _, rest = quotation.partition("\n")
        line, _, _ = head.partition(":")
        caret = rest.find("^") - len(f"LINE {line}: ")
        text += f" (line {line}, column {caret + 1})" if caret >= 0 else f" (line {line})"
    if isinstance(error, duckdb.ProgrammingError | duckdb.DataError | duckdb.NotSupportedError):
        return UsageError(text)
    if "Corrupt database file" in text:
        text += "; `attnstore catalog rebuild` makes the catalog anew"
    return AttnstoreError(text)


def statements_of(connection: duckdb.DuckDBPyConnection, sql: str) -> list[duckdb.Statement]:
    """Take SQL apart into its statements.

    Raises
    ------
    UsageError
        If it is none, or holds half a character.
    """
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"SQL is text in UTF-8; {sql[error.start]!a} at character {error.start + 1} is none"
        ) from None
    with sql_errors():
        return connection.extract_statements(sql)


def run_query(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """Run SQL on a catalog connection.

    Returns
    -------
    The last statement's rows. They are computed when they are fetched, anew each time; ``COPY``
    and ``CREATE`` run here, at once.

    Raises
    ------
    UsageError
        If the statement is wrong; the message has DuckDB's candidates for a misspelt name.
    """
    if not statements_of(connection, sql):
        raise UsageError("there is no SQL statement to run")
    with sql_errors():
        relation = connection.sql(sql)
        # DuckDB 1 returns nothing for statements that DuckDB 2 answers with an empty table.
        return connection.sql("SELECT 0 AS Count LIMIT 0") if relation is None else relation


def write_result(relation: duckdb.DuckDBPyRelation, format: Format, stream: IO[bytes]) -> None:
    r"""Write a query's rows to a binary stream.

    Parameters
    ----------
    relation
        From `run_query`; its rows are fetched here.
    format
        ``table`` for people, ``ndjson`` (one JSON object per row; NaN and infinities are null,
        a MAP is an object, a BLOB is base64), ``csv`` (nested values as JSON), ``arrow`` (IPC
        stream) or ``parquet``.
    stream
        Text is UTF-8 with ``\n`` line ends.

    Raises
    ------
    UsageError
        If the format is unknown, or the rows cannot be computed.
    """
    writers = {
        "table": _write_table,
        "ndjson": _write_ndjson,
        "csv": _write_csv,
        "arrow": _write_arrow,
        "parquet": _write_parquet,
    }
    if format not in writers:
        raise UsageError(f"a format is one of {', '.join(FORMATS)}; got {format!r}")
    with sql_errors():
        writers[format](relation, stream)


def _batches(relation: duckdb.DuckDBPyRelation) -> closing[pa.RecordBatchReader]:
    """Compute a query's rows, `ROWS` at a time; a stream would hand out a million at once.

    To be closed: an open one keeps its connection from all further queries.
    """
    return closing(relation.to_arrow_reader(ROWS))


def _write_arrow(relation: duckdb.DuckDBPyRelation, stream: IO[bytes]) -> None:
    with _batches(relation) as reader, pa.ipc.new_stream(stream, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


def _write_parquet(relation: duckdb.DuckDBPyRelation, stream: IO[bytes]) -> None:
    group: list[pa.RecordBatch] = []
    with (
        _batches(relation) as reader,
        pq.ParquetWriter(stream, reader.schema, compression="zstd") as writer,
    ):
        for batch in reader:
            group.append(batch)
            # Every write is a row group of its own.
            if len(group) * ROWS >= ROW_GROUP or sum(b.nbytes for b in group) >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group = []
        if group:
            writer.write_table(pa.Table.from_batches(group))


def _write_ndjson(relation: duckdb.DuckDBPyRelation, stream: IO[bytes]) -> None:
    names = unique_names(relation.columns)
    for row in json_rows(relation):
        line = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False)
        stream.write(line.encode() + b"\n")


def _write_csv(relation: duckdb.DuckDBPyRelation, stream: IO[bytes]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(relation.columns)
    for row in json_rows(relation):
        writer.writerow([_nested_as_json(v) for v in row])
        if text.tell() > 1 << 20:
            _flush(text, stream)
    _flush(text, stream)


def _flush(text: io.StringIO, stream: IO[bytes]) -> None:
    stream.write(text.getvalue().encode())
    text.seek(0)
    text.truncate()


def _write_table(relation: duckdb.DuckDBPyRelation, stream: IO[bytes]) -> None:
    names = relation.columns
    with closing(json_rows(relation)) as found:
        rows = list(islice(found, TABLE_ROWS + 1))
    note = f"{len(rows)} row{'' if len(rows) == 1 else 's'}"
    if len(rows) > TABLE_ROWS:
        del rows[TABLE_ROWS:]
        note = f"the first {TABLE_ROWS} rows; the other formats write all"
    lines = text_table(names, rows)
    stream.write("\n".join([*lines, f"({note})", ""]).encode())


def text_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return the lines of a table for people: names, a rule, rows; columns of numbers to the right."""
    cells = [[shown_value(n) for n in names], *([shown_value(v) for v in row] for row in rows)]
    widths = [max(cell_len(line[i]) for line in cells) for i in range(len(names))]
    numbers = [all(isinstance(r[i], int | float | None) for r in rows) for i in range(len(names))]
    lines = [
        "  ".join(
            " " * (w - cell_len(c)) + c if number else set_cell_size(c, w)
            for c, w, number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return lines


def shown_value(value: Any) -> str:
    """Text of a cell. What a store says must not move a terminal's cursor."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(_nested_as_json(value))
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if text.isascii() and len(text) <= CELL:
        return text
    return text if cell_len(text) <= CELL else set_cell_size(text, CELL - 1) + "…"


def _nested_as_json(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def unique_names(names: list[str]) -> list[str]:
    """Column names without repetition: SQL allows ``select 1 as a, 2 as a``, JSON does not."""
    seen: dict[str, None] = {}
    for name in names:
        unique, count = name, 0
        while unique in seen:
            count += 1
            unique = f"{name}_{count}"
        seen[unique] = None
    return list(seen)


def json_rows(relation: duckdb.DuckDBPyRelation) -> Generator[tuple[Any, ...], None, None]:
    """Yield a query's rows as JSON's values; see `write_result` for what becomes what."""
    # Arrow has no time with a zone, and would drop the zone; DuckDB itself spells these.
    kinds = [str(kind) for kind in relation.types]
    if any(_SPELLED.search(kind) for kind in kinds):
        columns = (
            f"CAST(#{number} AS VARCHAR)" if _SPELLED.search(kind) else f"#{number}"
            for number, kind in enumerate(kinds, 1)
        )
        spelled = relation.project(", ".join(columns))
        yield from _json_rows(spelled, relation.columns)
    else:
        yield from _json_rows(relation, relation.columns)


def _json_rows(
    relation: duckdb.DuckDBPyRelation, names: Sequence[str]
) -> Generator[tuple[Any, ...], None, None]:
    with _batches(relation) as reader:
        # DuckDB's JSON is a string in Arrow.
        converters = [
            _json_value if str(kind) == "JSON" else _converter(field.type)
            for kind, field in zip(relation.types, reader.schema, strict=True)
        ]
        for batch in reader:
            yield from zip(
                *(
                    _values(name, column, convert)
                    for name, column, convert in zip(names, batch.columns, converters, strict=True)
                ),
                strict=True,
            )


_SPELLED = re.compile(r"\bTIME WITH TIME ZONE|INTERVAL|BIGNUM|VARINT")
Converter = Callable[[Any], Any]


def _values(name: str, column: pa.Array, convert: Converter) -> list[Any]:
    try:
        return [None if v is None else convert(v) for v in column.to_pylist()]
    except (ValueError, OverflowError, RecursionError, pa.ArrowException) as error:
        # Such as a date in the year 200000, which Python has not.
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"column {name}: a value of type {column.type} cannot be written as text ({reason}); "
            f"cast it: {name}::VARCHAR"
        ) from None


def _json_value(text: str) -> Any:
    """Value of DuckDB's JSON, which takes more than JSON has: NaN and infinities are null.

    Half a surrogate pair is U+FFFD, and what is nested deeper than 64 levels stays text.
    """
    try:
        value = json.loads(text, parse_constant=lambda name: None, parse_float=_finite)
        return _whole(value, MAX_DEPTH)
    except (ValueError, RecursionError):
        return text


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _whole(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        raise ValueError("nested too deep")
    if isinstance(value, list):
        return [_whole(v, depth - 1) for v in value]
    return {_whole(k, depth - 1): _whole(v, depth - 1) for k, v in value.items()}


def _converter(kind: pa.DataType) -> Converter:
    """Make the function that turns a column's Python values into JSON's, NULL apart."""
    types = pa.types
    if types.is_map(kind):
        of_value = _nullable(_converter(kind.item_type))
        return lambda value: {str(k): of_value(v) for k, v in value}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        of_item = _nullable(_converter(kind.value_type))
        return lambda value: [of_item(v) for v in value]
    if types.is_struct(kind):
        fields = {field.name: _nullable(_converter(field.type)) for field in kind}
        return lambda value: {name: convert(value[name]) for name, convert in fields.items()}
    if types.is_boolean(kind) or types.is_integer(kind):
        return lambda value: value
    if types.is_float32(kind):
        # The shortest decimal that is this float32: 0.1 and not 0.10000000149011612.
        return lambda value: float(str(np.float32(value))) if math.isfinite(value) else None
    if types.is_floating(kind):
        return lambda value: value if math.isfinite(value) else None
    if types.is_decimal(kind):
        return lambda value: int(value) if kind.scale == 0 else float(value)
    if types.is_binary(kind) or types.is_large_binary(kind):
        return lambda value: base64.b64encode(value).decode()
    if types.is_timestamp(kind):
        return lambda value: str(value.isoformat())
    return str


def _nullable(convert: Converter) -> Converter:
    return lambda value: None if value is None else convert(value)

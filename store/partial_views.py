"""Keyframe-level tables of a copy of a store that does not hold all of their files.

A mirror's files are fetched when DuckDB opens them, so a query that is pruned to some episodes
fetches those of them. What a pulled copy lacks makes a query that would need it fail: an answer
over the rest would be silently wrong.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from .catalog_rows import parquet_scan, quoted
from .catalog_tables import DATABASE, sql_type, version
from .errors import IntegrityError
from .paths import SAFE, StorePaths
from .tables import ALL_TABLES

SCHEME = "attnmirror"
"""Of the paths that a mirror's file system opens."""


def create_partial_view(
    connection: duckdb.DuckDBPyConnection, paths: StorePaths, name: str
) -> None:
    """Create the view of one table, over files that may not be here yet, or at all."""
    root = paths.root.resolve()
    here: list[str] = []
    absent: list[tuple[str, str, str]] = []
    rows = connection.execute(
        f"SELECT run, episode, path FROM {DATABASE}.main.files WHERE table_name = ? "
        "ORDER BY run, episode, part",
        [name],
    ).fetchall()
    for run, episode, path in rows:
        check_place(path, run, episode, name)
        if (root / path).is_file():
            here.append(f"{root}/{path}")
        else:
            absent.append((run, episode, path))
    if paths.remote:
        files = [*here, *(f"{SCHEME}://{root}/{path}" for _, _, path in absent)]
        absent = []
        # DuckDB opens the first file for its columns, which must not be a download.
        if files and not here:
            files.insert(0, str(_empty(root, name)))
    else:
        files = here
    connection.execute(f"SET VARIABLE attnstore_{name} = ?::VARCHAR[]", [files])
    source = parquet_scan(f"getvariable('attnstore_{name}')") if files else "range(0)"
    view = f"SELECT {', '.join(_columns(name, bool(files)))} FROM {source}"
    if absent:
        view += f" UNION ALL {_refusal(connection, name, absent, paths.how_to_get())}"
    connection.execute(f"CREATE VIEW {name} AS {view}")


def check_place(path: str, run: str, episode: str, table: str) -> None:
    """Check that a catalog's path is where a commit puts a table's file.

    Raises
    ------
    IntegrityError
        If it could be anywhere else.
    """
    parts = path.split("/")
    if parts[:3] != ["data", run, episode] or parts[4:] != [f"{table}.parquet"] or not all(
        SAFE.fullmatch(part) for part in parts
    ):  # fmt: skip
        raise IntegrityError(f"the catalog names a file that no commit puts there: {path!r}")


def _columns(name: str, found: bool) -> list[str]:
    columns = []
    # Counted from the end, unlike in a whole store: the paths have a scheme, or lie elsewhere.
    places = {"run": -4, "episode": -3}
    for column in ALL_TABLES[name].columns:
        text = f'"{column.name}"'
        if not found:
            text = f"NULL::{sql_type(column.type)} AS {text}"
        elif column.name in places:
            text = f"split_part(filename, '/', {places[column.name]}) AS {text}"
        columns.append(text)
    return columns


def _refusal(
    connection: duckdb.DuckDBPyConnection, name: str, absent: list[tuple[str, str, str]], hint: str
) -> str:
    """One row for each file that is not here; whoever needs the row, or a value of it, fails."""
    connection.execute(f"CREATE TEMP TABLE absent_{name} (run VARCHAR, episode VARCHAR)")
    connection.execute(
        f"INSERT INTO absent_{name} SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[])",
        [[run for run, _, _ in absent], [episode for _, episode, _ in absent]],
    )
    # The message depends on the row, or DuckDB would compute it when it plans. It stands in the
    # values as well as in WHERE, because a filter on a value that is NULL for sure is decided first.
    message = f"error({quoted(f'{name} of ')} || episode || {quoted(f' is not here; {hint}')})"
    columns = [
        f'"{c.name}"'
        if c.name in ("run", "episode")
        else f'CAST({message} AS {sql_type(c.type)}) AS "{c.name}"'
        for c in ALL_TABLES[name].columns
    ]
    return f"SELECT {', '.join(columns)} FROM absent_{name} WHERE {message} IS NULL"


def _empty(root: Path, name: str) -> Path:
    """Parquet file with a table's columns and no rows, as deep as a part's."""
    file = root / "schema" / version() / "-" / "-" / f"{name}.parquet"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".tmp-{id(file)}-{name}")
        pq.write_table(ALL_TABLES[name].schema.empty_table(), temporary)
        temporary.replace(file)
    return file

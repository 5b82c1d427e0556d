"""Keyframe-level tables: views over the committed Parquet files.

Every file is compared with its commit when DuckDB opens it (`committed_files`); a mirror's is fetched
then, so a query that is pruned to some episodes fetches those of them. What a pulled copy lacks makes
a query that would need it fail: an answer over the rest would be silently wrong.
"""

from __future__ import annotations

import duckdb

from .catalog_rows import parquet_scan, quoted
from .catalog_tables import DATABASE, sql_type
from .committed_files import address, empty_address
from .errors import IntegrityError
from .paths import SAFE, StorePaths
from .tables import ALL_TABLES


def create_file_view(connection: duckdb.DuckDBPyConnection, paths: StorePaths, name: str) -> None:
    """Create the view of one table, over files that may not be here yet, or at all."""
    root = paths.root.resolve()
    absent: list[tuple[str, str, str]] = []
    if paths.partial:
        files, absent = _here(connection, paths, name)
        # A variable and no literal: 10,000 paths in a statement take DuckDB a third of a second.
        connection.execute(f"SET VARIABLE attnstore_{name} = ?::VARCHAR[]", [files])
    else:
        connection.execute(
            f"SET VARIABLE attnstore_{name} = (SELECT list({quoted(address(root, ''))} || path "
            f"ORDER BY run, episode, part) FROM {DATABASE}.main.files WHERE table_name = '{name}')"
        )
    (found,) = connection.execute(f"SELECT len(getvariable('attnstore_{name}'))").fetchone() or (0,)
    files_ = f"list_prepend({quoted(empty_address(name))}, getvariable('attnstore_{name}'))"
    source = parquet_scan(files_) if found else "range(0)"
    view = f"SELECT {', '.join(_columns(name, bool(found)))} FROM {source}"
    if absent:
        view += f" UNION ALL {_refusal(connection, name, absent, paths.how_to_get())}"
    connection.execute(f"CREATE VIEW {name} AS {view}")


def _here(
    connection: duckdb.DuckDBPyConnection, paths: StorePaths, name: str
) -> tuple[list[str], list[tuple[str, str, str]]]:
    """List the files of a copy that DuckDB can open, and (run, episode, path) of those it cannot."""
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
            here.append(address(root, path))
        else:
            absent.append((run, episode, path))
    if not paths.remote:
        return here, absent
    return [*here, *(address(root, path) for _, _, path in absent)], []


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
    # Taken from data/<run>/<episode>/<attempt>/<table>.parquet, so that a filter on them skips files
    # unopened: 10,000 episodes answer for one of them in a third of the time.
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

"""The names under which SQL finds a store's tables.

What a generation holds is shown as it is. Keyframe-level tables, too large for it, are views over
the committed Parquet files, each compared with its commit when it is opened (`committed_files`); who
reads those differs:

- DuckDB, in a whole store;
- DuckDB through a mirror, whose files are fetched when it opens them, so that a query that is pruned
  to some episodes fetches those of them; in a pulled copy, what is not here makes a query that would
  need it fail, since an answer over the rest would be silently wrong;
- Arrow, in the service's sandbox, where DuckDB may open nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import duckdb
from pyarrow import fs

from ..commits import StorePaths
from ..errors import AttnstoreError
from ..rules import create_macros
from ..tables.inventory import ALL_TABLES
from ..tables.ledger import LEDGER, ledger_query
from .committed_files import address, arrow_files, committed_tables, empty_address, register
from .rows import all_layers, parquet_scan, quoted
from .tables import CATALOG, COPIED, DATABASE, VIEWED, sql_type


def create_views(
    connection: duckdb.DuckDBPyConnection,
    paths: StorePaths,
    *,
    sandboxed: bool = False,
    damaged: Callable[[AttnstoreError], None] = lambda error: None,
) -> None:
    """Show the attached generation's tables, and those of keyframes, under their plain names.

    Parameters
    ----------
    sandboxed
        DuckDB may open no file: Arrow reads the Parquet files.
    damaged
        Is told by Arrow's thread of a file that is not what was committed.
    """
    for name in CATALOG:
        connection.execute(f"CREATE VIEW {name} AS FROM {DATABASE}.main.{name}")
    for name in COPIED:
        rows = all_layers(connection, name, columns="* EXCLUDE (part)")
        connection.execute(f"CREATE VIEW {name} AS {rows}")
    tables = committed_tables(connection, paths)
    if not sandboxed:
        register(connection, tables)
    files = arrow_files(tables, damaged)
    of_files = f"SELECT DISTINCT table_name FROM {DATABASE}.main.files"
    filed = {name for (name,) in connection.execute(of_files).fetchall()}
    for name in VIEWED:
        if name not in filed:
            connection.execute(f"CREATE VIEW {name} AS {_select(name, False)}")
        elif sandboxed:
            _arrow_view(connection, paths, name, files)
        elif paths.partial:
            _partial_view(connection, paths, name)
        else:
            _whole_view(connection, paths, name)
    connection.execute(f"CREATE VIEW {LEDGER.name} AS {ledger_query()}")
    create_macros(connection)


def _whole_view(connection: duckdb.DuckDBPyConnection, paths: StorePaths, name: str) -> None:
    root = paths.root.resolve()
    # A variable and no literal: 10,000 paths in a statement take DuckDB a third of a second.
    connection.execute(
        f"SET VARIABLE attnstore_{name} = (SELECT list({quoted(address(root, ''))} || path "
        f"ORDER BY run, episode, part) FROM {DATABASE}.main.files WHERE table_name = '{name}')"
    )
    connection.execute(f"CREATE VIEW {name} AS {_select(name, True)}")


def _partial_view(connection: duckdb.DuckDBPyConnection, paths: StorePaths, name: str) -> None:
    root = paths.root.resolve()
    here: list[str] = []
    absent: list[tuple[str, str, str]] = []
    for run, episode, path in _files(connection, name):
        if (root / path).is_file():
            here.append(address(root, path))
        else:
            absent.append((run, episode, path))
    if paths.remote:
        here += [address(root, path) for _, _, path in absent]
        absent = []
    connection.execute(f"SET VARIABLE attnstore_{name} = ?::VARCHAR[]", [here])
    view = _select(name, bool(here))
    if absent:
        view += f" UNION ALL {_refusal(connection, name, absent, paths.how_to_get())}"
    connection.execute(f"CREATE VIEW {name} AS {view}")


def _arrow_view(
    connection: duckdb.DuckDBPyConnection,
    paths: StorePaths,
    name: str,
    filesystem: fs.FileSystem,
) -> None:
    import pyarrow.dataset as ds  # a quarter of a second, and pandas with it

    rows = _files(connection, name)
    if paths.partial:
        rows = [row for row in rows if (paths.root / row[2]).is_file()]
    if not rows:
        connection.execute(f"CREATE VIEW {name} AS {_select(name, False)}")
        return
    dataset = ds.FileSystemDataset.from_paths(
        [f"{paths.root.resolve()}/{path}" for _, _, path in rows],
        schema=ALL_TABLES[name].schema,
        format=ds.ParquetFileFormat(),
        filesystem=filesystem,
        # The ids are the commit's and not the file's, and a filter on them skips files unopened.
        partitions=[(ds.field("run") == r) & (ds.field("episode") == e) for r, e, _ in rows],
    )
    connection.register(f"{name}_files", dataset)
    connection.execute(f"CREATE VIEW {name} AS FROM {name}_files")


def _files(connection: duckdb.DuckDBPyConnection, name: str) -> list[tuple[str, str, str]]:
    return connection.execute(
        f"SELECT run, episode, path FROM {DATABASE}.main.files WHERE table_name = ? "
        "ORDER BY run, episode, part",
        [name],
    ).fetchall()


def _select(name: str, found: bool) -> str:
    """Spell a table over the files of its variable.

    The ids are taken from data/<run>/<episode>/<attempt>/<table>.parquet, so that a filter on them
    skips files unopened: 10,000 episodes answer for one of them in a third of the time.
    """
    places = {"run": -4, "episode": -3}
    columns = []
    for column in ALL_TABLES[name].columns:
        text = f'"{column.name}"'
        if not found:
            text = f"NULL::{sql_type(column.type)} AS {text}"
        elif column.name in places:
            text = f"split_part(filename, '/', {places[column.name]}) AS {text}"
        columns.append(text)
    files = f"list_prepend({quoted(empty_address(name))}, getvariable('attnstore_{name}'))"
    source = parquet_scan(files) if found else "range(0)"
    return f"SELECT {', '.join(columns)} FROM {source}"


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

"""How the rows of a part get into a catalog generation and out of it, many parts at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ..commits import Commit, Key, StoredFile, StorePaths
from ..commits.run import load_run
from ..commits.vetting import Places
from ..errors import IntegrityError
from ..processes import cores
from ..tables.inventory import ALL_TABLES, TABLES
from .tables import CATALOG, COPIED, COPIES, DATABASE, NAME, sql_type, version

BUILDERS = 4
"""Threads that make a generation, at most."""
MEMORY, MEMORY_OF_THREAD = 128, 64
"""What DuckDB may hold while it makes a generation: row groups that are being compressed, and blocks, MB."""


def quoted(text: str) -> str:
    """Spell a string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True, slots=True)
class CatalogPart:
    """What a catalog keeps of one commit."""

    episode_row: Mapping[str, Any] | None
    """Row of `episodes`; the base part has one."""
    commit_row: Mapping[str, Any]
    files: Mapping[str, StoredFile]
    """By table name; their paths are relative to the store."""

    @property
    def key(self) -> Key:
        """(run, episode, part)."""
        row = self.commit_row
        return row["run"], row["episode"], row["part"]


def catalog_part(paths: StorePaths, commit: Commit, number: int) -> CatalogPart:
    """Take from a commit what a catalog keeps; `number` is that of its entry.

    Raises
    ------
    IntegrityError
        If a table's file is not what was committed, or the summary has values of wrong types.
    """
    directory = commit.directory(paths)
    below = directory.relative_to(paths.root).as_posix()
    places = Places(paths.root, directory, below)
    files = {}
    for file in commit.files:
        table, dot, rest = file.path.partition(".")
        if dot and rest == "parquet" and table in ALL_TABLES:
            if table in COPIED:
                paths.need(commit, [file])
            # What else a copy may lack, its view says if it is asked for.
            if table in COPIED:
                places.check(file)
            elif not paths.partial:
                places.status(file)
            files[table] = replace(file, path=f"{below}/{file.path}")
    try:
        common = {
            "run": commit.run,
            "episode": commit.episode,
            "revision": commit.revision,
            "attempt": commit.attempt,
            "committed": _time(commit.created),
            "bytes": commit.size,
        }
        episode = None
        told = _summary(commit.summary)
        if commit.part == "base":
            episode = {**told, **common}
            _check("episodes", episode)
        row = {**common, "part": commit.part, "number": number, **_object_place(commit)}
        row |= {name: told[name] for name in ("name", "outcome", "instruction", "keyframes")}
        _check("commits", row)
    except (TypeError, ValueError, OverflowError) as error:
        raise IntegrityError(f"{commit.key} revision {commit.revision}: {error}") from None
    return CatalogPart(episode, row, files)


def _object_place(commit: Commit) -> dict[str, str]:
    """Camera and source of an object part; which of several counts is chosen by them."""
    if not commit.part.startswith("objects-"):
        return {}
    return {name: str(commit.summary.get(name)) for name in ("camera", "source")}


def _time(text: str) -> datetime:
    """Time in UTC without zone: DuckDB's TIMESTAMPTZ needs another package in Python."""
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None)


def _summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a commit's summary, which anybody may have written, in their columns' types."""
    row: dict[str, Any] = {}
    for column in CATALOG["episodes"].columns:
        value = summary.get(column.name)
        if value is not None:
            if pa.types.is_integer(column.type):
                value = int(value)
            elif pa.types.is_floating(column.type):
                value = float(value)
            elif pa.types.is_string(column.type):
                value = str(value)
        row[column.name] = value
    return row


def making(file: Path) -> duckdb.DuckDBPyConnection:
    """Connect to make a generation's file, with a bound on memory that does not grow with the catalog.

    By default DuckDB keeps what it wrote until four fifths of the machine's memory are full.
    """
    threads = min(cores(), BUILDERS)
    return duckdb.connect(
        config={
            "memory_limit": f"{MEMORY + threads * MEMORY_OF_THREAD}MB",
            "threads": threads,
            "temp_directory": f"{file}.spilled",
        }
    )


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Create every table of a generation, empty, in the attached `DATABASE`."""
    for table in (*CATALOG.values(), *COPIES.values()):
        columns = ", ".join(f'"{c.name}" {sql_type(c.type)}' for c in table.columns)
        connection.execute(f"CREATE TABLE {DATABASE}.main.{table.name} ({columns})")
    connection.execute(
        f"CREATE TABLE {DATABASE}.main.generation (version VARCHAR, head BIGINT, tip VARCHAR)"
    )
    connection.execute(f"CREATE TABLE {DATABASE}.main.layers (number BIGINT, name VARCHAR)")
    connection.execute(
        f"CREATE TABLE {DATABASE}.main.gone (layer VARCHAR, run VARCHAR, episode VARCHAR, part VARCHAR)"
    )
    connection.execute(
        f"INSERT INTO {DATABASE}.main.generation VALUES ({quoted(version())}, 0, '')"
    )


def layer_names(connection: duckdb.DuckDBPyConnection, name: str = DATABASE) -> list[str]:
    """Return the generations whose rows an attached one stands on, in order: layer 1, 2, ...

    Raises
    ------
    IntegrityError
        If one is no name of a generation.
    """
    rows = connection.execute(f"SELECT name FROM {name}.main.layers ORDER BY number").fetchall()
    for (layer,) in rows:
        if not NAME.fullmatch(str(layer)):
            raise IntegrityError(f"the catalog stands on {layer!r}, which is no generation")
    return [layer for (layer,) in rows]


def all_layers(
    connection: duckdb.DuckDBPyConnection, table: str, name: str = DATABASE, columns: str = "*"
) -> str:
    """Spell a table of statistics over an attached generation and its layers, without what is gone."""
    selects = [f"SELECT {columns} FROM {name}.main.{table}"]
    for number, layer in enumerate(layer_names(connection, name), 1):
        select = f"SELECT {columns} FROM {name}_{number}.main.{table}"
        gone = f"SELECT run, episode, part FROM {name}.main.gone WHERE layer = {quoted(layer)}"
        if connection.execute(f"{gone} LIMIT 1").fetchall():
            select += f" ANTI JOIN ({gone}) USING (run, episode, part)"
        selects.append(select)
    return " UNION ALL ".join(selects)


def delete_parts(connection: duckdb.DuckDBPyConnection, keys: Iterable[Key]) -> None:
    """Remove every row that comes from these parts; in layers, which never change, note that they are gone."""
    names = ("run", "episode", "part")
    gone = pa.table(
        [pa.array(column, pa.string()) for column in zip(*keys, strict=True)] or [[]] * 3, names
    )
    if not len(gone):
        return
    with _registered(connection, "gone", gone):
        for table in ("commits", "files", "unreadable", *COPIED):
            connection.execute(
                f"DELETE FROM {DATABASE}.main.{table} WHERE (run, episode, part) IN (FROM gone)"
            )
        connection.execute(
            f"DELETE FROM {DATABASE}.main.episodes WHERE (run, episode) IN "
            "(SELECT (run, episode) FROM gone WHERE part = 'base')"
        )
        for number, name in enumerate(layer_names(connection), 1):
            connection.execute(
                f"INSERT INTO {DATABASE}.main.gone SELECT {quoted(name)}, run, episode, part FROM "
                f"(SELECT run, episode, part FROM {DATABASE}_{number}.main.commits "
                "WHERE (run, episode, part) IN (FROM gone)) EXCEPT FROM "
                f"{DATABASE}.main.gone"
            )


def insert_parts(
    connection: duckdb.DuckDBPyConnection, root: Path, parts: Sequence[CatalogPart]
) -> None:
    """Add the rows of parts that are not in the catalog.

    One statement per table for all parts. Only if it fails are they halved, to find the Parquet
    file that cannot be read; its part is left out whole, and named in table `unreadable`.
    """
    reasons: dict[Key, str] = {}
    for table in COPIED:
        having = [p for p in parts if table in p.files]
        reasons |= _insert_files(connection, root, table, having)
    delete_parts(connection, reasons)
    good = [p for p in parts if p.key not in reasons]
    append(connection, "commits", [p.commit_row for p in good])
    append(connection, "episodes", [p.episode_row for p in good if p.episode_row is not None])
    append(
        connection,
        "files",
        [
            {
                **_ids(p.key),
                "table_name": name,
                "path": file.path,
                "size": file.size,
                "sha256": file.sha256,
            }
            for p in good
            for name, file in p.files.items()
        ],
    )
    append(
        connection,
        "unreadable",
        [
            {**_ids(p.key), "number": p.commit_row["number"], "reason": reasons[p.key]}
            for p in parts
            if p.key in reasons
        ],
    )


def _ids(key: Key) -> dict[str, str]:
    return dict(zip(("run", "episode", "part"), key, strict=True))


def _insert_files(
    connection: duckdb.DuckDBPyConnection, root: Path, table: str, parts: Sequence[CatalogPart]
) -> dict[Key, str]:
    if not parts:
        return {}
    absolute = [str(root / p.files[table].path) for p in parts]
    run, episode, part = zip(*(p.key for p in parts), strict=True)
    new = pa.table({"run": run, "episode": episode, "part": part, "absolute": absolute})
    # The ids come from the commit and not from the file, so that delete_parts finds every row.
    columns = ", ".join(
        f'n."{c.name}"' if c.name in ("run", "episode") else f'p."{c.name}"'
        for c in TABLES[table].columns
    )
    with _registered(connection, "new_parts", new):
        try:
            connection.execute(
                f"INSERT INTO {DATABASE}.main.{table} SELECT {columns}, n.part "
                f"FROM {parquet_scan(absolute)} p JOIN new_parts n ON p.filename = n.absolute"
            )
        except duckdb.Error as error:
            if len(parts) == 1:
                # Blame the file only if it is the one: the disk may be full.
                try:
                    connection.execute(
                        f"SELECT {columns} FROM {parquet_scan(absolute)} p, new_parts n"
                    )
                except duckdb.Error:
                    reason = _of_other_columns(table, absolute[0]) or str(error).splitlines()[0]
                    return {parts[0].key: f"{absolute[0]}: {reason}"}
                raise
        else:
            return {}
    half = len(parts) // 2
    first = _insert_files(connection, root, table, parts[:half])
    return first | _insert_files(connection, root, table, parts[half:])


def _of_other_columns(table: str, file: str) -> str | None:
    """Say that a file has not the columns that its table has, and what to do; None if it has."""
    try:
        there = pq.read_schema(file).names
    except (OSError, pa.ArrowException):
        return None
    absent = [c.name for c in TABLES[table].columns if c.name not in there]
    if not absent:
        return None
    return (
        f"no column {', '.join(absent)}: another version of attnstore wrote it and reads it; for this one, make "
        "it again: an episode in a new store (attnstore ingest), what was added to it by the same command"
    )


def parquet_scan(files: Sequence[str] | str) -> str:
    """Table function that reads exactly these files, with a column ``filename``.

    Parameters
    ----------
    files
        Their paths, or an SQL expression that is a list of them.
    """
    listed = files if isinstance(files, str) else f"[{', '.join(quoted(f) for f in files)}]"
    # Hive partitioning would make columns of a directory that happens to be called date=2025.
    return f"read_parquet({listed}, filename = true, hive_partitioning = false)"


def run_row(paths: StorePaths, run: str) -> dict[str, Any]:
    """Row of a run in table `runs`.

    Raises
    ------
    AttnstoreError
        If its file is not there, or is not a run configuration.
    """
    config, provenance = load_run(paths, run)
    row = {c.name: getattr(config, c.name, None) for c in CATALOG["runs"].columns}
    try:
        created = provenance.pop("created", None)
        row |= {"run": run, "created": _time(created) if created else None}
        row |= {"options": _json(config.options), "provenance": _json(provenance)}
        _check("runs", row)
    except (TypeError, ValueError, OverflowError) as error:
        raise IntegrityError(f"run {run}: {error}") from None
    return row


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), sort_keys=True, ensure_ascii=False)


def _check(table: str, row: Mapping[str, Any]) -> None:
    pa.Table.from_pylist([dict(row)], CATALOG[table].schema)


def append(
    connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Add rows to a table of the catalog's own."""
    if rows:
        new = pa.Table.from_pylist([dict(r) for r in rows], CATALOG[table].schema)
        with _registered(connection, "new_rows", new):
            connection.execute(f"INSERT INTO {DATABASE}.main.{table} FROM new_rows")


@contextmanager
def _registered(
    connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table
) -> Iterator[None]:
    """Give an Arrow table a name that SQL can use, for the time of a ``with``."""
    connection.register(name, table)
    try:
        yield
    finally:
        connection.unregister(name)

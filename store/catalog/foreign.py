"""A catalog file that somebody may have made: rows are taken from it, never code.

A generation is a cache, and like all of a store it may come from anywhere. In DuckDB a table can
carry expressions (generated columns, defaults, checks), a view can stand in a table's place, and
either runs when it is asked, with the rights of whoever asks. So before the first row is read, what
the file holds is compared with what attnstore itself would have made, to the letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import duckdb

from ..commits import SAFE, open_regular
from ..errors import IntegrityError
from .rows import all_layers, create_tables, layer_names, making, quoted
from .tables import CATALOG, COPIES, DATABASE, version

_OTHERS = ("views", "indexes", "constraints", "sequences", "types", "triggers", "schemas")
"""Kinds of things that a generation has none of; macros besides, which nothing here could call."""


def attach_vetted(
    connection: duckdb.DuckDBPyConnection,
    file: Path,
    name: str = DATABASE,
    *,
    layers: Sequence[Path] = (),
    lock: str = "",
    is_layer: bool = False,
) -> None:
    """Attach a generation read-only, and check that it is nothing but a generation.

    Parameters
    ----------
    name
        Of the database.
    layers
        Generations that it stands on, to be attached with it as ``<name>_1``, ``<name>_2``, ...: their
        tables of statistics are used, and nothing else of them.
    lock
        Statement to run before anything of the files is looked at.
    is_layer
        It is one itself.

    Raises
    ------
    IntegrityError
        If it is something else; it is detached again.
    duckdb.Error
        If DuckDB cannot read it.
    """
    attached: list[str] = []
    try:
        for number, each in enumerate((file, *layers)):
            called = f"{name}_{number}" if number else name
            open_regular(each).close()
            connection.execute(f"ATTACH {quoted(str(each))} AS {called} (READ_ONLY)")
            attached.append(called)
        if lock:
            connection.execute(lock)
        for called in attached:
            vet(connection, called, is_layer=is_layer or called != name)
        if layers and [each.name for each in layers] != layer_names(connection, name):
            raise IntegrityError("the catalog stands on other generations than these")
    except BaseException:
        for called in attached:
            connection.execute(f"DETACH {called}")
        raise


def vet(connection: duckdb.DuckDBPyConnection, name: str, *, is_layer: bool = False) -> None:
    """Check that an attached database has a generation's tables, and nothing else.

    And that the files that it names are where a commit puts them, but for a layer, of which nobody asks
    that.

    Raises
    ------
    IntegrityError
        With the first thing that is not attnstore's own.
    """
    tables = _tables(connection, name)
    for table in sorted(tables.keys() | _expected().keys()):
        if tables.get(table) != _expected().get(table):
            is_other = table in tables and table in _expected()
            said = (
                "is not as attnstore makes it"
                if is_other
                else ("is not attnstore's" if table in tables else "is missing")
            )
            raise IntegrityError(f"the catalog's table {'.'.join(table)} {said}")
    for kind in _OTHERS:
        if kind not in _known_kinds():
            continue  # DuckDB 1 has no triggers
        internal = " AND NOT internal" if kind in ("views", "types", "schemas") else ""
        if connection.execute(
            f"SELECT 1 FROM duckdb_{kind}() WHERE database_name = ?{internal} LIMIT 1", [name]
        ).fetchall():
            raise IntegrityError(f"the catalog has {kind} of its own, which attnstore's have not")
    if connection.execute(f"SELECT version FROM {name}.main.generation").fetchall() != [
        (version(),)
    ]:
        raise IntegrityError("another version of attnstore made the catalog")
    if is_layer:
        return
    id = SAFE.pattern
    outside = connection.execute(
        f"SELECT path FROM {name}.main.files WHERE NOT coalesce(starts_with(path, 'data/' || run || "
        f"'/' || episode || '/') AND split_part(path, '/', 5) = table_name || '.parquet' "
        f"AND regexp_full_match(path, 'data/{id}/{id}/{id}/{id}'), false) LIMIT 1"
    ).fetchall()
    if outside:
        raise IntegrityError(
            f"the catalog names a file that no commit puts there: {outside[0][0]!r}"
        )


def _tables(connection: duckdb.DuckDBPyConnection, name: str) -> dict[tuple[str, str], str]:
    rows = connection.execute(
        "SELECT schema_name, table_name, sql FROM duckdb_tables() WHERE database_name = ?", [name]
    ).fetchall()
    return {(schema, table): sql for schema, table, sql in rows}


@lru_cache(maxsize=1)
def _expected() -> dict[tuple[str, str], str]:
    """Statement of each table, as this DuckDB spells those that attnstore makes."""
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH ':memory:' AS {DATABASE}")
        create_tables(connection)
        return _tables(connection, DATABASE)


@lru_cache(maxsize=1)
def _known_kinds() -> frozenset[str]:
    kinds = set()
    with duckdb.connect() as connection:
        for kind in _OTHERS:
            try:
                connection.execute(f"SELECT 1 FROM duckdb_{kind}() LIMIT 0")
                kinds.add(kind)
            except duckdb.CatalogException:
                continue
    return frozenset(kinds)


def copy_rows(source: Path, target: Path, storage: str, layers: Sequence[Path] = ()) -> None:
    """Make a generation of one's own, without layers, with the rows of one from elsewhere.

    Parameters
    ----------
    layers
        Generations that the source stands on, by their own names.

    Raises
    ------
    IntegrityError
        If it is not a generation.
    duckdb.Error
        If DuckDB cannot read it.
    """
    with making(target) as connection:
        connection.execute(
            f"ATTACH {quoted(str(target))} AS {DATABASE} (STORAGE_VERSION '{storage}')"
        )
        # From here on DuckDB opens no file: not for a row, not for an expression.
        attach_vetted(
            connection, source, "source", layers=layers, lock="SET enable_external_access = false"
        )
        create_tables(connection)
        connection.execute(f"DELETE FROM {DATABASE}.main.generation")
        for table in ("generation", *CATALOG):
            connection.execute(f"INSERT INTO {DATABASE}.main.{table} FROM source.main.{table}")
        for table in COPIES:
            connection.execute(
                f"INSERT INTO {DATABASE}.main.{table} {all_layers(connection, table, 'source')}"
            )
        connection.execute(f"CHECKPOINT {DATABASE}")

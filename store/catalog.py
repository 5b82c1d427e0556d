"""The catalog: DuckDB generations, each an immutable cache of what the commits said.

A generation ``catalog/catalog-000123.duckdb`` is made from the one before: copied under a
temporary name, brought up to date, then hard-linked to the next number if that is free. So a
reader never waits for a writer, and whoever loses the race takes the winner's.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import duckdb

from .catalog_changes import Changes, Known, apply, changes_since, read_known
from .catalog_rows import create_tables, quoted
from .catalog_stamp import is_current, record, take
from .catalog_tables import CATALOG, COPIED, DATABASE, VIEWED, version
from .committed_files import committed_tables, register
from .errors import UsageError
from .file_views import create_file_view
from .ledger import LEDGER, ledger_query
from .paths import StorePaths, sync_directory
from .rules import create_macros

STORAGE = "v1.3.0"
"""Oldest DuckDB that opens a generation: the floor of attnstore's own dependency."""
NAME = re.compile(r"catalog-(\d{6,})\.duckdb")
_CANNOT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """One catalog file; never changed after it was published."""

    number: int
    path: Path


def generations(paths: StorePaths) -> list[Generation]:
    """Every published generation, oldest first."""
    if not paths.catalog.is_dir():
        return []
    named = ((NAME.fullmatch(p.name), p) for p in paths.catalog.iterdir())
    return sorted(Generation(int(m[1]), p) for m, p in named if m)


def refresh(paths: StorePaths) -> Generation:
    """Bring the catalog up to date with the commits; return its newest generation.

    Raises
    ------
    UsageError
        If the store cannot be written.
    """
    paths.check_writable()
    with duckdb.connect() as connection:
        found = attach_current(connection, paths)
        if isinstance(found, Generation):
            return found
        raise UsageError(f"{paths.catalog} cannot be written: {found}")


def rebuild(paths: StorePaths) -> Generation:
    """Make a generation from the commits alone.

    Raises
    ------
    UsageError
        If the store cannot be written.
    """
    paths.check_writable()
    while True:
        stamp = take(paths)
        try:
            made = _publish(paths, None, changes_since(paths, Known()))
        except (OSError, duckdb.IOException) as error:
            raise UsageError(f"{paths.catalog} cannot be written: {error}") from None
        if made is not None:
            record(stamp, made.path)
            return made


def connect(paths: StorePaths) -> duckdb.DuckDBPyConnection:
    """Connect to the up-to-date catalog, read-only, its tables under their plain names.

    Tables that are too large for a catalog (`VIEWED`) are views over the committed Parquet files.
    A store that cannot be written gets its catalog in memory. The connection keeps showing the
    commits of this moment, whatever is committed later. Its cursors do not have those views.
    """
    paths.prepare_catalog()
    # Without replacements a misspelt table is not looked for among Python's variables.
    connection = duckdb.connect(config={"python_enable_replacements": False})
    try:
        attach_current(connection, paths)
        _create_views(connection, paths)
    except BaseException:
        connection.close()
        raise
    return connection


def attach_current(
    connection: duckdb.DuckDBPyConnection, paths: StorePaths
) -> Generation | Exception:
    """Attach the up-to-date generation as `DATABASE`, read-only, bringing it up to date first.

    Returns
    -------
    The generation; or, if the store cannot be written, the reason: the catalog is then in memory.
    """
    while True:
        newest, known = _attach_newest(connection, paths)
        if newest is not None and known is None:
            return newest
        stamp = take(paths)
        changes = changes_since(paths, known or Known())
        if newest is not None and not changes:
            record(stamp, newest.path)
            return newest
        if newest is not None:
            connection.execute(f"DETACH {DATABASE}")
        try:
            made = _publish(paths, newest, changes)
        except (OSError, duckdb.Error) as error:
            if newest is not None and not newest.path.exists():
                continue  # gc took the generation while it was copied
            if isinstance(error, OSError) and error.errno not in _CANNOT_WRITE:
                raise
            _attach_in_memory(connection, paths, newest, changes)
            return error
        if made is not None:
            record(stamp, made.path)


def _attach_in_memory(
    connection: duckdb.DuckDBPyConnection,
    paths: StorePaths,
    base: Generation | None,
    changes: Changes,
) -> None:
    connection.execute(f"ATTACH ':memory:' AS {DATABASE}")
    if base is None:
        create_tables(connection)
    else:
        connection.execute(f"ATTACH {quoted(str(base.path))} AS base (READ_ONLY)")
        connection.execute(f"COPY FROM DATABASE base TO {DATABASE}")
        connection.execute("DETACH base")
    apply(connection, paths.root, changes)


def _attach_newest(
    connection: duckdb.DuckDBPyConnection, paths: StorePaths
) -> tuple[Generation | None, Known | None]:
    """Attach the newest generation, unless it is unreadable or has other tables.

    What it includes is None if that is known to be everything.
    """
    for generation in generations(paths)[-1:]:
        try:
            connection.execute(f"ATTACH {quoted(str(generation.path))} AS {DATABASE} (READ_ONLY)")
        except duckdb.Error as error:
            _log.warning("%s cannot be read and is made anew: %s", generation.path, error)
            break
        try:
            # Whoever made the file: a view in it would run when it is asked, before any sandbox.
            views = connection.execute(
                f"FROM duckdb_views() WHERE database_name = '{DATABASE}' AND NOT internal"
            ).fetchall()
            if not views and connection.execute(f"FROM {DATABASE}.main.generation").fetchall() == [
                (version(),)
            ]:
                current = is_current(paths, generation.path)
                return generation, None if current else read_known(connection)
        except duckdb.Error as error:
            _log.warning("%s cannot be read and is made anew: %s", generation.path, error)
        connection.execute(f"DETACH {DATABASE}")
    return None, None


def _publish(paths: StorePaths, base: Generation | None, changes: Changes) -> Generation | None:
    """Make the next generation from `base`, or from nothing; None if another process was first."""
    paths.catalog.mkdir(exist_ok=True)
    number = max((g.number for g in generations(paths)), default=0) + 1
    target = Generation(number, paths.catalog / f"catalog-{number:06d}.duckdb")
    temporary = paths.catalog / f".tmp-{uuid.uuid4().hex}.duckdb"
    try:
        try:
            _build(paths, temporary, base, changes)
        except duckdb.Error as error:
            if base is None:
                raise
            # One of its blocks may be damaged, which only using it shows.
            _log.warning("%s cannot be brought up to date: %s", base.path, error)
            _remove(temporary)
            _build(paths, temporary, None, changes_since(paths, Known()))
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        if not _claim(temporary, target.path):
            return None
        sync_directory(paths.catalog)
        return target
    finally:
        _remove(temporary)


def _build(paths: StorePaths, temporary: Path, base: Generation | None, changes: Changes) -> None:
    if base is not None:
        shutil.copyfile(base.path, temporary)
    with duckdb.connect() as connection:
        connection.execute(
            f"ATTACH {quoted(str(temporary))} AS {DATABASE} (STORAGE_VERSION '{STORAGE}')"
        )
        if base is None:
            create_tables(connection)
        apply(connection, paths.root, changes)
        connection.execute(f"CHECKPOINT {DATABASE}")
        connection.execute(f"DETACH {DATABASE}")


def _remove(temporary: Path) -> None:
    temporary.unlink(missing_ok=True)
    temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)


def _claim(temporary: Path, target: Path) -> bool:
    """Give a finished file its name, unless the name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links. The empty file claims the name; a reader who meets it
        # in between makes a generation of its own.
        try:
            target.open("xb").close()
        except FileExistsError:
            return False
        temporary.replace(target)
    return True


def _create_views(connection: duckdb.DuckDBPyConnection, paths: StorePaths) -> None:
    for name in CATALOG:
        connection.execute(f"CREATE VIEW {name} AS FROM {DATABASE}.main.{name}")
    for name in COPIED:
        connection.execute(
            f"CREATE VIEW {name} AS SELECT * EXCLUDE (part) FROM {DATABASE}.main.{name}"
        )
    register(connection, committed_tables(connection, paths))
    for name in VIEWED:
        create_file_view(connection, paths, name)
    connection.execute(f"CREATE VIEW {LEDGER.name} AS {ledger_query()}")
    create_macros(connection)

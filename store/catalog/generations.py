"""The catalog: DuckDB generations, each an immutable cache of what the commits said.

A generation ``catalog/catalog-000123.duckdb`` is made from the one before: copied under a
temporary name, brought up to date, then hard-linked to the next number if that is free. So a
reader never waits for a writer, and whoever loses the race takes the winner's. It says up to which
entry of the commit log it was made; what is above that, and nothing else, makes it out of date.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import uuid
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from ..commits import StorePaths, log_of, replace_file, sync_directory
from ..errors import IntegrityError, UsageError
from .changes import (
    Changes,
    Known,
    LeftOut,
    apply,
    changes_since,
    is_current,
    read_facts,
    read_known,
    read_left_out,
    readable_again,
)
from .foreign import attach_vetted, copy_rows
from .rows import create_tables, quoted
from .tables import DATABASE
from .views import create_views

STORAGE = "v1.3.0"
"""Oldest DuckDB that opens a generation: the floor of attnstore's own dependency."""
NAME = re.compile(r"catalog-(\d{6,18})\.duckdb")
NEWEST = "newest.json"
"""Beside the generations: which one a reader who cannot list should try, made up to which entry."""
_CANNOT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
KEPT = 2
"""Generations that a mirror keeps: an older one may be in use."""
LONG = 1000
"""Entries of a log that is worth a catalog to read."""
_log = logging.getLogger(__name__)
_tried: dict[tuple[Path, LeftOut], Hashable] = {}
"""What could not be read, as it was when it was last tried."""
_MOST_TRIED = 1000


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
            connection.close()
            _shelve(paths)
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
        try:
            made = _publish(paths, None, changes_since(paths, None))
        except (OSError, duckdb.IOException) as error:
            raise UsageError(f"{paths.catalog} cannot be written: {error}") from None
        if made is not None:
            _shelve(paths, anew=True)
            return made


def _shelve(paths: StorePaths, *, anew: bool = False) -> None:
    made = made_from(paths)
    if made is not None:
        paths.shelve(made.path, made.head, made.tip, anew=anew)


def connect(paths: StorePaths) -> duckdb.DuckDBPyConnection:
    """Connect to the up-to-date catalog, read-only, its tables under their plain names.

    Tables that are too large for a catalog (`VIEWED`) are views over the committed Parquet files.
    A store that cannot be written gets its catalog in memory. The connection keeps showing the
    commits of this moment, whatever is committed later. Its cursors do not have those views.
    """
    # Without replacements a misspelt table is not looked for among Python's variables.
    connection = duckdb.connect(config={"python_enable_replacements": False})
    try:
        attach_current(connection, paths)
        create_views(connection, paths)
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
    made = None
    again: list[LeftOut] = []
    while True:
        newest, known = _attach_newest(connection, paths)
        # What was made here a moment ago shows what was committed when it was asked for.
        if newest is not None and known is not None:
            if made is not None and newest.number >= made.number:
                return newest
            if is_current(paths, known) and not (again := _repaired(connection, paths, known)):
                return newest
        changes = changes_since(paths, known, lambda: read_facts(connection), again)
        if newest is not None:
            connection.execute(f"DETACH {DATABASE}")
        base = newest if changes.since else None
        if newest is not None and base is None:
            _log.warning("%s is made anew: the log is not as it was then", newest.path)
        try:
            made = _publish(paths, base, changes)
        except (OSError, duckdb.Error) as error:
            if base is not None and not base.path.exists():
                continue  # gc took the generation while it was copied
            if isinstance(error, OSError) and error.errno not in _CANNOT_WRITE:
                raise
            _attach_in_memory(connection, paths, base, changes)
            return error


def _repaired(
    connection: duckdb.DuckDBPyConnection, paths: StorePaths, known: Known
) -> list[LeftOut]:
    """Return what the attached generation left out and can be read now.

    A process tries each once, since another release may read what that one did not, and then
    whenever its files are others than before.
    """
    left = []
    for each in read_left_out(connection):
        place, state = (paths.root, each), each.state(paths)
        if place not in _tried or _tried[place] != state:
            _tried[place] = state
            left.append(each)
    found = readable_again(paths, known, lambda: read_facts(connection), left) if left else []
    for each in found:
        _tried.pop((paths.root, each), None)
    while len(_tried) > _MOST_TRIED:
        _tried.pop(next(iter(_tried)))
    return found


def seed_log(paths: StorePaths) -> None:
    """Have this process take over what the newest generation knows of the log, if it is long.

    Reading 30,000 entries takes seconds, reading their rows a tenth of one. A mirror has not all
    entries, but a catalog that knows what they say.
    """
    log = log_of(paths)
    if log.head or not (paths.remote or paths.entry(LONG).is_file()):
        return
    with duckdb.connect() as connection:
        newest, known = _attach_newest(connection, paths)
        if newest is not None and known is not None and log.holds(known.head, known.tip):
            log.seed(known.head, known.tip, read_facts(connection), known.unreadable)


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """What a generation was made from."""

    path: Path
    """The generation."""
    head: int
    """Last entry of the log that it was made from."""
    tip: str
    """SHA-256 of that entry."""


def made_from(paths: StorePaths) -> MadeFrom | None:
    """What the newest generation was made from; None if there is none, or it cannot be used."""
    with duckdb.connect() as connection:
        newest, known = _attach_newest(connection, paths)
    if newest is None or known is None:
        return None
    return MadeFrom(newest.path, known.head, known.tip)


def take_over(paths: StorePaths, source: Path) -> MadeFrom:
    """Make the next generation with the rows of one from elsewhere.

    Raises
    ------
    IntegrityError
        If `source` is not a generation.
    """
    paths.catalog.mkdir(parents=True, exist_ok=True)
    made = paths.catalog / f".tmp-{uuid.uuid4().hex}.duckdb"
    try:
        copy_rows(source, made, STORAGE)
        with duckdb.connect() as connection:
            attach_vetted(connection, made)
            known = read_known(connection)
        while True:
            number = max((g.number for g in generations(paths)), default=0) + 1
            target = paths.catalog / f"catalog-{number:06d}.duckdb"
            if _claim(made, target):
                break
    except duckdb.Error as error:
        raise IntegrityError(str(error).splitlines()[0]) from None
    finally:
        _remove(made)
    for old in generations(paths)[:-KEPT]:
        old.path.unlink(missing_ok=True)
    return MadeFrom(target, known.head, known.tip)


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
        attach_vetted(connection, base.path, "base")
        connection.execute(f"COPY FROM DATABASE base TO {DATABASE}")
        connection.execute("DETACH base")
    apply(connection, paths.root, changes)


def _attach_newest(
    connection: duckdb.DuckDBPyConnection, paths: StorePaths
) -> tuple[Generation | None, Known | None]:
    """Attach the newest generation and say what it was made from, unless it cannot be used."""
    for generation in generations(paths)[-1:]:
        try:
            attach_vetted(connection, generation.path)
            try:
                return generation, read_known(connection)
            except BaseException:
                connection.execute(f"DETACH {DATABASE}")
                raise
        except FileNotFoundError:
            break
        except (duckdb.Error, IntegrityError, OSError) as error:
            _log.warning("%s cannot be used and is made anew: %s", generation.path, error)
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
            _build(paths, temporary, None, changes_since(paths, None))
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        if not _claim(temporary, target.path):
            return None
        sync_directory(paths.catalog)
        replace_file(
            paths.catalog / NEWEST,
            {"path": f"catalog/{target.path.name}", "head": changes.head, "tip": changes.tip},
        )
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

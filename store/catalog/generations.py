"""The catalog: DuckDB generations, each an immutable cache of what the commits said.

A generation ``catalog/catalog-000123.duckdb`` is made from the one before: copied under a
temporary name, brought up to date, then hard-linked to the next number if that is free. So a
reader never waits for a writer, and whoever loses the race takes the winner's. It says up to which
entry of the commit log it was made; what is above that, and nothing else, makes it out of date.

Of 10,000 episodes the statistics are 5 GB, which nobody wants to copy for one commit. So a generation
that has more than `LAYER` rows of them is not copied: the next one takes over what it says of commits,
and stands on it, as a *layer*, for its statistics. Which parts of a layer were replaced or removed since
is noted in table `gone`.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb

from ..commits import StorePaths, log_of, replace_file, sync_directory
from ..errors import IntegrityError, UsageError
from .changes import (
    Changes,
    Known,
    LeftOut,
    Progress,
    apply,
    changes_since,
    is_current,
    read_facts,
    read_known,
    read_left_out,
    readable_again,
)
from .foreign import attach_vetted, copy_rows
from .rows import create_tables, layer_names, making, quoted
from .tables import CATALOG, COPIED, DATABASE, NAME
from .views import create_views

STORAGE = "v1.3.0"
"""Oldest DuckDB that opens a generation: the floor of attnstore's own dependency."""
NEWEST = "newest.json"
"""Beside the generations: which one a reader who cannot list should try, made up to which entry."""
_CANNOT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
LAYER = 2_000_000
"""Rows of statistics (0.3 GB, 600 episodes of Pi0.5's) from which on a generation becomes a layer."""
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
    layers: tuple[Path, ...] = field(default=(), compare=False)
    """Older ones of whose statistics it is made too, once it was attached."""


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


def rebuild(paths: StorePaths, progress: Progress = lambda share, now: None) -> Generation:
    """Make a generation from the commits alone.

    Parameters
    ----------
    progress
        Called with the share that is done, 0 to 1, and what is at its turn.

    Raises
    ------
    UsageError
        If the store cannot be written.
    """
    paths.check_writable()
    while True:
        try:
            progress(0.0, "reading the log")
            changes = changes_since(
                paths, None, progress=lambda *done: progress(done[0] / 2, done[1])
            )
            made = _publish(
                paths, None, changes, lambda *done: progress(0.5 + done[0] / 2, done[1])
            )
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
        if (
            newest is not None
            and known is not None
            and (
                (made is not None and newest.number >= made.number)
                or (is_current(paths, known) and not (again := _repaired(connection, paths, known)))
            )
        ):
            try:
                return replace(newest, layers=_attach_layers(connection, paths))
            except (OSError, duckdb.Error, IntegrityError) as error:
                if not newest.path.exists():
                    connection.execute(f"DETACH {DATABASE}")
                    continue  # gc took the generation and its layers
                _log.warning("%s stands on what cannot be used: %s", newest.path, error)
                known = None
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


def is_long(paths: StorePaths) -> bool:
    """Whether a store's log has so many entries that a catalog is read faster."""
    return paths.entry(LONG).is_file()


def seed_log(paths: StorePaths) -> None:
    """Have this process take over what the newest generation knows of the log, if it is long.

    Reading 30,000 entries takes seconds, reading their rows a tenth of one. A mirror has not all
    entries, but a catalog that knows what they say.
    """
    log = log_of(paths)
    if log.head or not (paths.remote or is_long(paths)):
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


def take_over(paths: StorePaths, source: Path, layers: Sequence[Path] = ()) -> MadeFrom:
    """Make the next generation with the rows of one from elsewhere, and of those that it stands on.

    Raises
    ------
    IntegrityError
        If `source` is not a generation.
    """
    paths.catalog.mkdir(parents=True, exist_ok=True)
    made = paths.catalog / f".tmp-{uuid.uuid4().hex}.duckdb"
    try:
        copy_rows(source, made, STORAGE, layers)
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
    for old in superseded(paths):
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
        _attach_layers(connection, paths)
    apply(connection, paths.root, changes)


def _attach_layers(connection: duckdb.DuckDBPyConnection, paths: StorePaths) -> tuple[Path, ...]:
    """Attach what the attached generation stands on; all of it, or nothing if something is amiss."""
    layers = tuple(paths.catalog / name for name in layer_names(connection))
    attached: list[str] = []
    try:
        for number, file in enumerate(layers, 1):
            attach_vetted(connection, file, f"{DATABASE}_{number}", is_layer=True)
            attached.append(f"{DATABASE}_{number}")
    except BaseException:
        for name in attached:
            connection.execute(f"DETACH {name}")
        raise
    return layers


def layers_in_use(paths: StorePaths, newest: Sequence[Generation]) -> set[Path] | None:
    """Return the layers of some generations; None if one does not say."""
    found: set[Path] = set()
    for generation in newest:
        try:
            with duckdb.connect() as connection:
                attach_vetted(connection, generation.path)
                found |= {paths.catalog / name for name in layer_names(connection)}
        except (OSError, duckdb.Error, IntegrityError):
            return None
    return found


def superseded(paths: StorePaths, kept: int = KEPT) -> list[Generation]:
    """Return the generations that the newest ones do not need, oldest first."""
    every = generations(paths)
    if len(every) <= kept:
        return []
    layers = layers_in_use(paths, every[-kept:])
    if layers is None:
        return []
    return [each for each in every[:-kept] if each.path not in layers]


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


def _publish(
    paths: StorePaths,
    base: Generation | None,
    changes: Changes,
    progress: Progress = lambda share, now: None,
) -> Generation | None:
    """Make the next generation from `base`, or from nothing; None if another process was first."""
    paths.catalog.mkdir(exist_ok=True)
    number = max((g.number for g in generations(paths)), default=0) + 1
    target = Generation(number, paths.catalog / f"catalog-{number:06d}.duckdb")
    temporary = paths.catalog / f".tmp-{uuid.uuid4().hex}.duckdb"
    try:
        try:
            layers = _build(paths, temporary, base, changes, progress)
        except (duckdb.Error, IntegrityError, FileNotFoundError) as error:
            if base is None or not base.path.exists():
                raise
            # One of its blocks may be damaged, which only using it shows.
            _log.warning("%s cannot be brought up to date: %s", base.path, error)
            _remove(temporary)
            layers = _build(paths, temporary, None, changes_since(paths, None))
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        if not _claim(temporary, target.path):
            return None
        sync_directory(paths.catalog)
        replace_file(
            paths.catalog / NEWEST,
            {
                "path": f"catalog/{target.path.name}",
                "head": changes.head,
                "tip": changes.tip,
                "layers": [f"catalog/{name}" for name in layers],
            },
        )
        return target
    finally:
        _remove(temporary)


def _build(
    paths: StorePaths,
    temporary: Path,
    base: Generation | None,
    changes: Changes,
    progress: Progress = lambda share, now: None,
) -> list[str]:
    """Make a generation's file; return the names of its layers."""
    # In a bucket, a catalog is one object.
    stands_on_base = base is not None and not paths.remote and _is_large(base)
    if base is not None and not stands_on_base:
        shutil.copyfile(base.path, temporary)
    with making(temporary) as connection:
        connection.execute(
            f"ATTACH {quoted(str(temporary))} AS {DATABASE} (STORAGE_VERSION '{STORAGE}')"
        )
        if base is None or stands_on_base:
            create_tables(connection)
        if base is not None and stands_on_base:
            _stand_on(connection, base)
        _attach_layers(connection, paths)
        apply(connection, paths.root, changes, progress)
        layers = layer_names(connection)
        connection.execute(f"CHECKPOINT {DATABASE}")
        connection.execute(f"DETACH {DATABASE}")
    return layers


def _is_large(generation: Generation) -> bool:
    """Whether a generation has so many rows of statistics itself that it is not copied."""
    with duckdb.connect() as connection:
        attach_vetted(connection, generation.path)
        counts = [
            connection.execute(f"SELECT count(*) FROM {DATABASE}.main.{table}").fetchall()[0][0]
            for table in COPIED
        ]
    return bool(sum(counts) > LAYER)


def _stand_on(connection: duckdb.DuckDBPyConnection, base: Generation) -> None:
    """Take over all that a generation says but its statistics, for which it becomes a layer."""
    attach_vetted(connection, base.path, "base")
    connection.execute(f"DELETE FROM {DATABASE}.main.generation")
    for table in ("generation", "layers", "gone", *CATALOG):
        connection.execute(f"INSERT INTO {DATABASE}.main.{table} FROM base.main.{table}")
    connection.execute(
        f"INSERT INTO {DATABASE}.main.layers SELECT coalesce(max(number), 0) + 1, "
        f"{quoted(base.path.name)} FROM {DATABASE}.main.layers"
    )
    connection.execute("DETACH base")


def _remove(temporary: Path) -> None:
    temporary.unlink(missing_ok=True)
    temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)
    shutil.rmtree(temporary.with_name(temporary.name + ".spilled"), ignore_errors=True)


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

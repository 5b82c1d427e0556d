"""A catalog generation from elsewhere, taken over into a mirror.

A generation is a cache, and one from elsewhere is untrusted data as well. So it is not used as it
is: its rows are copied into a file with attnstore's own definitions, while DuckDB may open nothing
else, and what it lists is compared with the commits as always.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from .catalog import STORAGE, generations
from .catalog_changes import read_known
from .catalog_rows import create_tables, quoted
from .catalog_tables import CATALOG, COPIES, DATABASE, version
from .errors import AttnstoreError, IntegrityError
from .fetching import place_file
from .file_views import check_place
from .paths import SAFE, read_json
from .remote import Commits, Index, RemoteFile, is_revision

if TYPE_CHECKING:
    from .mirror import MirrorPaths

TAKEN = "taken.json"
"""Beside the generations: which one of the source the newest is made from."""
KEPT = 2
"""Generations that a mirror keeps: an older one may be in use."""
_log = logging.getLogger(__name__)


def adopt(paths: MirrorPaths) -> bool:
    """Take over the source's newest generation, unless it was; say whether there is one."""
    remote = paths.found.catalog
    if remote is None:
        return False
    taken = _taken(paths)
    if taken == _identity(remote) and generations(paths):
        return True
    temporary = paths.scratch / f"{uuid.uuid4().hex}.duckdb"
    made = paths.scratch / f"{uuid.uuid4().hex}.duckdb"
    try:
        free = shutil.disk_usage(paths.root).free
        size = free // 2 if remote.size is None else remote.size
        place_file(paths.transport, remote.path, temporary, paths.scratch, min(size, free))
        _copy(paths, temporary, made)
        _publish(paths, made, remote)
    except (duckdb.Error, AttnstoreError) as error:
        # The commits say the same, in more requests.
        _log.warning("%s/%s cannot be used: %s", paths.url, remote.path, str(error).split("\n")[0])
        return False
    finally:
        for file in (temporary, made):
            file.unlink(missing_ok=True)
            file.with_name(file.name + ".wal").unlink(missing_ok=True)
    return True


def committed(paths: MirrorPaths) -> Index | None:
    """Fill an index whose commits the catalog lists; None if the catalog cannot be used."""
    if paths.found.commits:
        return paths.found
    if not adopt(paths):
        return None
    commits: Commits = {}
    with duckdb.connect() as connection:
        newest = generations(paths)[-1].path
        connection.execute(f"ATTACH {quoted(str(newest))} AS {DATABASE} (READ_ONLY)")
        for (run, episode, part), listed in read_known(connection).parts.items():
            revision = listed.split(" ")[0].removesuffix(".json")
            if is_revision(revision) and all(map(SAFE.fullmatch, (run, episode, part))):
                commits.setdefault(run, {}).setdefault(episode, {})[part] = {revision: ""}
    return replace(paths.found, commits=commits)


def _identity(remote: RemoteFile) -> dict[str, object]:
    return {"path": remote.path, "size": remote.size, "tag": remote.tag}


def _taken(paths: MirrorPaths) -> dict[str, object] | None:
    try:
        return read_json(paths.catalog / TAKEN)
    except (OSError, IntegrityError):
        return None


def _copy(paths: MirrorPaths, source: Path, target: Path) -> None:
    """Copy the rows of a generation, with the listings that this mirror compares."""
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH {quoted(str(source))} AS source (READ_ONLY)")
        connection.execute(
            f"ATTACH {quoted(str(target))} AS {DATABASE} (STORAGE_VERSION '{STORAGE}')"
        )
        connection.execute("SET enable_external_access = false")
        tables = {
            name
            for (name,) in connection.execute(
                "SELECT table_name FROM duckdb_tables() WHERE database_name = 'source' "
                "AND schema_name = 'main'"
            ).fetchall()
        }
        wanted = [*CATALOG.values(), *COPIES.values()]
        # By the names of base tables: a view of that name would run somebody's SQL here.
        if missing := {"generation", *(t.name for t in wanted)} - tables:
            raise IntegrityError(f"it has no table {min(missing)}")
        if connection.execute("FROM source.main.generation").fetchall() != [(version(),)]:
            raise IntegrityError("another version of attnstore made it")
        create_tables(connection)
        for table in wanted:
            columns = ", ".join(f'"{c.name}"' for c in table.columns)
            connection.execute(
                f"INSERT INTO {DATABASE}.main.{table.name} "
                f"SELECT {columns} FROM source.main.{table.name}"
            )
        for path, run, episode, table_name in connection.execute(
            f"SELECT path, run, episode, table_name FROM {DATABASE}.main.files"
        ).fetchall():
            check_place(path, run, episode, table_name)
        _relist(connection, paths)
        connection.execute(f"CHECKPOINT {DATABASE}")


def _relist(connection: duckdb.DuckDBPyConnection, paths: MirrorPaths) -> None:
    """Spell the listings as this mirror does: the source's have times of its own file system."""
    for table in ("commits", "unreadable"):
        if paths.found.by_catalog:
            connection.execute(
                f"UPDATE {DATABASE}.main.{table} SET listing = split_part(listing, ' ', 1) || ' ' "
                "WHERE listing IS NOT NULL"
            )
            continue
        rows = [(*key, listed.split(" ")[0], listed) for key, listed in paths.listings()]
        names = ("run", "episode", "part", "name", "listing")
        columns = list(zip(*rows, strict=True)) or [()] * len(names)
        here = pa.table([pa.array(c, pa.string()) for c in columns], names)
        connection.register("here", here)
        connection.execute(
            f"UPDATE {DATABASE}.main.{table} AS c SET listing = here.listing FROM here "
            "WHERE (c.run, c.episode, c.part) = (here.run, here.episode, here.part) "
            "AND split_part(c.listing, ' ', 1) = here.name"
        )
        connection.unregister("here")


def _publish(paths: MirrorPaths, made: Path, remote: RemoteFile) -> None:
    while True:
        number = max((g.number for g in generations(paths)), default=0) + 1
        target = paths.catalog / f"catalog-{number:06d}.duckdb"
        try:
            target.hardlink_to(made)
            break
        except FileExistsError:
            continue  # another process was first
        except OSError:
            shutil.copyfile(made, target)
            break
    temporary = paths.scratch / uuid.uuid4().hex
    temporary.write_text(json.dumps(_identity(remote)))
    temporary.replace(paths.catalog / TAKEN)
    for old in generations(paths)[:-KEPT]:
        old.path.unlink(missing_ok=True)

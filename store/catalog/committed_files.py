"""Committed Parquet files as DuckDB opens them: compared with their commit at that moment.

DuckDB checks no page's CRC, and a flipped bit is another number to it. So it opens committed files
through here: each is compared with its SHA-256 once before this process uses it first, a mirror's
is fetched before. A query that is pruned to some episodes touches those of them alone.
"""

from __future__ import annotations

import atexit
import io
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from weakref import WeakSet

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from pyarrow import fs

from ..commits import SAFE, StoredFile, StorePaths, latest_commit
from ..commits.vetting import Places
from ..errors import AttnstoreError, IntegrityError, NotFoundError
from ..tables.inventory import ALL_TABLES
from .tables import DATABASE

_EMPTY = "empty"
SCHEME = "attnstore"
"""Of the paths that DuckDB opens through here."""
_connections: WeakSet[duckdb.DuckDBPyConnection] = WeakSet()


class CommittedTables:
    """The Parquet files that a catalog names, to be opened after `check`.

    Parameters
    ----------
    paths
        The store.
    files
        ``path``, ``size`` and ``sha256`` of them, from the catalog.
    """

    def __init__(self, paths: StorePaths, files: pa.Table) -> None:
        self._paths, self._files = paths, files
        self._root = paths.root.resolve()

    @cached_property
    def _stored(self) -> dict[str, StoredFile]:
        columns = (self._files[name].to_pylist() for name in ("path", "size", "sha256"))
        return {path: StoredFile(path, *rest) for path, *rest in zip(*columns, strict=True)}

    def check(self, path: str) -> Path:
        """Compare a file with its commit; fetch it first, if this is a mirror that lacks it.

        Parameters
        ----------
        path
            Absolute.

        Raises
        ------
        NotFoundError
            If the catalog names no such file, or its commit was replaced.
        IntegrityError
            If it is not what was committed, or in no place where a commit puts a table.
        """
        file = Path(path)
        if not file.is_relative_to(self._root):
            raise NotFoundError(f"{path} lies outside the store")
        relative = file.relative_to(self._root).as_posix()
        names = relative.split("/")
        stored = self._stored.get(relative)
        if stored is None:
            raise NotFoundError(f"no commit has a table {relative}")
        if len(names) != 5 or names[0] != "data" or not all(map(SAFE.fullmatch, names)):
            raise IntegrityError(
                f"the catalog names a file that no commit puts there: {relative!r}"
            )
        _, run, episode, attempt, name = names
        if self._paths.partial and not file.is_file():
            self._fetch(run, episode, attempt, name)
        places = Places(self._root, file.parent, f"{run}/{episode}/{attempt}")
        return places.check(StoredFile(name, stored.size, stored.sha256))

    def _fetch(self, run: str, episode: str, attempt: str, name: str) -> None:
        part, _, id = attempt.rpartition(".")
        commit = latest_commit(self._paths, run, episode, part)
        if commit is None or commit.attempt != id:
            raise NotFoundError(
                f"{self._paths.name}: {run}/{episode} was replaced; open the store again"
            )
        self._paths.need(commit, [f for f in commit.files if f.path == name])


def committed_tables(connection: duckdb.DuckDBPyConnection, paths: StorePaths) -> CommittedTables:
    """Take from the attached catalog which Parquet files there are."""
    rows = connection.sql(f"SELECT path, size, sha256 FROM {DATABASE}.main.files")
    return CommittedTables(paths, rows.to_arrow_table())


def address(root: Path, path: str) -> str:
    """Path by which DuckDB opens a file of a store, given relative to it."""
    return f"{SCHEME}://{root}/{path}"


def empty_address(table: str) -> str:
    """Path of a Parquet file with a table's columns and no rows, as deep as a part's.

    DuckDB opens the first file for its columns, when a view is made. That must not be a download,
    and no damaged file may be the end of every view.
    """
    return f"{SCHEME}://{_EMPTY}/-/-/-/{table}.parquet"


@cache
def _empty(table: str) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_batches([], ALL_TABLES[table].schema), stream)
    return stream.getvalue()


def register(connection: duckdb.DuckDBPyConnection, tables: CommittedTables) -> None:
    """Let DuckDB open committed files as ``attnstore:///absolute/path``."""
    connection.register_filesystem(_FileSystem(tables))
    _connections.add(connection)


@atexit.register
def _close_connections() -> None:
    # DuckDB's module complains on stderr about one that outlives it with open files of Python's.
    for connection in list(_connections):
        connection.close()


def _empty_table(path: str) -> str | None:
    above = f"{_EMPTY}/-/-/-/"
    path = path.removeprefix(f"{SCHEME}://")
    return path.removeprefix(above).removesuffix(".parquet") if path.startswith(above) else None


class _Reader(io.RawIOBase):
    """A file in which every thread has a place of its own.

    DuckDB's threads share a handle, and each reads by a seek and a read, two calls between which another thread
    may run: with one place for all it would read other bytes than it asked for.
    """

    def __init__(self, content: Path | bytes) -> None:
        super().__init__()
        self._bytes = content if isinstance(content, bytes) else None
        self._file = None if isinstance(content, bytes) else io.FileIO(content)
        self._size = len(content) if isinstance(content, bytes) else content.stat().st_size
        self._places: dict[int, int] = {}

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Return this thread's place."""
        return self._places.get(threading.get_ident(), 0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move this thread's place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._size}[whence]
        self._places[threading.get_ident()] = start + offset
        return start + offset

    def read(self, size: int = -1, /) -> bytes:
        """Read from this thread's place: all that is asked for, or what there is."""
        place = self.tell()
        end = self._size if size < 0 else min(place + size, self._size)
        if self._bytes is not None:
            data = self._bytes[place:end]
        else:
            assert self._file is not None
            data = b""
            while place + len(data) < end:
                more = os.pread(self._file.fileno(), end - place - len(data), place + len(data))
                if not more:
                    break
                data += more
        self.seek(place + len(data))
        return data

    def close(self) -> None:
        """Close the file; so does dropping it, which is how DuckDB leaves it."""
        if self._file is not None:
            self._file.close()
        super().close()


class _FileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Read-only file system of committed tables."""

    protocol = SCHEME
    cachable = False

    def __init__(self, tables: CommittedTables) -> None:
        super().__init__()
        self._tables = tables

    def open(self, path: str, mode: str = "rb", **options: Any) -> _Reader:
        """Open a file that is as it was committed."""
        if mode != "rb":
            raise IntegrityError(f"{path}: committed files are not written")
        if (table := _empty_table(path)) is not None:
            return _Reader(_empty(table))
        return _Reader(self._here(path))

    def glob(self, path: str, **options: Any) -> list[str]:
        """Return the path: a catalog names files, never patterns."""
        return [path]

    def exists(self, path: str, **options: Any) -> bool:
        """Whether there is such a file: the catalog says so."""
        return True

    def isfile(self, path: str) -> bool:
        """Whether it is a file."""
        return True

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return size and type."""
        table = _empty_table(path)
        size = len(_empty(table)) if table is not None else self._here(path).stat().st_size
        return {"name": path, "size": size, "type": "file"}

    def modified(self, path: str) -> datetime:
        """Return a constant: committed files do not change."""
        return datetime(2000, 1, 1, tzinfo=UTC)

    def _here(self, path: str) -> Path:
        return self._tables.check(path.removeprefix(f"{SCHEME}://"))


DAMAGED = "the store is damaged: "
"""Before the message of an error that comes through Arrow."""


def arrow_files(
    tables: CommittedTables, damaged: Callable[[AttnstoreError], None]
) -> fs.FileSystem:
    """Let Arrow open committed files by their absolute paths.

    Parameters
    ----------
    damaged
        Is told of a file that is not what was committed, in the thread that would have read it.
    """
    return fs.PyFileSystem(_ArrowFiles(tables, damaged))


class _ArrowFiles(fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """Committed Parquet files for Arrow: each compared with its commit before it is read first."""

    def __init__(self, tables: CommittedTables, damaged: Callable[[AttnstoreError], None]) -> None:
        self._tables, self._damaged = tables, damaged

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open one; a link or other bytes end the statement with an error."""
        try:
            return pa.OSFile(str(self._tables.check(path)))
        except AttnstoreError as error:
            self._damaged(error)
            raise OSError(f"{DAMAGED}{error}") from None

    open_input_stream = open_input_file

    def get_type_name(self) -> str:
        """Name of this kind of file system."""
        return "attnstore"

    def normalize_path(self, path: str) -> str:
        """Return the path."""
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """Say that a file is one; opening it shows whether that is true."""
        return [fs.FileInfo(path, fs.FileType.File) for path in paths]

    def _refuse(self, *arguments: Any, **options: Any) -> Any:
        raise OSError("committed files are opened and nothing else")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = _refuse
    delete_root_dir_contents = delete_file = move = copy_file = _refuse
    open_output_stream = open_append_stream = _refuse

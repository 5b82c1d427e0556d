"""The process that runs the user's SQL, from the inside.

SQL is untrusted, and DuckDB's own switches are not enough: with ``enable_external_access`` off,
DuckDB 2.0 still wrote the write-ahead log of a catalog that is attached read-only
(``with x as (copy ... to '....duckdb.wal') from x``), and its memory and time limits do not hold
scalar functions. So there are several fences, each of which would do for most attacks:

- one statement, and it must be a query; the transaction that it runs in is read-only;
- DuckDB opens no file at all: the catalog was attached before ``disabled_filesystems`` was set, and
  keyframe-level tables are Arrow datasets over the committed Parquet files, which Arrow reads;
- no extensions, no temporary files, no environment, configuration locked;
- the process may not write to any file, and has a limit on its address space; the parent kills it
  at the deadline (`attnstore.query.service.sql.children`).

docs/decisions/010-service.md
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import mmap
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, get_args

import duckdb
import pyarrow as pa
import pyarrow.dataset  # here, before children are forked: it takes a quarter of a second

from attnstore.store.catalog import refresh
from attnstore.store.catalog.changes import read_known
from attnstore.store.catalog.committed_files import DAMAGED
from attnstore.store.catalog.foreign import attach_vetted
from attnstore.store.catalog.generations import attach_current
from attnstore.store.catalog.views import create_views
from attnstore.store.commits import StorePaths
from attnstore.store.errors import AttnstoreError, IntegrityError, UsageError
from attnstore.store.opening import open_store

from ...sql.run import json_rows, run_query, sql_errors, statements_of, unique_names, write_result

Form = Literal["json", "ndjson", "csv", "arrow", "parquet"]
FORMS: tuple[Form, ...] = get_args(Form)
SETTINGS: Mapping[str, Any] = {
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "temp_directory": "",
    "threads": 2,
}
LOCKS = (
    "SET secret_directory = ''",
    "SET home_directory = ''",
    "SET enable_external_access = false",
    "SET disabled_filesystems = 'LocalFileSystem'",
)


ROOM = 256 << 20
"""Memory beyond DuckDB's: a result's rows on their way out, and what functions of one value take."""
STACKS = 256 << 20
"""Address space for the stacks of threads that a first query starts."""
_M_ARENA_MAX = -8  # of malloc.h


class Overflow(AttnstoreError):
    """A result is larger than the service sends."""


def open_catalog(
    paths: StorePaths,
    memory: int,
    seconds: float,
    damaged: Callable[[AttnstoreError], None] = lambda error: None,
) -> tuple[duckdb.DuckDBPyConnection, str]:
    """Connect to a store's catalog so that a statement can do nothing but ask it.

    Parameters
    ----------
    damaged
        Is told of a table that is not what was committed, in the thread that would have read it.

    Returns
    -------
    The connection, and the version of the log's history that it shows (`History.version`).
    """
    connection = duckdb.connect(config={**SETTINGS, "memory_limit": f"{memory}B"})
    try:
        connection.execute(f"SET max_execution_time = {int(1e3 * seconds)}")
    except duckdb.CatalogException:
        pass  # DuckDB 1 has no such setting; the parent's deadline is what holds
    try:
        # Brought up to date by a connection of its own, so that this one is locked before it looks
        # at anything of the file.
        newest = refresh(paths)
        attach_vetted(connection, newest.path, layers=newest.layers, lock="; ".join(LOCKS))
    except UsageError:
        # A store that cannot be written: the catalog is in memory, made here from vetted rows.
        attach_current(connection, paths)
        connection.execute("; ".join(LOCKS))
    version = read_known(connection).version
    create_views(connection, paths, sandboxed=True, damaged=damaged)
    connection.execute("SET lock_configuration = true")
    return connection, version


def answer(connection: duckdb.DuckDBPyConnection, sql: str, form: Form, most: int) -> bytes:
    """Run one query and write its rows.

    Parameters
    ----------
    form
        ``json`` is ``{"columns": [{"name", "type"}], "rows": [[...]]}``; the others are those of
        `attnstore.query.sql.run.write_result`.
    most
        Bytes that the result may have.

    Raises
    ------
    UsageError
        If this is not exactly one query, or it fails.
    IntegrityError
        If a table that it reads is not what was committed.
    Overflow
        If the result is larger.
    """
    statements = statements_of(connection, sql)
    if len(statements) != 1:
        raise UsageError(f"send exactly one SQL statement; got {len(statements)}")
    if statements[0].type != duckdb.StatementType.SELECT:
        kind = str(statements[0].type).rpartition(".")[2]
        raise UsageError(f"only queries are answered (SELECT, FROM, WITH, SUMMARIZE); got {kind}")
    stream = _Bounded(most)
    connection.execute("BEGIN TRANSACTION READ ONLY")
    try:
        relation = run_query(connection, sql)
        if form == "json":
            _write_json(relation, stream)
        else:
            write_result(relation, form, stream)
    except (AttnstoreError, OSError) as error:
        _, damaged, reason = str(error).partition(DAMAGED)
        if damaged:
            # Arrow repeats the traceback.
            raise IntegrityError(reason.partition(". Detail: ")[0]) from None
        raise
    finally:
        _roll_back(connection)
    return stream.getvalue()


def _roll_back(connection: duckdb.DuckDBPyConnection) -> bool:
    """End the transaction, if one is open, and say whether none is now.

    An error of this must not hide the statement's own: a stream of rows that broke off may still be
    open while its exception is.
    """
    try:
        connection.execute("ROLLBACK")
    except duckdb.Error as error:
        return "no transaction is active" in str(error)
    return True


def _write_json(relation: duckdb.DuckDBPyRelation, stream: io.BytesIO) -> None:
    names, kinds = unique_names(relation.columns), relation.types
    columns = [{"name": n, "type": str(t)} for n, t in zip(names, kinds, strict=True)]
    stream.write(b'{"columns":' + json.dumps(columns, ensure_ascii=False).encode() + b',"rows":[')
    with sql_errors():
        for number, row in enumerate(json_rows(relation)):
            text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            stream.write((b",\n" if number else b"\n") + text.encode())
    stream.write(b"]}\n")


class _Bounded(io.BytesIO):
    """A buffer that refuses to grow beyond a size."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any, /) -> int:
        if self.tell() + memoryview(data).nbytes > self._most:
            raise Overflow(
                f"the result is larger than {self._most / 1e6:.0f} MB: aggregate, select fewer "
                "columns, or use LIMIT"
            )
        return super().write(data)


def confine(memory: int) -> int:
    """Take from this process what a query does not need: files to write, memory beyond a limit.

    Parameters
    ----------
    memory
        Bytes of address space beyond what the process has now. Linux holds a process to it; macOS
        does not.

    Returns
    -------
    The limit of its address space, bytes; 0 if there is none.
    """
    import resource

    # Each of a dozen threads would reserve 64 MB of addresses for a heap of its own, and Arrow's
    # allocator a gigabyte: room that no query uses and the limit counts.
    with contextlib.suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    pa.set_memory_pool(pa.system_memory_pool())
    pa.set_cpu_count(2)
    pa.set_io_thread_count(2)
    # Python's own handler would turn the signal into nothing; the error of the write is enough.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = _space()
    if not used:
        return 0
    space = used + memory + STACKS
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    return space


def _end_with_parent() -> None:
    """End when the service does; else a statement would run on, without a deadline."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _space() -> int:
    """Address space of this process, bytes; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * mmap.PAGESIZE


def main(pipe: Connection, root: str, memory: int, seconds: float) -> None:
    """Answer queries until the parent goes away.

    The first message says that the catalog is open; then each request, JSON with ``sql``, ``form``
    and ``most``, gets a JSON message, and after ``{"ok": true}`` one with the result. ``spent``
    says that the process should not be asked again.
    """
    # The terminal's interrupt goes to all its processes; this one ends when its pipe does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # DuckDB and Arrow print to stderr when they abort: into the server's log, and no traceback.
    sys.tracebacklimit = 0
    os.environ.clear()
    # The service must get a core whatever its statements do: it is what ends them.
    if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(5)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def damaged(error: AttnstoreError) -> None:
        # Said from here, and the process ended: DuckDB and Arrow may wait for each other for ever
        # when a file fails in the middle of their stream.
        _send(pipe, ok=False, kind="damaged", message=f"{DAMAGED}{error}", spent=True)
        os._exit(1)

    try:
        connection, version = open_catalog(open_store(Path(root)), memory, seconds, damaged)
    except (AttnstoreError, duckdb.Error, OSError) as error:
        _send(pipe, ok=False, message=str(error))
        return
    limit = confine(memory + ROOM)
    # Freed memory may stay with the allocator, where the next statement finds it only in pieces.
    enough = limit - memory - STACKS // 2
    _send(pipe, ok=True, version=version)
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            result = answer(connection, request["sql"], request["form"], request["most"])
        except Overflow as error:
            kind, message = "overflow", str(error)
        except UsageError as error:
            # Arrow's own want of memory comes as the statement's error.
            spent = "Out of Memory" in str(error)
            kind, message = "failed" if spent else "usage", str(error)
        except IntegrityError as error:
            kind, message = "damaged", f"{DAMAGED}{error}"
        except Exception as error:  # the process is asked no more, and the client told why
            kind, message = "failed", str(error) or type(error).__name__
            if isinstance(error, MemoryError):
                message = "Out of Memory"
        else:
            _send(pipe, ok=True, spent=limit > 0 and _space() > enough)
            pipe.send_bytes(result)
            continue
        if "Out of Memory" in message:
            message = f"the statement needs more memory than the {memory >> 20} MB that it has"
        spent = kind == "failed" or not _roll_back(connection)
        _send(pipe, ok=False, kind=kind, message=message, spent=spent)


def _send(pipe: Connection, **message: Any) -> None:
    pipe.send_bytes(json.dumps(message).encode())

"""Durable writing and careful reading of the store's small files."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import stat
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, NotFoundError
from ..format.documents import Name, check
from ..format.version import check_version, explained
from .layout import MARKER

MAX_JSON = 64 << 20
"""Largest JSON file that is read, in bytes: a store is untrusted data."""
MAX_DEPTH = 64
"""Deepest nesting of JSON: what parses at a library's limit cannot be written again."""
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def now() -> str:
    """Return the current time, ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading, at once: whatever lies in its place cannot make the reader wait.

    Raises
    ------
    FileNotFoundError
        If there is nothing of this name.
    IntegrityError
        If it is no regular file.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe waits for somebody who writes to it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise IntegrityError(f"{path} is a socket or a device and no file") from None
        if error.errno == errno.ELOOP:
            raise IntegrityError(f"{path} is a link that leads to itself and no file") from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        for is_kind, kind in _KINDS:
            if is_kind(mode):
                raise IntegrityError(f"{path} is {kind} and no file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bounded(path: Path, limit: int = MAX_JSON) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    Raises
    ------
    FileNotFoundError
        If there is none.
    IntegrityError
        If it is larger, or no regular file.
    """
    with open_regular(path) as stream:
        # No more room than it needs: a buffer of `limit` is mapped and given back for every file.
        size = os.fstat(stream.fileno()).st_size
        data = stream.read(min(size, limit) + 1)
        if size < len(data) <= limit:  # it grew meanwhile
            data += stream.read(limit + 1 - len(data))
    if len(data) > limit:
        raise IntegrityError(f"{path}: larger than {limit} bytes, which no such file is")
    return data


def parse_json(data: bytes, name: object) -> dict[str, Any]:
    """Read the text of a JSON object from somebody else.

    Raises
    ------
    IntegrityError
        If it is not a JSON object, is nested deeper than `MAX_DEPTH`, or holds half a character or a
        number that is not finite.
    """
    try:
        value = json.loads(data.decode(), parse_constant=_no_number, parse_float=_finite)
        # Half a surrogate pair, spelled \ud800: text that nothing can write again.
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{name}: a JSON object is expected")
    if _deeper(data, value):
        raise IntegrityError(f"{name}: nested deeper than {MAX_DEPTH} levels")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(text: str) -> float:
    """Read a number; 1e999 is none that anybody could write again."""
    number = float(text)
    return number if math.isfinite(number) else _no_number(text[:40])


def _deeper(data: bytes, value: Any) -> bool:
    """Whether JSON is nested deeper than `MAX_DEPTH`."""
    # Each round takes the innermost brackets away; a commit of 650 files takes two.
    brackets = data.translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return False
    # Brackets in strings look alike.
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            each
            for node in level
            for each in (node.values() if isinstance(node, dict) else node)
            if isinstance(each, dict | list)
        ]
        if not level:
            return False
    return True


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    IntegrityError
        If the file is not a JSON object, larger than `MAX_JSON`, or no regular file.
    """
    return parse_json(read_bounded(path), path)


def check_marker(root: Path) -> dict[str, Any]:
    """Check that a directory is a store of a version that is read here; return its marker.

    Raises
    ------
    NotFoundError
        If there is no store at `root`.
    UnsupportedFormatError
        If a newer major format version wrote it.
    IntegrityError
        If the marker file cannot be read.
    """
    marker = root / MARKER
    try:
        value = read_json(marker)
    except (FileNotFoundError, NotADirectoryError):
        what = "no such directory" if not root.exists() else f"it has no {MARKER}"
        raise NotFoundError(f"{root} is not an attnstore store: {what}") from None
    version = check_version(value, marker)
    try:
        check(value, "marker", marker)
    except IntegrityError as error:
        raise explained(error, version) from None
    return value


def read_document(path: Path, name: Name) -> dict[str, Any]:
    """Read a JSON object and compare it with its schema.

    Parameters
    ----------
    name
        Of the schema; see `attnstore.store.format.documents`.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    IntegrityError
        As `read_json`, or if the file breaks a rule of the schema.
    """
    value = read_json(path)
    check(value, name, path)
    return value


def hash_file(file: Path) -> str:
    """SHA-256 of a regular file, hexadecimal."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_and_sync(file: Path) -> tuple[int, str]:
    """Make a file's bytes durable; return its size and its SHA-256, hexadecimal."""
    with open_regular(file) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
        return os.fstat(stream.fileno()).st_size, digest


def to_json(value: Mapping[str, Any]) -> bytes:
    """Spell a JSON object as the store's files do.

    Raises
    ------
    ValueError
        If it holds a number that is not finite: JSON has none, and other readers refuse it.
    """
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def create_exclusive(path: Path, data: bytes | Mapping[str, Any]) -> bool:
    """Create a file whole and durable, unless it exists; say whether this call created it.

    The content is written and synced under a temporary name, then hard-linked to `path`: the link
    either creates the complete file or fails, whoever else tries at the same time. On a file system
    without hard links the name is claimed by an empty file, which the complete one then replaces.

    Parameters
    ----------
    data
        Bytes, or a JSON object.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as stream:
            stream.write(data if isinstance(data, bytes) else to_json(data))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)
        except OSError as error:
            # NFS repeats a request whose reply was lost, and then says that the name is taken.
            if temporary.stat().st_nlink < 2:
                if isinstance(error, FileExistsError):
                    return False
                if error.errno not in _NO_LINKS:
                    raise
                try:
                    path.open("xb").close()
                except FileExistsError:
                    return False
                temporary.replace(path)
        sync_directory(path.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes | Mapping[str, Any]) -> None:
    """Give a file another content, at once for whoever reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        temporary.write_bytes(data if isinstance(data, bytes) else to_json(data))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)

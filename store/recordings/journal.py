"""Journals: one append-only file an episode, each of its entries whole or not there.

A file is the line ``attnstore journal 1`` and then entries. An entry is a header of 20 bytes (``ATNJ``,
length of the JSON object as uint32, length of the arrays as uint64, CRC-32C of everything else of the
entry as uint32; little-endian), the JSON object in UTF-8, and the arrays' bytes. Whoever is killed while
appending leaves half an entry at the end, and nothing else. docs/format.md has the entries' kinds.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from ..commits import open_regular, parse_json
from ..errors import EpisodeError, IntegrityError

SUFFIX = ".journal"
SPOOL = ".spool"
"""Suffix of the file beside a journal that holds what a live episode showed, until it is committed."""
MAGIC = b"attnstore journal 1\n"
_HEADER = struct.Struct("<4sIQ")
_CHECK = struct.Struct("<I")
_MARK = b"ATNJ"
MAX_HEAD, MAX_BODY = 16 << 20, 1 << 30
"""Bytes of an entry's JSON object, and of its arrays."""
HEADER_BYTES = _HEADER.size + _CHECK.size
_KIND = re.compile(rb'\{"kind":"(\w+)"')
"""How the JSON object of an entry begins, if we wrote it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: a JSON object with ``kind``, and bytes that it describes."""

    head: Mapping[str, Any]
    body: bytes

    @property
    def kind(self) -> str:
        """``episode``, ``call``, ``outcome`` or ``end``."""
        return str(self.head.get("kind"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry's arrays are in its file, and what the entry says."""

    head: Mapping[str, Any]
    start: int
    size: int

    @property
    def kind(self) -> str:
        """As `Entry.kind`."""
        return str(self.head.get("kind"))


@dataclass(frozen=True, slots=True)
class Mark:
    """Where an entry is in its file, and of which kind; nothing else of it was read."""

    kind: str
    at: int
    """Its first byte."""
    head: int
    """Bytes of its JSON object."""
    body: int
    """Bytes of its arrays."""

    @property
    def stop(self) -> int:
        """The byte after its last."""
        return self.at + HEADER_BYTES + self.head + self.body


@dataclass(frozen=True, slots=True)
class Contents:
    """What of a journal can be read."""

    places: tuple[Place, ...]
    good: int
    """Bytes from the file's beginning that are whole entries."""
    size: int
    reason: str | None
    """Why the bytes after `good` are no entry; None if there are none."""


class Journal:
    """Appends entries to a new file, or to one whose end was found whole.

    A new file gets its name with its first entry, so that there is none that says nothing.

    Parameters
    ----------
    path
        Made by this; a file that exists is opened only with `at`.
    first
        First entry of a new file.
    at
        Bytes of an existing file that are whole entries; what follows is cut off.

    Raises
    ------
    FileExistsError
        If the file exists and `at` is None.
    """

    def __init__(
        self, path: Path, first: Mapping[str, Any] | None = None, at: int | None = None
    ) -> None:
        self.path = path
        self._end = 0
        if at is not None:
            self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(self._file, at)
                self._end = at
            except BaseException:
                self.close()
                raise
            return
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
        self._file = os.open(temporary, os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._write([MAGIC])
            if first is not None:
                self.append(first)
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                if path.exists():
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
                temporary.replace(path)
        except BaseException:
            self.close()
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def append(self, head: Mapping[str, Any], pieces: Sequence[bytes] = ()) -> None:
        """Append an entry, whole or not at all.

        Raises
        ------
        OSError
            If it cannot be written; what was written of it is cut off again, if that is possible.
        """
        text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
        header = _HEADER.pack(_MARK, len(text), sum(map(len, pieces)))
        check = _check(header, text, *pieces)
        self._write([header, _CHECK.pack(check), text, *pieces])

    def _write(self, parts: Sequence[bytes]) -> None:
        data = memoryview(b"".join(parts))
        at = self._end
        try:
            while data:
                written = os.pwrite(self._file, data, at)
                data, at = data[written:], at + written
        except OSError:
            try:
                os.ftruncate(self._file, self._end)
            except OSError:
                pass  # the next entry is written over it
            raise
        self._end = at

    def sync(self) -> None:
        """Make what was appended durable."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_contents(path: Path) -> Contents:
    """Read what a journal's entries say, up to the first one that is not whole.

    Every byte is compared with its checksum.

    Raises
    ------
    IntegrityError
        If it is no journal.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(len(MAGIC))
        if magic != MAGIC and not MAGIC.startswith(magic):
            raise IntegrityError(f"{path}: no journal: it does not begin with {MAGIC.decode()!r}")
        places: list[Place] = []
        good, reason = len(magic), None if magic == MAGIC else "its first line is not whole"
        while reason is None and good < size:
            header = file.read(HEADER_BYTES)
            if len(header) < HEADER_BYTES:
                reason = "the last entry is not whole"
                break
            mark, head_size, body_size = _HEADER.unpack_from(header)
            if mark != _MARK or head_size > MAX_HEAD or body_size > MAX_BODY:
                reason = f"no entry begins at byte {good}"
                break
            text, body = file.read(head_size), file.read(body_size)
            if len(text) < head_size or len(body) < body_size:
                reason = "the last entry is not whole"
                break
            check = _check(header[: _HEADER.size], text, body)
            if check != _CHECK.unpack_from(header, _HEADER.size)[0]:
                reason = f"the checksum of the entry at byte {good} differs"
                break
            start = good + HEADER_BYTES + head_size
            places.append(Place(parse_json(text, f"{path} at byte {good}"), start, body_size))
            good = start + body_size
    return Contents(tuple(places), good, size, reason)


def marks_after(file: BinaryIO, at: int) -> Iterator[Mark]:
    """Yield the entries from byte `at` on, as far as all of their bytes are there.

    No checksum is compared, so that looking for the newest entry of a journal costs the same however
    large its arrays are; `read_entry` compares.

    Parameters
    ----------
    at
        0, or the `stop` of an entry.
    """
    size = os.fstat(file.fileno()).st_size
    if at == 0:
        file.seek(0)
        if file.read(len(MAGIC)) != MAGIC:
            return
        at = len(MAGIC)
    while at + HEADER_BYTES <= size:
        file.seek(at)
        begun = file.read(HEADER_BYTES + 64)
        mark, head, body = _HEADER.unpack_from(begun)
        if mark != _MARK or head > MAX_HEAD or body > MAX_BODY:
            return
        said = _KIND.match(begun, HEADER_BYTES)
        found = Mark(said[1].decode() if said else "", at, head, body)
        if found.stop > size:
            return
        yield found
        at = found.stop


def read_entry(file: BinaryIO, mark: Mark) -> Entry:
    """Read an entry that `marks_after` found.

    Raises
    ------
    IntegrityError
        If its checksum differs, as of one that is being written.
    """
    file.seek(mark.at)
    data = file.read(mark.stop - mark.at)
    head = data[HEADER_BYTES : HEADER_BYTES + mark.head]
    body = data[HEADER_BYTES + mark.head :]
    if (
        len(data) < mark.stop - mark.at
        or _check(data[: _HEADER.size], head, body) != (_CHECK.unpack_from(data, _HEADER.size)[0])
    ):
        raise IntegrityError(f"the checksum of the entry at byte {mark.at} differs")
    return Entry(parse_json(head, f"entry at byte {mark.at}"), body)


def _check(header: bytes, *parts: bytes) -> int:
    check = google_crc32c.value(header)
    for part in parts:
        check = google_crc32c.extend(check, part)
    return int(check)


def read_bodies(path: Path, places: Sequence[Place], episode: str) -> Iterator[Entry]:
    """Yield entries with their arrays, whose checksums `read_contents` compared.

    Raises
    ------
    EpisodeError
        If the file was changed since.
    """
    with open_regular(path) as file:
        for place in places:
            file.seek(place.start)
            body = file.read(place.size)
            if len(body) < place.size:
                raise EpisodeError(episode, f"{path.name} was cut while it was read")
            yield Entry(place.head, body)


def read_head(path: Path) -> Mapping[str, Any]:
    """Read a journal's first entry, which says whose it is.

    Raises
    ------
    IntegrityError
        If it has none that is whole.
    """
    with open_regular(path) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise IntegrityError(f"{path.name}: no journal, or not even its first line is whole")
        header = file.read(HEADER_BYTES)
        if len(header) == HEADER_BYTES:
            mark, head_size, body_size = _HEADER.unpack_from(header)
            text = file.read(min(head_size, MAX_HEAD))
            whole = (
                _check(header[: _HEADER.size], text) == _CHECK.unpack_from(header, _HEADER.size)[0]
            )
            if mark == _MARK and not body_size and whole:
                return parse_json(text, path)
    raise IntegrityError(f"{path.name}: its first entry, which names the episode, is not whole")

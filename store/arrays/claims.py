"""What compressed bytes claim to become, read before a library allocates it.

A Blosc frame and the header of a Parquet page say how many bytes they decode to, up to 2 GB, and
decoders allocate as much before they find that it is not true, or that it is: zeros compress a
thousandfold. An array's chunk has one size, which its description says; a page's bytes are counted
in its file's footer.

Sources: the header of c-blosc 1 (README_CHUNK_FORMAT.rst), ``PageHeader`` of parquet.thrift in Thrift's
compact protocol.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import IntegrityError

_BLOSC_HEADER = struct.Struct("<4B3I")
FRAME_HEADER = _BLOSC_HEADER.size
"""Bytes of a Blosc frame's header."""
_HEADER_BYTES = 1 << 10
_LONGEST_HEADER = 1 << 20
"""Longest header of a page: it may hold the least and the greatest text of its column."""
_DEPTH = 8


def check_frame(descriptor: int, offset: int, length: int, expected: int, name: str) -> None:
    """Check what a compressed chunk claims to become.

    Parameters
    ----------
    descriptor
        Of its file.
    offset, length
        Its place in the file.
    expected
        Bytes of a chunk of its array.
    name
        For messages.

    Raises
    ------
    IntegrityError
        If it would become anything but one chunk of the array.
    """
    if length < FRAME_HEADER:
        raise IntegrityError(f"{name}: a chunk of {length} bytes is too short")
    found = os.pread(descriptor, FRAME_HEADER, offset)
    if len(found) != FRAME_HEADER:
        raise IntegrityError(f"{name} ended while it was read")
    claimed = _BLOSC_HEADER.unpack(found)[4]
    if claimed != expected:
        raise IntegrityError(
            f"{name}: a compressed chunk claims to be {claimed} bytes, chunks of this array "
            f"have {expected}"
        )


def has_frames(codecs: Any) -> bool:
    """Whether an array's codecs, or those inside its shards, make Blosc frames."""
    for codec in codecs:
        name = codec.get("name") if isinstance(codec, dict) else codec
        if name == "blosc":
            return True
        if name == "sharding_indexed" and has_frames(codec["configuration"]["codecs"]):
            return True
    return False


def check_pages(file: Path, footer: Any) -> int:
    """Check what the pages of a Parquet file claim, against its footer.

    Parameters
    ----------
    footer
        Its `pyarrow.parquet.FileMetaData`.

    Returns
    -------
    Bytes of all columns, uncompressed; no reader allocates more for pages.

    Raises
    ------
    IntegrityError
        If a page cannot be read, lies outside the file, or claims more bytes than are left of its
        column's.
    """
    total = 0
    with file.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        for group in range(footer.num_row_groups):
            row_group = footer.row_group(group)
            for number in range(row_group.num_columns):
                column = row_group.column(number)
                said = f"{file}: column {_column_name(file, column)}"
                if column.file_path:
                    raise IntegrityError(f"{said} lies in another file")
                # A column without values has no data page, and then its offset is 0.
                places = (column.data_page_offset, column.dictionary_page_offset or 0)
                at = min((place for place in places if place), default=0)
                if not at and not column.total_compressed_size:
                    continue
                end, left = at + column.total_compressed_size, column.total_uncompressed_size
                if not 0 <= at <= end <= size or left < 0:
                    raise IntegrityError(f"{said} lies outside the file")
                total += left
                while at < end:
                    header, uncompressed, compressed = _page(stream, at, said)
                    at += header + compressed
                    left -= uncompressed
                    if uncompressed < 0 or compressed < 0 or at > end or left < 0:
                        raise IntegrityError(
                            f"{said}: a page claims {uncompressed} bytes, more than its column has"
                        )
    return total


def _column_name(file: Path, column: Any) -> str:
    try:
        return str(column.path_in_schema)
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{file}: a column's name is no UTF-8: {error}") from None


def _page(stream: BinaryIO, at: int, said: str) -> tuple[int, int, int]:
    """Read a page's header: its own length, the page's uncompressed and compressed bytes."""
    length = _HEADER_BYTES
    while True:
        data = os.pread(stream.fileno(), length, at)
        try:
            fields, end = _struct(data, 0, _DEPTH)
            return end, fields[2], fields[3]
        except IndexError:
            if len(data) < length or length >= _LONGEST_HEADER:
                raise IntegrityError(f"{said}: the header of a page has no end") from None
            length *= 8
        except (KeyError, ValueError):
            raise IntegrityError(f"{said}: the header of a page is damaged") from None


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, int], int]:
    """Read a struct of Thrift's compact protocol: its own integers by field, and where it ends.

    Raises
    ------
    IndexError
        If the bytes end before it does.
    ValueError
        If it is none.
    """
    fields: dict[int, int] = {}
    field = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _integer(data, at)
        if kind in (4, 5, 6):
            fields[field], at = _integer(data, at)
        else:
            at = _skip(data, at, kind, depth)
    return fields, at + 1


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    """Where a value that is no integer of a struct ends."""
    if depth == 0:
        raise ValueError("nested too deep")
    if kind in (1, 2):
        return at
    if kind == 3:
        end = at + 1
    elif kind == 7:
        end = at + 8
    elif kind == 8:
        length, at = _varint(data, at)
        end = at + length
    elif kind == 12:
        return _struct(data, at, depth - 1)[1]
    else:
        raise ValueError("no page's header has it")
    data[end - 1]  # IndexError if it is not there
    return end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("an integer has more than 64 bits")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at

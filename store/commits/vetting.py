"""What of a store may be opened: it is data from somebody else, on a disk that decays.

Readers open a file of a part only if its commit lists it, if it is a regular file in its own place,
and if its bytes are the committed ones: a description (``zarr.json``) is compared whenever it is
read, a table once before this process uses it first, and a chunk of an array carries its own
CRC-32C. What a description claims is bounded before any library acts on it: sizes that would be
allocated, codecs and types that would be run, depth that would be recursed into.

docs/decisions/020-untrusted-stores.md
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..arrays.claims import check_pages, has_frames
from ..arrays.shards import ITEM_BYTES
from ..errors import IntegrityError
from ..format.documents import check
from . import StoredFile, hash_file
from .files import parse_json

CODECS = ("bytes", "blosc", "crc32c", "sharding_indexed")
"""What the format writes. Of general compressors a chunk may ask for any amount of memory."""
ORDERS = [
    ["bytes", *blosc, *checksum] for blosc in ([], ["blosc"]) for checksum in ([], ["crc32c"])
]
CHUNK_BYTES = 1 << 30
"""Largest chunk that a reader would allocate, decoded."""
SHARD_CHUNKS = 1 << 20
"""Most chunks in a shard: its index has 16 bytes for each."""
ELEMENTS = 1 << 48
"""Most elements that an array may claim to have."""
DESCRIPTION_BYTES = 8 << 20
"""Largest ``zarr.json``."""
TABLE_BYTES = 2 << 30
"""Largest table of an episode, uncompressed."""
EXPANSION = 1024
"""Most bytes of a table that a byte of its file may stand for, beyond `_SMALL_TABLE`."""
_SMALL_TABLE = 16 << 20
_DIMENSIONS = 16
_KEYS = ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding",
         "fill_value", "codecs", "dimension_names")  # fmt: skip

_NO_LINKS = "below its own directory a store holds files and no links: put a copy there (cp -RL)"
REPAIR = "; `attnstore verify` lists every such file; ingest or pull the episode again"
_DIFFERS = f"its bytes differ from what was committed (SHA-256){REPAIR}"

_same: dict[str, tuple[int, int, int, str]] = {}
"""Of every file that was found to be as committed: inode, size, time in ns, SHA-256."""


class Places:
    """The files of one attempt, as they lie on disk.

    Parameters
    ----------
    root
        The store.
    directory
        The attempt's, below it.
    name
        Of the part, for messages.
    """

    def __init__(self, root: Path, directory: Path, name: str) -> None:
        self._root, self._directory, self._name = root, directory, name
        self._plain: set[str] = {str(root)}

    def status(self, file: StoredFile) -> os.stat_result:
        """Look at a committed file without opening it.

        Raises
        ------
        IntegrityError
            If it is missing or no regular file, if its size is another one, or if a link stands
            anywhere between the store and it.
        """
        said = f"{self._name}: {file.path}"
        path = f"{self._directory}/{file.path}"
        try:
            self._check_folder(path.rpartition("/")[0])
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise IntegrityError(f"{said} is missing") from None
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{said} cannot be read ({error})") from None
        if stat.S_ISLNK(found.st_mode):
            raise IntegrityError(f"{said} is a link; {_NO_LINKS}")
        if not stat.S_ISREG(found.st_mode):
            raise IntegrityError(f"{said} is no regular file; a store holds nothing else")
        if found.st_size != file.size:
            raise IntegrityError(
                f"{said} has {found.st_size} bytes, {file.size} were committed{REPAIR}"
            )
        return found

    def read(self, file: StoredFile, most: int = DESCRIPTION_BYTES) -> bytes:
        """Read a small file whole, and compare it with its commit.

        Raises
        ------
        IntegrityError
            As `status`; or if it is larger than `most` bytes, or its bytes are other ones.
        """
        said = f"{self._name}: {file.path}"
        if file.size > most:
            raise IntegrityError(f"{said} has {file.size} bytes; at most {most} are read")
        self.status(file)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(f"{self._directory}/{file.path}", flags)
            with os.fdopen(descriptor, "rb") as stream:
                data = stream.read(file.size + 1)
        except OSError as error:
            raise IntegrityError(f"{said} cannot be read ({error.strerror})") from None
        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
            raise IntegrityError(f"{said}: {_DIFFERS}")
        return data

    def check(self, file: StoredFile) -> Path:
        """Compare a file with its commit, once in this process as long as it stays as it is.

        Returns
        -------
        Its path, to be opened now.

        Raises
        ------
        IntegrityError
            As `status`, or if its bytes are other ones; of a table as `check_table`.
        """
        found = self.status(file)
        path = self._directory / file.path
        state = (found.st_ino, found.st_size, found.st_mtime_ns, file.sha256)
        if _same.get(str(path)) != state:
            try:
                digest = hash_file(path)
            except OSError as error:
                raise IntegrityError(
                    f"{self._name}: {file.path} cannot be read ({error.strerror})"
                ) from None
            if digest != file.sha256:
                raise IntegrityError(f"{self._name}: {file.path}: {_DIFFERS}")
            if path.suffix == ".parquet":
                check_table(path)
            _same[str(path)] = state
        return path

    def _check_folder(self, path: str) -> None:
        if path in self._plain:
            return
        above = path.rpartition("/")[0]
        if not above:
            raise IntegrityError(f"{self._name}: {self._directory} lies outside the store")
        self._check_folder(above)
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            below = path.removeprefix(f"{self._root}/")
            raise IntegrityError(f"{self._name}: {below} is a link; {_NO_LINKS}")
        self._plain.add(path)


def description(data: bytes, name: str) -> dict[str, Any]:
    """Read a ``zarr.json``: of a group, or of an array that may be opened.

    Parameters
    ----------
    name
        Of the file, for messages.

    Returns
    -------
    What it says. Of an array only what TensorStore reads, all of it checked; of a group everything,
    nodes in its consolidated metadata checked as if they were read one by one.

    Raises
    ------
    IntegrityError
        With the rule that it breaks.
    """
    value = parse_json(data, name)
    if value.get("zarr_format") != 3:
        raise IntegrityError(f"{name}: Zarr format {_shown(value.get('zarr_format'))} is not 3")
    if value.get("node_type") == "group":
        nodes = _object(
            _object(value.get("consolidated_metadata") or {}, name).get("metadata", {}), name
        )
        for key, node in nodes.items():
            if isinstance(node, dict) and node.get("node_type") == "array":
                _check_array(node, f"{name} ({key})")
        check(value, "zarr", name)
        return value
    if value.get("node_type") != "array":
        raise IntegrityError(f"{name}: it is neither a group nor an array")
    _check_array(value, name)
    check(value, "zarr", name)
    return {key: value[key] for key in _KEYS if key in value}


def _check_array(node: Mapping[str, Any], name: str) -> None:
    kind = node.get("data_type")
    if not isinstance(kind, str) or kind not in ITEM_BYTES:
        raise IntegrityError(f"{name}: data type {_shown(kind)} is not a plain number")
    shape = _sizes(node.get("shape"), name, "shape", least=0)
    if math.prod(shape) > ELEMENTS:
        raise IntegrityError(f"{name}: {'x'.join(map(str, shape))} elements are too many")
    chunk = _regular(node, name)
    if len(chunk) != len(shape):
        raise IntegrityError(f"{name}: a regular grid of chunks with {len(shape)} sizes is needed")
    keys = _object(node.get("chunk_key_encoding"), name)
    separator = _object(keys.get("configuration", {}), name).get("separator", "/")
    if keys.get("name") != "default" or separator != "/":
        raise IntegrityError(f"{name}: chunks are named c/0/1, and not as {_shown(keys)}")
    if not isinstance(node.get("fill_value"), int | float | str):
        raise IntegrityError(f"{name}: fill value {_shown(node.get('fill_value'))} is no number")
    names = node.get("dimension_names")
    if not isinstance(names, list) or len(names) != len(shape) or not all(
        n is None or isinstance(n, str) for n in names
    ):  # fmt: skip
        raise IntegrityError(f"{name}: dimension_names are not {len(shape)} names")
    _check_codecs(node.get("codecs"), name, chunk)
    # A shard is never decoded as one: its chunks are.
    inner = _chunk_of_shard(node["codecs"]) or chunk
    if math.prod(inner) * ITEM_BYTES[kind] > CHUNK_BYTES:
        raise IntegrityError(f"{name}: a chunk has {math.prod(inner)} elements, which is too large")


def _regular(node: Mapping[str, Any], name: str) -> list[int]:
    grid = _object(node.get("chunk_grid"), name)
    if grid.get("name") != "regular":
        raise IntegrityError(f"{name}: a regular grid of chunks is needed, not {_shown(grid)}")
    return _sizes(_object(grid.get("configuration"), name).get("chunk_shape"), name, "chunk_shape")


def _chunk_of_shard(codecs: Sequence[Any]) -> list[int] | None:
    first = codecs[0] if codecs else None
    if isinstance(first, dict) and first.get("name") == "sharding_indexed":
        return list(first["configuration"]["chunk_shape"])
    return None


def _check_codecs(codecs: Any, name: str, shard: Sequence[int] | None) -> None:
    """Check a list of codecs; `shard` is the shape that they are for, None if it cannot be split."""
    if not isinstance(codecs, list):
        raise IntegrityError(f"{name}: codecs are a list")
    names = [codec.get("name") if isinstance(codec, dict) else codec for codec in codecs]
    for called in names:
        if called not in CODECS:
            raise IntegrityError(
                f"{name}: codec {_shown(called)} is not one of {', '.join(CODECS)}"
            )
    if names != ["sharding_indexed"] and names not in ORDERS:
        raise IntegrityError(f"{name}: codecs stand in the order bytes, blosc, crc32c")
    for called, codec in zip(names, codecs, strict=True):
        if called != "sharding_indexed":
            continue
        if shard is None or len(codecs) != 1:
            raise IntegrityError(f"{name}: a shard holds chunks, and is nothing's chunk itself")
        inner = _object(codec.get("configuration") if isinstance(codec, dict) else None, name)
        sizes = _sizes(inner.get("chunk_shape"), name, "chunk_shape of a shard")
        if len(sizes) != len(shard) or any(n % m for n, m in zip(shard, sizes, strict=True)):
            raise IntegrityError(
                f"{name}: chunks of {sizes} do not divide a shard of {list(shard)}"
            )
        if math.prod(n // m for n, m in zip(shard, sizes, strict=True)) > SHARD_CHUNKS:
            raise IntegrityError(f"{name}: a shard has more than {SHARD_CHUNKS} chunks")
        _check_codecs(inner.get("codecs"), name, None)
        index: Any = inner.get("index_codecs")
        _check_codecs(index, name, None)
        if has_frames(index) or inner.get("index_location", "end") != "end":
            raise IntegrityError(f"{name}: the index of a shard is at its end, uncompressed")
        order = index[0].get("configuration") if isinstance(index[0], dict) else None
        if _object(order, name).get("endian") != "little":
            raise IntegrityError(f"{name}: the index of a shard is little-endian")


def _sizes(value: Any, name: str, what: str, least: int = 1) -> list[int]:
    whole = isinstance(value, list) and len(value) <= _DIMENSIONS
    if not whole or not all(type(n) is int and least <= n < 1 << 40 for n in value):
        raise IntegrityError(f"{name}: {what} is no list of sizes")
    return list(value)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise IntegrityError(f"{name}: {_shown(value)} stands where an object is expected")
    return value


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def check_shape(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Compare an array's shape with what the episode's description says.

    Raises
    ------
    IntegrityError
        If they differ.
    """
    if tuple(shape) != tuple(expected):
        raise IntegrityError(
            f"{name} has shape {list(shape)}, the episode's description says {list(expected)}"
        )


def check_table(file: Path, most: int = TABLE_BYTES) -> None:
    """Check what a Parquet file claims to hold before its columns are read.

    Raises
    ------
    IntegrityError
        If it is none, holds more than `most` bytes or `EXPANSION` times its own size, or if a page
        claims what its footer does not.
    """
    try:
        footer = pq.read_metadata(file)
        footer.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{file}: {str(error).splitlines()[0][:200]}") from None
    size = check_pages(file, footer)
    most = min(most, _SMALL_TABLE + EXPANSION * file.stat().st_size)
    if size > most or footer.num_rows > most // 8:
        raise IntegrityError(
            f"{file}: {footer.num_rows} rows of {size} bytes; of a file of this size at most {most} "
            "bytes are read"
        )

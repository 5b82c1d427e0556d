"""Shards: files of encoded chunks, one after the other, with an index of them at the end.

That is Zarr's codec ``sharding_indexed``: for every chunk of the shard's grid, in C order, the index has
two uint64, offset and length in the file, both 2^64 - 1 where a chunk holds nothing but the fill value;
a CRC-32C of the index follows. So a shard is written as its chunks arrive, in any order, and its index
last (`ShardWriter`); and of a shard that is elsewhere a reader needs its index and the chunks that it
asks for (`attnstore.store.commits.checked`).

Source: zarr-specs, v3 codecs, sharding-indexed.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError
from .chunking import ChunkPlan
from .claims import has_frames
from .engine import Index, Stored

SYNC_BYTES = 4 << 20
"""After so many bytes of a shard they are made durable."""
ITEM_BYTES: Mapping[str, int] = {
    "bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2,
    "uint32": 4, "uint64": 8, "float16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""Core data types of Zarr v3 and their size; others, objects above all, are not opened."""
ABSENT = (1 << 64) - 1
"""Offset and length of a chunk that holds nothing but the fill value."""
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
"""As Blosc numbers them."""
Bytes = NDArray[np.uint64]


@dataclass(frozen=True)
class Grid:
    """How an array is cut into files and these into chunks, as its ``zarr.json`` says."""

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    """Of a file."""
    chunk: tuple[int, ...]
    item_bytes: int
    sharded: bool
    """Files are shards; else each is one chunk, without an index."""
    framed: bool
    """Chunks are Blosc frames."""
    checksum: bool
    """Chunks end with their CRC-32C."""
    index_checksum: bool
    """So does the index."""

    @classmethod
    def of(cls, array: Mapping[str, Any]) -> Grid:
        """Take it from an array's description, as `vetting.description` returns it."""
        shard = tuple(array["chunk_grid"]["configuration"]["chunk_shape"])
        first = array["codecs"][0]
        sharded = isinstance(first, dict) and first.get("name") == "sharding_indexed"
        inner = first["configuration"] if sharded else {}
        codecs = inner.get("codecs", array["codecs"])
        return cls(
            tuple(array["shape"]), shard, tuple(inner.get("chunk_shape", shard)),
            ITEM_BYTES[array["data_type"]], sharded, has_frames(codecs), _ends_checked(codecs),
            _ends_checked(inner.get("index_codecs", [])),
        )  # fmt: skip

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Chunks of a shard along each dimension."""
        return tuple(n // m for n, m in zip(self.shard, self.chunk, strict=True))

    @property
    def index_bytes(self) -> int:
        """Length of a shard's index at the end of its file."""
        return (16 * math.prod(self.counts) + 4 * self.index_checksum) if self.sharded else 0

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk, decoded."""
        return math.prod(self.chunk) * self.item_bytes

    def touched(self, index: Index) -> Iterator[tuple[tuple[int, ...], tuple[range, ...]]]:
        """Yield what a block touches: a shard's place, and there the chunks along each dimension.

        Parameters
        ----------
        index
            Of the block, in unit steps; trailing dimensions may be left out.
        """
        cuts: list[list[tuple[int, range]]] = []
        for n, length in enumerate(self.shape):
            at = index[n] if n < len(index) else slice(None)
            start, stop, _ = at.indices(length) if isinstance(at, slice) else (at, at + 1, 1)
            size, inner = self.shard[n], self.chunk[n]
            cuts.append([
                (place, range(
                    (max(start, place * size) - place * size) // inner,
                    -(-(min(stop, (place + 1) * size) - place * size) // inner),
                ))
                for place in range(start // size, -(-stop // size) if stop > start else 0)
            ])  # fmt: skip
        for cut in product(*cuts):
            yield tuple(place for place, _ in cut), tuple(chunks for _, chunks in cut)


def _ends_checked(codecs: Sequence[Any]) -> bool:
    last = codecs[-1] if codecs else None
    return (last.get("name") if isinstance(last, dict) else last) == "crc32c"


def checksum(data: bytes) -> bytes:
    """CRC-32C of bytes, as the codec ``crc32c`` appends it."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def check_sum(data: bytes, said: str) -> None:
    """Compare bytes with the CRC-32C at their end.

    Raises
    ------
    IntegrityError
        If they are not what was written.
    """
    if checksum(data[:-4]) != data[-4:]:
        raise IntegrityError(f"{said} is not what was written (CRC-32C)")


class ShardWriter:
    """A shard that is appended to as its chunks arrive; any threads may add.

    Parameters
    ----------
    file
        Created with the first block.
    plan
        Of its array.
    codec
        Blosc settings: `attnstore.store.chunking.blosc`.
    fill
        The array's fill value; chunks of nothing else are left out.
    """

    def __init__(self, file: Path, plan: ChunkPlan, codec: Mapping[str, Any], fill: Stored) -> None:
        # Who reads does without: it asks every installed package for codecs, which takes a tenth of a second.
        from numcodecs import Blosc

        self.file = file
        self._chunk, self._fill = plan.chunk, fill
        self._counts = tuple(n // m for n, m in zip(plan.shard, plan.chunk, strict=True))
        self._codec = Blosc(
            codec["cname"], codec["clevel"], _SHUFFLES[codec["shuffle"]], codec.get("blocksize", 0)
        )
        self._index = np.full((*self._counts, 2), ABSENT, "<u8")
        self._size = self._synced = 0
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()

    def add(self, at: Sequence[int], block: Stored) -> None:
        """Append a block's chunks, encoded in the caller's thread.

        Parameters
        ----------
        at
            Its place in the shard's grid of chunks along the leading dimensions.
        block
            The shard's whole extent along the others.
        """
        inner = self._chunk[len(at) :]
        places, encoded = [], []
        for place in np.ndindex(*self._counts[len(at) :]):
            cut = tuple(slice(p * n, (p + 1) * n) for p, n in zip(place, inner, strict=True))
            data = self._encode(block[cut], inner)
            if data is not None:
                places.append((*at, *place))
                encoded.append(data)
        if not encoded:
            return
        with self._lock:
            if not self._size:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            # Opened anew each time: an attempt that is given up leaves no file open.
            with self.file.open("ab" if self._size else "xb") as stream:
                for place, (frame, check) in zip(places, encoded, strict=True):
                    stream.write(frame)
                    stream.write(check)
                    self._digest.update(frame)
                    self._digest.update(check)
                    length = len(frame) + len(check)
                    self._index[place] = self._size, length
                    self._size += length
            sync = self._size - self._synced >= SYNC_BYTES
            if sync:
                self._synced = self._size
        if sync:
            # Little by little, while others encode: the last one does not wait for the whole file.
            _sync(self.file)

    def close(self) -> tuple[int, str] | None:
        """Append the index and make the file durable.

        Returns
        -------
        Its size and SHA-256; None if it has nothing but the fill value, and then there is no file.
        """
        with self._lock:
            if not self._size:
                return None
            index = self._index.tobytes()
            index += checksum(index)
            with self.file.open("ab") as stream:
                stream.write(index)
            _sync(self.file)
            self._digest.update(index)
            return self._size + len(index), self._digest.hexdigest()

    def _encode(self, data: Stored, shape: tuple[int, ...]) -> tuple[bytes, bytes] | None:
        if self._is_absent(data):
            return None
        if data.shape != shape:
            # The last block of rows: Zarr's chunks have one size, and the rest is the fill value.
            padded = np.full(shape, self._fill, data.dtype)
            padded[tuple(slice(n) for n in data.shape)] = data
            data = padded
        frame = self._codec.encode(np.ascontiguousarray(data))
        return frame, checksum(frame)

    def _is_absent(self, data: Stored) -> bool:
        fill = self._fill
        if data.dtype.kind == "f" and np.isnan(fill):
            return bool(np.isnan(data.flat[0]) and np.isnan(data).all())
        return bool(data.flat[0] == fill and (data == fill).all())


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""An array of a part whose files are brought, and whose chunks are checked, before a read touches them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..arrays.claims import FRAME_HEADER, check_frame
from ..arrays.engine import Block, Index, Stored
from ..arrays.shards import ABSENT, Bytes, Grid, check_sum
from ..errors import IntegrityError
from .entry import StoredFile
from .holding import Pieces

_AT_ONCE = 16
"""Shards of which pieces are fetched at a time."""


class CheckedBlock:
    """An array whose files are brought, and whose chunks are checked once, before a read touches them.

    Parameters
    ----------
    block
        The array, in the directory where its files are.
    grid
        How it is cut.
    directory
        Where its files are.
    files
        Committed ones of the array, by their path below it: ``c/0/1``.
    name
        For messages.
    need
        Has whole files here; None where all are.
    pieces
        Has pieces of them here instead.
    """

    def __init__(
        self,
        block: Block,
        grid: Grid,
        directory: Path,
        files: Mapping[str, StoredFile],
        name: str,
        need: Callable[[Sequence[StoredFile]], None] | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        self._block, self._grid, self._directory, self._name = block, grid, directory, name
        self._files, self._need, self._pieces = files, need, pieces
        self._left = {path for path in files if path.startswith("c/")}
        self._shards: dict[str, tuple[Bytes, NDArray[np.bool_]]] = {}
        self.shape, self.dtype = block.shape, block.dtype

    def read(self, index: Index) -> Stored:
        """Load a block.

        Raises
        ------
        IntegrityError
            If a file or its contents are not to be read.
        """
        if self._left:
            touched = self._touched(index)
            if self._need is not None and self._pieces is None and touched:
                self._need([self._files[path] for path, _ in touched])
            if self._pieces is not None and len(touched) > 1:
                with ThreadPoolExecutor(min(_AT_ONCE, len(touched))) as threads:
                    list(threads.map(self._check, touched))
            else:
                for each in touched:
                    self._check(each)
        return self._block.read(index)

    def write(self, index: Index, data: Stored) -> None:
        """Store a block, unchecked: it is this process's own."""
        self._block.write(index, data)

    def absent_bytes(self, index: Index) -> int:
        """Bytes that a read of a block would have to bring first.

        Returns
        -------
        Of whole files; or, where they come in pieces, of the chunks that it touches. As long as a
        shard's index is not here, these are taken to be as long as its chunks are on average.
        """
        if self._need is None:
            return 0
        total = 0
        for path, chunks in self._touched(index):
            file = self._files[path]
            if self._pieces is None:
                total += 0 if (self._directory / path).is_file() else file.size
            elif self._pieces.missing(file, [self._index_at(file)]):
                share = math.prod(map(len, chunks)) / math.prod(self._grid.counts)
                index_bytes = self._grid.index_bytes
                total += index_bytes + round(share * (file.size - index_bytes))
            else:
                places, _ = self._shards.get(path) or self._open(path, file)
                wanted = self._wanted(places[_inside(chunks)].reshape(-1, 2))
                total += sum(stop - start for start, stop in self._pieces.missing(file, wanted))
        return total

    def _touched(self, index: Index) -> list[tuple[str, tuple[range, ...]]]:
        return [
            (path, chunks)
            for place, chunks in self._grid.touched(index)
            if (path := "/".join(("c", *map(str, place)))) in self._left
        ]

    def _index_at(self, file: StoredFile) -> tuple[int, int]:
        return file.size - self._grid.index_bytes, file.size

    @staticmethod
    def _wanted(places: Bytes) -> list[tuple[int, int]]:
        there = places[places[:, 0] != ABSENT].tolist()
        return [(offset, offset + length) for offset, length in there]

    def _check(self, touched: tuple[str, Sequence[range]]) -> None:
        path, chunks = touched
        try:
            self._check_chunks(path, chunks)
        except OSError as error:
            raise IntegrityError(f"{self._said(path)} cannot be read ({error.strerror})") from None

    def _check_chunks(self, path: str, chunks: Sequence[range]) -> None:
        """Have chunks of a file here, and check what their headers claim."""
        grid, file = self._grid, self._files[path]
        if not grid.sharded:
            if grid.framed:
                with (self._directory / path).open("rb", buffering=0) as stream:
                    check_frame(stream.fileno(), 0, file.size, grid.chunk_bytes, self._said(path))
            self._left.discard(path)
            return
        places, checked = self._shards.get(path) or self._open(path, file)
        inside = _inside(chunks)
        if checked[inside].all():
            return
        wanted = self._wanted(places[inside][~checked[inside]])
        if self._pieces is not None:
            self._pieces.bring(file, wanted, self._check_chunk)
        if grid.framed and wanted:
            with (self._directory / path).open("rb", buffering=0) as stream:
                for start, stop in wanted:
                    check_frame(
                        stream.fileno(), start, stop - start, grid.chunk_bytes, self._said(path)
                    )
        checked[inside] = True
        if checked.all():
            self._left.discard(path)
            self._shards.pop(path, None)

    def _open(self, path: str, file: StoredFile) -> tuple[Bytes, NDArray[np.bool_]]:
        """Read a shard's index; places that lead out of the file are refused."""
        grid = self._grid
        start, stop = self._index_at(file)
        if start < 0:
            raise IntegrityError(f"{self._said(path)} is too short for the index of a shard")
        if self._pieces is not None:
            self._pieces.bring(file, [(start, stop)], self._check_index)
        with (self._directory / path).open("rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), grid.index_bytes, start)
        if len(data) != grid.index_bytes:
            raise IntegrityError(f"{self._said(path)} is too short for the index of a shard")
        count = math.prod(grid.counts)
        places = np.frombuffer(data, "<u8", 2 * count).reshape(count, 2)
        there = places[(places != ABSENT).any(axis=1)]
        offset, length = there[:, 0], there[:, 1]
        # The sum may be beyond 64 bits, so both are compared first.
        outside = (offset > start) | (length > start) | (offset + length > start)
        if outside.any() or (grid.framed and (length < FRAME_HEADER).any()):
            raise IntegrityError(f"{self._said(path)}: a chunk lies outside its shard")
        found = places.reshape(*grid.counts, 2), np.zeros(grid.counts, bool)
        self._shards[path] = found
        return found

    def _check_chunk(self, start: int, data: bytes) -> None:
        if self._grid.checksum:
            check_sum(data, f"{self._name}: the chunk at byte {start} of a shard")

    def _check_index(self, start: int, data: bytes) -> None:
        if self._grid.index_checksum:
            check_sum(data, f"{self._name}: the index of a shard")

    def _said(self, path: str) -> str:
        return f"{self._name}: {path}"


def _inside(chunks: Sequence[range]) -> tuple[slice, ...]:
    return tuple(slice(c.start, c.stop) for c in chunks)

"""Which files of an array a read touches, and an array that has them brought or checked first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..arrays.engine import Block, Index, Stored
from . import StoredFile


def touched(
    files: Iterable[StoredFile], array: str, shard: Sequence[int], index: Index
) -> list[StoredFile]:
    """Return the committed files of an array that hold a part of a block, and its metadata.

    Parameters
    ----------
    files
        Of the whole part.
    array
        Directory of the array, relative to the part.
    shard
        Shape of one shard.
    index
        Of the block; trailing dimensions may be left out.
    """
    spans = []
    for size, at in zip(shard, index, strict=False):
        if isinstance(at, slice):
            start = (at.start or 0) // size
            stop = None if at.stop is None else -(-at.stop // size)
        else:
            start, stop = at // size, at // size + 1
        spans.append((start, stop))
    found = []
    for file in files:
        if not file.path.startswith(f"{array}/"):
            continue
        kind, *place = file.path[len(array) + 1 :].split("/")
        if kind == "c" and all(p.isdigit() for p in place):
            inside = (
                low <= int(p) and (high is None or int(p) < high)
                for p, (low, high) in zip(place, spans, strict=False)
            )
            if not all(inside):
                continue
        found.append(file)
    return found


class NeedingBlock:
    """An array whose files may be elsewhere: a read has those that it touches brought first."""

    def __init__(
        self, block: Block, shard: Sequence[int], need: Callable[[Sequence[int], Index], None]
    ) -> None:
        self._block, self._shard, self._need = block, shard, need
        self.shape, self.dtype = block.shape, block.dtype

    def read(self, index: Index) -> Stored:
        """Load a block; raises what `StorePaths.need` raises if a file cannot be had."""
        self._need(self._shard, index)
        return self._block.read(index)

    def write(self, index: Index, data: Stored) -> None:
        """Store a block, as in a whole store."""
        self._block.write(index, data)


class CheckedBlock:
    """An array of which a read has each file that it touches checked once before.

    Parameters
    ----------
    files
        Of the array, as `touched` finds them in its part.
    array
        Its directory in the part.
    check
        Raises `IntegrityError` if a file is not to be read.
    """

    def __init__(
        self,
        block: Block,
        files: Iterable[StoredFile],
        array: str,
        shard: Sequence[int],
        check: Callable[[StoredFile], None],
    ) -> None:
        below = f"{array}/c/"
        self._left = {f.path: f for f in files if f.path.startswith(below)}
        self._block, self._array, self._shard, self._check = block, array, shard, check
        self.shape, self.dtype = block.shape, block.dtype

    def read(self, index: Index) -> Stored:
        """Load a block; raises `IntegrityError` if a file or its contents are not to be read."""
        if self._left:
            left = list(self._left.values())
            for file in touched(left, self._array, self._shard, index):
                self._check(file)
                self._left.pop(file.path, None)
        return self._block.read(index)

    def write(self, index: Index, data: Stored) -> None:
        """Store a block, unchecked: it is this process's own."""
        self._block.write(index, data)

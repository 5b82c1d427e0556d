"""From named selections to one rectangular block of an array, and what reading it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SelectionError
from .selection import TokenSelection, check_index

Index = int | slice | Sequence[int] | None
Positions = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Dimension:
    """The selected positions of one dimension."""

    positions: Positions
    """In the order that was asked for."""
    scalar: bool
    """One index was asked for: the dimension is dropped."""

    @classmethod
    def of(cls, wanted: Index, length: int, what: str) -> Dimension:
        """Resolve an index, a slice or indices; None is everything.

        Raises
        ------
        SelectionError
            If an index is out of range, or nothing is selected.
        """
        if wanted is None:
            return cls(np.arange(length), False)
        if isinstance(wanted, (int, np.integer)):
            return cls(np.array([check_index(int(wanted), length, what)]), True)
        if isinstance(wanted, slice):
            at = np.arange(length)[wanted]
        else:
            at = np.array([check_index(int(i), length, what) for i in wanted], np.intp)
        if not len(at):
            raise SelectionError(f"{what}: {wanted} selects none of {length}")
        return cls(at, False)

    @classmethod
    def of_tokens(cls, tokens: TokenSelection) -> Dimension:
        """Take over selected tokens."""
        return cls(tokens.indices, tokens.scalar)


@dataclass(frozen=True, slots=True)
class Block:
    """What is read, and what is picked out of it.

    The smallest rectangle that holds every selected position is read; chunks in it that hold none
    of them are read in vain, which for the selections that people make is rare.
    """

    names: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    index: tuple[slice, ...] = field(init=False)
    """The rectangle."""

    def __post_init__(self) -> None:
        bounds = tuple(
            slice(int(d.positions.min()), int(d.positions.max()) + 1) for d in self.dimensions
        )
        object.__setattr__(self, "index", bounds)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is read."""
        return tuple(s.stop - s.start for s in self.index)

    def pick(self, values: NDArray[Any]) -> NDArray[Any]:
        """Cut the selection out of the rectangle, and drop the scalar dimensions."""
        for axis, (dimension, bounds) in enumerate(zip(self.dimensions, self.index, strict=True)):
            at = dimension.positions - bounds.start
            if len(at) != values.shape[axis] or (
                len(at) > 1 and not np.array_equal(at, np.arange(len(at)))
            ):
                values = values.take(at, axis=axis)
        kept = [n for n, d in zip(values.shape, self.dimensions, strict=True) if not d.scalar]
        return values.reshape(kept)

    def check_size(self, itemsize: int, max_bytes: int, what: str) -> None:
        """Refuse a read that is larger than the caller allows.

        Raises
        ------
        SelectionError
            With the size, before anything is read.
        """
        size = itemsize * int(np.prod(self.shape, dtype=np.int64))
        if size > max_bytes:
            raise SelectionError(
                f"this reads {size / 1e9:.2f} GB of {what}, max_bytes allows {max_bytes / 1e9:.2f} GB; "
                "select fewer keyframes, layers or heads, or raise max_bytes"
            )


@dataclass(frozen=True, slots=True)
class Cost:
    """What a read touches, before it is done."""

    tier: str
    """``catalog``, ``maps`` or ``full``: the cheapest that answers."""
    array: str
    """Path in ``attention.zarr``."""
    shape: tuple[int, ...]
    """Of the result, by `dims`."""
    dims: tuple[str, ...]
    chunks: int
    """Chunks that are decoded."""
    shards: int
    """Files that are opened."""
    decoded_bytes: int
    """Bytes after decompression, whole chunks."""
    missing_bytes: int = 0
    """Bytes of files that are not on this machine: what a store at a URL downloads first."""

    def __str__(self) -> str:
        shape = " x ".join(f"{d} {n}" for d, n in zip(self.dims, self.shape, strict=True))
        return (
            f"{self.tier} tier, {self.array}: {shape}; {self.chunks} chunks in {self.shards} files, "
            f"{self.decoded_bytes / 1e6:.2f} MB decoded"
            + (f", {self.missing_bytes / 1e6:.2f} MB not here yet" if self.missing_bytes else "")
        )


def cost(
    block: Block, tier: str, array: str, chunk: Sequence[int], shard: Sequence[int], shape: Sequence[int], itemsize: int
) -> Cost:  # fmt: skip
    """Count the chunks and shards that a block touches.

    Parameters
    ----------
    chunk, shard, shape
        Shapes of a chunk, a shard and the whole array.
    """

    def touched(size: Sequence[int]) -> int:
        return int(
            np.prod(
                [-(-s.stop // n) - s.start // n for s, n in zip(block.index, size, strict=True)],
                dtype=np.int64,
            )
        )

    decoded = 1
    for bounds, n, total in zip(block.index, chunk, shape, strict=True):
        low, high = bounds.start // n * n, min(-(-bounds.stop // n) * n, total)
        decoded *= high - low
    kept = [
        (n, len(d.positions))
        for n, d in zip(block.names, block.dimensions, strict=True)
        if not d.scalar
    ]
    return Cost(
        tier,
        array,
        tuple(n for _, n in kept),
        tuple(name for name, _ in kept),
        touched(chunk),
        touched(shard),
        decoded * itemsize,
    )


def coordinates(block: Block, extra: Mapping[str, tuple[str, NDArray[Any]]]) -> dict[str, Any]:
    """Build xarray coordinates: every dimension's positions, and arrays that go along with one.

    Parameters
    ----------
    extra
        Per coordinate: the dimension, and the values over the dimension's whole length.
    """
    result: dict[str, Any] = {}
    by_name = dict(zip(block.names, block.dimensions, strict=True))
    for name, dimension in by_name.items():
        at = dimension.positions
        result[name] = int(at[0]) if dimension.scalar else (name, at)
    for name, (dim, values) in extra.items():
        dimension = by_name[dim]
        picked = values[dimension.positions]
        result[name] = picked[0] if dimension.scalar else (dim, picked)
    return result

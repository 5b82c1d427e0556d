"""From named selections to one rectangular block of an array, and what reading it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SelectionError
from .selection import TokenSelection, check_index

Index = int | slice | Sequence[int] | None
Positions = NDArray[np.intp]
Float = NDArray[np.float32]
Read = Callable[..., Float]
"""Reads the product of positions: of keyframes, steps (None in a one-pass phase), layers, heads, and of
each further dimension; the result has all of these dimensions, but no steps where there are none."""


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

    def narrow(self, index: int | slice) -> Dimension:
        """Keep an index or a slice of the positions; the dimension stays."""
        at = slice(index, index + 1) if isinstance(index, int) else index
        return replace(self, positions=self.positions[at])

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
            raise too_large(size, max_bytes, what)


def too_large(size: int, max_bytes: int, what: str) -> SelectionError:
    """Return the error of a read that is larger than the caller allows, in bytes."""
    return SelectionError(
        f"this reads {size / 1e9:.2f} GB of {what}, max_bytes allows {max_bytes / 1e9:.2f} GB; "
        "select fewer keyframes, layers or heads, raise max_bytes, or read with lazy=True"
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


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for of an array over keyframes, steps, layers, heads, and more."""

    keyframe: Dimension
    step: Dimension | None
    """None in a one-pass phase, and where `own_step` says it."""
    layer: Dimension
    head: Dimension | None
    """None where `active` says it."""
    rest: tuple[tuple[str, Dimension], ...] = ()
    """Further dimensions by name."""
    own_step: Positions | None = None
    """(keyframe,) the step of each; -1 where it has none, and its values are NaN."""
    active: Positions | None = None
    """(layer,) the head of each."""

    @property
    def axes(self) -> tuple[tuple[str, Dimension], ...]:
        """Dimensions by name, single indices included."""
        named = (
            ("keyframe", self.keyframe), ("step", self.step), ("layer", self.layer),
            ("head", self.head), *self.rest,
        )  # fmt: skip
        return tuple((name, d) for name, d in named if d is not None)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the result's dimensions."""
        return tuple(name for name, d in self.axes if not d.scalar)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(len(d.positions) for _, d in self.axes if not d.scalar)

    @property
    def block(self) -> Block:
        """The block of the stored array that holds all of it."""
        step, head = self.step, self.head
        if self.own_step is not None:
            step = Dimension(np.unique(np.maximum(self.own_step, 0)), True)
        if self.active is not None:
            head = Dimension(np.unique(self.active), True)
        axes = replace(self, step=step, head=head).axes
        return Block(tuple(name for name, _ in axes), tuple(d for _, d in axes))

    def read(self, read: Read) -> Float:
        """Load the result.

        Parameters
        ----------
        read
            As `Read`.

        Returns
        -------
        float32, of `shape`.
        """
        return self._whole(read).reshape(self.shape)

    def read_part(self, read: Read, index: tuple[int | slice, ...]) -> Float:
        """Load a part of the result: an index, or a slice of unit step, for each of its `dims`."""
        of = dict(zip(self.dims, index, strict=True))
        one = slice(None)

        def narrow(name: str, dimension: Dimension | None) -> Dimension | None:
            return None if dimension is None else dimension.narrow(of.get(name, one))

        keyframe, layer = self.keyframe.narrow(of.get("keyframe", one)), self.layer.narrow(
            of.get("layer", one)
        )  # fmt: skip
        narrowed = Selection(
            keyframe,
            narrow("step", self.step),
            layer,
            narrow("head", self.head),
            tuple((name, d.narrow(of.get(name, one))) for name, d in self.rest),
            None if self.own_step is None else _narrow(self.own_step, of.get("keyframe", one)),
            None if self.active is None else _narrow(self.active, of.get("layer", one)),
        )
        kept = [
            len(range(n)[i]) for n, i in zip(self.shape, index, strict=True) if isinstance(i, slice)
        ]
        return narrowed._whole(read).reshape(kept)

    def _whole(self, read: Read) -> Float:
        """Load it with a dimension of length 1 for each single index."""
        if self.own_step is not None:
            each = []
            for i, own in enumerate(self.own_step.tolist()):
                at = Dimension(np.array([max(own, 0)]), True)
                one = replace(self, keyframe=self.keyframe.narrow(i), step=at, own_step=None)
                values = one._whole(read)[:, 0]
                each.append(values if own >= 0 else np.full_like(values, np.nan))
            return np.concatenate(each)
        axis = 1 if self.step is None else 2
        if self.active is not None:
            each = []
            for i, head in enumerate(self.active.tolist()):
                at = Dimension(np.array([head]), True)
                one = replace(self, layer=self.layer.narrow(i), head=at, active=None)
                each.append(one._whole(read).squeeze(axis + 1))
            return np.concatenate(each, axis=axis)
        assert self.head is not None
        return read(
            self.keyframe.positions,
            None if self.step is None else self.step.positions,
            self.layer.positions,
            self.head.positions,
            *(d.positions for _, d in self.rest),
        )

    def coordinates(self, frames: NDArray[np.int32]) -> dict[str, Any]:
        """Build xarray coordinates: every dimension's positions, and each keyframe's frame.

        Parameters
        ----------
        frames
            Frame index of every keyframe of the episode.
        """
        result: dict[str, Any] = {
            name: int(d.positions[0]) if d.scalar else (name, d.positions) for name, d in self.axes
        }
        along: dict[str, tuple[str, Dimension, NDArray[np.integer[Any]]]] = {
            "frame": ("keyframe", self.keyframe, frames[self.keyframe.positions])
        }
        if self.own_step is not None:
            along["step"] = ("keyframe", self.keyframe, self.own_step)
        if self.active is not None:
            along["head"] = ("layer", self.layer, self.active)
        for name, (dim, dimension, values) in along.items():
            result[name] = int(values[0]) if dimension.scalar else (dim, values)
        return result


def _narrow(values: Positions, index: int | slice) -> Positions:
    return values[slice(index, index + 1) if isinstance(index, int) else index]

"""Chunk and shard shapes, codecs, and the forecast of a run's size.

A shard is a keyframe of a phase: its encoded chunks, appended as their layers arrive, so nothing is
rewritten (docs/decisions/022-few-files.md). Inside it a chunk is one head's block of 64 query rows and
all keys. Measured: docs/decisions/002-chunks.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..format.axes import STEPPED_PHASES
from ..format.precision import dtype

QUERY_BLOCK = 64
LEAST_ROWS = 16
"""Where a head has fewer query rows, a chunk holds several heads: the index of a shard has 16 bytes for
each chunk, and phase ``decode`` has one row a step."""
SHUFFLE = 8
"""A block's rows are a multiple of this: Blosc shuffles bits only of 8 elements at a time, and leaves
a block whose number of elements is another unshuffled."""
MAP_KEYFRAMES = 32
"""Keyframes in one shard of overview maps; they are kept in memory until it is full."""

HIDDEN_ITEM = 4
"""Bytes of a value of a hidden state."""
HIDDEN_SHARD = 64 << 20
"""Largest shard of hidden states, decoded, that has more than one keyframe; it is kept in memory until it is full."""
HIDDEN_CHUNK = 1 << 20
"""Largest chunk of hidden states that has more than one keyframe."""

_EXPECTED_RATIO: Mapping[str, float] = {"float16": 1.14, "log8": 1.13}
_BFLOAT16_RATIO = 1.43
MAP_RATIO: Mapping[str, float] = {"mean": 32 / 13.8, "max": 32 / 8.9}
"""The same for overview maps, which are rounded."""


def expected_ratio(precision: str, dtype: str) -> float:
    """Raw stored bytes over compressed bytes for trained attention, at the lower end of what was seen.

    That of the packaged policy's blunt heads; sharp ones reach 1.3, of a bfloat16 model 1.56.

    Parameters
    ----------
    precision
        How weights are stored.
    dtype
        The policy's: a bfloat16 model's weights have 8 significant bits, the other 3 of float16 are zero.

    Examples
    --------
    >>> expected_ratio("float16", "bfloat16") > expected_ratio("float16", "float32")
    True
    """
    if precision == "float16" and dtype == "bfloat16":
        return _BFLOAT16_RATIO
    return _EXPECTED_RATIO[precision]


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Shapes of an array and of its shards and chunks."""

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]


def attention_plan(
    phase: str, keyframes: int, steps: int | None, layers: int, heads: int, query: int, key: int
) -> ChunkPlan:
    """Plan a phase's attention array.

    Examples
    --------
    >>> attention_plan("prefix", 23, None, 18, 8, 572, 572).shard
    (1, 18, 8, 576, 572)
    >>> attention_plan("decode", 23, 60, 32, 32, 1, 330).chunk
    (1, 1, 1, 16, 1, 330)
    """
    together = max(
        h for h in range(1, heads + 1) if heads % h == 0 and (h == 1 or h * query <= LEAST_ROWS)
    )
    multiple = SHUFFLE // math.gcd(SHUFFLE, together)
    rows = min(QUERY_BLOCK, -(-query // multiple) * multiple)
    padded = -(-query // rows) * rows
    if phase in STEPPED_PHASES:
        assert steps is not None
        return ChunkPlan(
            (keyframes, steps, layers, heads, query, key),
            (1, steps, layers, heads, padded, key),
            (1, 1, 1, together, rows, key),
        )
    return ChunkPlan(
        (keyframes, layers, heads, query, key),
        (1, layers, heads, padded, key),
        (1, 1, together, rows, key),
    )


def map_plan(
    phase: str, keyframes: int, steps: int | None, layers: int, heads: int, grid: tuple[int, int]
) -> ChunkPlan:
    """Plan an overview map: a chunk holds one step and layer of up to 32 keyframes."""
    block = min(MAP_KEYFRAMES, keyframes)
    step: tuple[int, ...] = (steps,) if phase in STEPPED_PHASES and steps is not None else ()
    return ChunkPlan(
        (keyframes, *step, layers, heads, *grid),
        (block, *step, layers, heads, *grid),
        (block, *(1 for _ in step), 1, heads, *grid),
    )


def norm_plan(
    phase: str, keyframes: int, steps: int | None, layers: int, heads: int, key: int
) -> ChunkPlan:
    """Plan value norms: a chunk holds a layer of one keyframe, with all steps.

    A suffix's prefix keys have the same norms at every step, which compress to those of one.
    """
    block = min(MAP_KEYFRAMES, keyframes)
    step: tuple[int, ...] = (steps,) if phase in STEPPED_PHASES and steps is not None else ()
    return ChunkPlan(
        (keyframes, *step, layers, heads, key),
        (block, *step, layers, heads, key),
        (1, *step, 1, heads, key),
    )


def hidden_plan(shape: tuple[int, ...], dims: Sequence[str]) -> ChunkPlan:
    """Plan an array of hidden states: a chunk holds a layer of several keyframes, with all steps.

    Whoever reads one layer over an episode, as a probe does, reads no other.

    Parameters
    ----------
    shape
        Of the array, keyframes first.
    dims
        Its dimension names.

    Examples
    --------
    >>> hidden_plan((23, 19, 6, 2048), ("keyframe", "layer", "span", "feature")).chunk
    (16, 1, 6, 2048)
    >>> hidden_plan((23, 19, 572, 2048), ("keyframe", "layer", "query", "feature")).shard
    (1, 19, 572, 2048)
    """

    def most(budget: int, inner: Sequence[int]) -> int:
        """Keyframes, a power of two, whose values take so many bytes."""
        fitting = min(MAP_KEYFRAMES, max(1, budget // (HIDDEN_ITEM * math.prod(inner))))
        return 1 << (fitting.bit_length() - 1)

    inner = tuple(1 if name == "layer" else n for name, n in zip(dims, shape, strict=True))[1:]
    block = most(HIDDEN_SHARD, shape[1:])
    together = min(block, most(HIDDEN_CHUNK, inner))
    if shape[0] <= block:
        # One file: no longer than the episode, in whole chunks.
        block = -(-shape[0] // together) * together
    return ChunkPlan(shape, (block, *shape[1:]), (together, *inner))


def blosc(precision: str) -> dict[str, Any]:
    """Blosc settings of attention: zstd level 1; bit shuffle pays for float16 and costs for log8."""
    size = dtype(precision).itemsize
    return _zstd(size, "bitshuffle" if size > 1 else "noshuffle")


def shuffled(itemsize: int, chunk: Sequence[int]) -> dict[str, Any]:
    """Blosc settings of rounded numbers: the planes of bits that rounding cleared cost nothing."""
    return _zstd(itemsize, "shuffle" if math.prod(chunk) % SHUFFLE else "bitshuffle")


def _zstd(itemsize: int, shuffle: str) -> dict[str, Any]:
    return {"cname": "zstd", "clevel": 1, "shuffle": shuffle, "typesize": itemsize}


def attention_bytes(
    layers: int, heads: int, query: int, key: int, steps: int | None, precision: str
) -> int:
    """Raw stored bytes of one keyframe of one phase.

    Examples
    --------
    Pi0.5's prefix without padding, 572 tokens:

    >>> attention_bytes(18, 8, 572, 572, None, "float16")
    94228992
    """
    return layers * heads * query * key * (steps or 1) * dtype(precision).itemsize

"""A policy's model inputs as JSON and arrays, and back, bit for bit.

Inputs are nested mappings and sequences of tensors, arrays, numbers and texts. A tensor of few distinct
values, as an image is that was scaled and normalised, is kept as places in a table of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numcodecs.blosc import BITSHUFFLE, NOSHUFFLE, SHUFFLE, Blosc
from numpy.typing import NDArray

from attnstore.store.errors import AttnstoreError, IntegrityError

LEAST = 4096
"""Values from which on an array is looked at for a table."""
LARGE = 1 << 16
"""Bytes from which on an array may be copied by another thread: a smaller one is copied sooner than that is told."""
_SAMPLE = 4096
_CODINGS = ("plain", "tables")
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_DTYPES = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    + ["bool", "float16", "bfloat16", "float32", "float64"]
)
MAX_VALUES = 1 << 28


Empty = Callable[[tuple[int, ...], Any], NDArray[Any]]
"""Makes an array of a shape and a type, with anything in it: ``numpy.empty``, or `Memory.empty`."""


class UnknownInputError(AttnstoreError):
    """A policy's inputs hold something that a recording cannot keep."""


@dataclass(slots=True)
class Copied:
    """Model inputs in memory of their own: nested as they were, tensors as `Kept`."""

    tree: Any
    arrays: list[Kept] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.bits.nbytes for a in self.arrays)


@dataclass(frozen=True, slots=True)
class Kept:
    """One tensor or array: its bits, and what they mean."""

    bits: NDArray[Any]
    """Unsigned integers of the item's size."""
    dtype: str
    torch: bool
    order: tuple[int, ...] | None = None
    """Dimensions from the outermost in memory, where that is not C order: a convolution takes another way, and
    rounds otherwise, if channels come last."""


def copy_inputs(
    inputs: Mapping[str, Any],
    row: int | None = None,
    rows: int = 1,
    later: list[Callable[[], None]] | None = None,
    empty: Empty = np.empty,
) -> Copied:
    """Copy model inputs to memory that nobody else writes to.

    Parameters
    ----------
    inputs
        As of `attnstore.ingest.policies.base.Batch.inputs`.
    row, rows
        Only this row of a batch of so many: every tensor's first dimension is the batch's.
    later
        Gets what copies the large arrays; until all of it was called nobody may write to them. None: they
        are copied at once.
    empty
        Makes the arrays that are copied to.

    Raises
    ------
    UnknownInputError
        If something is of another kind than this module's docstring says, or has no rows.
    """
    copied = Copied(None)
    copied.tree = _copy(inputs, copied.arrays, row, rows, "inputs", later, empty)
    return copied


def _copy(
    value: Any,
    arrays: list[Kept],
    row: int | None,
    rows: int,
    where: str,
    later: list[Callable[[], None]] | None,
    empty: Empty,
) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return {"value": value}
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UnknownInputError(f"{where}: a key that is no text")
        return {
            "map": {
                k: _copy(v, arrays, row, rows, f"{where}.{k}", later, empty)
                for k, v in value.items()
            }
        }
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        if row is not None and len(value) == rows and all(isinstance(v, str) for v in value):
            return {kind: [{"value": value[row]}]}
        return {
            kind: [
                _copy(v, arrays, row, rows, f"{where}[{i}]", later, empty)
                for i, v in enumerate(value)
            ]
        }
    bits, dtype, of_torch = _bits(value, where)
    if row is not None:
        if not bits.ndim or bits.shape[0] != rows:
            raise UnknownInputError(
                f"{where} has shape {bits.shape}, not a row for each of {rows} observations: "
                "call the policy once per environment"
            )
        bits = bits[row : row + 1]
    copy = empty(bits.shape, bits.dtype)
    if later is None or copy.nbytes < LARGE:
        np.copyto(copy, bits)
    else:
        later.append(partial(np.copyto, copy, bits))
    arrays.append(Kept(copy, dtype, of_torch, _order(bits)))
    return {"array": len(arrays) - 1}


def _order(bits: NDArray[Any]) -> tuple[int, ...] | None:
    """Return an array's dimensions from the outermost in memory; None if that is C order, or there are gaps."""
    if bits.flags.c_contiguous:
        return None
    order = tuple(sorted(range(bits.ndim), key=lambda dimension: -bits.strides[dimension]))
    return order if bits.transpose(order).flags.c_contiguous else None


def _ordered(bits: NDArray[Any], order: tuple[int, ...]) -> NDArray[Any]:
    """Return an array with the same items, in that order in memory; see `_order`."""
    if sorted(order) != list(range(bits.ndim)):
        raise ValueError(f"order {order}")
    return np.ascontiguousarray(bits.transpose(order)).transpose(np.argsort(order))


def _bits(value: Any, where: str) -> tuple[NDArray[Any], str, bool]:
    """Return a tensor's or an array's own memory, its type, and whether it is torch's."""
    of_torch = type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")
    if of_torch:
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in _DTYPES or str(value.layout) != "torch.strided":
            raise UnknownInputError(f"{where}: a tensor of {dtype}")
        import torch

        tensor = value.detach().cpu()
        # NumPy has no bfloat16.
        array = (tensor.view(torch.int16) if dtype == "bfloat16" else tensor).numpy()
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
        dtype = array.dtype.name
        if dtype not in _DTYPES:
            raise UnknownInputError(f"{where}: an array of {dtype}")
    else:
        raise UnknownInputError(f"{where}: a {type(value).__name__}")
    return array.view(_BITS[array.dtype.itemsize]), dtype, of_torch


def pack_inputs(copied: Copied) -> tuple[dict[str, Any], list[bytes]]:
    """Return what an entry says of inputs, and the compressed bytes of their arrays, in order."""
    pieces: list[bytes] = []
    arrays = [_pack(kept, pieces) for kept in copied.arrays]
    return {"tree": copied.tree, "arrays": arrays}, pieces


def _pack(kept: Kept, pieces: list[bytes]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "dtype": kept.dtype,
        "shape": list(kept.bits.shape),
        "torch": kept.torch,
        "coding": "plain",
    }
    if kept.order is not None:
        said["order"] = list(kept.order)
    coded, level = kept.bits, 3
    shuffle = SHUFFLE if coded.itemsize > 1 else BITSHUFFLE
    if (found := _codes(kept)) is not None:
        coded, tables = found
        # A pixel is like the one before it: their difference takes two thirds of the bytes, and less time.
        coded[:, 1:] -= coded[:, :-1].copy()
        if coded.itemsize == 1:
            # Few differences are frequent; a higher level makes more bytes of them.
            level, shuffle = 1, NOSHUFFLE
        said["coding"], said["codes"] = "tables", coded.dtype.name
        said["values"] = [int(table.size) for table in tables]
        pieces.append(_compress(np.concatenate(tables)))
        said["tables"] = len(pieces[-1])
    pieces.append(_compress(coded, level, shuffle))
    said["size"] = len(pieces[-1])
    return said


def _codes(kept: Kept) -> tuple[NDArray[Any], list[NDArray[Any]]] | None:
    """Return places in tables, (row, last dimension), and a table for each plane; None if there is no use.

    A plane is what the last two dimensions span, if that is much: a channel, which has values of its own once it is
    normalised by its own mean.
    """
    bits = kept.bits
    # Of noise, a sample says at once that there is no table.
    if bits.itemsize == 1 or bits.size < LEAST or not _repeats(bits.reshape(-1)):
        return None
    plane = math.prod(bits.shape[-2:])
    planes = bits.reshape(-1, plane if plane >= 2 * LEAST else bits.size)
    # By hashing, in a fraction of the time that sorting takes, and other threads run meanwhile.
    found = [pa.array(each).dictionary_encode() for each in planes]
    most = max(len(each.dictionary) for each in found)
    if most > 1 << 8 * min(2, bits.itemsize - 1):
        return None
    codes, tables = np.empty(planes.shape, np.uint8 if most <= 256 else np.uint16), []
    for row, each in zip(codes, found, strict=True):
        values = each.dictionary.to_numpy()
        order = _ascending(values, "float" in kept.dtype)
        rank = np.empty(values.size, codes.dtype)
        rank[order] = np.arange(values.size)
        row[:] = pa.array(rank).take(each.indices).to_numpy()
        tables.append(values[order])
    return codes.reshape(-1, bits.shape[-1]), tables


def _ascending(bits: NDArray[Any], floating: bool) -> NDArray[np.intp]:
    """Sort bits by the numbers that they mean, so that what is almost as bright has almost the same place."""
    signed = bits.view(bits.dtype.str.replace("u", "i"))
    if floating:  # the bits of a negative one grow with its size
        signed = np.where(signed < 0, np.iinfo(signed.dtype).min - signed, signed)
    return np.argsort(signed)


def _repeats(flat: NDArray[Any]) -> bool:
    sample = flat[:: max(1, flat.size // _SAMPLE)]
    return len(np.unique(sample)) <= len(sample) // 2


def _compress(values: NDArray[Any], level: int = 3, shuffle: int = SHUFFLE) -> bytes:
    # Blosc compresses no empty buffer
    return bytes(Blosc("zstd", level, shuffle).encode(values)) if values.size else b""


def unpack_inputs(said: Mapping[str, Any], body: bytes) -> Any:
    """Return what `copy_inputs` was given: tensors of torch on the CPU, other arrays as NumPy's.

    Raises
    ------
    IntegrityError
        If the entry and its bytes contradict each other.
    """
    try:
        at = 0
        arrays = []
        for each in said["arrays"]:
            array, at = _unpack(each, body, at)
            arrays.append(array)
        return _restore(said["tree"], arrays)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise IntegrityError(f"recorded inputs cannot be read: {error}") from None


def _unpack(said: Mapping[str, Any], body: bytes, at: int) -> tuple[Any, int]:
    dtype, shape = str(said["dtype"]), tuple(int(n) for n in said["shape"])
    if dtype not in _DTYPES or said["coding"] not in _CODINGS:
        raise ValueError(f"dtype {dtype!r}, coding {said['coding']!r}")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count > MAX_VALUES:
        raise ValueError(f"shape {shape}")
    bits = np.dtype(_BITS[2 if dtype == "bfloat16" else np.dtype(dtype).itemsize])
    if said["coding"] == "tables":
        sizes = [int(n) for n in said["values"]]
        if said["codes"] not in ("uint8", "uint16") or min(sizes) < 1 or count % len(sizes):
            raise ValueError(f"codes {said['codes']!r}, tables of {sizes}")
        values, at = _inflate(body, at, int(said["tables"]), bits, sum(sizes))
        codes, at = _inflate(body, at, int(said["size"]), np.dtype(said["codes"]), count)
        rows = codes.reshape(-1, shape[-1])
        planes = np.add.accumulate(rows, 1, dtype=codes.dtype).reshape(len(sizes), -1)
        tables = np.split(values, np.cumsum(sizes)[:-1])
        flat = np.concatenate([t[p] for t, p in zip(tables, planes, strict=True)])
    else:
        flat, at = _inflate(body, at, int(said["size"]), bits, count)
    flat = flat.reshape(shape)
    if "order" in said:
        flat = _ordered(flat, tuple(int(n) for n in said["order"]))
    if not said["torch"]:
        return flat.view(np.dtype(dtype)), at
    import torch

    signed = flat.view(bits.str.replace("u", "i")) if bits.itemsize > 1 else flat
    return torch.from_numpy(np.array(signed)).view(getattr(torch, dtype)), at


def _inflate(
    body: bytes, at: int, size: int, dtype: np.dtype[Any], count: int
) -> tuple[NDArray[Any], int]:
    piece = body[at : at + size]
    if len(piece) != size:
        raise ValueError(f"{size} bytes are expected at {at}, {len(piece)} are there")
    if not count:
        return np.empty(0, dtype), at + size
    buffer = np.empty(count, dtype)
    # numcodecs compares the length that the block says with the buffer's
    Blosc().decode(piece, buffer)
    return buffer, at + size


def _restore(tree: Any, arrays: Sequence[Any]) -> Any:
    ((kind, value),) = tree.items()
    match kind:
        case "value":
            return value
        case "float":
            return float.fromhex(value)
        case "map":
            return {k: _restore(v, arrays) for k, v in value.items()}
        case "list":
            return [_restore(v, arrays) for v in value]
        case "tuple":
            return tuple(_restore(v, arrays) for v in value)
        case "array":
            return arrays[int(value)]
    raise ValueError(f"inputs of kind {kind!r}")

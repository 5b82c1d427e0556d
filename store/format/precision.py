"""How one attention weight is stored, and how far it may then be off.

A run keeps its weights as ``float16`` or as the one-byte logarithmic code ``log8``. Overview maps are
float32, rounded to so few significant bits that they compress (`round_significant`).

log8 (format version 1): code 0 is zero; codes 1 to 254 are logarithmic levels over
``2**-16 .. 1``, ``value = 2**(16 * (code - 254) / 253)``; code 255 is NaN (absent). A weight is
coded by its nearest level in the logarithm; below ``2**-17`` (half the lowest level) it is 0.
Within the levels the relative error is at most ``2**(8/253) - 1`` = 2.22 %; below the lowest level
it is whatever the weight was, at most ``2**-17``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

Precision = Literal["float16", "log8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Number = TypeVar("Number", bound=np.generic)

LEVELS = 253
"""Number of intervals between the lowest (code 1) and the highest level (code 254)."""
OCTAVES = 16
LOWEST = 2.0**-OCTAVES
ZERO_BELOW = LOWEST / 2
ABSENT = 255
_MANTISSA = 23
"""Bits of a float32 behind its leading one."""


@dataclass(frozen=True, slots=True)
class Error:
    """How far a stored weight may lie from the unrounded one.

    The unrounded weight of a stored ``w`` is within ``relative * w + absolute``, and so is that of a
    mean or a maximum of stored weights. Arrays are of maps that have each its own, with a last axis of 1.
    """

    relative: float | NDArray[np.float64]
    absolute: float | NDArray[np.float64]
    """Share of attention; matters where weights are small."""


def dtype(precision: str) -> np.dtype[np.generic]:
    """NumPy data type of the stored array."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}; got {precision!r}")
    return np.dtype(np.float16 if precision == "float16" else np.uint8)


def weight_error(precision: str) -> Error:
    """Return the error bound of a run's stored weights.

    Examples
    --------
    >>> weight_error("float16") == Error(2**-11, 2**-25)
    True
    """
    dtype(precision)
    if precision == "float16":
        return Error(2.0**-11, 2.0**-25)
    return Error(2.0 ** (OCTAVES / LEVELS / 2) - 1, ZERO_BELOW)


def rounding_error(bits: int) -> Error:
    """Return the error bound of values that `round_significant` rounded."""
    return Error(2.0**-bits, 2.0 ** (-125 - bits))


def round_significant(values: NDArray[np.floating], bits: int) -> NDArray[np.float32]:
    """Round to a number of significant bits, ties to even; the other bits are zero and compress.

    What climate archives do before compression (Kloewer et al. 2021, "Compressing atmospheric data
    into its real information content", Nature Computational Science 1): any reader sees plain
    float32, and no value is too small. NaN stays NaN.

    Parameters
    ----------
    bits
        Significant bits, 2 to 24; 11 are those of float16.

    Examples
    --------
    >>> round_significant(np.array([1.0, 1.24, 3e-30], np.float32), 3).tolist()
    [1.0, 1.25, 3.1554436208840472e-30]
    """
    drop = _MANTISSA + 1 - bits
    if drop == 0:
        return np.array(values, np.float32)
    # Adding half a unit of the last kept bit carries into the exponent where it has to.
    raw = np.array(values, np.float32).view(np.uint32)
    raw += np.uint32((1 << (drop - 1)) - 1) + ((raw >> np.uint32(drop)) & np.uint32(1))
    raw &= np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)
    rounded = raw.view(np.float32)
    rounded[np.isnan(values)] = np.nan
    return rounded


def log8_table() -> NDArray[np.float32]:
    """Return the 256-entry table that decodes log8: ``lut[codes]``.

    Examples
    --------
    >>> lut = log8_table()
    >>> float(lut[0]), float(lut[254]), bool(np.isnan(lut[255]))
    (0.0, 1.0, True)
    """
    lut = np.exp2(OCTAVES * (np.arange(256, dtype=np.float64) - 254) / LEVELS)
    lut[0], lut[ABSENT] = 0.0, np.nan
    return lut.astype(np.float32)


_TABLE = log8_table()
_TABLE.setflags(write=False)
_BLOCK = 1 << 16


def encode(values: NDArray[np.floating], precision: str) -> NDArray[np.generic]:
    """Code weights in 0..1 for storage; NaN stays absent.

    Raises
    ------
    ValueError
        If a weight lies outside 0..1 by more than rounding (1e-3).
    """
    target = dtype(precision)
    array = np.asarray(values)
    check_weights(array)
    if precision == "float16":
        return array.astype(target)
    work = array.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        code = np.rint(254 + np.log2(work) * (LEVELS / OCTAVES))
    code = np.clip(code, 1, 254)
    code[work < ZERO_BELOW] = 0
    code[np.isnan(work)] = ABSENT
    return code.astype(np.uint8)


def check_weights(values: NDArray[np.floating]) -> None:
    """Refuse what is no attention.

    Raises
    ------
    ValueError
        If a weight lies outside 0..1 by more than rounding (1e-3).
    """
    if values.size:
        low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
        if low < 0 or high > 1 + 1e-3:
            raise ValueError(f"attention weights lie in 0..1; got {low:.6g} .. {high:.6g}")


def decode(stored: NDArray[np.generic], precision: str) -> NDArray[np.floating]:
    """Weights from what is stored: float16 as it is, log8 as float32 through the table."""
    if precision == "float16":
        return np.asarray(stored)
    if precision == "log8":
        return look_up(_TABLE, cast("NDArray[np.uint8]", stored))
    raise ValueError(f"precision is one of {', '.join(PRECISIONS)}; got {precision!r}")


def look_up(table: NDArray[Number], codes: NDArray[np.unsignedinteger]) -> NDArray[Number]:
    """Return ``table[codes]``, block by block: NumPy widens all indices that it gets to 8 bytes.

    Codes beyond the table's end get its last entry.
    """
    found = np.empty(codes.size, table.dtype)
    flat = codes.reshape(-1)
    for start in range(0, codes.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        np.take(table, flat[block], out=found[block], mode="clip")
    return found.reshape(codes.shape)


def absent(precision: str) -> float | int:
    """Return the stored value of a weight that does not exist: NaN, or code 255."""
    return ABSENT if precision == "log8" else float("nan")

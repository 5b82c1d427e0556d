"""COCO's run-length encoding of masks, both spellings, in NumPy.

A mask is read column by column (Fortran order) as runs of pixels that are alternately outside and
inside, starting with outside. ``counts`` is either the list of the runs' lengths, or the string
that COCO's own code makes of it: each length as digits of 5 bits, low ones first, in characters
from ``chr(48)``; from the fourth run on, the difference to the run two before is written instead.

Source: ``maskApi.c`` of the COCO API (Lin et al. 2014, "Microsoft COCO"), functions ``rleEncode``,
``rleToString`` and ``rleFrString``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

LARGEST = 1 << 28
"""Pixels of a mask that is decoded at all; 16384 x 16384."""


def decode_rle(size: tuple[int, int], counts: Sequence[int] | str) -> Mask:
    """Decode a run-length encoded mask.

    Parameters
    ----------
    size
        (height, width) in pixels.
    counts
        Lengths of the runs, or COCO's string of them.

    Returns
    -------
    (height, width) bool.

    Raises
    ------
    ValueError
        If the runs are negative or not whole numbers, or do not add up to the mask's pixels.

    Examples
    --------
    >>> decode_rle((2, 3), [1, 2, 3]).astype(int).tolist()
    [[0, 1, 0], [1, 0, 0]]
    >>> decode_rle((2, 3), "123").astype(int).tolist()
    [[0, 1, 0], [1, 0, 0]]
    """
    height, width = size
    if not _whole(size):
        raise ValueError(f"a mask's size is two whole numbers; got {list(size)!r}")
    if height < 1 or width < 1 or height * width > LARGEST:
        raise ValueError(f"a mask of {height} x {width} pixels")
    # Python's integers first: a run of 2**70 must be an error here and not an overflow.
    listed = parse_counts(counts) if isinstance(counts, str) else list(counts)
    if not _whole(listed):
        raise ValueError("runs are whole numbers")
    if any(n < 0 for n in listed):
        raise ValueError(f"a run of {min(listed)} pixels; runs are counted from 0")
    if sum(listed) != height * width:
        raise ValueError(
            f"runs of {sum(listed)} pixels in all, the mask has {height} x {width} = "
            f"{height * width}"
        )
    inside = np.arange(len(listed)) % 2 == 1
    pixels = np.repeat(inside, np.asarray(listed, np.int64))
    return np.ascontiguousarray(pixels.reshape(width, height).T)


def _whole(numbers: Iterable[object]) -> bool:
    # True is an int in Python, and int() would cut 1.5 down
    return all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in numbers)


def encode_rle(mask: Mask) -> str:
    """Encode a mask as COCO's string; `decode_rle` restores it.

    Examples
    --------
    >>> encode_rle(np.array([[False, True, False], [True, False, False]]))
    '123'
    """
    flat = np.asarray(mask, bool).T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    # The first run is outside, of length 0 if the first pixel is inside.
    return format_counts([0, *lengths] if flat.size and flat[0] else lengths)


def parse_counts(text: str) -> list[int]:
    """Lengths of the runs from COCO's string.

    Raises
    ------
    ValueError
        If a character is none of its 64, or the string ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise ValueError(f"{character!r} is not a character of COCO's run lengths")
        value |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:
            continue
        if digit & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the string of run lengths ends within a number")
    return counts


def format_counts(counts: Sequence[int]) -> str:
    """Write run lengths as COCO's string."""
    characters: list[str] = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            digit = value & 0x1F
            value >>= 5
            more = value != (-1 if digit & 0x10 else 0)
            characters.append(chr((digit | 0x20 if more else digit) + 48))
    return "".join(characters)

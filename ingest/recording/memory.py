"""Memory that recorded calls are copied to, used again by later ones.

A page that the kernel gives a process for the first time costs more than what is copied into it: of three cameras of
360 x 640, whose 10 MB the allocator gives back to the kernel after each call, two fifths of the copying's time.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LEAST = 1 << 16
"""Bytes from which on memory is used again."""


class Memory:
    """Hands out arrays; the memory of one comes back when the array and all its views are gone.

    Parameters
    ----------
    limit
        Bytes that are kept while nobody uses them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Arrays end in any thread, at any moment: no lock, and only what is one step of the interpreter.
        self._free: dict[int, deque[NDArray[np.uint8]]] = {}

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array with anything in it, as ``numpy.empty`` does."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if size < LEAST:
            return np.empty(shape, kind)
        try:
            block = self._free[size].pop()
        except (KeyError, IndexError):
            block = np.empty(size, np.uint8)
        # Of a buffer: so all its views hold this array, and not the block.
        array = np.frombuffer(block.data, np.uint8)
        weakref.finalize(array, self._back, block).atexit = False
        return array.view(kind).reshape(shape)

    @property
    def free(self) -> int:
        """Bytes that are kept, and that nobody uses."""
        return sum(size * len(blocks) for size, blocks in tuple(self._free.items()))

    def _back(self, block: NDArray[np.uint8]) -> None:
        if self.free + block.nbytes <= self._limit:
            self._free.setdefault(block.nbytes, deque()).append(block)

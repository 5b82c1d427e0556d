"""Arrays that xarray reads when it needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xarray.backends.common import BackendArray
from xarray.core import indexing


class LazyArray(BackendArray):
    """An array that is read as it is indexed; picklable, so that dask's workers can read it.

    Parameters
    ----------
    shape, dtype
        Of the whole.
    read
        Takes an index or a slice of unit step for every dimension. Picklable.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        read: Callable[[tuple[int | slice, ...]], NDArray[Any]],
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._source = read

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        index: list[int | slice] = []
        steps: list[slice] = []
        for k, length in zip(key, self.shape, strict=True):
            if isinstance(k, slice):
                # The engines take unit steps; others are cut out of the block that holds them.
                positions = range(length)[k]
                if not len(positions):
                    return np.empty([len(range(n)[s]) for s, n in zip(key, self.shape, strict=True)
                                     if isinstance(s, slice)], self.dtype)  # fmt: skip
                low, high = min(positions[0], positions[-1]), max(positions[0], positions[-1])
                index.append(slice(low, high + 1))
                steps.append(slice(None, None, positions.step))
            else:
                index.append(int(k) % length)
        return np.asarray(self._source(tuple(index))[tuple(steps)])


def lazy(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    read: Callable[[tuple[int | slice, ...]], NDArray[Any]],
) -> indexing.LazilyIndexedArray:
    """Return data for a DataArray that is read on access; ``.chunk()`` makes it a dask array."""
    return indexing.LazilyIndexedArray(LazyArray(shape, dtype, read))

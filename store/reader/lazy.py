"""Arrays that xarray reads when it needs them: decoded, through the store's engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends.common import BackendArray
from xarray.core import indexing

from ..commits.part import Part
from ..format.precision import decode


class StoredArray(BackendArray):
    """A Zarr array of a part, decoded on reading; picklable, so that dask workers can open it."""

    def __init__(self, part: Part, path: str, precision: str) -> None:
        self._part, self._path, self._precision = part, path, precision
        self.shape = part.block(path).shape
        self.dtype = np.dtype(np.float32 if precision == "log8" else np.float16)

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
                index.append(int(k))
        block = self._part.block(self._path).read(tuple(index))
        return np.asarray(decode(block, self._precision)[tuple(steps)])


def lazy_array(
    part: Part, path: str, precision: str, dims: tuple[str, ...], coords: dict[str, Any], name: str
) -> xr.DataArray:
    """Return a DataArray that reads on access; ``.chunk()`` makes it a dask array."""
    data = indexing.LazilyIndexedArray(StoredArray(part, path, precision))
    return xr.DataArray(data, dims=dims, coords=coords, name=name)

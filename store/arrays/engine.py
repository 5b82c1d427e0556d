"""Reading and writing blocks of Zarr arrays: TensorStore on the hot paths, zarr-python otherwise.

Both read the same files and give the same bytes; a test holds them to it. ``ATTNSTORE_ENGINE``
(``tensorstore`` or ``zarr``) overrides the choice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError, UsageError

Stored = NDArray[Any]
Index = tuple[int | slice, ...]
CACHE_BYTES = 256 << 20
"""Decoded chunks and shard indexes kept by TensorStore in this process."""


class Block(Protocol):
    """One stored array, read and written in rectangular blocks; safe to use from many threads."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, index: Index) -> Stored:
        """Load a block; raises `IntegrityError` if a checksum or a codec fails."""
        ...

    def write(self, index: Index, data: Stored) -> None:
        """Store a block; it is durable once its part is committed."""
        ...


def engine_name() -> str:
    """Return the engine in use: ``tensorstore`` if it can be imported, else ``zarr``."""
    chosen = os.environ.get("ATTNSTORE_ENGINE")
    if chosen not in (None, "", "tensorstore", "zarr"):
        raise UsageError(f"ATTNSTORE_ENGINE is tensorstore or zarr; got {chosen!r}")
    if chosen:
        return chosen
    return "tensorstore" if _tensorstore() is not None else "zarr"


def open_block(
    path: Path,
    *,
    engine: str | None = None,
    writable: bool = False,
    description: Mapping[str, Any] | None = None,
) -> Block:
    """Open a Zarr v3 array that exists.

    Parameters
    ----------
    description
        What its ``zarr.json`` says, checked by `vetting.description`; TensorStore then does not
        read the file. Without it the array must be this process's own.

    Raises
    ------
    IntegrityError
        If it cannot be opened.
    """
    if (engine or engine_name()) == "tensorstore":
        return _TensorStoreBlock(path, writable, description)
    return _ZarrBlock(path, writable)


@lru_cache(maxsize=1)
def _tensorstore() -> Any:
    try:
        import tensorstore
    except ImportError:
        return None
    return tensorstore


@lru_cache(maxsize=1)
def _context() -> Any:
    return _tensorstore().Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


class _TensorStoreBlock:
    def __init__(self, path: Path, writable: bool, description: Mapping[str, Any] | None) -> None:
        self._path = path
        spec: dict[str, Any] = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            # Committed files never change, so nothing has to be asked of the disk again.
            "recheck_cached_data": False if not writable else "open",
        }
        if description is not None:
            spec |= {"metadata": dict(description), "assume_metadata": True}
        if writable:
            # A commit syncs every file that it lists, once, when it is hashed.
            spec["context"] = {"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False}
        try:
            self._array = (
                _tensorstore()
                .open(spec, read=True, write=writable, context=None if writable else _context())
                .result()
            )
        except ValueError as error:
            raise IntegrityError(f"{path}: cannot be opened ({_first_line(error)})") from None
        self.shape = tuple(self._array.shape)
        self.dtype = np.dtype(self._array.dtype.numpy_dtype)

    def read(self, index: Index) -> Stored:
        try:
            return cast(Stored, self._array[index].read().result())
        except (ValueError, IndexError) as error:
            raise IntegrityError(f"{self._path}: {_first_line(error)}") from None

    def write(self, index: Index, data: Stored) -> None:
        self._array[index].write(np.ascontiguousarray(data)).result()


class _ZarrBlock:
    def __init__(self, path: Path, writable: bool) -> None:
        import zarr

        self._path = path
        try:
            self._array: Any = zarr.open_array(str(path), mode="r+" if writable else "r")
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise IntegrityError(f"{path}: cannot be opened ({_first_line(error)})") from None
        self.shape = tuple(self._array.shape)
        self.dtype = np.dtype(self._array.dtype)

    def read(self, index: Index) -> Stored:
        try:
            return np.asarray(self._array[index])
        except (ValueError, RuntimeError, OSError, KeyError, IndexError) as error:
            raise IntegrityError(f"{self._path}: {_first_line(error)}") from None

    def write(self, index: Index, data: Stored) -> None:
        self._array[index] = data


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__

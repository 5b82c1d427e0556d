"""What labs do today, as baselines: padded float32, one array a layer, ``.npy`` or HDF5.

Pi0.5 (openpi) has three cameras of 256 tokens and 200 text tokens, 968 in all. The third camera and
the unused text are padding: their columns are exactly 0, and their rows, masked everywhere, come
out of the softmax uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

CAMERA_SLOTS, TEXT_SLOTS = 3, 200
CHUNK = (1, 256, 256)
GZIP = 4


def padded_length(images: int) -> int:
    """Length of the model's own prefix, `images` tokens being those of two cameras."""
    return images // 2 * CAMERA_SLOTS + TEXT_SLOTS


def padded_prefix(weights: torch.Tensor, images: int) -> NDArray[np.float32]:
    """Put a layer's weights where the model has them, as float32: (head, query, key)."""
    import torch

    length = padded_length(images)
    at = _places(weights.shape[-1], images, length)
    uniform = torch.tensor(1 / length).to(weights.dtype).float()
    full = torch.full((len(weights), length, length), float(uniform))
    full[:, at] = 0
    full[:, at[:, None], at] = weights.float()
    return full.numpy()


def padded_suffix(weights: torch.Tensor, images: int) -> NDArray[np.float32]:
    """As `padded_prefix`, for action queries, whose keys are the prefix and themselves."""
    import torch

    heads, actions, keys = weights.shape
    length = padded_length(images)
    at = torch.cat([_places(keys - actions, images, length), length + torch.arange(actions)])
    full = torch.zeros(heads, actions, length + actions)
    full[:, :, at] = weights.float()
    return full.numpy()


def _places(tokens: int, images: int, length: int) -> torch.Tensor:
    import torch

    start = length - TEXT_SLOTS
    return torch.cat([torch.arange(images), torch.arange(start, start + tokens - images)])


def save_npy(directory: Path, layers: Sequence[NDArray[np.float32]], name: str) -> None:
    """``np.save`` of every layer; the file system's cache decides when it reaches the disk."""
    directory.mkdir(parents=True, exist_ok=True)
    for i, layer in enumerate(layers):
        np.save(directory / f"{name}_{i}.npy", layer)


def save_hdf5(path: Path, layers: Sequence[NDArray[np.float32]], name: str) -> None:
    """One dataset a layer, gzip level 4, chunks of one head's 256 x 256."""
    with h5py.File(path, "a") as file:
        for i, layer in enumerate(layers):
            chunk = tuple(min(c, n) for c, n in zip(CHUNK, layer.shape, strict=True))
            file.create_dataset(
                f"{name}/{i}", data=layer, chunks=chunk, compression="gzip", compression_opts=GZIP
            )


def read_hdf5(path: Path, name: str, index: tuple[Any, ...]) -> NDArray[np.float32]:
    """Open the file and read a selection, as a script does that has closed it since."""
    with h5py.File(path) as file:
        return np.asarray(file[name][index])

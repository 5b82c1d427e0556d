"""Chunk shapes and codecs, on trained attention: the figures of docs/decisions/002-chunks.md."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import torch
from numpy.typing import NDArray

from attnstore.ingest.reduction import encode_on_device
from attnstore.store.arrays.engine import CACHE_BYTES

from .measure import Figure, Setting, Times, size_of
from .trained import keyframes

PREFIX, ACTIONS = 572, 15


@dataclass(frozen=True, slots=True)
class Variant:
    precision: str
    codec: str
    level: int
    shuffle: str
    heads: int = 1
    rows: int = 64

    @property
    def name(self) -> str:
        chunk = f"1,1,{self.heads},{self.rows},K"
        return f"{self.precision} {self.codec}-{self.level} {self.shuffle} ({chunk})"


CHOSEN = Variant("float16", "zstd", 1, "bitshuffle"), Variant("log8", "zstd", 1, "noshuffle")
PREFIX_VARIANTS = (
    CHOSEN[0],
    Variant("float16", "zstd", 1, "shuffle"),
    Variant("float16", "zstd", 1, "noshuffle"),
    Variant("float16", "zstd", 3, "bitshuffle"),
    Variant("float16", "lz4", 1, "bitshuffle"),
    Variant("float16", "lz4", 5, "bitshuffle"),
    Variant("float16", "zstd", 1, "bitshuffle", heads=8),
    Variant("float16", "zstd", 1, "bitshuffle", rows=32),
    Variant("float16", "zstd", 1, "bitshuffle", rows=128),
    CHOSEN[1],
    Variant("log8", "zstd", 3, "noshuffle"),
    Variant("log8", "zstd", 1, "bitshuffle"),
    Variant("log8", "lz4", 1, "bitshuffle"),
    Variant("log8", "zstd", 1, "noshuffle", heads=8),
)
SUFFIX_VARIANTS = tuple(
    Variant("float16", codec, 1, "bitshuffle", rows=rows)
    for codec in ("zstd", "lz4")
    for rows in (15, 16)
)


def run(setting: Setting) -> list[Figure]:
    layers = 2 if setting.toy else 6
    steps = 1 if setting.toy else 4
    prefix = 128 if setting.toy else PREFIX
    (keyframe,) = keyframes(1, prefix=prefix, actions=ACTIONS, steps=steps)
    figures = []
    for phase, variants in (("prefix", PREFIX_VARIANTS), ("suffix", SUFFIX_VARIANTS)):
        if phase == "prefix":
            tensors = keyframe.prefix[::3][:layers]
        else:  # a shard is a step, all its layers' heads
            tensors = [torch.cat(step) for step in keyframe.suffix]
        for variant in variants:
            data = np.stack([encode_on_device(w, variant.precision) for w in tensors])
            figures += _measure(setting, phase, variant, data)
    return figures


def _measure(
    setting: Setting, phase: str, variant: Variant, data: NDArray[Any]
) -> Iterator[Figure]:
    directory = setting.directory / "chunks"
    times = Times()
    for _ in range(setting.repeats(5)):
        shutil.rmtree(directory, ignore_errors=True)
        array = _create(directory, variant, data)
        times.add(_write, array, data)
    raw = 2 * data.size
    size = size_of(p for p in directory.rglob("*") if p.name != "zarr.json")
    yield Figure(f"{phase} {variant.name}: written", raw / times.cpu_median / 1e6, "MB/s of raw float16",
                 note="CPU time of all threads")  # fmt: skip
    yield Figure(f"{phase} {variant.name}: raw float16 over it", raw / size, "times")
    if phase == "prefix":
        yield Figure(f"{phase} {variant.name}: one head's last 60 rows", _slice(directory, data), "ms",
                     note="new cache, page cache warm")  # fmt: skip
    shutil.rmtree(directory)


def _write(array: Any, data: NDArray[Any]) -> None:
    for i, shard in enumerate(data):
        array[i].write(shard).result()


def _create(directory: Path, variant: Variant, data: NDArray[Any]) -> Any:
    _, heads, query, key = data.shape
    chunk = [1, variant.heads, variant.rows, key]
    shard = [1, heads, -(-query // variant.rows) * variant.rows, key]
    blosc = {
        "cname": variant.codec, "clevel": variant.level, "shuffle": variant.shuffle,
        "typesize": data.dtype.itemsize, "blocksize": 0,
    }  # fmt: skip
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    inner = [
        little if data.dtype.itemsize > 1 else {"name": "bytes"},
        {"name": "blosc", "configuration": blosc},
        {"name": "crc32c"},
    ]
    sharding = {
        "chunk_shape": chunk, "codecs": inner, "index_codecs": [little, {"name": "crc32c"}],
    }  # fmt: skip
    metadata = {
        "shape": list(data.shape),
        "data_type": str(data.dtype),
        "fill_value": "NaN" if data.dtype == np.float16 else 255,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{directory}/"},
        "metadata": metadata,
        "context": {"cache_pool": {"total_bytes_limit": 0}},
    }
    return tensorstore.open(spec, create=True).result()


def _slice(directory: Path, data: NDArray[Any]) -> float:
    times = []
    for repeat in range(5):
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{directory}/"},
            "recheck_cached_data": False,
            "context": {"cache_pool": {"total_bytes_limit": CACHE_BYTES}},
        }
        array = tensorstore.open(spec).result()
        rows = slice(data.shape[2] - 60, data.shape[2])
        array[0, 0, :1].read().result()
        for layer in range(1, len(data)):
            start = time.perf_counter()
            array[layer, (repeat + layer) % data.shape[1], rows].read().result()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)

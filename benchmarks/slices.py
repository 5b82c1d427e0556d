"""Slices through the public API, against HDF5 as labs write it. The page cache is warm throughout.

*Uncached*: the slice's shard has not been read by this process. *Cached*: read before, its chunks
are still in the engine's cache.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnstore.query import Episode
from attnstore.store.arrays import engine

from .labs import TEXT_SLOTS, padded_length, padded_prefix, read_hdf5, save_hdf5
from .measure import Figure, Setting
from .replay import ReplayPolicy, ingest, shape_of

KEYFRAMES = 23


def run(setting: Setting) -> list[Figure]:
    count = 3 if setting.toy else KEYFRAMES
    shape = shape_of(setting.toy)
    figures = []
    for precision in ("float16", "log8"):
        episode = ingest(setting.directory, count, precision=precision, **shape)
        figures += _ours(episode, precision)
    figures += _labs(setting, episode)
    return figures


def _ours(episode: Episode, precision: str) -> list[Figure]:
    _warm_page_cache(episode)
    keyframes, layers = len(episode.frames), episode.layers("prefix")
    heads = episode.heads("prefix")
    single = [(k, i, (k + i) % heads) for k in range(keyframes) for i in range(layers)]
    random.Random(0).shuffle(single)
    single = single[:200]

    def labelled(at: tuple[int, int, int]) -> Any:
        return episode.attention("prefix", keyframe=at[0], layer=at[1], head=at[2], query="text")

    def layer(at: int) -> Any:
        return episode.attention("prefix", layer=at, query="text").values

    # imports, name tables and the array's own metadata, once in a process
    labelled((0, 0, 0))
    figures = []
    for name, operation, where, aims in (
        ("one head's text rows, xarray", labelled, single, ("<= 1", "<= 1")),
        (f"one layer's text rows, all heads, {keyframes} keyframes", layer, range(layers),
         ("<= 25", "<= 6")),
    ):  # fmt: skip
        _evict(episode)
        for state, aim in zip(("uncached", "cached"), aims, strict=True):
            times = _milliseconds(operation, where)
            label = f"{precision}: {name}, {state}"
            best = sorted(times)[len(times) // 10]
            figures += [
                Figure(label, statistics.median(times), "ms", aim=aim, note=f"{len(where)} slices"),
                Figure(f"{label}, fastest tenth", best, "ms", note="as without busy neighbours"),
            ]
    return figures


def _milliseconds(operation: Callable[[Any], Any], where: Sequence[Any]) -> list[float]:
    times = []
    for at in where:
        start = time.perf_counter()
        operation(at)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def _evict(episode: Episode) -> None:
    """Forget cached shards and chunks: as in a new process, with the array open already."""
    engine._context.cache_clear()
    episode.part._blocks.clear()
    episode.part.block("prefix/attention")


def _warm_page_cache(episode: Episode) -> None:
    for file in (episode.part.path / "attention.zarr/prefix").rglob("*"):
        if file.is_file():
            file.read_bytes()


def _labs(setting: Setting, episode: Episode) -> list[Figure]:
    """One file a keyframe; each holds the one layer that is read (18 would take minutes to write)."""
    count = len(episode.frames)
    policy = ReplayPolicy(count, **{**shape_of(setting.toy), "layers": 1, "steps": 0})
    folder = setting.directory / "labs-slices"
    folder.mkdir(exist_ok=True)
    files: list[Path] = []
    for keyframe in policy.keyframes(count):
        files.append(folder / f"{len(files)}.h5")
        files[-1].unlink(missing_ok=True)
        save_hdf5(files[-1], [padded_prefix(keyframe.prefix[0], policy.images)], "prefix")
    start = padded_length(policy.images) - TEXT_SLOTS
    rows = slice(start, start + policy.text)
    heads = episode.heads("prefix")
    single = [(f, h) for f in files for h in range(heads)][:200]
    one = _milliseconds(lambda at: read_hdf5(at[0], "prefix/0", (at[1], rows)), single)
    whole = _milliseconds(
        lambda _: [read_hdf5(f, "prefix/0", (slice(None), rows)) for f in files], range(3)
    )
    baseline = "HDF5 float32 gzip-4, padded"
    return [
        Figure(f"{baseline}: one head's text rows", statistics.median(one), "ms",
               note="file opened for each read"),
        Figure(f"{baseline}: one layer's text rows, all heads, {count} keyframes",
               statistics.median(whole), "ms"),
    ]  # fmt: skip

"""What the precision of overview maps costs in bytes, and what it does to statistics of objects.

The packaged toy episodes are ingested with unrounded maps. Each way of storing means is then applied
to them, and the statistics of every head, step and object are held against those of the unrounded
ones. Bytes are what arrays of the store's own chunks take. Decision 016 says what follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec
from zarr.storage import MemoryStore

import attnstore
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import EpisodeJob, ingest_episode
from attnstore.ingest.plan import describe_run
from attnstore.ingest.policies.registry import load_policy
from attnstore.query import Episode
from attnstore.query.objects.masks import open_detector_masks
from attnstore.query.objects.overlap import PatchCover, cover_patches, object_metrics
from attnstore.sample import checkpoint_path, episodes_path
from attnstore.store.arrays.chunking import blosc, shuffled
from attnstore.store.arrays.groups import MAP_BITS
from attnstore.store.commits.run import save_run
from attnstore.store.format import precision
from attnstore.store.opening import create_store

from .measure import Figure, Setting
from .replay import ingest, shape_of

Maps = NDArray[np.float32]
Coded = NDArray[np.generic]
Found = list[dict[str, NDArray[np.float64]]]

UNROUNDED = MappingProxyType(dict.fromkeys(MAP_BITS, 24))
MEAN_BITS, MAX_BITS = (7, 8, 10, 11), (4, 5, 6, 8)
CODECS = ("zstd-9", "bytes shuffled, zstd-5", "all steps in a chunk, side by side")
"""Other ways to compress the same numbers."""
KEYFRAMES = 4
"""At Pi0.5's size."""
STRIDE = 8
"""Frames from one keyframe of the packaged episodes to the next."""


@dataclass(frozen=True, slots=True)
class Storing:
    """A way of storing maps (..., row, col)."""

    code: Callable[[Maps], Coded]
    """What is written, a number a value."""
    restore: Callable[[Maps], Maps]
    """What is read of it."""
    scale_bytes: int = 0
    """Beside each map."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An array of overview maps as it was stored, unrounded: (keyframe, ..., row, col)."""

    episode: Episode
    camera: str
    reduction: str
    maps: Maps
    chunk: tuple[int, ...]


def run(setting: Setting) -> list[Figure]:
    with mock.patch("attnstore.store.commits.writer.MAP_BITS", UNROUNDED):
        episodes = _ingest_packaged(setting.directory / "packaged.attn", 1 if setting.toy else None)
        large = ingest(setting.directory / "unrounded", KEYFRAMES, **shape_of(setting.toy))
    packaged = [each for episode in episodes for each in _stored(episode)]
    sizes = {"packaged": packaged, "Pi0.5's size": list(_stored(large))}
    scenes = [scene for each in packaged if each.reduction == "mean" for scene in _scenes(each)]
    exact = [object_metrics(maps, cover) for maps, cover in scenes]
    rows = sum(int(np.isfinite(each["lift"]).sum()) for each in exact)
    where = f"{len(episodes)} packaged episodes, every {STRIDE}th frame"
    figures = [Figure("rows of objects: head, keyframe, step, object", rows, "rows", note=where)]
    for way, storing in _means().items():
        name = f"mean, {way}"
        figures += _errors(
            name, exact, [object_metrics(storing.restore(maps), cover) for maps, cover in scenes]
        )
        figures += _bits(name, storing, sizes, "mean")
    chosen = _significant(MAP_BITS["mean"])
    for codec in CODECS:
        figures += _bits(f"mean, as stored but {codec}", chosen, sizes, "mean", codec)
    for bits in MAX_BITS:
        storing, name = _significant(bits), f"max, {bits} significant bits"
        share = max(_farthest(storing, x.maps) for x in packaged if x.reduction == "max")
        figures.append(Figure(f"{name}: colour off by at most", 255 * share, "of 255 levels"))
        figures += _bits(name, storing, sizes, "max")
    return figures


def _means() -> Mapping[str, Storing]:
    """Ways of storing means, from the coarsest."""
    return {
        "log8": Storing(_log8, lambda maps: precision.decode(_log8(maps), "log8")),
        "log8 with a scale a map": _logarithmic(precision.OCTAVES / precision.LEVELS, np.uint8),
        "255 linear levels with a scale a map": _linear(np.uint8),
        "65535 linear levels with a scale a map": _linear(np.uint16),
        "1/32 octave a level with a scale a map": _logarithmic(1 / 32, np.uint16),
        "1/128 octave a level with a scale a map": _logarithmic(1 / 128, np.uint16),
        **{f"{bits} significant bits": _significant(bits) for bits in MEAN_BITS},
        "float16": Storing(lambda maps: maps.astype(np.float16), _through_float16),
        "float32": Storing(lambda maps: maps, lambda maps: maps),
    }


def _log8(maps: Maps) -> Coded:
    return precision.encode(maps, "log8")


def _through_float16(maps: Maps) -> Maps:
    return maps.astype(np.float16).astype(np.float32)


def _significant(bits: int) -> Storing:
    def rounded(maps: Maps) -> Maps:
        return precision.round_significant(maps, bits)

    return Storing(rounded, rounded)


def _linear(kind: type[np.unsignedinteger[Any]]) -> Storing:
    """Even levels from 0 to each map's largest value."""
    last = np.float32(np.iinfo(kind).max)

    def code(maps: Maps) -> Coded:
        return np.rint(maps / _largest(maps) * last).astype(kind)

    def restore(maps: Maps) -> Maps:
        return code(maps).astype(np.float32) / last * _largest(maps)

    return Storing(code, restore, 4)


def _logarithmic(octaves: float, kind: type[np.unsignedinteger[Any]]) -> Storing:
    """Levels so many octaves apart, downwards from each map's largest value; the last is zero."""
    last = np.iinfo(kind).max

    def code(maps: Maps) -> Coded:
        with np.errstate(divide="ignore"):
            below = np.rint(-np.log2(maps / _largest(maps)) / octaves)
        return np.minimum(below, last).astype(kind)

    def restore(maps: Maps) -> Maps:
        codes = code(maps).astype(np.float64)
        values = np.where(codes < last, np.exp2(-codes * octaves), 0) * _largest(maps)
        return values.astype(np.float32)

    return Storing(code, restore, 4)


def _largest(maps: Maps) -> Maps:
    """Each map's largest value; 1 where it has none."""
    largest = maps.max((-2, -1), keepdims=True)
    return np.where(largest > 0, largest, np.float32(1))


def _ingest_packaged(path: Path, count: int | None) -> list[Episode]:
    """Ingest the packaged episodes with the packaged policy and open them."""
    dataset = DroidDataset(episodes_path(), name="toy_cube")
    names = dataset.episode_names()[:count]
    if not path.exists():
        policy = load_policy("pi0", str(checkpoint_path()), dtype="float32")
        paths = create_store(path)
        run = describe_run(policy, "pi0", dataset, stride=STRIDE, precision="log8", seed=0)
        save_run(paths, run, {})
        for name in names:
            ingest_episode(EpisodeJob(paths, run), policy, dataset, name)
    store = attnstore.open(path)
    return [store.episode(name) for name in names]


def _stored(episode: Episode) -> Iterator[Stored]:
    maps = zarr.open_group(episode.part.path / "attention.zarr" / "maps", mode="r")
    for _, phase in maps.groups():
        for _, group in phase.groups():
            for camera, found in group.groups():
                for reduction in MAP_BITS:
                    array = found[reduction]
                    yield Stored(episode, camera, reduction, array[:], array.chunks)


def _scenes(stored: Stored) -> Iterator[tuple[Maps, PatchCover]]:
    """Yield a keyframe's maps, ([step], layer, head, row, col), and its objects."""
    episode, camera = stored.episode, stored.camera
    source = open_detector_masks(episode.name, episodes_path() / episode.name, camera)
    geometry = episode.geometry(camera)
    for maps, frame in zip(stored.maps, episode.frames.tolist(), strict=True):
        if frame in source.frames:
            masks = source.read(frame, geometry.source)
            yield maps, cover_patches(geometry, [mask.pixels for mask in masks])


def _bits(
    name: str, storing: Storing, sizes: Mapping[str, list[Stored]], reduction: str, codec: str = ""
) -> Iterator[Figure]:
    for whose, arrays in sizes.items():
        chosen = [each for each in arrays if each.reduction == reduction]
        written = sum(_written(storing, each, codec) for each in chosen)
        values = sum(each.maps.size for each in chosen)
        yield Figure(f"{name}: {whose}", 8 * written / values, "bits a value")


def _written(storing: Storing, stored: Stored, codec: str) -> int:
    """Bytes that maps take in the store's chunks, or as one of `CODECS` has them."""
    coded, chunk, filters = storing.code(stored.maps), stored.chunk, ()
    size = coded.itemsize
    settings = shuffled(size, chunk) if size > 1 else blosc("log8")
    if codec == "zstd-9":
        settings["clevel"] = 9
    elif codec == "bytes shuffled, zstd-5":
        settings |= {"shuffle": "shuffle", "clevel": 5}
    elif codec and coded.ndim == 6:
        keyframes, _, layers, _, *grid = chunk
        chunk = (keyframes, coded.shape[1], layers, 1, *grid)
        filters = (TransposeCodec(order=(0, 2, 3, 4, 5, 1)),)
    array = zarr.create_array(
        MemoryStore(), shape=coded.shape, chunks=chunk, dtype=coded.dtype, filters=filters,
        compressors=(BloscCodec(**settings), Crc32cCodec()), fill_value=0,
    )  # fmt: skip
    array[...] = coded
    return int(array.nbytes_stored()) + storing.scale_bytes * math.prod(coded.shape[:-2])


def _errors(name: str, exact: Found, found: Found) -> Iterator[Figure]:
    """Count rows that are off by some share of what they are of unrounded maps."""
    pairs = list(zip(exact, found, strict=True))
    for metric, share in (("lift", 0.01), ("lift", 0.1), ("iou", 0.01)):
        # NaN, where rounding left a camera no attention, is as wrong as can be
        off = sum(
            int((~(np.abs(b[metric] - a[metric]) <= share * a[metric]))[np.isfinite(a[metric])].sum())
            for a, b in pairs
        )  # fmt: skip
        yield Figure(f"{name}: {metric} off by more than {share:.0%}", off, "rows")
    hit = "pointing_hit"
    flipped = sum(int((np.isfinite(a[hit]) & (a[hit] != b[hit])).sum()) for a, b in pairs)
    yield Figure(f"{name}: pointing hits flipped", flipped, "rows")


def _farthest(storing: Storing, maps: Maps) -> float:
    """Largest error, as a share of the same map's largest value: what a picture shows."""
    return float((np.abs(storing.restore(maps) - maps) / _largest(maps)).max())

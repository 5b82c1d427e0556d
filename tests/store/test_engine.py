from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from store_fixtures import flip_byte, write_episode

from attnstore.store.arrays import engine as module
from attnstore.store.arrays.engine import Index, engine_name, open_block
from attnstore.store.commits import ARRAYS, Commit, StorePaths
from attnstore.store.errors import IntegrityError, UsageError
from attnstore.store.opening import create_store

ENGINES = ("tensorstore", "zarr")
ARRAY_NAMES = ("prefix/attention", "suffix/attention", "maps/prefix/task/hand_camera/mean")
FLIPS = 12


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> tuple[StorePaths, Commit]:
    paths = create_store(tmp_path_factory.mktemp("engine") / "toy.attn")
    return paths, write_episode(paths, "a", grid=(8, 9))


@pytest.fixture
def arrays(episode: tuple[StorePaths, Commit], tmp_path: Path) -> Path:
    """A copy: TensorStore remembers what it has read of a path."""
    paths, commit = episode
    return shutil.copytree(commit.directory(paths) / ARRAYS, tmp_path / ARRAYS)


def indices(shape: tuple[int, ...], rng: random.Random) -> Iterator[Index]:
    yield (slice(None),)
    for _ in range(20):
        index: list[int | slice] = []
        for length in shape[: rng.randint(1, len(shape))]:
            start = rng.randrange(length)
            stop = rng.randint(start + 1, length)
            index.append(start if rng.random() < 0.5 else slice(start, stop))
        yield tuple(index)


@pytest.mark.parametrize("name", ARRAY_NAMES)
def test_both_engines_read_the_same(arrays: Path, name: str) -> None:
    one, other = (open_block(arrays / name, engine=e) for e in ENGINES)
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    for index in indices(one.shape, random.Random(1)):
        a, b = one.read(index), other.read(index)
        assert a.dtype == b.dtype == one.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ARRAY_NAMES)
def test_both_engines_write_the_same(arrays: Path, name: str) -> None:
    rng = np.random.default_rng(2)
    for engine, reader in (ENGINES, ENGINES[::-1]):
        block = open_block(arrays / name, engine=engine, writable=True)
        data = rng.integers(0, 200, block.shape[1:]).astype(block.dtype)
        block.write((1,), data)
        # A fresh copy, so that nothing comes from a cache.
        copy = shutil.copytree(arrays / name, arrays.parent / engine / name)
        np.testing.assert_array_equal(open_block(copy, engine=reader).read((1,)), data)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_flipped_byte_is_caught(arrays: Path, engine: str) -> None:
    rng = random.Random(3)
    files = sorted(f for name in ARRAY_NAMES for f in (arrays / name / "c").rglob("*"))
    caught = 0
    for flip in range(FLIPS):
        file = rng.choice([f for f in files if f.is_file()])
        name = next(n for n in ARRAY_NAMES if file.is_relative_to(arrays / n))
        copy = shutil.copytree(arrays / name, arrays.parent / f"{engine}-{flip}")
        damaged = copy / file.relative_to(arrays / name)
        flip_byte(damaged, rng.randrange(damaged.stat().st_size))
        with pytest.raises(IntegrityError, match=str(copy)):
            open_block(copy, engine=engine).read((slice(None),))
        caught += 1
    assert caught == FLIPS


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kept", [1, 10, 0.5, -1])
@pytest.mark.parametrize("name", ARRAY_NAMES[:2])
def test_a_truncated_shard_is_caught(arrays: Path, engine: str, kept: float, name: str) -> None:
    file = next(f for f in sorted((arrays / name / "c").rglob("*")) if f.is_file())
    data = file.read_bytes()
    length = int(len(data) * kept) if isinstance(kept, float) else kept
    file.write_bytes(data[:length])
    with pytest.raises(IntegrityError):
        open_block(arrays / name, engine=engine).read((slice(None),))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("text", [None, "", "{}", '{"zarr_format": 3, "node_type": "array"}'])
def test_an_array_without_sound_metadata_is_an_integrity_error(
    arrays: Path, engine: str, text: str | None
) -> None:
    metadata = arrays / ARRAY_NAMES[0] / "zarr.json"
    if text is None:
        metadata.unlink()
    else:
        metadata.write_text(text)
    with pytest.raises(IntegrityError, match="cannot be opened"):
        open_block(arrays / ARRAY_NAMES[0], engine=engine)


def test_the_engine_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNSTORE_ENGINE", raising=False)
    assert engine_name() == "tensorstore"
    monkeypatch.setenv("ATTNSTORE_ENGINE", "zarr")
    assert engine_name() == "zarr"
    monkeypatch.setenv("ATTNSTORE_ENGINE", "hdf5")
    with pytest.raises(UsageError, match="ATTNSTORE_ENGINE is tensorstore or zarr; got 'hdf5'"):
        engine_name()


def test_zarr_takes_over_where_tensorstore_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNSTORE_ENGINE", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "tensorstore", None)
    module._tensorstore.cache_clear()
    try:
        assert engine_name() == "zarr"
    finally:
        monkeypatch.undo()
        module._tensorstore.cache_clear()

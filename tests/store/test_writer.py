from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from store_fixtures import (
    CAMERAS,
    GROUPS,
    POLICY,
    RandomEpisode,
    maps_of,
    random_episode,
    run_config,
    write_blocks,
    write_episode,
    write_rows,
)
from zarr.codecs import BloscCodec, Crc32cCodec

from attnstore.store.arrays.chunking import attention_plan, blosc
from attnstore.store.arrays.engine import open_block
from attnstore.store.arrays.groups import MAP_BITS
from attnstore.store.arrays.shards import ShardWriter
from attnstore.store.commits import (
    ARRAYS,
    Attempt,
    Commit,
    StorePaths,
    hash_file,
    latest_commit,
    slug,
)
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import save_run
from attnstore.store.commits.writer import EpisodeWriter, shard_path
from attnstore.store.errors import ConflictError, IntegrityError, NotFoundError
from attnstore.store.format.precision import absent, decode, encode
from attnstore.store.opening import create_store
from attnstore.store.tables.inventory import TABLES

ENGINES = ("tensorstore", "zarr")


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    return create_store(tmp_path / "toy.attn")


def begin(paths: StorePaths, episode: RandomEpisode) -> EpisodeWriter:
    run = save_run(paths, run_config(precision=episode.spec.precision), {})
    attempt = Attempt(paths, run, slug(episode.spec.name), "base")
    return EpisodeWriter(attempt, episode.spec, POLICY)


def written(paths: StorePaths, episode: RandomEpisode) -> Commit:
    writer = begin(paths, episode)
    write_blocks(writer, episode)
    write_rows(writer, episode)
    return writer.commit()


@settings(
    max_examples=12,
    # An example takes a quarter of a second: shrinking a failure would take many minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 2**31),
    keyframes=st.integers(1, 4),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    steps=st.integers(1, 3),
    grid=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    cameras=st.sampled_from([CAMERAS, CAMERAS[:1]]),
    precision=st.sampled_from(["float16", "log8"]),
    engine=st.sampled_from(ENGINES),
)
def test_what_comes_back_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    keyframes: int,
    layers: int,
    heads: int,
    steps: int,
    grid: tuple[int, int],
    cameras: tuple[str, ...],
    precision: str,
    engine: str,
) -> None:
    """Against naive NumPy, for prompts of any lengths, precisions, and both engines crosswise."""
    episode = random_episode(
        seed=seed,
        keyframes=keyframes,
        layers=layers,
        heads=heads,
        steps=steps,
        grid=grid,
        cameras=cameras,
        precision=precision,
    )
    root = tmp_path_factory.mktemp("store")
    monkeypatch.setenv("ATTNSTORE_ENGINE", engine)
    commit = written(create_store(root), episode)
    for reading in ENGINES:
        part = Part(StorePaths(root), commit, engine=reading)
        assert part.spec == episode.spec
        for phase in episode.spec.phases:
            expected = episode.padded(phase)
            found = part.attention(phase, (slice(None),))
            assert found.shape == expected.shape
            stored = decode(encode(expected, precision), precision)
            np.testing.assert_array_equal(found, stored)
            # And, apart from the codec: absent is NaN, and the weights are near.
            np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
            if precision == "float16":
                np.testing.assert_allclose(found, expected, rtol=2**-11, atol=2**-25)
            else:
                np.testing.assert_allclose(found, expected, rtol=2 ** (8 / 253) - 1, atol=2**-17)
    shutil.rmtree(root)


def test_both_engines_write_the_same_bytes_that_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episode = random_episode(keyframes=2, precision="log8")
    parts = []
    for engine in ENGINES:
        monkeypatch.setenv("ATTNSTORE_ENGINE", engine)
        paths = create_store(tmp_path / engine)
        parts.append(Part(paths, written(paths, episode)))
    first, second = ({f.path for f in p.commit.files} for p in parts)
    assert first == second
    for name in ("prefix/attention", "suffix/attention", "policy/actions", "policy/denoising"):
        one, other = (p.block(name).read((slice(None),)) for p in parts)
        np.testing.assert_array_equal(one, other)


def test_layers_may_come_from_many_threads_in_any_order(paths: StorePaths) -> None:
    """As ingest gives them: a keyframe's layers and steps meet in one shard."""
    episode = random_episode(keyframes=4, layers=6, heads=2, steps=4)
    blocks = list(episode.weights.items())
    random.Random(0).shuffle(blocks)
    episode.weights.clear()
    episode.weights.update(blocks)
    writer = begin(paths, episode)
    with ThreadPoolExecutor(8) as pool:
        write_blocks(writer, episode, pool.map)
    write_rows(writer, episode)
    part = Part(paths, writer.commit())
    for phase in episode.spec.phases:
        stored = decode(encode(episode.padded(phase), "float16"), "float16")
        np.testing.assert_array_equal(part.attention(phase, (slice(None),)), stored)


@pytest.mark.parametrize("phase", GROUPS)
@pytest.mark.parametrize("engine", ENGINES)
def test_overview_maps_are_those_of_the_weights(paths: StorePaths, phase: str, engine: str) -> None:
    episode = random_episode(keyframes=35, layers=1, heads=1, steps=1, grid=(2, 2))
    part = Part(paths, written(paths, episode), engine=engine)
    for camera in CAMERAS:
        for i, reduction in enumerate(("mean", "max")):
            found = part.map(phase, GROUPS[phase], camera, reduction, (slice(None),))
            for keyframe in range(35):
                expected = maps_of(episode, phase, GROUPS[phase], camera, keyframe)[i]
                np.testing.assert_allclose(
                    found[keyframe], expected, rtol=2.0 ** -MAP_BITS[reduction]
                )


def test_tables_come_back_with_their_definitions(paths: StorePaths) -> None:
    commit = write_episode(paths, "a")
    part = Part(paths, commit)
    for name, table in TABLES.items():
        found = part.table(name)
        assert found.schema.equals(table.schema, check_metadata=False)
        assert found.num_rows > 0
        for column in table.columns:
            metadata = found.schema.field(column.name).metadata
            assert metadata[b"definition"].decode() == column.definition
        assert set(found.column("episode").to_pylist()) == {commit.episode}
    assert part.table("head_stats", ["layer", "head"]).column_names == ["layer", "head"]


def test_policy_arrays_come_back(paths: StorePaths) -> None:
    part = Part(paths, write_episode(paths, "a", keyframes=2))
    recorded = part.block("policy/actions_recorded").read((slice(None),))
    np.testing.assert_array_equal(recorded, np.tile(np.arange(7, dtype=np.float32), (2, 1)))
    assert part.block("policy/denoising").shape == (2, 2, 4, 6)


def drop_a_layer(episode: RandomEpisode) -> None:
    del episode.weights["prefix", 1, 0, None]


def drop_a_step(episode: RandomEpisode) -> None:
    for layer in range(2):
        del episode.weights["suffix", 2, layer, 1]


def drop_a_layer_of_a_step(episode: RandomEpisode) -> None:
    del episode.weights["suffix", 2, 0, 1]


@pytest.mark.parametrize(
    ("drop", "named"),
    [
        (drop_a_layer, "1 blocks did not arrive: prefix 1 0"),
        (drop_a_step, "2 blocks did not arrive: suffix 2 1 0; suffix 2 1 1"),
        (drop_a_layer_of_a_step, "1 blocks did not arrive: suffix 2 1 0"),
    ],
)
def test_an_incomplete_episode_is_not_committed(
    paths: StorePaths, drop: Callable[[RandomEpisode], None], named: str
) -> None:
    episode = random_episode()
    whole = random_episode()
    drop(episode)
    writer = begin(paths, episode)
    for (phase, keyframe, layer, step), weights in episode.weights.items():
        stored = encode(weights, "float16")
        writer.write_attention(
            phase, keyframe, layer, stored, episode.layouts[keyframe][phase], step
        )
    for phase, group in GROUPS.items():
        for camera in CAMERAS:
            for keyframe in range(3):
                mean, largest = maps_of(whole, phase, group, camera, keyframe)
                writer.write_map(phase, group, camera, "mean", keyframe, mean)
                writer.write_map(phase, group, camera, "max", keyframe, largest)
    with pytest.raises(ValueError, match=named):
        writer.commit()
    assert latest_commit(paths, writer.attempt.run, writer.attempt.episode) is None


def test_missing_maps_are_noticed(paths: StorePaths) -> None:
    episode = random_episode(keyframes=1)
    writer = begin(paths, episode)
    for (phase, keyframe, layer, step), weights in episode.weights.items():
        layout = episode.layouts[keyframe][phase]
        writer.write_attention(phase, keyframe, layer, encode(weights, "float16"), layout, step)
    with pytest.raises(ValueError, match="8 blocks did not arrive: maps/prefix/task/hand_camera"):
        writer.commit()


def test_weights_of_another_shape_than_the_layout_are_refused(paths: StorePaths) -> None:
    episode = random_episode()
    writer = begin(paths, episode)
    weights = episode.weights["prefix", 0, 0, None]
    layout = episode.layouts[0]["prefix"]
    for wrong in (weights[:1], weights[:, 1:], weights[..., :-1], weights[0]):
        with pytest.raises(ValueError, match=r"prefix layer 0: weights are \(.*the layout is"):
            writer.write_attention("prefix", 0, 0, encode(wrong, "float16"), layout)


def test_a_table_with_a_missing_column_is_refused(paths: StorePaths) -> None:
    writer = begin(paths, random_episode())
    with pytest.raises(ValueError, match="table sinks: column phase is missing"):
        writer.add_rows("sinks", {"layer": [1]})


def test_the_second_writer_of_an_episode_loses_and_the_first_stays(paths: StorePaths) -> None:
    first = write_episode(paths, "a", seed=1, keyframes=1)
    with pytest.raises(ConflictError):
        write_episode(paths, "a", seed=2, keyframes=1)
    assert latest_commit(paths, first.run, first.episode) == first
    second = write_episode(paths, "a", seed=2, keyframes=1, replace=True)
    assert second.revision == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_part_lacks_is_named(paths: StorePaths, engine: str) -> None:
    commit = write_episode(paths, "a", keyframes=1)
    part = Part(paths, commit, engine=engine)
    with pytest.raises(NotFoundError, match="no array joint/attention"):
        part.attention("joint", (0,))
    (part.path / "sinks.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"a .*revision 1\): sinks\.parquet is missing"):
        part.table("sinks")
    (part.path / "tokens.parquet").write_bytes(b"PAR1")
    with pytest.raises(IntegrityError, match=r"tokens\.parquet"):
        part.table("tokens")
    (part.path / ARRAYS / "zarr.json").unlink()
    with pytest.raises(IntegrityError, match=r"zarr\.json is missing"):
        Part(paths, commit).spec  # noqa: B018


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("length", [None, 0, 100])
def test_a_missing_or_truncated_shard_is_not_read_as_absent_tokens(
    paths: StorePaths, engine: str, length: int | None
) -> None:
    part = Part(paths, write_episode(paths, "a", keyframes=1), engine=engine)
    file = shard_path(part.path, "prefix", 0)
    if length is None:
        file.unlink()
    else:
        os.truncate(file, length)
    expected = "is missing" if length is None else f"has {length} bytes, .* were committed"
    with pytest.raises(IntegrityError, match=f"prefix/attention/c/0/0/0/0/0 {expected}"):
        part.attention("prefix", (0, 1))


def test_a_keyframe_of_a_phase_is_one_file(paths: StorePaths) -> None:
    part = Part(paths, write_episode(paths, "a", keyframes=2))
    listed = {f.path for f in part.commit.files if "/attention/c/" in f.path}
    assert listed == {
        shard_path(part.path, phase, keyframe).relative_to(part.path).as_posix()
        for phase in GROUPS
        for keyframe in range(2)
    }


def test_a_keyframe_is_readable_before_the_commit(paths: StorePaths) -> None:
    """As soon as it has all its layers, with the digest that the commit will list."""
    episode = random_episode(keyframes=2)
    writer = begin(paths, episode)
    of_first = {k: w for k, w in episode.weights.items() if k[1] == 0 and k[0] == "prefix"}
    file = shard_path(writer.attempt.path, "prefix", 0)
    for (phase, keyframe, layer, _), weights in of_first.items():
        assert file.exists() == (layer > 0)
        layout = episode.layouts[0][phase]
        writer.write_attention(phase, keyframe, layer, encode(weights, "float16"), layout)
    stored = open_block(writer.path / "prefix" / "attention").read((0,))
    np.testing.assert_array_equal(stored, episode.padded("prefix")[0].astype(np.float16))
    with pytest.raises(ValueError, match="prefix 0 1 was written before"):
        writer.write_attention("prefix", 0, 1, encode(weights, "float16"), layout)


@pytest.mark.parametrize("precision", ["float16", "log8"])
def test_a_shard_is_what_zarr_itself_would_write(tmp_path: Path, precision: str) -> None:
    """Chunk for chunk, apart from their order in the file; blocks of fill value have none."""
    shape = (1, 3, 4, 11, 7)
    plan = attention_plan("prefix", 1, None, *shape[1:])
    weights = np.random.default_rng(0).random(shape[1:], np.float32)
    weights[1, :2] = np.nan
    coded = encode(weights, precision)
    fill = np.asarray(absent(precision), coded.dtype)
    array = zarr.create_array(
        str(tmp_path / "theirs"), shape=plan.shape, chunks=plan.chunk, shards=plan.shard,
        dtype=coded.dtype, fill_value=fill,
        compressors=(BloscCodec(**blosc(precision)), Crc32cCodec()),
    )  # fmt: skip
    array[0] = coded
    file = tmp_path / "ours"
    writer = ShardWriter(file, plan, blosc(precision), fill)
    for layer in (2, 0, 1):
        writer.add((0, layer), coded[layer])
    finished = writer.close()
    assert finished == (file.stat().st_size, hash_file(file))
    (theirs,) = (f for f in (tmp_path / "theirs" / "c").rglob("*") if f.is_file())
    one, other = _chunks(file, 3 * 4), _chunks(theirs, 3 * 4)
    assert one == other
    assert [i for i, chunk in enumerate(one) if chunk is None] == [4, 5]
    shutil.copyfile(file, theirs)
    np.testing.assert_array_equal(array[0], coded)


def _chunks(file: Path, count: int) -> list[bytes | None]:
    data = file.read_bytes()
    index = np.frombuffer(data[-16 * count - 4 : -4], "<u8").reshape(count, 2).tolist()
    return [None if at == (1 << 64) - 1 else data[at : at + size] for at, size in index]


def test_a_shard_of_nothing_has_no_file(tmp_path: Path) -> None:
    plan = attention_plan("prefix", 1, None, 1, 1, 8, 8)
    fill = np.asarray(np.nan, np.float16)
    writer = ShardWriter(tmp_path / "shard", plan, blosc("float16"), fill)
    writer.add((0, 0), np.full((1, 8, 8), np.nan, np.float16))
    assert writer.close() is None
    assert list(tmp_path.iterdir()) == []

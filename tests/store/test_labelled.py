"""Attention, maps and statistics as xarray's: labelled alike, lazy alike, written to files, opened by xarray."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from numpy.testing import assert_array_equal
from store_fixtures import RandomEpisode, random_episode, write_episode

import attnstore
from attnstore.query import Episode
from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.precision import decode, encode
from attnstore.store.opening import create_store
from attnstore.store.reader.reads import Reduction

NAME = "success/2025-01-01/2025-01-01_10-00-00"
CAMERA = "hand_camera"
TEXTS = (2, 3, 1)
SHAPE: dict[str, Any] = {"seed": 3, "texts": TEXTS, "heads": 3, "steps": 3}
FILES = [
    "ignore:The codec `vlen-utf8` is currently not part:UserWarning",
    "ignore:The data type .* does not have a Zarr V3 specification",
    "ignore:The dtype .* is currently not part",
]


@pytest.fixture(scope="module", params=["float16", "log8"])
def stored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Episode, RandomEpisode, str]:
    """(store, episode as read, what was written, precision)."""
    paths = create_store(tmp_path_factory.mktemp("labelled") / "lab.attn")
    write_episode(paths, NAME, precision=request.param, **SHAPE)
    written = random_episode(NAME, precision=request.param, **SHAPE)
    return paths.root, attnstore.open(paths.root).episode(NAME), written, request.param


def word(episode: Episode) -> str:
    """The first word of the instruction."""
    (task,) = [span for span in episode.phase("prefix").query.spans if span.name == "task"]
    assert task.tokens is not None
    return f"word:{task.tokens[0].text.strip()}"


SELECTIONS: list[dict[str, Any]] = [
    {},
    {"keyframe": 1, "layer": 0, "head": 2},
    {"keyframe": [2, 0], "layer": slice(1, 2), "head": [2, 1]},
    {"frame": 8},
    {"frame": [16, 0], "layer": -1},
    {"layer": 1, "head": "active"},
    {"head": "active", "keyframe": 1},
    {"head": "active", "layer": [1, 0]},
]
STEPS: list[Any] = ["first", "last", "all", 1, -1, [0, 1], slice(1, None)]


@pytest.mark.parametrize("asked", SELECTIONS, ids=str)
@pytest.mark.parametrize("phase", ["prefix", "suffix", "decode"])
def test_lazy_is_what_is_read_at_once(
    stored: tuple[Path, Episode, RandomEpisode, str], phase: str, asked: dict[str, Any]
) -> None:
    _, episode, _, _ = stored
    for step in STEPS if phase != "prefix" else ["last", None]:
        where = asked | {"step": step}
        reads: list[Callable[..., xr.DataArray]] = [
            partial(episode.attention, phase, key=f"image:{CAMERA}", **where),
            partial(episode.maps, phase, CAMERA, reduce="mean", **where),
            partial(episode.stats, phase, CAMERA, "entropy", **where),
        ]
        for read in reads:
            now, later = read(), read(lazy=True)
            assert not later.variable._in_memory
            xr.testing.assert_identical(later.copy(deep=True), now)
            if "head" not in now.dims:
                continue
            some = {"head": [1, 0]} | ({"keyframe": 0} if "keyframe" in now.dims else {})
            if now.sizes["head"] > 1:
                xr.testing.assert_identical(read(lazy=True).isel(some).load(), now.isel(some))


def test_statistics_are_those_of_the_table(
    stored: tuple[Path, Episode, RandomEpisode, str],
) -> None:
    """Row by row, from the part's Parquet file as Arrow reads it."""
    _, episode, _, _ = stored
    checked = 0
    for phase, group in (("prefix", "task"), ("suffix", "action")):
        entropy = episode.stats(phase, CAMERA, "entropy", query=group, step="all")
        variance = episode.stats(phase, CAMERA, "variance", query=group, step="all")
        for row in pq.read_table(episode.part.path / "head_stats.parquet").to_pylist():
            if (row["phase"], row["camera"], row["query_group"]) != (phase, CAMERA, group):
                continue
            step = [] if row["step"] is None else [row["step"]]
            frame = episode.frames.tolist().index(row["frame"])
            at = (frame, *step, row["layer"], row["head"])
            for array, name in ((entropy, "entropy"), (variance, "variance")):
                expected = np.nan if row[name] is None else np.float32(row[name])
                np.testing.assert_equal(array.values[at], expected)
            checked += 1
    assert checked > 20


def test_coordinates_are_named(stored: tuple[Path, Episode, RandomEpisode, str]) -> None:
    _, episode, _, _ = stored
    attention = episode.attention("suffix", query="action", key=f"image:{CAMERA}", layer=1)
    assert attention.dims == ("keyframe", "step", "head", "query", "key")
    maps = episode.maps("suffix", CAMERA, step="all")
    assert maps.dims == ("keyframe", "step", "layer", "head", "row", "col")
    stats = episode.stats("suffix", CAMERA)
    assert isinstance(stats, xr.Dataset)
    assert stats["entropy"].dims == ("keyframe", "step", "layer", "head")
    for each in (attention, maps, stats):
        assert each["frame"].dims == ("keyframe",)
        assert each["frame"].values.tolist() == [0, 8, 16]
        assert each["step"].values.tolist() == [0, 1, 2]
        assert each.attrs["phase"] == "suffix"
        by_frame = each.swap_dims(keyframe="frame").sel(frame=8, step=2)
        assert int(by_frame["keyframe"]) == 1
    assert int(attention["layer"]) == 1
    assert maps["row"].values.tolist() == [0, 1, 2, 3]
    assert stats["entropy"].attrs["units"] == "0..1"
    assert all(array.dtype == np.float32 for array in (attention, maps, stats["entropy"]))
    # A map is of the step that stands for the phase, if none is asked for.
    assert int(episode.maps("suffix", CAMERA)["step"]) == 2
    assert int(episode.maps("decode", CAMERA)["step"]) == 0
    # A word's tokens, by name.
    found = episode.attention("prefix", query=word(episode), keyframe=0, layer=0, head=0)
    assert {*found["query_label"].values} == {f" {word(episode).removeprefix('word:')}"}


def test_the_active_head_of_each_layer(stored: tuple[Path, Episode, RandomEpisode, str]) -> None:
    _, episode, _, _ = stored
    maps = episode.maps("prefix", CAMERA, head="active")
    assert maps.dims == ("keyframe", "layer", "row", "col")
    assert maps["head"].dims == ("layer",)
    attention = episode.attention("prefix", head="active", query="task", key=f"image:{CAMERA}")
    stats = episode.stats("prefix", CAMERA, ["variance"], head="active")
    for layer in range(2):
        chosen: list[tuple[Any, Reduction]] = [(maps, "max"), (attention, "max"), (stats, "mean")]
        for found, reduce in chosen:
            head = episode.active_head("prefix", CAMERA, layer=layer, reduce=reduce)
            assert int(found["head"][layer]) == head
        head = int(maps["head"][layer])
        assert_array_equal(maps[:, layer], episode.maps("prefix", CAMERA, layer=layer, head=head))
        own = int(attention["head"][layer])
        rows = episode.attention(
            "prefix", layer=layer, head=own, query="task", key=f"image:{CAMERA}"
        )
        assert_array_equal(attention[:, layer].values, rows.values)
        variance = episode.stats("prefix", CAMERA, "variance", layer=layer).values.mean(0)
        assert int(stats["head"][layer]) == int(variance.argmax())
        assert_array_equal(
            stats["variance"][:, layer].values,
            episode.stats("prefix", CAMERA, "variance", layer=layer).values[
                :, int(variance.argmax())
            ],
        )
    assert maps.attrs["active"] == "variance on the image"
    with pytest.raises(SelectionError, match=r"which by key='image:CAMERA'.*; got key 'task'"):
        episode.attention("prefix", head="active", key="task")


def test_the_last_step_of_a_text_is_each_keyframe_s_own(
    stored: tuple[Path, Episode, RandomEpisode, str],
) -> None:
    _, episode, written, precision = stored
    full = decode(encode(written.padded("decode"), precision), precision).astype(np.float32)
    for step in (-1, -2):
        own = [length + step for length in TEXTS]
        expected = np.stack(
            [full[k, s] if s >= 0 else np.full_like(full[k, 0], np.nan) for k, s in enumerate(own)]
        )
        found = episode.attention("decode", step=step)
        assert_array_equal(found.values, expected)
        assert found["step"].dims == ("keyframe",)
        assert found["step"].values.tolist() == own
        maps = episode.maps("decode", CAMERA, step=step)
        stats = episode.stats("decode", CAMERA, "camera_mass", step=step)
        for k, s in enumerate(own):
            if s < 0:
                assert np.isnan(maps[k]).all()
                assert np.isnan(stats[k]).all()
                continue
            at = episode.maps("decode", CAMERA, step=s, keyframe=k)
            assert_array_equal(maps[k].values, at.values)
            mass = episode.stats("decode", CAMERA, "camera_mass")[k, s]
            assert_array_equal(stats[k].values, mass.values)
    xr.testing.assert_identical(
        episode.attention("decode", step="last"), episode.attention("decode", step=-1)
    )
    with pytest.raises(SelectionError, match=r"a negative step is of each keyframe's own text"):
        episode.attention("decode", step=[-2, -1])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda e: e.attention("prefix", head="best"), "numbers or 'active'; got 'best'"),
        (lambda e: e.attention("suffix", step="middle"), "first, last, all; got 'middle'"),
        (lambda e: e.stats("prefix", CAMERA, ["entropy", "charm"]), "no metric 'charm'"),
        (lambda e: e.maps("prefix", CAMERA, max_bytes=99), "prefix map, max_bytes allows"),
        (lambda e: e.maps("prefix", CAMERA, frame=[0, 9]), "frame 9 is no keyframe"),
    ],
)  # fmt: skip
def test_wrong_labels_say_the_right_ones(
    stored: tuple[Path, Episode, RandomEpisode, str], call: Any, says: str
) -> None:
    with pytest.raises(SelectionError) as caught:
        call(stored[1])
    assert says in str(caught.value)


@pytest.mark.filterwarnings(*FILES)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("form", ["netcdf", "zarr"])
def test_what_is_written_reads_back(
    stored: tuple[Path, Episode, RandomEpisode, str], tmp_path: Path, form: str, lazy: bool
) -> None:
    _, episode, _, _ = stored
    for number, found in enumerate(
        [
            episode.attention("suffix", step="last", layer=0, query="action", lazy=lazy),
            episode.attention("prefix", head="active", key=f"image:{CAMERA}", lazy=lazy),
            episode.attention("decode", step=-1, layer=0, lazy=lazy),
            episode.maps("prefix", CAMERA, head="active", query=word(episode), lazy=lazy),
            episode.maps("suffix", CAMERA, layer=1, sink_corrected=True, lazy=lazy),
            episode.stats("suffix", CAMERA, "entropy", lazy=lazy),
            episode.stats("prefix", CAMERA, head="active", lazy=lazy),
        ]
    ):
        path = tmp_path / f"{number}.{form}"
        if form == "netcdf":
            found.to_netcdf(path, engine="h5netcdf")
            again = xr.open_dataset(path, engine="h5netcdf")
        else:
            found.to_zarr(path)
            again = xr.open_dataset(path, engine="zarr")
        with again:
            same: Any = again
            if isinstance(found, xr.DataArray):
                same = again[str(found.name)]
                assert same.attrs == found.attrs
                assert same.dims == found.dims
            else:
                assert {name: array.attrs for name, array in again.items()} == {
                    name: array.attrs for name, array in found.items()
                }
            xr.testing.assert_equal(same.load(), found.load())
    geometry = json.loads(episode.attention("prefix", layer=0).attrs["geometry"])[CAMERA]
    assert Geometry.from_json(json.dumps(geometry)) == episode.geometry(CAMERA)


class TestTree:
    def test_it_has_everything_and_reads_on_access(
        self, stored: tuple[Path, Episode, RandomEpisode, str]
    ) -> None:
        root, episode, written, precision = stored
        tree = xr.open_datatree(root, engine="attnstore", episode=NAME)
        assert tree.attrs["instruction"] == "put the cube in the bowl"
        assert tree.attrs["outcome"] == "success"
        for phase in episode.phases:
            array = tree[phase]["attention"]
            assert not array.variable._in_memory
            full = decode(encode(written.padded(phase), precision), precision)
            assert_array_equal(array.isel(keyframe=1, layer=0).values, full[1][..., 0, :, :, :]
                               if phase == "prefix" else full[1][:, 0])  # fmt: skip
            assert_array_equal(array.values, episode.attention(phase).values)
            (group,) = episode.query_groups(phase)
            for camera in episode.cameras:
                for how in ("mean", "max"):
                    at = tree[f"maps/{phase}/{group}/{camera}"][how]
                    assert_array_equal(
                        at.values, episode.maps(phase, camera, step="all", reduce=how).values
                    )
                stats = tree[f"stats/{phase}/{group}/{camera}"].to_dataset()
                xr.testing.assert_equal(stats.load(), episode.stats(phase, camera))
        for name in ("actions", "state", "denoising"):
            assert_array_equal(tree["policy"][name].values, episode.policy_array(name))
        assert tree["policy"]["actions"].dims == ("keyframe", "horizon", "action_dof")
        assert tree["prefix"].to_dataset()["frame"].values.tolist() == [0, 8, 16]
        again = pickle.loads(pickle.dumps(tree))
        assert_array_equal(again["prefix/attention"].values, tree["prefix/attention"].values)

    def test_one_node_is_a_dataset(self, stored: tuple[Path, Episode, RandomEpisode, str]) -> None:
        root, episode, _, _ = stored
        opened = xr.open_dataset(root, engine="attnstore", group="prefix")
        assert_array_equal(opened["attention"].values, episode.attention("prefix").values)
        below = xr.open_datatree(root, engine="attnstore", group="/maps/prefix")
        assert set(below.children) == {"task"}
        assert below[f"task/{CAMERA}"].to_dataset()["frame"].values.tolist() == [0, 8, 16]
        assert "/suffix" in xr.open_groups(root, engine="attnstore")
        chunked = xr.open_dataset(root, engine="attnstore", group="suffix", chunks={"keyframe": 1})
        assert_array_equal(
            chunked["attention"].max("key").compute(scheduler="synchronous").values,
            np.nanmax(episode.attention("suffix").values, -1),
        )
        with pytest.raises(SelectionError, match="no group 'middle'; there are: prefix"):
            xr.open_dataset(root, engine="attnstore", group="middle")
        with pytest.raises(UsageError, match="an episode is a tree: name a group"):
            xr.open_dataset(root, engine="attnstore")

    def test_the_engine_is_found_by_the_directory(
        self, stored: tuple[Path, Episode, RandomEpisode, str], tmp_path: Path
    ) -> None:
        assert xr.open_datatree(stored[0]).attrs["name"] == NAME
        opened: Any = attnstore.open(stored[0])
        assert xr.open_datatree(opened, engine="attnstore").attrs["name"] == NAME
        paths = create_store(tmp_path / "two.attn")
        for name in ("a", "b"):
            write_episode(paths, name, keyframes=1, layers=1, heads=1, steps=1, grid=(2, 2))
        with pytest.raises(SelectionError, match=r"name one of the store's episodes, .*: a, b"):
            xr.open_datatree(paths.root, engine="attnstore")
        dropped = xr.open_datatree(
            paths.root, engine="attnstore", episode="b", drop_variables="max"
        )
        assert dropped.attrs["name"] == "b"
        assert "max" not in dropped[f"maps/prefix/task/{CAMERA}"]

"""What a store says to a reader that has never heard of attnstore."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from store_fixtures import CAMERAS, GROUPS, RandomEpisode, maps_of, random_episode, write_episode

from attnstore.store.arrays.groups import MAP_BITS
from attnstore.store.catalog import refresh
from attnstore.store.commits import ARRAYS, Commit
from attnstore.store.format.precision import decode, encode, round_significant
from attnstore.store.opening import create_store
from attnstore.store.tables.inventory import TABLES

READER = """
import json, sys, warnings

sys.modules["attnstore"] = None  # nobody can import it; xarray 2025 tries, for its engine
from pathlib import Path
import numpy as np

warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Engine 'attnstore' loading failed")
arguments = json.loads(sys.argv[1])
directory, root = Path(arguments["directory"]), Path(arguments["root"])
arrays, expected = directory / arguments["arrays"], np.load(arguments["expected"])
log8 = arguments["precision"] == "log8"


def same(found, wanted):
    np.testing.assert_array_equal(np.asarray(found), wanted)
    assert np.isnan(wanted).any() and not np.isnan(wanted).all()


def with_zarr():
    import zarr

    group = zarr.open_group(str(arrays), mode="r")
    for phase in arguments["phases"]:
        stored = group[phase]["attention"][:]
        assert group[phase]["attention"].metadata.zarr_format == 3
        same(group["lut"][:][stored] if log8 else stored, expected[phase])
    assert group.metadata.consolidated_metadata is not None
    maps = group["maps/prefix/task/hand_camera"]
    np.testing.assert_array_equal(maps["mean"][:], expected["mean"])


def with_xarray():
    import xarray

    tree = xarray.open_datatree(arrays, engine="zarr")
    assert tree["frame"].dims == ("keyframe",)
    np.testing.assert_array_equal(tree["frame"], arguments["frames"])
    lut = tree["lut"].values if log8 else None
    for phase in arguments["phases"]:
        data = tree[phase].to_dataset()
        stored = data["attention"]
        steps = ["step"] if phase == "suffix" else []
        dims = ["keyframe", *steps, "layer", "head", "query", "key"]
        assert list(stored.dims) == dims
        values = lut[stored.values] if log8 else stored.values
        same(values, expected[phase])
        # A selection by label, and lazily
        one = stored.sel(layer=1, head=0).isel(keyframe=-1).values
        wanted = (expected[phase][-1, :, 1, 0] if phase == "suffix" else expected[phase][-1, 1, 0])
        same(lut[one] if log8 else one, wanted)
    tree.close()


def with_tensorstore():
    import tensorstore

    def read(path):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{arrays / path}/"}}
        return tensorstore.open(spec).result()

    for phase in arguments["phases"]:
        array = read(f"{phase}/attention")
        assert array.domain.labels[0] == "keyframe" and array.domain.labels[-1] == "key"
        stored = array.read().result()
        same(read("lut").read().result()[stored] if log8 else stored, expected[phase])


def with_pyarrow():
    import pyarrow.parquet as pq

    for name, columns in arguments["tables"].items():
        table = pq.read_table(directory / f"{name}.parquet")
        assert table.column_names == columns
        assert table.num_rows
        assert all(b"definition" in field.metadata for field in table.schema)
    image = pq.read_table(directory / "frames.parquet").column("image")[0].as_py()
    assert image[:3] == b"\\xff\\xd8\\xff", "a JPEG as it was read"


def with_duckdb():
    import duckdb

    files = str(root / "data" / "*" / "*" / "*" / "head_stats.parquet")
    with duckdb.connect() as connection:
        columns = "count(*), count(DISTINCT keyframe), max(mass['task'])"
        query = f"SELECT {columns} FROM read_parquet(?)"
        rows, keyframes, mass = connection.execute(query, [files]).fetchone()
        assert (keyframes, mass) == (len(arguments["frames"]), 0.25) and rows
    with duckdb.connect(arguments["catalog"], read_only=True) as catalog:
        assert catalog.execute("SELECT name, keyframes FROM episodes").fetchall() == [
            ("success/a", len(arguments["frames"]))
        ]
        assert catalog.execute("SELECT index, text FROM tokens ORDER BY index").fetchone()


globals()[f"with_{arguments['reader']}"]()
print("read")
"""


@pytest.fixture(scope="module", params=["float16", "log8"])
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    precision: str = request.param
    folder = tmp_path_factory.mktemp("plain")
    paths = create_store(folder / "toy.attn")
    commit: Commit = write_episode(paths, "success/a", seed=5, precision=precision)
    episode = random_episode("success/a", seed=5, precision=precision)
    expected = {
        phase: decode(encode(episode.padded(phase), precision), precision) for phase in GROUPS
    }
    expected["mean"] = _mean_maps(episode)
    np.savez(folder / "expected.npz", allow_pickle=False, **expected)
    return {
        "root": str(paths.root),
        "directory": str(commit.directory(paths)),
        "arrays": ARRAYS,
        "expected": str(folder / "expected.npz"),
        "precision": precision,
        "phases": list(GROUPS),
        "frames": list(episode.spec.frames),
        "tables": {name: [c.name for c in table.columns] for name, table in TABLES.items()},
        "catalog": str(refresh(paths).path),
    }


def _mean_maps(episode: RandomEpisode) -> NDArray[np.floating]:
    maps = [maps_of(episode, "prefix", "task", CAMERAS[0], k)[0] for k in range(3)]
    return round_significant(np.stack(maps), MAP_BITS["mean"])


@pytest.mark.parametrize("reader", ["zarr", "xarray", "tensorstore", "pyarrow", "duckdb"])
def test_without_attnstore(written: dict[str, object], reader: str, tmp_path: Path) -> None:
    # -I: neither the current folder nor PYTHONPATH, so that attnstore could only be imported
    # from where it is installed.
    done = subprocess.run(
        [sys.executable, "-I", "-c", READER, json.dumps({**written, "reader": reader})],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "read\n"

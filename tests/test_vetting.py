"""Hostile and decayed stores: what readers refuse, whichever way they come."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_fixtures import start, stop
from store_fixtures import flip_byte, sealed, write_episode

from attnstore.query.sql import run_query, write_result
from attnstore.store.catalog import connect
from attnstore.store.commits import StorePaths, all_commits
from attnstore.store.commits.files import parse_json
from attnstore.store.commits.verify import verify
from attnstore.store.errors import AttnstoreError, IntegrityError, NotFoundError
from attnstore.store.opening import create_store
from attnstore.store.part import Part
from attnstore.store.vetting import description

COUNT = "select count(*), avg(entropy) from head_stats"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = create_store(tmp_path_factory.mktemp("vetting") / "s.attn")
    write_episode(paths, "success/x", keyframes=1, layers=1, heads=1, steps=1)
    return paths.root


@pytest.fixture
def part(made: Path, tmp_path: Path) -> Part:
    paths = StorePaths(shutil.copytree(made, tmp_path / "s.attn"))
    return Part(paths, next(iter(all_commits(paths))))


def again(part: Part) -> Part:
    """The part as another process sees it."""
    return Part(part._paths, next(iter(all_commits(part._paths))))


def in_csv(paths: StorePaths, query: str, file: Path) -> bytes:
    with connect(paths) as connection, file.open("wb") as stream:
        write_result(run_query(connection, query), "csv", stream)
    return file.read_bytes()


@pytest.mark.parametrize("engine", ["tensorstore", "zarr"])
def test_brackets_never_reach_an_engine(part: Part, engine: str) -> None:
    """200,000 of them ended TensorStore's process."""
    file = part.path / "attention.zarr" / "prefix" / "attention" / "zarr.json"
    text = json.loads(file.read_text())
    for deep in ("[" * 200_000 + "]" * 200_000, "[" * 100 + "]" * 100):
        file.write_text(json.dumps(text)[:-1] + f', "attributes": {deep}}}')
        hostile = Part(part._paths, sealed(part._paths, part.commit), engine=engine)
        with pytest.raises(IntegrityError, match="not JSON|nested deeper than 64"):
            hostile.attention("prefix", (0,))


def test_a_file_that_no_commit_lists_does_not_exist(part: Part) -> None:
    arrays = part.path / "attention.zarr"
    shutil.copytree(arrays / "prefix", arrays / "joint")
    (arrays / "joint" / "attention" / "zarr.json").write_text("[" * 200_000)
    shutil.copyfile(part.path / "tokens.parquet", part.path / "token_stats.parquet")
    with pytest.raises(NotFoundError, match="no array joint/attention"):
        again(part).block("joint/attention")
    with pytest.raises(AttnstoreError, match=r"token_stats\.parquet"):
        again(part).table("token_stats")


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("head_stats.parquet", lambda part: part.table("head_stats")),
        ("attention.zarr/zarr.json", lambda part: part.spec),
        ("attention.zarr/prefix/attention/zarr.json", lambda part: part.attention("prefix", (0,))),
        (
            "attention.zarr/prefix/attention/c/0/0/0/0/0",
            lambda part: part.attention("prefix", (0,)),
        ),
    ],
)
@pytest.mark.parametrize("kind", ["link", "folder link", "fifo"])
def test_links_and_devices(
    part: Part, tmp_path: Path, file: str, read: Callable[[Part], Any], kind: str
) -> None:
    """Links lead out of a store even where the bytes behind them are the committed ones."""
    path = part.path / file
    aside = tmp_path / "aside"
    if kind == "folder link":
        path = path.parent
    path.rename(aside)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(aside)
    with pytest.raises(IntegrityError, match="no regular file" if kind == "fifo" else "is a link"):
        read(again(part))
    assert any("link" in p.reason or "regular" in p.reason for p in verify(part._paths))


@pytest.mark.parametrize("damage", ["link", "flip"])
def test_a_table_that_is_not_the_committed_one_is_not_asked(
    part: Part, tmp_path: Path, damage: str
) -> None:
    """Neither by the service nor by the command line; other tables are."""
    path = part.path / "head_stats.parquet"
    connect(part._paths).close()
    if damage == "link":
        path.rename(tmp_path / "aside")
        path.symlink_to(tmp_path / "aside")
    else:
        flip_byte(path, path.stat().st_size // 3)
    says = "is a link" if damage == "link" else "differ from what was committed"
    server = start(part._paths.root, log=tmp_path / "log")
    try:
        for _ in range(2):
            answer = server.sql(COUNT, store="s")
            assert (answer.status, says in answer.message) == (500, True), answer.body
            assert str(tmp_path) not in answer.message
            assert server.sql("select count(*) from episodes", store="s").status == 200
    finally:
        stop(server)
    with pytest.raises(IntegrityError, match=says):
        in_csv(part._paths, COUNT, tmp_path / "rows")


def test_every_flipped_bit_of_a_table_is_seen(part: Part, tmp_path: Path) -> None:
    file = part.path / "head_stats.parquet"
    honest = file.read_bytes()
    expected = in_csv(part._paths, COUNT, tmp_path / "rows")
    for bit in np.random.default_rng(0).integers(0, 8 * len(honest), 20):
        changed = bytearray(honest)
        changed[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(changed)
        with pytest.raises(IntegrityError, match="differ from what was committed"):
            in_csv(part._paths, COUNT, tmp_path / "rows")
        with pytest.raises(IntegrityError, match="differ from what was committed"):
            again(part).table("head_stats", ["entropy"])
        # another table's questions are answered
        assert in_csv(part._paths, "select count(*) from episodes", tmp_path / "rows")
    file.write_bytes(honest)
    assert in_csv(part._paths, COUNT, tmp_path / "rows") == expected


def test_a_flipped_bit_of_a_description_is_seen(part: Part) -> None:
    """A digit of a geometry would be heat on other pixels."""
    file = part.path / "attention.zarr" / "zarr.json"
    text = file.read_bytes()
    file.write_bytes(text.replace(b'"frames": [', b'"frames": [1', 1))
    with pytest.raises(IntegrityError, match="bytes"):
        again(part).spec  # noqa: B018


def array() -> dict[str, Any]:
    inner = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {"chunk_shape": [1, 2], "codecs": inner, "index_codecs": inner}
    return {
        "zarr_format": 3, "node_type": "array", "shape": [2, 4], "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 4]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN", "dimension_names": ["a", "b"],
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }  # fmt: skip


def test_an_honest_array_passes() -> None:
    node = array()
    assert description(json.dumps(node | {"attributes": {"x": 1}}).encode(), "x") == node


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["bytes", "crc32c", "sharding_indexed", "blosc", "regular", 1 << 40, -1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["name", "configuration", "chunk_shape", "codecs", "metadata"]), inner
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_descriptions_with_something_else_somewhere(data: st.DataObject) -> None:
    """Whatever stands anywhere in it, an array is refused by a rule, or is bounded."""
    node: Any = array()
    place, parent = node, None
    while isinstance(place, dict | list) and place and (parent is None or data.draw(st.booleans())):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        parent, place = (place, key), place[key]
    assert parent is not None
    parent[0][parent[1]] = data.draw(VALUES)
    try:
        found = description(json.dumps(node).encode(), "x")
    except IntegrityError:
        return
    if "shape" in found:
        assert np.prod([float(n) for n in found["shape"]]) <= 1 << 48


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text('[]{},:"\\ud8a0 1N', max_size=60).map(str.encode))
def test_json_of_anything(data: bytes) -> None:
    try:
        value = parse_json(data, "x")
    except IntegrityError:
        return
    json.dumps(value, ensure_ascii=False).encode()  # can be written again


def test_json_has_a_depth() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a": "]]}}", "b": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    assert parse_json(nested(64), "x")
    with pytest.raises(IntegrityError, match="deeper than 64"):
        parse_json(nested(66), "x")
    with pytest.raises(IntegrityError, match="not JSON"):
        parse_json(b'{"a": "\\ud800"}', "x")

"""Hostile and decayed stores: what readers refuse, whichever way they come."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_fixtures import start, stop
from store_fixtures import flip_byte, sealed, write_episode

from attnstore.query.sql.run import run_query, write_result
from attnstore.store.arrays.claims import check_pages
from attnstore.store.catalog import connect
from attnstore.store.catalog.rows import run_row
from attnstore.store.commits import StorePaths, all_commits
from attnstore.store.commits.entry import commit_of, facts
from attnstore.store.commits.files import parse_json, read_bounded, to_json
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import load_run, run_ids
from attnstore.store.commits.verify import verify
from attnstore.store.commits.vetting import check_table, description
from attnstore.store.errors import AttnstoreError, IntegrityError, NotFoundError
from attnstore.store.format.episode import spec_from_json, spec_to_json
from attnstore.store.opening import create_store
from attnstore.store.tables.inventory import ALL_TABLES
from attnstore.store.tables.parquet import write_table

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


def exchange(node: Any, data: st.DataObject, values: st.SearchStrategy[Any]) -> None:
    """Put something else somewhere into a JSON value."""
    place, parent = node, None
    while isinstance(place, dict | list) and place and (parent is None or data.draw(st.booleans())):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        parent, place = (place, key), place[key]
    assert parent is not None
    parent[0][parent[1]] = data.draw(values)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_descriptions_with_something_else_somewhere(data: st.DataObject) -> None:
    """Whatever stands anywhere in it, an array is refused by a rule, or is bounded."""
    node: Any = array()
    exchange(node, data, VALUES)
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
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # can be written again
    assert value == json.loads(data)


def test_a_file_is_read_whole_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"0123456789")
    assert read_bounded(file, 10) == b"0123456789"
    with pytest.raises(IntegrityError, match="larger than 9 bytes"):
        read_bounded(file, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_file_that_grew_after_its_size_was_asked_is_read_whole() -> None:
    file = Path("/proc/self/cmdline")
    assert file.stat().st_size == 0
    assert read_bounded(file) == file.read_bytes() != b""


def test_json_has_a_depth() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a": "]]}}", "b": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    assert parse_json(nested(64), "x")
    with pytest.raises(IntegrityError, match="deeper than 64"):
        parse_json(nested(66), "x")
    with pytest.raises(IntegrityError, match="not JSON"):
        parse_json(b'{"a": "\\ud800"}', "x")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "[[-1E+400]]"])
def test_json_has_no_number_that_is_not_finite(text: str) -> None:
    with pytest.raises(IntegrityError, match="x: not JSON"):
        parse_json(f'{{"a": {text}}}'.encode(), "x")
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": json.loads(text)})


CHUNK = "attention.zarr/prefix/attention"


def shard_of(part: Part) -> Path:
    return next(f for f in sorted((part.path / CHUNK / "c").rglob("*")) if f.is_file())


def claim(shard: Path, claimed: int) -> None:
    """Have the first chunk of a shard say that it decodes to so many bytes, with a right CRC."""
    data = bytearray(shard.read_bytes())
    chunks = json.loads((shard_root(shard) / "zarr.json").read_text())
    outer = chunks["chunk_grid"]["configuration"]["chunk_shape"]
    inner = chunks["codecs"][0]["configuration"]["chunk_shape"]
    count = int(np.prod(np.array(outer) // inner))
    start, length = np.frombuffer(data[len(data) - 4 - 16 * count :][:16], "<u8").tolist()
    data[start + 4 : start + 8] = claimed.to_bytes(4, "little")
    checked = bytes(data[start : start + length - 4])
    data[start + length - 4 : start + length] = crc32c(checked).to_bytes(4, "little")
    shard.write_bytes(data)


def shard_root(shard: Path) -> Path:
    return next(p.parent for p in shard.parents if p.name == "c")


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


@pytest.mark.parametrize("engine", ["tensorstore", "zarr"])
def test_a_frame_that_claims_two_gigabytes_is_not_decoded(part: Part, engine: str) -> None:
    shard = shard_of(part)
    expected = Part(part._paths, part.commit, engine=engine).attention("prefix", (0,))
    before = shard.read_bytes()
    (size,) = struct.unpack_from("<I", before, 4)
    claim(shard, size)
    assert shard.read_bytes() == before
    np.testing.assert_array_equal(again(part).attention("prefix", (0,)), expected)
    for claimed in ((1 << 31) - 1, size + 1, 0):
        claim(shard, claimed)
        hostile = Part(part._paths, sealed(part._paths, part.commit), engine=engine)
        with pytest.raises(IntegrityError, match=f"claims to be {claimed} bytes"):
            hostile.attention("prefix", (0,))


def test_an_index_that_leads_out_of_its_shard(part: Part) -> None:
    shard = shard_of(part)
    honest = shard.read_bytes()
    for index in (struct.pack("<2Q", 1 << 63, 64), struct.pack("<2Q", len(honest), 1), b""):
        body = index + bytes(4) if index else b""
        shard.write_bytes(honest[: -len(body)] + body if body else b"x")
        hostile = Part(part._paths, sealed(part._paths, part.commit))
        with pytest.raises(IntegrityError, match="outside its shard|too short"):
            hostile.attention("prefix", (0,))


def bomb(file: Path, megabytes: int) -> None:
    """Write a small Parquet file of many zeros."""
    zeros = np.zeros(megabytes << 17, np.int64)
    pq.write_table(pa.table({"run": zeros}), file, compression="zstd", use_dictionary=False)


def test_a_small_table_does_not_become_a_large_one(part: Part, tmp_path: Path) -> None:
    file = part.path / "head_stats.parquet"
    bomb(file, 256)
    assert file.stat().st_size < 250_000
    commit = sealed(part._paths, part.commit)
    with pytest.raises(IntegrityError, match="of a file of this size at most"):
        Part(part._paths, commit).table("head_stats")
    with pytest.raises(IntegrityError, match="of a file of this size at most"):
        in_csv(part._paths, COUNT, tmp_path / "rows")


@pytest.mark.parametrize("name", sorted(ALL_TABLES))
def test_a_table_without_rows_is_sound(tmp_path: Path, name: str) -> None:
    """Arrow writes a dictionary page, no data page, and 0 for where that would be."""
    path = tmp_path / f"{name}.parquet"
    write_table(path, ALL_TABLES[name].schema.empty_table())
    check_pages(path, pq.ParquetFile(path).metadata)


def test_a_page_that_claims_more_than_its_footer(part: Part, tmp_path: Path) -> None:
    """The footer is honest, and what a decoder allocates is what the page says."""
    file = part.path / "head_stats.parquet"
    schema = pa.schema([pa.field("run", pa.int64(), nullable=False)])
    table = pa.table({"run": np.zeros(8000, np.int64)}, schema)
    pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False)
    check_table(file)
    data = bytearray(file.read_bytes())

    def zigzag(number: int) -> bytes:
        number, out = number << 1, b""
        while number > 127:
            out, number = out + bytes([number & 127 | 128]), number >> 7
        return out + bytes([number])

    at = pq.read_metadata(file).row_group(0).column(0).data_page_offset
    honest, claimed = zigzag(64_000), 1_000_000
    place = data.index(honest, at, at + 8)
    data[place : place + len(honest)] = zigzag(claimed)
    file.write_bytes(data)
    commit = sealed(part._paths, part.commit)
    with pytest.raises(IntegrityError, match=f"a page claims {claimed} bytes"):
        Part(part._paths, commit).table("head_stats")
    with pytest.raises(IntegrityError, match=f"a page claims {claimed} bytes"):
        in_csv(part._paths, COUNT, tmp_path / "rows")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_parquet_with_other_bytes_somewhere(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A table is refused in one line, or bounded."""
    file = tmp_path_factory.getbasetemp() / "fuzzed.parquet"
    table = pa.table({"a": np.arange(300), "b": [f"word {i % 7}" for i in range(300)]})
    pq.write_table(table, file, compression="zstd")
    changed = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(changed)
    try:
        check_table(file)
    except IntegrityError:
        pass


def test_parquet_with_a_column_that_is_no_text(tmp_path: Path) -> None:
    """Its name stands in the schema and in each row group's column; each alone is refused."""
    file = tmp_path / "named.parquet"
    table = pa.table({"zcolumnz": np.arange(300)})
    pq.write_table(table, file, compression="zstd", store_schema=False)
    whole = file.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    # older Arrow writes the column's metadata behind its pages as well, where nobody reads it
    places = [found.start() for found in re.finditer(b"zcolumnz", whole) if found.start() >= footer]
    assert len(places) == 2
    for place in places:
        file.write_bytes(whole[:place] + b"\x80" + whole[place + 1 :])
        with pytest.raises(IntegrityError, match=r"named.parquet: .*can't decode byte 0x80"):
            check_table(file)


ODD = VALUES | st.sampled_from(
    [1e400, -1e400, float("nan"), 1 << 70, -(1 << 63), "\ud800", "../..", "/etc", "a\0b", "",
     "image", "text", "{}", "[" * 500, True, [], {}, [[]], [None], {"": None}, [1, "2", 3.5]]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_what_an_episode_says_with_something_else_somewhere(
    made: Path, data: st.DataObject
) -> None:
    """Spans, geometry and all the rest: one error, or a description that is written again."""
    commit = next(iter(all_commits(StorePaths(made))))
    text = (commit.directory(StorePaths(made)) / "attention.zarr" / "zarr.json").read_text()
    said = json.loads(text)["attributes"]["attnstore_episode"]
    where = data.draw(st.sampled_from(["all", "phases", "geometry"]))
    if where == "geometry":
        camera = data.draw(st.sampled_from(sorted(said["geometry"])))
        geometry = json.loads(said["geometry"][camera])
        exchange(geometry, data, ODD)
        said["geometry"][camera] = json.dumps(geometry)
    else:
        exchange(said if where == "all" else said["phases"], data, ODD)
    try:
        found = spec_from_json(said)
    except IntegrityError:
        return
    written = json.dumps(spec_to_json(found))
    assert json.dumps(spec_to_json(spec_from_json(json.loads(written)))) == written
    for geometry_ in found.geometry.values():
        geometry_.edges(0)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_log_entries_with_something_else_somewhere(made: Path, data: st.DataObject) -> None:
    files = sorted((made / "commits" / "log").glob("*.json"))
    file = data.draw(st.sampled_from(files))
    raw = json.loads(file.read_text())
    exchange(raw, data, ODD)
    try:
        for fact in facts(raw, int(file.stem)):
            if fact.kind == "commit":
                directory = commit_of(raw).directory(StorePaths(made))
                assert directory.is_relative_to(made / "data")
                assert ".." not in directory.parts
    except IntegrityError:
        pass


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_run_with_something_else_somewhere(made: Path, data: st.DataObject) -> None:
    paths = StorePaths(made)
    (run,) = run_ids(paths)
    file = next(f for f in (made / "runs").rglob(f"{run}*"))
    honest = file.read_text()
    raw = json.loads(honest)
    exchange(raw, data, ODD)
    try:
        raw.pop("sha256", None)
        # As its author would, had it said so: `sealed` itself spells no infinities.
        body = json.dumps(raw, indent=1).removesuffix("\n}") + "\n}\n"
        seal = hashlib.sha256(body.encode()).hexdigest()
        file.write_text(body.removesuffix("\n}\n") + f',\n "sha256": "{seal}"\n}}\n')
        config, _ = load_run(paths, run)
        run_row(paths, run)
    except IntegrityError:
        return
    finally:
        file.write_text(honest)
    # what is accepted is what the file says
    assert json.loads(json.dumps(asdict(config))) == raw["config"]

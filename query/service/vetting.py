"""Whether what a store holds may be opened: a store is data from somebody else.

What is checked here is what readers would act on before they notice: the sizes that they would
allocate, the codecs and types that they would run, the links that they would follow.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attnstore.store.commits import ARRAYS, read_json
from attnstore.store.errors import IntegrityError
from attnstore.store.image import MOST_PIXELS
from attnstore.store.part import Part

ITEM_BYTES = {
    "bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2,
    "uint32": 4, "uint64": 8, "float16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""Core data types of Zarr v3 and their size; others, objects above all, are not opened."""
CODECS = frozenset({"bytes", "blosc", "zstd", "gzip", "crc32c", "transpose", "sharding_indexed"})
CHUNK_BYTES = 1 << 30
"""Largest chunk or shard that a reader would allocate, decoded."""
ELEMENTS = 1 << 48
"""Most elements that an array may claim to have."""
DESCRIPTION_BYTES = 64 << 20
"""Largest ``zarr.json``, and largest commit."""


def vet(part: Part, table_bytes: int, *, partial: bool = False) -> None:
    """Check a committed part before anything in it is opened.

    Parameters
    ----------
    table_bytes
        Largest table, uncompressed.
    partial
        Some of the part's files were never copied here.

    Raises
    ------
    IntegrityError
        With the file and the rule that it breaks.
    """
    _check_links(part)
    listed = {file.path for file in part.commit.files}
    for path in sorted(listed):
        if partial and not (part.path / path).exists():
            continue
        if path.startswith(f"{ARRAYS}/") and path.endswith("/zarr.json"):
            _check_description(part.path / path, path)
        elif path.endswith(".parquet"):
            _check_table(part.path / path, path, table_bytes)
    for camera, geometry in part.spec.geometry.items():
        height, width = geometry.source
        if height * width > MOST_PIXELS:
            raise IntegrityError(f"camera {camera}: an image of {width}x{height} is too large")
    _check_attention(part)


def _check_links(part: Part) -> None:
    """Refuse links in the part and on the way to it: they would lead out of the store."""
    root = part.path.parents[3]
    for directory in [part.path, *list(part.path.parents)[:3]]:
        if directory.is_symlink():
            raise IntegrityError(f"{directory.relative_to(root)} is a link out of its place")
    for name in _links(str(part.path)):
        raise IntegrityError(f"{name.removeprefix(f'{root}/')} is a link; a part holds files")


def _links(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield entry.path
            elif entry.is_dir(follow_symlinks=False):
                yield from _links(entry.path)


def _check_description(file: Path, name: str) -> None:
    try:
        if file.stat().st_size > DESCRIPTION_BYTES:
            raise IntegrityError(f"{name} is larger than {DESCRIPTION_BYTES} bytes")
    except OSError:
        raise IntegrityError(f"{name} is missing") from None
    value = read_json(file)
    if value.get("node_type") == "group":
        for key, node in _consolidated(value):
            _check_array(node, f"{name} ({key})")
    else:
        _check_array(value, name)


def _consolidated(group: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    found = (group.get("consolidated_metadata") or {}).get("metadata", {})
    if not isinstance(found, dict):
        raise IntegrityError("consolidated metadata is an object of nodes")
    for key, node in found.items():
        if isinstance(node, dict) and node.get("node_type") == "array":
            yield key, node


def _check_array(node: dict[str, Any], name: str) -> None:
    kind = node.get("data_type")
    if not isinstance(kind, str) or kind not in ITEM_BYTES:
        raise IntegrityError(f"{name}: data type {json.dumps(kind)[:80]} is not a plain number")
    shape = _sizes(node.get("shape"), name, "shape", least=0)
    if math.prod(shape) > ELEMENTS:
        raise IntegrityError(f"{name}: {'x'.join(map(str, shape))} elements are too many")
    grid = node.get("chunk_grid") or {}
    chunk = _sizes((grid.get("configuration") or {}).get("chunk_shape"), name, "chunk_shape")
    if grid.get("name") != "regular" or len(chunk) != len(shape):
        raise IntegrityError(f"{name}: a regular grid of chunks with {len(shape)} sizes is needed")
    if math.prod(chunk) * ITEM_BYTES[kind] > CHUNK_BYTES:
        raise IntegrityError(f"{name}: a chunk has {math.prod(chunk)} elements, which is too large")
    _check_codecs(node.get("codecs"), name)


def _sizes(value: Any, name: str, what: str, least: int = 1) -> list[int]:
    whole = isinstance(value, list) and len(value) <= 16
    if not whole or not all(isinstance(n, int) and least <= n < 1 << 40 for n in value):
        raise IntegrityError(f"{name}: {what} is no list of sizes")
    return list(value)


def _check_codecs(codecs: Any, name: str) -> None:
    if not isinstance(codecs, list):
        raise IntegrityError(f"{name}: codecs are a list")
    for codec in codecs:
        called = codec.get("name") if isinstance(codec, dict) else codec
        if called not in CODECS:
            raise IntegrityError(
                f"{name}: codec {json.dumps(called)[:80]} is not one of {', '.join(sorted(CODECS))}"
            )
        inner = codec.get("configuration") or {} if isinstance(codec, dict) else {}
        if called == "sharding_indexed":
            _sizes(inner.get("chunk_shape"), name, "chunk_shape of a shard")
            _check_codecs(inner.get("codecs"), name)
            _check_codecs(inner.get("index_codecs"), name)


def _check_table(file: Path, name: str, most: int) -> None:
    try:
        footer = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{name}: {str(error).splitlines()[0][:200]}") from None
    size = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    if size > most or footer.num_rows > most // 8:
        raise IntegrityError(
            f"{name}: {footer.num_rows} rows of {size} bytes; at most {most} bytes are read"
        )


def _check_attention(part: Part) -> None:
    """Compare what the description of the episode says with the arrays themselves."""
    for path, phase in part.spec.phases.items():
        file = part.path / ARRAYS / path / "attention" / "zarr.json"
        if not file.is_file():
            continue  # who reads it is told so
        shape = read_json(file).get("shape")
        steps = [] if phase.steps is None else [phase.steps]
        expected = [len(part.spec.frames), *steps, phase.layers, phase.heads]
        expected += [len(phase.query), len(phase.key)]
        if shape != expected:
            raise IntegrityError(
                f"{path}/attention has shape {shape}, the episode's description says {expected}"
            )

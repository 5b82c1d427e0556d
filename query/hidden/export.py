"""Hidden states for trainers of others: shards of rows, and a manifest that says what each row is.

::

    manifest.json                 what was asked for, and every shard with its SHA-256
    rows.parquet                  file, start, stop: which keyframe, layer, step and span rows are of
    prefix-L11-00000.safetensors  tensor ``hidden`` (row, feature); or .npy

A shard is of one layer. What a keyframe lacks is left out: there is no NaN. One keyframe is in memory, and of
all layers together at most `HiddenExport.shard_bytes` that wait to be written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from attnstore.store.errors import MissingExtraError, NotFoundError, UsageError

if TYPE_CHECKING:
    from attnstore.store.reader.episode import Episode
    from attnstore.store.reader.hidden import Layers, Spans, Tokens

Format = Literal["safetensors", "npy"]
TENSOR = "hidden"
ROWS = pa.schema(
    [
        ("file", pa.string()), ("start", pa.int64()), ("stop", pa.int64()), ("run", pa.string()),
        ("episode", pa.string()), ("keyframe", pa.int32()), ("frame", pa.int32()), ("phase", pa.string()),
        ("layer", pa.int16()), ("step", pa.int16()), ("span", pa.string()),
        ("token_start", pa.int32()), ("token_stop", pa.int32()),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HiddenExport:
    """What is exported, and how."""

    phase: str
    layers: Layers = None
    span: Spans = None
    tokens: Tokens = "all"
    dtype: Literal["float32", "float16"] = "float32"
    format: Format = "safetensors"
    shard_bytes: int = 512 << 20


@dataclass(slots=True)
class _Shard:
    """Rows of one layer that wait to be written."""

    blocks: list[NDArray[Any]] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    places: list[dict[str, Any]] = field(default_factory=list)


def export_hidden(
    episodes: Sequence[Episode],
    target: Path,
    asked: HiddenExport,
    store_id: str,
    progress: Callable[[float, str], None] = lambda share, name: None,
) -> dict[str, Any]:
    """Write the hidden states of episodes as shards, and return the manifest.

    Parameters
    ----------
    progress
        Called before each keyframe with the share of episodes that are done, and the episode.

    Raises
    ------
    UsageError
        If the folder is not empty, or a value does not fit the data type.
    MissingExtraError
        If safetensors is not installed.
    NotFoundError
        If an episode does not have what is asked for.
    """
    save = _save(asked.format)
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"{target} is not empty; name a new folder")
    target.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Any]] = []
    waiting: dict[int | None, _Shard] = {}
    with pq.ParquetWriter(target / "rows.parquet", ROWS, compression="zstd") as rows:

        def flush(layer: int | None) -> None:
            shard = waiting.pop(layer)
            number = sum(each["layer"] == layer for each in shards)
            called = "last" if layer is None else "embedding" if layer < 0 else f"L{layer:02d}"
            path = target / f"{asked.phase}-{called}-{number:05d}.{asked.format}"
            values = np.concatenate(shard.blocks)
            save(values, path)
            shards.append(
                {
                    "file": path.name, "layer": layer, "rows": len(values),
                    "features": int(values.shape[1]), "dtype": asked.dtype, "sha256": _sha256(path),
                }
            )  # fmt: skip
            for place in shard.places:
                place["file"] = path.name
            rows.write_table(pa.Table.from_pylist(shard.places, ROWS))

        for number, episode in enumerate(episodes):
            for keyframe in range(len(episode.frames)):
                progress((number + keyframe / len(episode.frames)) / len(episodes), episode.name)
                for layer, values, place in _blocks(episode, keyframe, asked):
                    coded = _coded(
                        values, asked.dtype, f"{episode.name}, {asked.phase} layer {layer}"
                    )
                    size = sum(s.bytes for s in waiting.values())
                    if size and size + coded.nbytes > asked.shard_bytes:
                        flush(max(waiting, key=lambda n: waiting[n].bytes))
                    shard = waiting.setdefault(layer, _Shard())
                    shard.places.append(
                        place | {"start": shard.rows, "stop": shard.rows + len(coded)}
                    )
                    shard.blocks.append(coded)
                    shard.rows += len(coded)
                    shard.bytes += coded.nbytes
        for layer in list(waiting):
            flush(layer)
    if not shards:
        raise NotFoundError("no hidden state was found of what is asked for")
    manifest = {
        "store": store_id, "phase": asked.phase, "tokens": asked.tokens, "tensor": TENSOR,
        "dtype": asked.dtype, "episodes": len(episodes), "rows": sum(s["rows"] for s in shards),
        "table": {"file": "rows.parquet", "sha256": _sha256(target / "rows.parquet")},
        "shards": shards,
    }  # fmt: skip
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _blocks(episode: Episode, keyframe: int, asked: HiddenExport) -> Any:
    """Yield (layer, (row, feature), place) of one keyframe; runs of tokens of one span are one block."""
    states = episode.hidden(
        asked.phase, keyframe=keyframe, layer=asked.layers, span=asked.span, tokens=asked.tokens,
        step="all",
    )  # fmt: skip
    along = "span" if asked.tokens == "mean" else "query"
    for name in ("layer", "step", along):
        if name not in states.dims and name in states.coords:
            states = states.expand_dims(name)
    for name in ("layer", "step"):
        if name not in states.dims:
            states = states.expand_dims({name: [-99]})
    states = states.transpose("layer", "step", along, "feature")
    spans = states[along if along == "span" else "query_span"].values.astype(str)
    if spans.ndim > 1:
        spans = spans.reshape(-1)[: states.sizes[along]]
    indices = states[along].values if along == "query" else np.full(len(spans), -1)
    base = {
        "run": episode.run, "episode": episode.name, "keyframe": keyframe,
        "frame": int(episode.frames[keyframe]), "phase": asked.phase,
    }  # fmt: skip
    data = states.values
    for i, layer in enumerate(states["layer"].values.tolist()):
        for s, step in enumerate(states["step"].values.tolist()):
            for name in dict.fromkeys(spans.tolist()):
                own = np.flatnonzero((spans == name) & ~np.isnan(data[i, s, :, 0]))
                for run in np.split(own, np.flatnonzero(np.diff(own) != 1) + 1):
                    if not len(run):
                        continue
                    place = base | {
                        "layer": None if layer == -99 else layer,
                        "step": None if step == -99 else step,
                        "span": name,
                        "token_start": int(indices[run[0]]) if along == "query" else None,
                        "token_stop": int(indices[run[-1]]) + 1 if along == "query" else None,
                    }
                    yield (None if layer == -99 else layer), data[i, s, run], place


def _coded(values: NDArray[Any], dtype: str, where: str) -> NDArray[Any]:
    largest = float(np.abs(values).max())
    if dtype == "float16" and largest > float(np.finfo(np.float16).max):
        raise UsageError(
            f"{where}: {largest:.4g} does not fit float16, which ends at 65504; export with --dtype float32"
        )
    return np.ascontiguousarray(values, dtype)


def _save(form: Format) -> Any:
    if form == "npy":
        return lambda values, path: np.save(path, values)
    try:
        from safetensors.numpy import save_file
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "safetensors shards need safetensors: pip install 'attnstore[learn]', or --format npy"
        ) from error
    return lambda values, path: save_file({TENSOR: values}, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""What tables a catalog generation holds, with definitions and SQL types.

Tables that a part brings as Parquet are copied as they are, with a column ``part`` behind them,
so that a replaced part takes its rows along. docs/schema.md is generated from here as well.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

from ..tables.columns import Column, Table
from ..tables.inventory import OPTIONAL_TABLES, PART_TABLES, TABLES

NAME = re.compile(r"catalog-(\d{6,18})\.duckdb")
"""Of a generation's file."""
DATABASE = "catalog"
"""Name under which a connection attaches a generation."""
VIEWED = ("frames", "head_stats", *OPTIONAL_TABLES, *PART_TABLES)
"""Too large to copy: 10,000 episodes have 800 million rows of head_stats."""
COPIED = tuple(name for name in TABLES if name not in VIEWED)

_S, _I16, _I32, _I64, _F64 = pa.string(), pa.int16(), pa.int32(), pa.int64(), pa.float64()
_TIME = pa.timestamp("us")
_RUN, _EPISODE = Column("run", _S, "id of the run"), Column("episode", _S, "id of the episode")
PART = Column(
    "part", _S, "part that the row comes from: base, probe-..., objects-..., failure-..., cnn-..."
)

_TABLES = (
    Table(
        "runs",
        "one ingest configuration",
        (
            _RUN,
            Column("policy", _S, "adapter and variant"),
            Column("checkpoint", _S, "hub id or directory name"),
            Column(
                "checkpoint_digest", _S, "SHA-256 over the checkpoint's weights and configuration"
            ),
            Column("dtype", _S, "data type of the policy's weights"),
            Column("dataset", _S, "reader and dataset name"),
            Column("cameras", pa.list_(_S), "in the order in which the policy gets them"),
            Column("stride", _I32, "distance between keyframes", "frames"),
            Column("precision", _S, "stored precision: float16 or log8"),
            Column("seed", _I64, "base of every keyframe's noise seed"),
            Column("options", _S, "JSON of further options that change numbers"),
            Column("semantics", _I16, "version of the definitions of the numbers"),
            Column("provenance", _S, "JSON of what does not change numbers: code, host, versions"),
            Column(
                "created",
                _TIME,
                "when the run was first recorded; NULL if its file does not say",
                "UTC",
            ),
        ),
    ),
    Table(
        "episodes",
        "one committed episode of a run",
        (
            _RUN,
            _EPISODE,
            Column("name", _S, "the dataset's own name"),
            Column("outcome", _S, "success, failure or unknown"),
            Column("instruction", _S, "the task in words, as recorded"),
            Column("task", _S, "the dataset's task name; NULL if it has none"),
            Column("date", _S, "the dataset's date; NULL if it has none"),
            Column("rate", _F64, "frames per second of the recording; NULL if not recorded", "1/s"),
            Column("frames", _I32, "length of the recording; NULL if not recorded", "frames"),
            Column("keyframes", _I32, "frames at which the policy was evaluated"),
            Column("precision", _S, "stored precision: float16 or log8"),
            Column("revision", _I32, "revision of the base part"),
            Column("attempt", _S, "id of the attempt that holds the base part's files"),
            Column("committed", _TIME, "when the base part was committed", "UTC"),
            Column("bytes", _I64, "size of the base part's files", "bytes"),
        ),
    ),
    Table(
        "commits",
        "one part of an episode that this generation includes",
        (
            _RUN,
            _EPISODE,
            PART,
            Column("revision", _I32, "the latest when the generation was made"),
            Column("attempt", _S, "id of the attempt that holds the files"),
            Column("committed", _TIME, "when it was committed", "UTC"),
            Column("bytes", _I64, "size of the part's files", "bytes"),
            Column("number", _I64, "of its entry in the commit log"),
            Column("name", _S, "the dataset's own name of the episode, as the part says it"),
            Column("outcome", _S, "as the part says it; NULL if it says none"),
            Column("instruction", _S, "as the part says it; NULL if it says none"),
            Column("keyframes", _I32, "that the part has; NULL if it does not say"),
            Column("camera", _S, "camera of an objects part; NULL for other parts"),
            Column("source", _S, "masks of an objects part: detector or gripper; NULL for others"),
        ),
    ),
    Table(
        "files",
        "one Parquet file of a part that this generation includes",
        (
            _RUN,
            _EPISODE,
            PART,
            Column("table_name", _S, "table whose rows it holds"),
            Column("path", _S, "relative to the store"),
            Column("size", _I64, "of the file", "bytes"),
            Column("sha256", _S, "of the file; compared before it is read"),
        ),
    ),
    Table(
        "log",
        "one thing that the commit log says, up to the entry that this generation was made from",
        (
            Column("number", _I64, "of the entry"),
            Column("kind", _S, "commit, removal (of a part), run (recorded) or discard (given up)"),
            Column("run", _S, "id of the run; NULL for a discard"),
            Column("episode", _S, "id of the episode; NULL for a run or a discard"),
            Column("part", _S, "part; NULL for a run or a discard"),
            Column("revision", _I64, "of the part; a removal is one as well"),
            Column("attempt", _S, "that was committed, or is given up"),
            Column("target", _I64, "entry of the log that could not be read and is given up"),
        ),
    ),
    Table(
        "unreadable",
        "one committed part, entry of the log, or run's file that this generation had to leave out",
        (
            Column("run", _S, "id of the run; NULL for an entry that does not even say that"),
            Column("episode", _S, "id of the episode; NULL for a run's file"),
            Column("part", _S, "part; NULL for a run's file"),
            Column("number", _I64, "of the entry in the commit log; NULL for a run's file"),
            Column("last", _I64, "of several entries that are missing, the last"),
            Column("digest", _S, "SHA-256 of the entry if it is what cannot be read"),
            Column("reason", _S, "what is wrong with it; `attnstore verify` says more"),
        ),
    ),
)

CATALOG: Mapping[str, Table] = MappingProxyType({t.name: t for t in _TABLES})

COPIES: Mapping[str, Table] = MappingProxyType(
    {name: Table(name, TABLES[name].row, (*TABLES[name].columns, PART)) for name in COPIED}
)
"""The Parquet tables as a generation keeps them."""

_SQL_TYPES: Mapping[pa.DataType, str] = {
    pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.bool_(): "BOOLEAN",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    _TIME: "TIMESTAMP",
}


def sql_type(kind: pa.DataType) -> str:
    """DuckDB's name of a column type.

    Examples
    --------
    >>> sql_type(pa.map_(pa.string(), pa.float32()))
    'MAP(VARCHAR, FLOAT)'
    """
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    if pa.types.is_map(kind):
        return f"MAP({sql_type(kind.key_type)}, {sql_type(kind.item_type)})"
    return _SQL_TYPES[kind]


def version() -> str:
    """Digest of all these definitions; a generation with another one is built anew."""
    text = [
        f"{table.name}.{column.name} {sql_type(column.type)}"
        for table in (*CATALOG.values(), *COPIES.values())
        for column in table.columns
    ]
    text += ["generation head tip", "layers number name", "gone layer run episode part"]
    # Of these a generation keeps the files' names.
    text += VIEWED
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]

"""Parquet files of tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 64 * 1024
"""Rows that a reader gets at least; a table that is written while it grows keeps so many."""


def write_table(path: Path, table: pa.Table) -> None:
    """Write Parquet that any reader opens: zstd, dictionaries for text only."""
    with open_table(path, table.schema) as file:
        file.write_table(table, row_group_size=ROW_GROUP)


def open_table(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file to write, block by block; to be closed."""
    text = [
        f.name
        for f in schema
        if pa.types.is_string(f.type) and f.name not in ("geometry", "counts")
    ]
    keys = [f.name for f in schema if pa.types.is_integer(f.type)]
    dictionary = [n for n in text + keys if n not in ("seed",)]
    if "mass" in schema.names and pa.types.is_map(schema.field("mass").type):
        dictionary.append("mass.key_value.key")
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=dictionary,
        write_statistics=[
            f.name for f in schema if not pa.types.is_nested(f.type) and f.type != pa.binary()
        ],
    )

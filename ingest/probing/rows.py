"""Rows of a probe's tables, as its variants come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from attnstore.store.commits import Attempt
from attnstore.store.format.pixels import attention_on, seen_pixels
from attnstore.store.format.rle import encode_rle
from attnstore.store.rules import standing_step
from attnstore.store.tables.parquet import write_table
from attnstore.store.tables.probes import PROBE_TABLES

from .keyframe import StoredKeyframe
from .variant import Variant


class ProbeRows:
    """Collects the rows of one episode, and writes them.

    Parameters
    ----------
    attempt
        Where to write.
    probe
        Column ``probe``.
    """

    def __init__(self, attempt: Attempt, probe: str) -> None:
        self._attempt, self._probe = attempt, probe
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._blocks: dict[str, list[pa.Table]] = {}

    def count(self, table: str) -> int:
        """Rows of a table so far."""
        flushed = sum(int(b.num_rows) for b in self._blocks.get(table, ()))
        return flushed + len(self._rows.get(table, ()))

    def add(self, table: str, keyframe: StoredKeyframe, variant: str, **values: Any) -> None:
        """Add a row; columns that are not given are NULL.

        Raises
        ------
        ValueError
            If the table has no such column.
        """
        known = {c.name for c in PROBE_TABLES[table].columns}
        if wrong := set(values) - known:
            raise ValueError(f"table {table} has no column {sorted(wrong)[0]}")
        self._rows.setdefault(table, []).append(
            {
                "run": self._attempt.run,
                "episode": self._attempt.episode,
                "variant": variant,
                "part": self._attempt.part,
                "keyframe": keyframe.index,
                "frame": keyframe.frame,
                "probe": self._probe,
                **values,
            }
        )

    def add_masks(self, keyframe: StoredKeyframe, variant: Variant) -> None:
        """Add the replaced pixels of every camera."""
        for camera, mask in variant.masks.items():
            self.add(
                "intervention_masks", keyframe, variant.name, camera=camera,
                height=mask.shape[0], width=mask.shape[1], counts=encode_rle(mask),
            )  # fmt: skip

    def add_regions(self, keyframe: StoredKeyframe, variant: Variant) -> None:
        """Add every layer's attention on the replaced pixels, at the step that stands."""
        for phase, shape in keyframe.spec.phases.items():
            if shape.camera is not None:
                continue
            step = standing_step(phase, shape.steps)
            for group in shape.query_groups:
                for camera in (c for c in variant.masks if c in shape.cameras):
                    mask, geometry = variant.masks[camera], keyframe.geometry(camera)
                    maps = keyframe.layer_means(phase, group, camera)
                    seen = seen_pixels(geometry)
                    for layer, on in enumerate(attention_on(mask, maps, geometry).tolist()):
                        self.add(
                            "region_attention", keyframe, variant.name, camera=camera,
                            phase=phase, step=step, layer=layer, query_group=group,
                            area=float((mask & seen).sum() / seen.sum()), attention=on,
                        )  # fmt: skip

    def flush(self) -> None:
        """Turn what was added into Arrow tables: dictionaries of Python cost far more memory."""
        for table, rows in self._rows.items():
            schema = PROBE_TABLES[table].schema
            # NaN is NULL in the store's tables: undefined.
            clean = [{k: None if v != v else v for k, v in row.items()} for row in rows]
            self._blocks.setdefault(table, []).append(pa.Table.from_pylist(clean, schema))
        self._rows.clear()

    def write(self) -> Mapping[str, int]:
        """Write every table that has rows, and ``interventions`` in any case; return the counts."""
        self.flush()
        self._blocks.setdefault("interventions", [])
        counts = {}
        for table, blocks in self._blocks.items():
            schema = PROBE_TABLES[table].schema
            whole = pa.concat_tables([schema.empty_table(), *blocks])
            write_table(self._attempt.path / f"{table}.parquet", whole)
            counts[table] = whole.num_rows
        return counts

"""Writing one episode of a run: arrays block by block, tables at the end, one commit."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..arrays.chunking import MAP_KEYFRAMES
from ..arrays.engine import Block, open_block
from ..arrays.groups import MAP_BITS, MAP_REDUCTIONS, PolicyShapes, create_arrays
from ..format.axes import STEPPED_PHASES
from ..format.episode import EpisodeSpec, PhaseSpec
from ..format.precision import absent, check_weights, dtype, round_significant
from ..format.tokens import Axis, TokenLayout
from ..tables.columns import Table
from ..tables.inventory import OPTIONAL_TABLES, TABLES
from ..tables.parquet import ROW_GROUP, open_table, write_table
from . import ARRAYS, Attempt, Commit

Stored = NDArray[Any]


class EpisodeWriter:
    """Writer of one attempt; any threads may write attention and add rows.

    Parameters
    ----------
    attempt
        Where to write; published by `commit`.
    spec
        What the episode looks like.
    policy
        Lengths of the policy arrays.
    """

    def __init__(self, attempt: Attempt, spec: EpisodeSpec, policy: PolicyShapes) -> None:
        self.attempt, self.spec = attempt, spec
        self.path = attempt.path / ARRAYS
        create_arrays(self.path, spec, policy)
        self._blocks: dict[str, Block] = {}
        self._steps: dict[tuple[str, int, int], tuple[Stored, set[int]]] = {}
        self._maps: dict[tuple[str, int], tuple[Stored, set[int]]] = {}
        self._written: set[tuple[str | int, ...]] = set()
        self._rows: dict[str, list[pa.Table]] = {}
        self._files: dict[str, pq.ParquetWriter] = {}
        self._policy: dict[str, Stored] = {}
        self._ended: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()

    def write_attention(
        self,
        phase: str,
        keyframe: int,
        layer: int,
        weights: Stored,
        layout: TokenLayout,
        step: int | None = None,
    ) -> None:
        """Store one layer's weights of one keyframe (and step).

        Parameters
        ----------
        phase
            Its path: ``prefix``, ``vision/hand_camera``.
        weights
            Already coded at the run's precision, (head, query, key), compact: padding stripped.
        layout
            The keyframe's own spans; they are moved to their aligned places.
        """
        spec = self.spec.phases[phase]
        expected = (spec.heads, len(layout.query), len(layout.key))
        if weights.shape != expected:
            raise ValueError(
                f"{phase} layer {layer}: weights are {weights.shape}, the layout is {expected}"
            )
        block = self._block(f"{phase}/attention")
        if phase not in STEPPED_PHASES:
            block.write((keyframe, layer), self._align(spec, weights, layout))
            self._finished(f"{phase}/attention/c/{keyframe}/{layer}/0/0/0")
            self._written.add((phase, keyframe, layer))
            return
        assert step is not None
        key = (phase, keyframe, step)
        with self._lock:
            if key not in self._steps:
                self._steps[key] = (self._empty(spec, (spec.layers, spec.heads)), set())
            buffer, seen = self._steps[key]
        self._put(spec, buffer[layer], weights, layout)
        with self._lock:
            seen.add(layer)
            # Of the threads that add layers, one finds the step complete and writes it.
            complete = len(seen) == spec.layers
            if complete:
                del self._steps[key]
        if complete:
            block.write((keyframe, step), buffer)
            self._finished(f"{phase}/attention/c/{keyframe}/{step}/0/0/0/0")
            self._written.add((phase, keyframe, step))

    def end_steps(self, phase: str, keyframe: int, steps: int) -> None:
        """Say that a keyframe has only its first `steps` steps; the others stay absent."""
        self._ended[phase, keyframe] = steps

    def write_map(
        self, phase: str, group: str, camera: str, reduction: str, keyframe: int, values: Stored
    ) -> None:
        """Store an overview map of one keyframe, ([step], layer, head, row, col), weights in 0..1.

        It is rounded to `MAP_BITS`; NaN is absent.
        Maps of 32 keyframes share a shard and are kept in memory until it is full.
        """
        path = f"maps/{phase}/{group}/{camera}/{reduction}"
        start = keyframe // MAP_KEYFRAMES * MAP_KEYFRAMES
        length = min(MAP_KEYFRAMES, len(self.spec.frames) - start)
        check_weights(values)
        coded = round_significant(values, MAP_BITS[reduction])
        if (path, start) not in self._maps:
            self._maps[path, start] = (np.empty((length, *coded.shape), coded.dtype), set())
        buffer, seen = self._maps[path, start]
        buffer[keyframe - start] = coded
        seen.add(keyframe)
        if len(seen) == length:
            del self._maps[path, start]
            self._block(path).write((slice(start, start + length),), buffer)
            self._written.add((path, start))

    def write_policy(self, name: str, keyframe: int, values: Stored) -> None:
        """Store one keyframe of a policy array: actions, actions_recorded, state, denoising."""
        if values.size == 0:
            return
        if name not in self._policy:
            shape = (len(self.spec.frames), *values.shape)
            self._policy[name] = np.full(shape, np.nan, np.float32)
        self._policy[name][keyframe] = values

    def add_rows(
        self, table: str, columns: Mapping[str, Sequence[Any] | Stored | pa.Array]
    ) -> None:
        """Append rows to a table; run, episode and variant are filled in.

        Rows of an optional table go to its file as they come: there may be millions of them.
        """
        definition = _definition(table)
        schema = definition.schema
        optional = {c.name for c in definition.columns if c.optional}
        count = len(next(iter(columns.values())))
        constant = {"run": self.attempt.run, "episode": self.attempt.episode, "variant": "base"}
        arrays = []
        for field in schema:
            if field.name in columns:
                values = columns[field.name]
                if not isinstance(values, pa.Array):
                    values = pa.array(values, type=field.type, from_pandas=True)
                arrays.append(values)
            elif field.name in constant:
                arrays.append(pa.array([constant[field.name]] * count, field.type))
            elif field.name in optional:
                arrays.append(pa.nulls(count, field.type))
            else:
                raise ValueError(f"table {table}: column {field.name} is missing")
        with self._lock:
            blocks = self._rows.setdefault(table, [])
            blocks.append(pa.Table.from_arrays(arrays, schema=schema))
            if table in OPTIONAL_TABLES and sum(b.num_rows for b in blocks) >= ROW_GROUP:
                self._spill(table)

    def rows(self, table: str) -> pa.Table:
        """Return the rows added so far; not of an optional table."""
        with self._lock:
            parts = self._rows.get(table, [])
            return pa.concat_tables(parts) if parts else _definition(table).schema.empty_table()

    def commit(
        self, summary: Mapping[str, Any] | None = None, *, after: int | None = None
    ) -> Commit:
        """Write what is buffered, check that nothing is missing, and publish the part.

        Raises
        ------
        ValueError
            If a keyframe's layers, steps or maps did not all arrive.
        ConflictError
            If another writer committed first.
        """
        missing = sorted(self._expected() - self._written, key=str)
        if missing:
            named = "; ".join(" ".join(map(str, m)) for m in missing[:3])
            raise ValueError(
                f"episode {self.spec.name}: incomplete, {len(missing)} blocks did not arrive: "
                f"{named}{' ...' if len(missing) > 3 else ''}"
            )
        for name, values in self._policy.items():
            self._block(f"policy/{name}").write((slice(None),), values)
        for table in TABLES:
            write_table(self.attempt.path / f"{table}.parquet", self.rows(table))
        for table in OPTIONAL_TABLES:
            if table in self._rows:
                self._spill(table)
                self._files.pop(table).close()
        spec = self.spec
        return self.attempt.publish(
            {
                "name": spec.name,
                "outcome": spec.outcome,
                "instruction": spec.instruction,
                "task": spec.task,
                "date": spec.date,
                "rate": spec.rate,
                "frames": spec.total_frames,
                "keyframes": len(spec.frames),
                "precision": spec.precision,
                **(summary or {}),
            },
            after=after,
        )

    def _spill(self, table: str) -> None:
        """Move the rows of an optional table that are in memory to its file."""
        if table not in self._files:
            path = self.attempt.path / f"{table}.parquet"
            self._files[table] = open_table(path, OPTIONAL_TABLES[table].schema)
        blocks, self._rows[table] = self._rows[table], []
        if blocks:
            self._files[table].write_table(pa.concat_tables(blocks))

    def _expected(self) -> set[tuple[str | int, ...]]:
        """Every shard of attention (phase, keyframe, layer or step) and of maps (path, start)."""
        keyframes = range(len(self.spec.frames))
        expected: set[tuple[str | int, ...]] = set()
        for phase in self.spec.phases.values():
            count = phase.layers if phase.steps is None else phase.steps
            expected.update(
                (phase.path, k, s)
                for k in keyframes
                for s in range(self._ended.get((phase.path, k), count))
            )
            expected.update(
                (f"maps/{phase.phase}/{group}/{camera}/{reduction}", start)
                for group in phase.query_groups
                for camera in phase.cameras
                for reduction in MAP_REDUCTIONS
                for start in keyframes[::MAP_KEYFRAMES]
            )
        return expected

    def _block(self, path: str) -> Block:
        with self._lock:
            if path not in self._blocks:
                self._blocks[path] = open_block(self.path / path, writable=True)
            return self._blocks[path]

    def _finished(self, relative: str) -> None:
        file = self.path / relative
        # A block that holds nothing but the fill value has no file.
        if file.is_file():
            self.attempt.finished(file)

    def _empty(self, spec: PhaseSpec, leading: tuple[int, ...]) -> Stored:
        shape = (*leading, len(spec.query), len(spec.key))
        return np.full(shape, absent(self.spec.precision), dtype(self.spec.precision))

    def _align(self, spec: PhaseSpec, weights: Stored, layout: TokenLayout) -> Stored:
        if _same(spec.query.spans, layout.query) and _same(spec.key.spans, layout.key):
            return weights
        buffer = self._empty(spec, (spec.heads,))
        self._put(spec, buffer, weights, layout)
        return buffer

    @staticmethod
    def _put(spec: PhaseSpec, buffer: Stored, weights: Stored, layout: TokenLayout) -> None:
        for stored_q, compact_q in spec.query.place(layout.query):
            for stored_k, compact_k in spec.key.place(layout.key):
                buffer[:, stored_q, stored_k] = weights[:, compact_q, compact_k]


def _definition(table: str) -> Table:
    return TABLES[table] if table in TABLES else OPTIONAL_TABLES[table]


def _same(aligned: Sequence[Any], axis: Axis) -> bool:
    return [(s.name, s.start, s.stop) for s in aligned] == [(s.name, s.start, s.stop) for s in axis]


def shard_path(root: Path, phase: str, keyframe: int, second: int) -> Path:
    """File of one shard: `second` is the layer of a one-pass phase, the step of a stepped one."""
    zeros = "0/0/0/0" if phase in STEPPED_PHASES else "0/0/0"
    return root / ARRAYS / phase / "attention" / "c" / str(keyframe) / str(second) / zeros

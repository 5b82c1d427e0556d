"""Writing one episode of a run: arrays block by block, tables at the end, one commit."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..arrays.chunking import MAP_KEYFRAMES, blosc
from ..arrays.engine import Block, open_block
from ..arrays.groups import (
    MAP_BITS,
    MAP_REDUCTIONS,
    NORM_BITS,
    VALUE_NORM,
    PolicyShapes,
    create_arrays,
    plan_hidden,
    plan_phase,
)
from ..arrays.shards import ShardWriter
from ..format.axes import STEPPED_PHASES
from ..format.episode import EpisodeSpec, PhaseSpec
from ..format.hidden import HIDDEN_BITS, Form, hidden_path
from ..format.precision import absent, check_weights, dtype, round_significant
from ..format.tokens import Axis, TokenLayout
from ..tables.inventory import OPTIONAL_TABLES, TABLES
from ..tables.parquet import ROW_GROUP, open_table, write_table
from . import ARRAYS, Attempt, Commit
from .hidden import hidden_rows

Stored = NDArray[Any]
_OWN_TABLES = {**TABLES, **OPTIONAL_TABLES}


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
        keyframes = len(spec.frames)
        self._plans = {path: plan_phase(phase, keyframes) for path, phase in spec.phases.items()}
        self._codec = blosc(spec.precision)
        self._fill = np.asarray(absent(spec.precision), dtype(spec.precision))
        self._blocks: dict[str, Block] = {}
        self._shards: dict[tuple[str, int], ShardWriter] = {}
        self._arrived: Counter[tuple[str, int]] = Counter()
        self._collected: dict[tuple[str, int], tuple[Stored, set[int]]] = {}
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
        at = (layer,) if phase not in STEPPED_PHASES else (step, layer)
        key = (phase, keyframe, *at)
        with self._lock:
            if key in self._written:
                raise ValueError(f"{' '.join(map(str, key))} was written before")
            shard = self._shard(spec, keyframe)
        shard.add((0, *at), self._align(spec, weights, layout))
        with self._lock:
            self._written.add(key)
            self._arrived[phase, keyframe] += 1
        self._close_if_whole(spec, keyframe)

    def end_steps(self, phase: str, keyframe: int, steps: int) -> None:
        """Say that a keyframe has only its first `steps` steps; the others stay absent."""
        with self._lock:
            self._ended[phase, keyframe] = steps
        self._close_if_whole(self.spec.phases[phase], keyframe)

    def _shard(self, spec: PhaseSpec, keyframe: int) -> ShardWriter:
        key = (spec.path, keyframe)
        if key not in self._shards:
            file = shard_path(self.attempt.path, *key)
            plan = self._plans[spec.path]
            self._shards[key] = ShardWriter(file, plan, self._codec, self._fill)
        return self._shards[key]

    def _close_if_whole(self, spec: PhaseSpec, keyframe: int) -> None:
        """Finish the shard of a keyframe that has all its layers, and steps."""
        key = (spec.path, keyframe)
        with self._lock:
            # Of the threads that add layers, one finds the keyframe complete.
            if key not in self._shards or self._arrived[key] < len(self._blocks_of(spec, keyframe)):
                return
            shard = self._shards.pop(key)
        finished = shard.close()
        if finished is not None:
            self.attempt.finished(shard.file, *finished)

    def _blocks_of(self, spec: PhaseSpec, keyframe: int) -> list[tuple[int, ...]]:
        """What a keyframe has of a phase: (layer,), or (step, layer)."""
        layers = range(spec.layers)
        if spec.steps is None:
            return [(layer,) for layer in layers]
        steps = self._ended.get((spec.path, keyframe), spec.steps)
        return [(step, layer) for step in range(steps) for layer in layers]

    def write_map(
        self, phase: str, group: str, camera: str, reduction: str, keyframe: int, values: Stored
    ) -> None:
        """Store an overview map of one keyframe, ([step], layer, head, row, col), weights in 0..1.

        It is rounded to `MAP_BITS`; NaN is absent.
        Maps of 32 keyframes share a shard and are kept in memory until it is full.
        """
        path = f"maps/{phase}/{group}/{camera}/{reduction}"
        check_weights(values)
        self._collect(path, keyframe, round_significant(values, MAP_BITS[reduction]))

    def write_norms(self, phase: str, keyframe: int, values: Stored) -> None:
        """Store the value norms of one keyframe, ([step], layer, head, key), aligned.

        They are rounded to `NORM_BITS`; NaN is absent. Shards are as of `write_map`.

        Parameters
        ----------
        phase
            Its path.

        Raises
        ------
        ValueError
            If a norm is negative or infinite.
        """
        largest = np.fmax.reduce(values, axis=None)
        if not 0 <= np.fmin.reduce(values, axis=None) <= largest < np.inf:
            raise ValueError(f"{phase}: value norms are finite and not negative")
        self._collect(f"{phase}/{VALUE_NORM}", keyframe, round_significant(values, NORM_BITS))

    def write_hidden(self, phase: str, form: Form, keyframe: int, values: Stored) -> None:
        """Store hidden states of one keyframe, aligned, by `hidden_dims` without the keyframe.

        They are rounded to `HIDDEN_BITS`; NaN is absent. Shards are kept in memory until they are full.

        Parameters
        ----------
        phase
            Its path.

        Raises
        ------
        ValueError
            If one is infinite.
        """
        coded = round_significant(values, HIDDEN_BITS)
        if np.isinf(coded).any():
            raise ValueError(f"{phase}: hidden states are finite")
        plan = plan_hidden(self.spec.phases[phase], len(self.spec.frames), form)
        self._collect(hidden_path(phase, form), keyframe, coded, plan.shard[0])

    def _collect(
        self, path: str, keyframe: int, coded: Stored, together: int = MAP_KEYFRAMES
    ) -> None:
        """Keep one keyframe of an array until the shard that it is in is full."""
        start = keyframe // together * together
        length = min(together, len(self.spec.frames) - start)
        if (path, start) not in self._collected:
            self._collected[path, start] = (np.empty((length, *coded.shape), coded.dtype), set())
        buffer, seen = self._collected[path, start]
        buffer[keyframe - start] = coded
        seen.add(keyframe)
        if len(seen) == length:
            del self._collected[path, start]
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
        definition = _OWN_TABLES[table]
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
            return pa.concat_tables(parts) if parts else _OWN_TABLES[table].schema.empty_table()

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
        if any(phase.hidden is not None for phase in self.spec.phases.values()):
            self.add_rows("hidden_states", hidden_rows(self.spec))
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
        """Every block of attention (phase, keyframe, [step], layer), of norms and maps (path, start)."""
        keyframes = range(len(self.spec.frames))
        expected: set[tuple[str | int, ...]] = set()
        for phase in self.spec.phases.values():
            expected.update(
                (phase.path, k, *at) for k in keyframes for at in self._blocks_of(phase, k)
            )
            if phase.values:
                starts = keyframes[::MAP_KEYFRAMES]
                expected.update((f"{phase.path}/{VALUE_NORM}", start) for start in starts)
            for form in () if phase.hidden is None else phase.hidden.forms:
                together = plan_hidden(phase, len(keyframes), form).shard[0]
                path = hidden_path(phase.path, form)
                expected.update((path, start) for start in keyframes[::together])
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

    def _align(self, spec: PhaseSpec, weights: Stored, layout: TokenLayout) -> Stored:
        if _same(spec.query.spans, layout.query) and _same(spec.key.spans, layout.key):
            return weights
        shape = (spec.heads, len(spec.query), len(spec.key))
        buffer = np.full(shape, self._fill)
        for stored_q, compact_q in spec.query.place(layout.query):
            for stored_k, compact_k in spec.key.place(layout.key):
                buffer[:, stored_q, stored_k] = weights[:, compact_q, compact_k]
        return buffer


def _same(aligned: Sequence[Any], axis: Axis) -> bool:
    return [(s.name, s.start, s.stop) for s in aligned] == [(s.name, s.start, s.stop) for s in axis]


def shard_path(root: Path, phase: str, keyframe: int) -> Path:
    """File of one shard, below a part's directory."""
    zeros = "0/0/0/0/0" if phase in STEPPED_PHASES else "0/0/0/0"
    return root / ARRAYS / phase / "attention" / "c" / str(keyframe) / zeros

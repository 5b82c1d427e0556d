"""Results of convolutional networks in a store: finding them, and reading their arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from attnstore.store.arrays.engine import Block, Index
from attnstore.store.commits import Commit, StorePaths
from attnstore.store.commits.cnn import GROUP, OBJECTIVE, RESPONSE, CnnSpec, read_spec
from attnstore.store.commits.part import Part
from attnstore.store.errors import IntegrityError, NotFoundError, SelectionError

from .sql.store import Store

MAX_BYTES = 2 << 30
"""Largest block that is read: a store is untrusted data."""


class CnnResult:
    """One layer of a network, looked at in one way; read lazily."""

    def __init__(self, paths: StorePaths, commit: Commit) -> None:
        self.commit = commit
        self._part = Part(paths, commit)

    def __repr__(self) -> str:
        spec = self.spec
        return f"<{spec.kind} of {spec.network} {spec.layer}: {len(spec.filters)} filters>"

    @property
    def name(self) -> str:
        """Of the episode or the picture file; of the network for filters."""
        return str(self.commit.summary.get("name", self.commit.episode))

    @cached_property
    def spec(self) -> CnnSpec:
        """What was done, with which weights."""
        name = f"{GROUP}/zarr.json"
        return read_spec(self._part.description(name), f"{self.commit.part}: {name}")

    @cached_property
    def keyframes(self) -> list[int]:
        """Ordinal in the episode of every keyframe; 0 for a picture file."""
        return [int(k) for k in self.read("keyframe", (slice(None),))]

    @cached_property
    def iterations(self) -> list[int]:
        """Steps that were done before every image of ``history``; none if none were kept."""
        if not self.has("history"):
            return []
        return [int(i) for i in self.read("iteration", (slice(None),))]

    def has(self, name: str) -> bool:
        """Whether the part has an array."""
        return any(f.path == f"{GROUP}/{name}/zarr.json" for f in self.commit.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""
        return self._block(name).shape

    def read(self, name: str, index: Index) -> NDArray[Any]:
        """Read a block of ``image``, ``history``, ``activation``, ``gradient`` or ``input``.

        Raises
        ------
        NotFoundError
            If this kind of result has no such array.
        SelectionError
            If the block is larger than 2 GB.
        IntegrityError
            If stored bytes are not what was committed.
        """
        block = self._block(name)
        lengths = [
            len(range(*i.indices(n))) if isinstance(i, slice) else 1
            for i, n in zip(index, block.shape, strict=False)
        ]
        size = prod(lengths) * prod(block.shape[len(index) :]) * block.dtype.itemsize
        if size > MAX_BYTES:
            raise SelectionError(f"{name} of {self!r}: {size} bytes; read fewer filters at a time")
        return block.read(index)

    def objective(self) -> NDArray[np.float32]:
        """Trace of the ascent, (filter, iteration + 1), in the order of the filters."""
        return self._column(OBJECTIVE, "objective", "iteration")

    def responses(self) -> pa.Table:
        """Table ``cnn_response`` of this part."""
        return self._part.table(RESPONSE)

    def _column(self, table: str, value: str, along: str) -> NDArray[np.float32]:
        rows = self._part.table(table).sort_by([("filter", "ascending"), (along, "ascending")])
        values = np.asarray(rows[value].to_numpy(), np.float32)
        count = len(self.spec.filters)
        if not count or len(values) % count:
            raise IntegrityError(f"{self.commit.part}: {table} has {len(values)} rows")
        return values.reshape(count, -1)

    def _block(self, name: str) -> Block:
        if not self.has(name):
            raise NotFoundError(f"{self.commit.part} ({self.spec.kind}) has no array {name}")
        return self._part.array(f"{GROUP}/{name}")


def cnn_results(
    store: Store,
    *,
    run: str | None = None,
    episode: str | None = None,
    kinds: Sequence[str] = (),
    network: str | None = None,
    layers: Sequence[str] = (),
) -> list[CnnResult]:
    """Find results, in order of network, run, episode, kind and layer.

    Parameters
    ----------
    episode
        Id or own name of an episode, or the name of a picture file.
    layers
        Names of convolutions, or the ends of their names.

    Raises
    ------
    NotFoundError
        If there are none; the message says what there is.
    """
    every = [
        CnnResult(store.paths, c)
        for c in store.commits()
        if c.part.startswith("cnn-") and run in (None, c.run)
    ]
    found = [
        r
        for r in every
        if episode in (None, r.commit.episode, r.name, r.name.rpartition("/")[2])
        and (not kinds or r.spec.kind in kinds)
        and network in (None, r.spec.network)
        and (not layers or any(f".{r.spec.layer}".endswith(f".{end}") for end in layers))
    ]
    if not found:
        known = sorted({f"{r.spec.kind} of {r.spec.network} {r.spec.layer}" for r in every})
        raise NotFoundError(
            f"{store.paths.name}: no such results of convolutional networks; there are: "
            + (", ".join(known[:8]) or "none (attnstore cnn filters makes them)")
        )
    return sorted(
        found,
        key=lambda r: (
            r.spec.network, r.commit.run, r.commit.episode, r.spec.kind, r.spec.conv, r.commit.part,
        ),
    )  # fmt: skip

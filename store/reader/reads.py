"""What is read of an episode's arrays, at positions of every dimension: weights and maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..commits.part import Part
from ..format.axes import attention_dims, map_dims, norm_dims
from ..format.episode import PhaseSpec
from ..format.geometry import Geometry
from ..format.weighting import Weighting, carried
from . import sinks
from .blocks import Block, Dimension, Float, Positions, Read

Reduction = Literal["max", "mean"]
SinkKeys = Callable[..., list[tuple[str, int, int, float]]]
"""`Episode.sink_keys`."""


def _block(
    names: tuple[str, ...], keyframes: Positions, steps: Positions | None, *rest: Positions
) -> Block:
    at = (keyframes, *rest) if steps is None else (keyframes, steps, *rest)
    return Block(names, tuple(Dimension(positions, False) for positions in at))


@dataclass(frozen=True, slots=True)
class WeightsRead:
    """Reads attention weights of a phase, (keyframe, [step], layer, head, query, key)."""

    part: Part
    spec: PhaseSpec
    max_bytes: int
    """Larger reads are refused."""

    def __call__(
        self, keyframes: Positions, steps: Positions | None, layers: Positions, heads: Positions,
        queries: Positions, keys: Positions,
    ) -> Float:  # fmt: skip
        """Read the product of the positions."""
        block = _block(
            attention_dims(self.spec.phase), keyframes, steps, layers, heads, queries, keys
        )
        block.check_size(4, self.max_bytes, f"{self.spec.path} attention")
        stored = self.part.attention(self.spec.path, block.index)
        return block.pick(stored).astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class NormsRead:
    """Reads value norms of a phase's keys, (keyframe, [step], layer, head, key)."""

    part: Part
    spec: PhaseSpec
    max_bytes: int

    def __call__(
        self, keyframes: Positions, steps: Positions | None, layers: Positions, heads: Positions,
        keys: Positions,
    ) -> Float:  # fmt: skip
        """Read the product of the positions."""
        block = _block(norm_dims(self.spec.phase), keyframes, steps, layers, heads, keys)
        block.check_size(4, self.max_bytes, f"{self.spec.path} value norms")
        return np.asarray(block.pick(self.part.norms(self.spec.path, block.index)), np.float32)


@dataclass(frozen=True, slots=True)
class CarriedRead:
    """Reads attention weighted by value norms, as `WeightsRead` reads the attention."""

    weights: WeightsRead
    norms: NormsRead

    def __call__(
        self, keyframes: Positions, steps: Positions | None, layers: Positions, heads: Positions,
        queries: Positions, keys: Positions,
    ) -> Float:  # fmt: skip
        """Read whole rows, weight them, and pick the keys."""
        every = np.arange(len(self.weights.spec.key))
        weights = self.weights(keyframes, steps, layers, heads, queries, every)
        norms = self.norms(keyframes, steps, layers, heads, every)
        return np.asarray(carried(weights, norms)[..., keys], np.float32)


@dataclass(frozen=True, slots=True)
class StoredMapRead:
    """Reads overview maps, (keyframe, [step], layer, head, row, col)."""

    part: Part
    spec: PhaseSpec
    camera: str
    reduce: Reduction
    group: str
    """One of the phase's query groups."""
    max_bytes: int

    def __call__(
        self, keyframes: Positions, steps: Positions | None, layers: Positions, heads: Positions,
        rows: Positions, cols: Positions,
    ) -> Float:  # fmt: skip
        """Read the product of the positions."""
        phase = self.spec.phase
        block = _block(map_dims(phase), keyframes, steps, layers, heads, rows, cols)
        block.check_size(4, self.max_bytes, f"{phase} maps")
        stored = self.part.map(phase, self.group, self.camera, self.reduce, block.index)
        return np.asarray(block.pick(stored), np.float32)


@dataclass(frozen=True, slots=True)
class ReducedMapRead:
    """Reduces the full attention to maps of any query tokens, as `StoredMapRead` gives them."""

    weights: WeightsRead | CarriedRead
    query: Positions
    key: Positions
    """The camera's patches."""
    grid: tuple[int, int]
    reduce: Reduction

    def __call__(
        self, keyframes: Positions, steps: Positions | None, layers: Positions, heads: Positions,
        rows: Positions, cols: Positions,
    ) -> Float:  # fmt: skip
        """Read whole maps, and pick the rows and columns."""
        weights = self.weights(keyframes, steps, layers, heads, self.query, self.key)
        if self.reduce == "max":
            reduced = np.fmax.reduce(weights, axis=-2)
        else:
            # Not np.nanmean: it warns where a keyframe lacks the whole group or the camera.
            there = ~np.isnan(weights)
            with np.errstate(invalid="ignore"):
                reduced = weights.sum(-2, where=there) / there.sum(-2)
        maps = np.asarray(reduced.reshape(*reduced.shape[:-1], *self.grid), np.float32)
        return maps[..., rows, :][..., cols]


@dataclass(frozen=True, slots=True)
class SinklessMapRead:
    """Maps of another read with attention sinks taken out: of each step, layer and head its own."""

    maps: Read
    phase: str
    camera: str
    geometry: Geometry
    sink_keys: SinkKeys
    weighting: Weighting = "raw"

    def __call__(
        self, keyframes: Positions, steps: Positions | None, layers: Positions, heads: Positions,
        rows: Positions, cols: Positions,
    ) -> Float:  # fmt: skip
        """Read whole maps, correct them, and pick the rows and columns."""
        whole = tuple(np.arange(n) for n in self.geometry.grid)
        maps = self.maps(keyframes, steps, layers, heads, *whole)
        numbers = [None] if steps is None else steps.tolist()
        corrected = maps.reshape(len(maps), len(numbers), *maps.shape[-4:]).copy()
        for s, i, j in np.ndindex(len(numbers), len(layers), len(heads)):
            keys = self.sink_keys(
                self.phase, layer=int(layers[i]), head=int(heads[j]), step=numbers[s],
                weighting=self.weighting,
            )  # fmt: skip
            own = [(row, col) for camera, row, col, _ in keys if camera == self.camera]
            corrected[:, s, i, j] = sinks.remove(corrected[:, s, i, j], self.geometry, own)
        return corrected.reshape(maps.shape)[..., rows, :][..., cols]

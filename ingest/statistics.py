"""Rows of ``head_stats``, ``episode_stats`` and ``sinks`` from a keyframe's reductions.

The definitions are `attnstore.store.format.statistics`; here they are put over layers, heads and steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from attnstore.store.format.episode import EpisodeSpec, PhaseSpec
from attnstore.store.format.statistics import (
    entropy,
    gini,
    grid_variance,
    image_distribution,
    image_mass,
    image_variance,
    jensen_shannon,
    largest,
    top_mass,
)
from attnstore.store.format.tokens import Axis, Span, TokenLayout
from attnstore.store.format.weighting import Weighting

from .reduction import Reduction

Float = NDArray[np.float32]


@dataclass(slots=True)
class PhaseReductions:
    """One phase of one keyframe: reductions of all its layers and steps, as arrays."""

    spec: PhaseSpec
    layout: TokenLayout
    mean: dict[str, Float] = field(default_factory=dict)
    """Per query group, (step, layer, head, key), compact keys; one-pass phases have one step."""
    maximum: dict[str, Float] = field(default_factory=dict)
    confidence: dict[str, Float] = field(default_factory=dict)
    """Per query group, (step, layer, head)."""
    overall: Float = field(init=False)
    """(step, layer, head, key); NaN where a step does not exist."""
    weighting: Weighting = "raw"
    steps: int = 0
    """Steps that arrived; 1 in one-pass phases."""

    def __post_init__(self) -> None:
        self.overall = np.full((*self._lead, len(self.layout.key)), np.nan, np.float32)

    @property
    def _lead(self) -> tuple[int, int, int]:
        return self.spec.steps or 1, self.spec.layers, self.spec.heads

    def add(self, layer: int, step: int | None, reduction: Reduction) -> None:
        """Take in one layer's reduction."""
        at = (step or 0, layer)
        self.steps = max(self.steps, at[0] + 1)
        self._place(self.overall[at], reduction.overall)
        for group, values in reduction.mean.items():
            if group not in self.mean:
                shape = (*self._lead, len(self.layout.key))
                self.mean[group] = np.full(shape, np.nan, np.float32)
                self.maximum[group] = np.full(shape, np.nan, np.float32)
                self.confidence[group] = np.full(self._lead, np.nan, np.float32)
            self._place(self.mean[group][at], values)
            self._place(self.maximum[group][at], reduction.maximum[group])
            self.confidence[group][at] = reduction.confidence[group]

    @staticmethod
    def _place(target: Float, values: Float) -> None:
        """Put in a layer's values; keys that are yet to be generated get no attention."""
        count = values.shape[-1]
        target[..., :count], target[..., count:] = values, 0

    def maps(self, values: Float, span: Span) -> Float:
        """Cut one camera's maps out of (..., key): (..., row, col)."""
        assert span.grid is not None
        return values[..., span.start : span.stop].reshape(*values.shape[:-1], *span.grid)

    def camera_maps(self, values: Float, camera: str) -> Float:
        """Cut a camera's maps out of (..., key); NaN where this keyframe lacks the camera."""
        for span in self.layout.key:
            if span.camera == camera:
                return self.maps(values, span)
        (grid,) = [s.grid for s in self.spec.key if s.camera == camera and s.grid is not None]
        return np.full((*values.shape[:-1], *grid), np.nan, np.float32)


class HeadStatistics:
    """Computes ``head_stats`` keyframe by keyframe; keeps the previous one for the drift."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self._spec = spec
        self._coverage = {camera: g.coverage() for camera, g in spec.geometry.items()}
        self._previous: dict[tuple[str, str, str, str], NDArray[np.float64]] = {}

    def rows(self, keyframe: int, phase: PhaseReductions) -> Iterator[dict[str, Any]]:
        """Yield columns of ``head_stats``, one block of rows per query group and camera."""
        for group, reduced in phase.mean.items():
            mean = reduced[: phase.steps]
            mass = _span_mass(phase.layout.key, mean)
            for span in phase.layout.key:
                if span.camera is not None:
                    yield self._block(keyframe, phase, group, span, mean, mass)

    def _block(
        self,
        keyframe: int,
        phase: PhaseReductions,
        group: str,
        span: Span,
        mean: Float,
        mass: Mapping[str, NDArray[np.float64]],
    ) -> dict[str, Any]:
        camera = str(span.camera)
        coverage = self._coverage[camera]
        maps = phase.maps(mean, span)
        p = image_distribution(maps, coverage)
        key = (phase.spec.phase, phase.weighting, group, camera)
        nothing = np.full(p.shape[:-1], np.nan)
        previous = self._previous.get(key)
        drift = nothing.copy()
        if previous is not None:
            both = min(len(p), len(previous))
            drift[:both] = jensen_shannon(p[:both], previous[:both])
        self._previous[key] = p
        step_drift = nothing.copy()
        step_drift[1:] = jensen_shannon(p[1:], p[:-1])
        brightest, row, col = largest(maps, coverage)
        nowhere = brightest == 0
        count = nothing.size
        step, layer, head = np.indices(nothing.shape).reshape(3, -1)
        on_image, on_letterbox = image_mass(maps, coverage)
        values = {
            "camera_mass": on_image,
            "letterbox_mass": on_letterbox,
            "letterbox_max": largest(maps, 1 - coverage)[0],
            "variance": image_variance(maps, coverage),
            "grid_variance": grid_variance(maps),
            "max": brightest,
            "entropy": entropy(p, float(coverage.sum())),
            "top10_mass": top_mass(p),
            "gini": gini(p),
            "confidence": phase.confidence[group][: phase.steps],
            "drift": drift,
            "step_drift": step_drift,
            "argmax_row": np.where(nowhere, np.nan, row),
            "argmax_col": np.where(nowhere, np.nan, col),
        }
        return {
            "keyframe": np.full(count, keyframe),
            "frame": np.full(count, self._spec.frames[keyframe]),
            "phase": [phase.spec.phase] * count,
            "step": step if phase.spec.steps is not None else [None] * count,
            "layer": layer,
            "head": head,
            "query_group": [group] * count,
            "weighting": [phase.weighting] * count,
            "camera": [camera] * count,
            "mass": _mass_column(mass, count),
            **{name: np.asarray(v).reshape(-1) for name, v in values.items()},
        }


def _span_mass(key: Axis, mean: Float) -> dict[str, NDArray[np.float64]]:
    """Attention on the tokens of each coarse span, by `attnstore.store.format.tokens.Span.mass_name`."""
    mass: dict[str, NDArray[np.float64]] = {}
    for span in key:
        total = mean[..., span.start : span.stop].sum(-1, dtype=np.float64)
        mass[span.mass_name] = mass.get(span.mass_name, 0.0) + total
    return mass


def _mass_column(mass: Mapping[str, NDArray[np.float64]], count: int) -> pa.Array:
    names = list(mass)
    values = np.stack([mass[n].reshape(-1) for n in names], axis=-1).astype(np.float32)
    offsets = np.arange(count + 1, dtype=np.int32) * len(names)
    keys = pa.DictionaryArray.from_arrays(
        np.tile(np.arange(len(names), dtype=np.int32), count), pa.array(names)
    ).cast(pa.string())
    return pa.MapArray.from_arrays(pa.array(offsets), keys, pa.array(values.reshape(-1)))


_Weighted = tuple[str, Weighting]


class SinkStatistics:
    """Finds attention sinks over an episode, raw and weighted by values each.

    See `attnstore.store.format.statistics.SINK_THRESHOLD`.
    """

    def __init__(self, threshold: float, fraction: float) -> None:
        self._threshold, self._fraction = threshold, fraction
        self._above: dict[_Weighted, NDArray[np.int32]] = {}
        self._sum: dict[_Weighted, NDArray[np.float64]] = {}
        self._phases: dict[_Weighted, PhaseSpec] = {}
        self._keyframes: dict[_Weighted, int] = {}
        self._present: dict[_Weighted, NDArray[np.int32]] = {}

    def add(self, phase: PhaseReductions) -> None:
        """Take in one keyframe."""
        spec = phase.spec
        name = (spec.path, phase.weighting)
        if name not in self._above:
            shape = (*phase.overall.shape[:-1], len(spec.key))
            self._above[name], self._sum[name] = np.zeros(shape, np.int32), np.zeros(shape)
            self._phases[name] = spec
            self._present[name] = np.zeros(phase.overall.shape[0], np.int32)
        self._keyframes[name] = self._keyframes.get(name, 0) + 1
        self._present[name][: phase.steps] += 1
        for stored, own in spec.key.place(phase.layout.key):
            values = phase.overall[: phase.steps, ..., own]
            self._above[name][: phase.steps, ..., stored] += values > self._threshold
            self._sum[name][: phase.steps, ..., stored] += values

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield columns of ``sinks``, one block per phase that has any."""
        for name, above in self._above.items():
            total = self._keyframes[name]
            found = np.argwhere(above >= self._fraction * total - 1e-9)
            if not len(found):
                continue
            spec = self._phases[name]
            spans = [_span_at(spec.key.spans, int(k)) for k in found[:, 3]]
            at = tuple(found.T)
            offsets = [int(k) - s.start for k, s in zip(found[:, 3], spans, strict=True)]
            grids = [s.grid for s in spans]
            yield {
                "phase": [spec.phase] * len(found),
                "weighting": [name[1]] * len(found),
                "step": found[:, 0] if spec.steps is not None else [None] * len(found),
                "layer": found[:, 1],
                "head": found[:, 2],
                "key": found[:, 3],
                "span": [s.name for s in spans],
                "text": [
                    s.tokens[o].text if s.tokens else None
                    for s, o in zip(spans, offsets, strict=True)
                ],
                "camera": [s.camera or spec.camera for s in spans],
                "row": [
                    None if g is None else o // g[1] for o, g in zip(offsets, grids, strict=True)
                ],
                "col": [
                    None if g is None else o % g[1] for o, g in zip(offsets, grids, strict=True)
                ],
                "fraction": above[at] / total,
                "mass": self._sum[name][at] / self._present[name][found[:, 0]],
            }


def _span_at(spans: Sequence[Span], index: int) -> Span:
    for span in spans:
        if span.start <= index < span.stop:
            return span
    raise IndexError(index)

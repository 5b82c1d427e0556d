"""Slices of an episode's full attention, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..commits.part import Part
from ..errors import SelectionError
from ..format.axes import attention_dims, map_dims
from ..format.episode import PhaseSpec
from ..rules import standing_step
from .blocks import Block, Cost, Dimension, Index, coordinates, cost
from .description import EpisodeDescription
from .lazy import lazy_array
from .selection import Group, TokenSelection, select_tokens, span_labels, token_labels

Float = NDArray[np.floating[Any]]
DEFAULT_MAX_BYTES = 2 << 30


class AttentionSlices(EpisodeDescription):
    """An episode whose attention can be read."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self._selections: dict[tuple[str, str, str], TokenSelection] = {}
        self._labels: dict[str, dict[str, tuple[str, NDArray[Any]]]] = {}

    def values(
        self,
        phase: str,
        *,
        keyframe: Index = None,
        camera: str | None = None,
        frame: int | None = None,
        step: Index = None,
        layer: Index = None,
        head: Index = None,
        query: Group | None = None,
        key: Group | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> Float:
        """Load attention weights as NumPy.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        camera
            In phase ``vision``: whose image encoder. Elsewhere a camera is a token group.
        keyframe, step, layer, head
            Index (the dimension is dropped), slice, indices, or None for all. Negative ones count
            from the end.
        frame
            Frame index of the recording, instead of `keyframe`.
        query, key
            Token group; see `attnstore.store.reader.selection`.
        max_bytes
            Larger results are refused before anything is read.

        Returns
        -------
        (keyframe, [step], layer, head, query, key) without the dropped dimensions; float16, or
        float32 if stored as log8; NaN where a keyframe has fewer tokens.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing, or the result is too large.
        """
        spec = self._spec_of(phase, camera)
        block = self._block(spec, keyframe, frame, step, layer, head, query, key)
        block.check_size(self._itemsize, max_bytes, f"{spec.path} attention")
        return block.pick(self.part.attention(spec.path, block.index))

    def attention(
        self,
        phase: str,
        *,
        keyframe: Index = None,
        camera: str | None = None,
        frame: int | None = None,
        step: Index = None,
        layer: Index = None,
        head: Index = None,
        query: Group | None = None,
        key: Group | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> xr.DataArray:
        """Load attention weights with names: as `values`, labelled.

        Returns
        -------
        DataArray with dims keyframe, [step], layer, head, query, key (dropped ones are scalar
        coordinates) and coordinates ``frame``, ``query_label``, ``query_span``, ``key_label``,
        ``key_span``; accessor ``.attn``.
        """
        spec = self._spec_of(phase, camera)
        block = self._block(spec, keyframe, frame, step, layer, head, query, key)
        block.check_size(self._itemsize, max_bytes, f"{spec.path} attention")
        values = block.pick(self.part.attention(spec.path, block.index))
        dims = [n for n, d in zip(block.names, block.dimensions, strict=True) if not d.scalar]
        coords = coordinates(block, self._token_labels(spec))
        name, attributes = f"{spec.phase}_attention", self._attributes(spec)
        return xr.DataArray(values, coords, dims, name=name, attrs=attributes)

    def lazy(self, phase: str, *, camera: str | None = None) -> xr.DataArray:
        """Return a phase's whole attention as a DataArray that is read on access.

        ``.sel``, ``.isel`` and ``.chunk()`` (with dask) work as on any; weights are decoded as they
        are read. With ``.swap_dims(keyframe="frame")`` it is selected by frame index.
        """
        spec = self._spec_of(phase, camera)
        names = attention_dims(spec.phase)
        everything = Block(
            names,
            tuple(Dimension(np.arange(n), False) for n in self._shape(spec)),
        )
        coords = coordinates(everything, self._token_labels(spec))
        array = lazy_array(
            self.part,
            f"{spec.path}/attention",
            self.spec.precision,
            names,
            coords,
            f"{spec.phase}_attention",
        )
        return array.assign_attrs(self._attributes(spec))

    def explain(
        self,
        phase: str,
        *,
        camera: str | None = None,
        keyframe: Index = None,
        step: Index = None,
        layer: Index = None,
        head: Index = None,
        query: Group | None = None,
        key: Group | None = None,
    ) -> Cost:
        """Say what a read would touch, without reading: tier, chunks, files, bytes.

        With `camera`, of `maps`; else of `values`.
        """
        spec = self.phase(phase, camera)
        group = query if query is not None else spec.query_groups[0]
        if camera is not None and group in spec.query_groups:
            self._check_camera(camera)
            grid = self.spec.geometry[camera].grid
            if step is None:
                step = standing_step(spec.phase, spec.steps)
            block = self._map_block(spec, grid, keyframe, step, layer, head)
            path = f"maps/{spec.phase}/{group}/{camera}/max"
            return self._cost(block, "maps", path, 4)
        if camera is not None:
            key, query = f"image:{camera}", group
        block = self._block(spec, keyframe, None, step, layer, head, query, key)
        return self._cost(block, "full", f"{spec.path}/attention", self._itemsize)

    def _cost(self, block: Block, tier: str, path: str, itemsize: int) -> Cost:
        grid = self.part.grid(path)
        found = cost(block, tier, path, grid.chunk, grid.shard, grid.shape, itemsize)
        return replace(found, missing_bytes=self.part.absent_bytes(path, block.index))

    @property
    def _itemsize(self) -> int:
        return 4 if self.spec.precision == "log8" else 2

    def _spec_of(self, phase: str, camera: str | None) -> PhaseSpec:
        spec = self.phase(phase, camera)
        if camera is not None and spec.camera != camera:
            raise SelectionError(
                f"phase {phase} is not of one camera: select its tokens by "
                f"query='image:{camera}' or key='image:{camera}'"
            )
        return spec

    def _attributes(self, spec: PhaseSpec) -> dict[str, Any]:
        return {
            "phase": spec.phase,
            **({} if spec.camera is None else {"camera": spec.camera}),
            "episode": self.name,
            "run": self.run,
            "precision": self.spec.precision,
            "geometry": {camera: g.to_json() for camera, g in self.spec.geometry.items()},
        }

    def _shape(self, spec: PhaseSpec) -> tuple[int, ...]:
        steps = () if spec.steps is None else (spec.steps,)
        return (len(self.frames), *steps, spec.layers, spec.heads, len(spec.query), len(spec.key))

    def _tokens(self, spec: PhaseSpec, axis: str, group: Group | None) -> TokenSelection:
        aligned = spec.query if axis == "query" else spec.key
        if group is not None and not isinstance(group, str):
            return select_tokens(aligned, group, where=f"{spec.path} {axis}")
        at = (spec.path, axis, group or "")
        if at not in self._selections:
            self._selections[at] = select_tokens(aligned, group, where=f"{spec.path} {axis}")
        return self._selections[at]

    def _token_labels(self, spec: PhaseSpec) -> dict[str, tuple[str, NDArray[Any]]]:
        if spec.path not in self._labels:
            labels: dict[str, tuple[str, NDArray[Any]]] = {"frame": ("keyframe", self.frames)}
            for axis, aligned in (("query", spec.query), ("key", spec.key)):
                labels[f"{axis}_label"] = (axis, token_labels(aligned.spans, len(aligned)))
                labels[f"{axis}_span"] = (axis, span_labels(aligned.spans, len(aligned)))
            self._labels[spec.path] = labels
        return self._labels[spec.path]

    def _keyframe(self, keyframe: Index, frame: int | None) -> Dimension:
        if frame is not None:
            if keyframe is not None:
                raise SelectionError(f"give keyframe or frame; got {keyframe} and {frame}")
            keyframe = self.keyframe_of(frame)
        return Dimension.of(keyframe, len(self.frames), "keyframe")

    def _block(
        self, spec: PhaseSpec, keyframe: Index, frame: int | None, step: Index, layer: Index,
        head: Index, query: Group | None, key: Group | None,
    ) -> Block:  # fmt: skip
        phase = spec.phase
        dimensions = [self._keyframe(keyframe, frame)]
        if spec.steps is not None:
            dimensions.append(Dimension.of(step, spec.steps, f"{phase} step"))
        elif step is not None:
            raise SelectionError(f"phase {phase} has no steps; got step {step}")
        dimensions += [
            Dimension.of(layer, spec.layers, f"{phase} layer"),
            Dimension.of(head, spec.heads, f"{phase} head"),
            Dimension.of_tokens(self._tokens(spec, "query", query)),
            Dimension.of_tokens(self._tokens(spec, "key", key)),
        ]
        return Block(attention_dims(phase), tuple(dimensions))

    def _map_block(
        self, spec: PhaseSpec, grid: tuple[int, int], keyframe: Index, step: Index, layer: Index, head: Index
    ) -> Block:  # fmt: skip
        dimensions = [self._keyframe(keyframe, None)]
        if spec.steps is not None:
            dimensions.append(Dimension.of(step, spec.steps, f"{spec.phase} step"))
        dimensions += [
            Dimension.of(layer, spec.layers, f"{spec.phase} layer"),
            Dimension.of(head, spec.heads, f"{spec.phase} head"),
            *(Dimension(np.arange(n), False) for n in grid),
        ]
        return Block(map_dims(spec.phase), tuple(dimensions))

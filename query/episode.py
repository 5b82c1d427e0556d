"""One committed episode: slices of attention, overview maps, statistics and frames, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import xarray as xr
from numpy.typing import NDArray

from attnstore.store.axes import STEPPED_PHASES, attention_dims
from attnstore.store.episode import EpisodeSpec, PhaseSpec
from attnstore.store.errors import NotFoundError, SelectionError
from attnstore.store.geometry import Geometry
from attnstore.store.part import Part

from .selection import Group, TokenSelection, check_index, select_tokens, token_labels

Index = int | slice | Sequence[int] | None
Reduction = Literal["max", "mean"]
Float = NDArray[np.floating[Any]]
DEFAULT_MAX_BYTES = 2 << 30


class Episode:
    """A committed episode, read lazily; made by `Store.episode`."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self._labels: dict[tuple[str, str], NDArray[np.str_]] = {}
        self._selections: dict[tuple[str, str, str], TokenSelection] = {}
        self._dense: dict[tuple[str, str, str], dict[str, Float]] = {}

    def __repr__(self) -> str:
        spec = self.spec
        return f"<episode {spec.name!r} of run {self.run}: {len(spec.frames)} keyframes>"

    @property
    def spec(self) -> EpisodeSpec:
        """Description: axes, geometry, keyframes."""
        return self.part.spec

    @property
    def run(self) -> str:
        """Run id."""
        return self.part.commit.run

    @property
    def id(self) -> str:
        """Episode id, a safe directory name."""
        return self.part.commit.episode

    @property
    def name(self) -> str:
        """The dataset's own name."""
        return self.spec.name

    @property
    def outcome(self) -> str:
        """``success``, ``failure`` or ``unknown``."""
        return self.spec.outcome

    @property
    def date(self) -> str | None:
        """Recording date, if known."""
        return self.spec.date

    @property
    def instruction(self) -> str:
        """The prompt."""
        return self.spec.instruction

    @cached_property
    def frames(self) -> NDArray[np.int32]:
        """Frame index of each keyframe."""
        return np.asarray(self.spec.frames, np.int32)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names in the policy's order."""
        return tuple(self.spec.geometry)

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases with attention."""
        return tuple(self.spec.phases)

    def geometry(self, camera: str) -> Geometry:
        """Return the transform between a camera's pixels and its patches."""
        self._check_camera(camera)
        return self.spec.geometry[camera]

    def layers(self, phase: str) -> int:
        """Return the number of layers of a phase."""
        return self.phase(phase).layers

    def heads(self, phase: str) -> int:
        """Return the number of heads of a phase."""
        return self.phase(phase).heads

    def steps(self, phase: str) -> int | None:
        """Return the number of denoising steps; None in a one-pass phase."""
        return self.phase(phase).steps

    def phase(self, phase: str) -> PhaseSpec:
        """Return a phase's shape and axes."""
        try:
            return self.spec.phases[phase]
        except KeyError:
            raise SelectionError(f"no phase {phase!r}; there are: {', '.join(self.phases)}") from None

    def keyframe_of(self, frame: int) -> int:
        """Return the keyframe at a frame index of the recording."""
        at = np.flatnonzero(self.frames == frame)
        if not len(at):
            raise SelectionError(
                f"frame {frame} is no keyframe; keyframes are {self.frames[0]} to {self.frames[-1]}, "
                f"{', '.join(map(str, self.frames[:4]))}, ..."
            )
        return int(at[0])

    def values(
        self,
        phase: str,
        *,
        keyframe: Index = None,
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
        keyframe, step, layer, head
            Index (the dimension is dropped), slice, indices, or None for all. Negative ones count
            from the end.
        query, key
            Token group; see `attnstore.query.selection`.
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
        spec = self.phase(phase)
        index, picks, drop = self._index(spec, keyframe, step, layer, head, query, key, max_bytes)
        values = self.part.attention(phase, index)
        for axis, pick in picks:
            values = values.take(pick, axis=axis)
        return values.reshape([n for n, d in zip(values.shape, drop, strict=True) if not d])

    def attention(
        self,
        phase: str,
        *,
        keyframe: Index = None,
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
        coordinates), and coordinates ``frame``, ``query_label`` and ``key_label``.
        """
        spec = self.phase(phase)
        wanted = {"keyframe": keyframe, "step": step, "layer": layer, "head": head}
        values = self.values(
            phase, keyframe=keyframe, step=step, layer=layer, head=head, query=query, key=key,
            max_bytes=max_bytes,
        )  # fmt: skip
        coords: dict[str, Any] = {}
        dims = []
        for name in attention_dims(phase):
            if name in ("query", "key"):
                tokens = self._select(phase, name, query if name == "query" else key)
                at: Any = int(tokens.indices[0]) if tokens.scalar else tokens.indices
                labels = self._label(phase, name)[at]
                coords[name] = at if tokens.scalar else (name, at)
                coords[f"{name}_label"] = labels if tokens.scalar else (name, labels)
                scalar = tokens.scalar
            else:
                at, scalar = _positions(wanted[name], self._length(spec, name), f"{phase} {name}")
                coords[name] = at if scalar else (name, at)
                if name == "keyframe":
                    coords["frame"] = self.frames[at] if scalar else ("keyframe", self.frames[at])
            if not scalar:
                dims.append(name)
        return xr.DataArray(values, dims=dims, coords=coords, name=f"{phase}_attention")

    def maps(
        self,
        phase: str,
        camera: str,
        *,
        layer: Index = None,
        head: Index = None,
        step: int = -1,
        reduce: Reduction = "max",
        keyframe: Index = None,
        query: str | None = None,
    ) -> NDArray[np.float32]:
        """Load maps of attention over one camera's patches, as NumPy.

        Overview maps answer when `query` is one of the stored groups; else the full attention is
        read and reduced.

        Parameters
        ----------
        layer, head, keyframe
            Index (the dimension is dropped), slice, indices, or None for all.
        step
            Denoising step; the last by default. Ignored in one-pass phases.
        reduce
            ``max`` or ``mean`` over the query tokens.
        query
            Query group; None is the phase's first stored group (text, action).

        Returns
        -------
        (keyframe, layer, head, row, col) without the dropped dimensions, weights 0..1.
        """
        spec = self.phase(phase)
        self._check_camera(camera)
        if reduce not in ("max", "mean"):
            raise SelectionError(f"reduce is 'max' or 'mean'; got {reduce!r}")
        group = query if query is not None else spec.query_groups[0]
        if group not in spec.query_groups:
            return self._reduced(spec, camera, group, layer, head, step, reduce, keyframe)
        index: list[int | slice] = []
        picks: list[tuple[int, NDArray[np.intp]]] = []
        for name, wanted in (("keyframe", keyframe), ("step", step), ("layer", layer), ("head", head)):
            if name == "step" and phase not in STEPPED_PHASES:
                continue
            at, scalar = _positions(wanted, self._length(spec, name), f"{phase} {name}")
            if scalar:
                index.append(int(at))
                continue
            block = slice(int(at[0]), int(at[-1]) + 1) if _ascending(at) else slice(None)
            index.append(block)
            pick = at - (block.start or 0)
            if len(pick) != (block.stop or self._length(spec, name)) - (block.start or 0):
                picks.append((sum(isinstance(i, slice) for i in index) - 1, pick))
        values = self.part.map(phase, group, camera, reduce, tuple(index))
        for axis, pick in picks:
            values = values.take(pick, axis=axis)
        return np.asarray(values, np.float32)

    def map(
        self,
        phase: str,
        camera: str,
        *,
        layer: int,
        head: int | Literal["active"] = "active",
        step: int = -1,
        reduce: Reduction = "max",
        keyframe: int | None = None,
        query: str | None = None,
    ) -> xr.DataArray:
        """Load one head's map with names and its geometry.

        ``head="active"`` is the head with the largest variance: at that keyframe, or over the
        episode when `keyframe` is None.

        Returns
        -------
        DataArray (keyframe, row, col), or (row, col) for one keyframe, with attributes
        ``geometry`` (JSON), ``camera`` and ``coverage`` as coordinate.
        """
        if head == "active":
            head = self.active_head(phase, camera, layer=layer, step=step, keyframe=keyframe)
        values = self.maps(
            phase, camera, layer=layer, head=head, step=step, reduce=reduce, keyframe=keyframe, query=query
        )
        geometry = self.geometry(camera)
        dims = ("keyframe", "row", "col")[3 - values.ndim :]
        coords: dict[str, Any] = {
            "layer": layer,
            "head": head,
            "coverage": (("row", "col"), geometry.coverage()),
            "frame": ("keyframe", self.frames) if keyframe is None else int(self.frames[keyframe]),
        }
        attributes = {"geometry": geometry.to_json(), "camera": camera, "reduce": reduce}
        return xr.DataArray(values, dims=dims, coords=coords, attrs=attributes, name=f"{phase}_map")

    def stats(self, metric: str, phase: str, camera: str, *, query: str | None = None) -> Float:
        """Load a metric of ``head_stats``, (keyframe, step, layer, head); one-pass phases have one step."""
        spec = self.phase(phase)
        self._check_camera(camera)
        group = query if query is not None else spec.query_groups[0]
        cache = self._dense.setdefault((phase, camera, group), {})
        if metric not in cache:
            table = self.part.table("head_stats")
            if metric not in table.schema.names:
                raise SelectionError(f"head_stats has no metric {metric!r}; it has: {', '.join(table.schema.names)}")
            keep = pc.and_(
                pc.and_(pc.equal(table["phase"], phase), pc.equal(table["camera"], camera)),
                pc.equal(table["query_group"], group),
            )
            rows = table.select(["keyframe", "step", "layer", "head", metric]).filter(keep)
            dense = np.full((len(self.frames), spec.steps or 1, spec.layers, spec.heads), np.nan, np.float32)
            step = rows["step"].fill_null(0).to_numpy()
            at = (rows["keyframe"].to_numpy(), step, rows["layer"].to_numpy(), rows["head"].to_numpy())
            dense[at] = rows[metric].to_numpy()
            cache[metric] = dense
        return cache[metric]

    def active_head(
        self, phase: str, camera: str, *, layer: int, step: int = -1, keyframe: int | None = None
    ) -> int:
        """Return the head whose raw map has the largest variance.

        For one keyframe, or, when None, once for the episode by the mean over its keyframes.
        """
        variance = self.stats("variance", phase, camera)
        layer = check_index(layer, variance.shape[2], f"{phase} layer")
        at_layer = variance[:, self._step(phase, step), layer]
        if keyframe is not None:
            return int(at_layer[check_index(keyframe, len(at_layer), "keyframe")].argmax())
        return int(np.nanmean(at_layer, axis=0).argmax())

    def mass(self, phase: str, camera: str, *, layer: int, step: int = -1) -> tuple[Float, Float]:
        """Return attention on a camera's image and on its letterbox, each (keyframe, head)."""
        layer = check_index(layer, self.phase(phase).layers, f"{phase} layer")
        at = (slice(None), self._step(phase, step), layer)
        return self.stats("camera_mass", phase, camera)[at], self.stats("letterbox_mass", phase, camera)[at]

    def sink_keys(
        self, phase: str, *, layer: int, head: int, step: int = -1
    ) -> list[tuple[str, int, int, float]]:
        """Return sinks that lie on image patches: (camera, row, col, mean mass)."""
        wanted = self._step(phase, step) if phase in STEPPED_PHASES else None
        return [
            (r["camera"], r["row"], r["col"], r["mass"])
            for r in self.part.table("sinks").to_pylist()
            if (r["phase"], r["layer"], r["head"], r["step"]) == (phase, layer, head, wanted)
            and r["camera"] is not None
        ]

    def image_bytes(self, keyframe: int, camera: str) -> bytes:
        """Return a keyframe's encoded camera image, as it was read."""
        self._check_camera(camera)
        images = self._images
        try:
            return images[check_index(keyframe, len(self.frames), "keyframe"), camera]
        except KeyError:
            raise NotFoundError(f"{self.name}: no image of {camera} at keyframe {keyframe}") from None

    def policy_array(self, name: str) -> NDArray[np.float32]:
        """Load ``actions``, ``actions_recorded``, ``state`` or ``denoising``, first axis keyframe."""
        return np.asarray(self.part.block(f"policy/{name}").read((slice(None),)), np.float32)

    @cached_property
    def _images(self) -> Mapping[tuple[int, str], bytes]:
        table = self.part.table("frames", ["keyframe", "camera", "image"])
        return {(r["keyframe"], r["camera"]): r["image"] for r in table.to_pylist()}

    def _check_camera(self, camera: str) -> None:
        if camera not in self.spec.geometry:
            raise SelectionError(f"no camera {camera!r}; there are: {', '.join(self.cameras)}")

    def _step(self, phase: str, step: int) -> int:
        steps = self.phase(phase).steps
        return 0 if steps is None else check_index(step, steps, f"{phase} step")

    def _length(self, spec: PhaseSpec, dim: str) -> int:
        if dim == "keyframe":
            return len(self.frames)
        return int({"step": spec.steps or 1, "layer": spec.layers, "head": spec.heads}[dim])

    def _select(self, phase: str, axis: str, group: Group | None) -> TokenSelection:
        spec = self.spec.phases[phase]
        aligned = spec.query if axis == "query" else spec.key
        if not isinstance(group, str):
            return select_tokens(aligned, group, where=f"{phase} {axis}")
        at = (phase, axis, group)
        if at not in self._selections:
            self._selections[at] = select_tokens(aligned, group, where=f"{phase} {axis}")
        return self._selections[at]

    def _label(self, phase: str, axis: str) -> NDArray[np.str_]:
        if (phase, axis) not in self._labels:
            spec = self.spec.phases[phase]
            aligned = spec.query if axis == "query" else spec.key
            self._labels[phase, axis] = token_labels(aligned.spans, len(aligned))
        return self._labels[phase, axis]

    def _index(
        self,
        spec: PhaseSpec,
        keyframe: Index,
        step: Index,
        layer: Index,
        head: Index,
        query: Group | None,
        key: Group | None,
        max_bytes: int,
    ) -> tuple[tuple[int | slice, ...], list[tuple[int, NDArray[np.intp]]], list[bool]]:
        index: list[int | slice] = []
        picks: list[tuple[int, NDArray[np.intp]]] = []
        drop: list[bool] = []
        size = 4 if self.spec.precision == "log8" else 2
        named = {"keyframe": keyframe, "step": step, "layer": layer, "head": head}
        if step is not None and spec.steps is None:
            raise SelectionError(f"phase {spec.phase} has no steps; got step {step}")
        for axis, name in enumerate(attention_dims(spec.phase)):
            if name in ("query", "key"):
                tokens = self._select(spec.phase, name, query if name == "query" else key)
                block, at, scalar = tokens.block, tokens.indices, tokens.scalar
                whole = tokens.contiguous
            else:
                positions, scalar = _positions(named[name], self._length(spec, name), f"{spec.phase} {name}")
                at = np.atleast_1d(positions)
                block = slice(int(at.min()), int(at.max()) + 1)
                whole = len(at) == block.stop - block.start and _ascending(at)
            index.append(block)
            drop.append(scalar)
            if not whole:
                picks.append((axis, at - block.start))
            size *= block.stop - block.start
        if size > max_bytes:
            raise SelectionError(
                f"this reads {size / 1e9:.2f} GB of {spec.phase} attention, max_bytes allows "
                f"{max_bytes / 1e9:.2f} GB; select fewer keyframes, layers or heads, or raise max_bytes"
            )
        return tuple(index), picks, drop

    def _reduced(
        self,
        spec: PhaseSpec,
        camera: str,
        group: str,
        layer: Index,
        head: Index,
        step: int,
        reduce: str,
        keyframe: Index,
    ) -> NDArray[np.float32]:
        values = self.values(
            spec.phase,
            keyframe=keyframe,
            step=step if spec.steps is not None else None,
            layer=layer,
            head=head,
            query=group,
            key=f"image:{camera}",
        ).astype(np.float32)
        reduced = values.max(-2) if reduce == "max" else values.mean(-2)
        return reduced.reshape(*reduced.shape[:-1], *self.geometry(camera).grid)


def _positions(wanted: Index, length: int, what: str) -> tuple[Any, bool]:
    if wanted is None:
        return np.arange(length), False
    if isinstance(wanted, (int, np.integer)):
        return check_index(int(wanted), length, what), True
    if isinstance(wanted, slice):
        at = np.arange(length)[wanted]
    else:
        at = np.array([check_index(int(i), length, what) for i in wanted], np.intp)
    if not len(at):
        raise SelectionError(f"{what}: {wanted} selects none of {length}")
    return at, False


def _ascending(at: NDArray[np.intp]) -> bool:
    return bool(len(at)) and bool((np.diff(at) > 0).all())

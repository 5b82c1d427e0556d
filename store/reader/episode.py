"""One committed episode: attention, maps, statistics and frames, by name, as labelled arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal, overload

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..commits import Commit, committed_names, latest_commit
from ..commits.part import Part
from ..errors import EpisodeError, NotFoundError, SelectionError
from ..format.axes import STEPPED_PHASES
from ..format.episode import PhaseSpec
from ..format.generated import DECODE
from ..format.rle import Mask, decode_rle
from ..format.statistics import image_mass
from ..format.weighting import Weighting, check_weighting
from ..image import DamagedImageError, ImageError, plain, read_header
from ..rules import (
    NO_HEAD,
    VARIANCES,
    Active,
    active_heads,
    check_active,
    counting_object_parts,
    describe_active,
    map_variance,
    mean_over_keyframes,
    standing_step,
)
from ..tables.base import METRICS
from . import accessor as _accessor  # noqa: F401  registers .attn
from .blocks import (
    Block,
    Cost,
    Dimension,
    Float,
    Index,
    Positions,
    Read,
    Selection,
    cost,
)
from .head_stats import NUMERIC, HeadStats, at_steps
from .hidden import Layers, Spans, Tokens, hidden_states
from .labels import TokenLabels, labelled, labels_of_tokens
from .pictures import EpisodePictures
from .reads import (
    CarriedRead,
    NormsRead,
    ReducedMapRead,
    Reduction,
    SinklessMapRead,
    StoredMapRead,
    WeightsRead,
)
from .selection import Group, TokenSelection, check_index, select_tokens

Heads = Index | Literal["active"]
"""Head: index, slice, indices, None for all, or the one that `Episode.active_head` names."""
Steps = Index | Literal["first", "last", "all"]
"""Step: index, slice, indices, or in words."""
DEFAULT_MAX_BYTES = 2 << 30
_NO_LIMIT = 1 << 62
_STEP_WORDS: Mapping[str, Index] = {"first": 0, "last": -1, "all": None}


class Episode(EpisodePictures):
    """A committed episode, read as it is asked; made by `Store.episode`. Safe to share between threads.

    Attention, maps and statistics are xarray's arrays with the dimensions ``keyframe``, ``step``,
    ``layer``, ``head`` and ``query``, ``key`` or ``row``, ``col``, and ``frame`` along ``keyframe``. They
    can be written with ``to_netcdf`` and ``to_zarr``. ``.swap_dims(keyframe="frame")`` selects by frame.

    Parameters
    ----------
    part
        Its base part.
    """

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self._statistics = HeadStats(part)
        self._active: dict[tuple[Any, ...], int] = {}
        self._selections: dict[tuple[str, str, str], TokenSelection] = {}
        self._token_labels: dict[str, TokenLabels] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Without what was read: lazy arrays carry an episode to dask's workers.
        return type(self), (self.part,)

    def _repr_html_(self) -> str:
        from .notebook import episode_html

        return episode_html(self)

    def attention(
        self,
        phase: str,
        *,
        keyframe: Index = None,
        camera: str | None = None,
        frame: int | Sequence[int] | None = None,
        step: Steps = None,
        layer: Index = None,
        head: Heads = None,
        query: Group | None = None,
        key: Group | None = None,
        active: Active = "image",
        weighting: Weighting = "raw",
        lazy: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> xr.DataArray:
        """Load attention weights.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        keyframe, layer
            Index (the dimension is dropped), slice, indices, or None for all. Negative ones count
            from the end.
        camera
            In phase ``vision``: whose image encoder. Elsewhere a camera is a token group.
        frame
            Frame index of the recording, or several, instead of `keyframe`.
        step
            As `keyframe`; or ``first``, ``last``, ``all``. In phase ``decode`` ``last`` and negative
            ones count from the end of each keyframe's own text; NaN where that is shorter.
        head
            As `layer`; or ``active``: in each layer the one that `active_head` names for the map (of
            the largest weights) of `query` on the camera of `key`, at `step` if that is one, at the
            keyframe if that is one, else over the episode.
        query, key
            Token group: a name such as ``task``, ``word:cube``, ``image:hand_camera``, an index, a slice
            or indices; None for all. See `attnstore.store.naming`.
        active
            As for `active_head`.
        weighting
            ``raw``, or ``value``: times the norm of what each key would add through the head, rows
            summing to 1 again; see `attnstore.store.format.weighting`.
        lazy
            Read on access: what ``.sel``, ``.isel`` and ``.chunk()`` (with dask) leave of it.
        max_bytes
            Larger results are refused before anything is read; lazy ones never are.

        Returns
        -------
        DataArray (keyframe, [step], layer, head, query, key) without the dropped dimensions, which are
        scalar coordinates; float32 weights, 0..1, rows sum to 1; NaN where a keyframe has fewer tokens.
        Coordinates ``frame``, ``query_label``, ``query_span``, ``key_label``, ``key_span``; accessor
        ``.attn``; attribute ``geometry`` is JSON, by camera.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing, or the result is too large.
        NotFoundError
            If there is no active head, because no keyframe asked for has the camera; or no value norms.
        """
        spec = self._spec_of(phase, camera)
        rest = tuple(
            (axis, Dimension.of_tokens(self._tokens(spec, axis, group)))
            for axis, group in (("query", query), ("key", key))
        )
        selection = self._select(spec, keyframe, frame, step, layer, head, rest)
        attributes: dict[str, Any] = {"long_name": "attention weight"}
        if head == "active":
            seen = spec.camera or self._camera_of(key)
            selection = self._with_active(
                selection, spec, seen, step, query=query, reduce="max", active=active,
                weighting=weighting,
            )  # fmt: skip
            attributes["active"] = describe_active(active)
        read = self._weights_read(spec, weighting, _NO_LIMIT if lazy else max_bytes)
        labels = {
            name: (axis, values[dict(rest)[axis].positions])
            for name, (axis, values) in self._labels(spec).items()
        }
        attributes |= self._identity(spec) | {
            "precision": self.spec.precision,
            "weighting": weighting,
            "geometry": self._geometries,
        }
        name = f"{spec.phase}_attention"
        return self._labelled(
            name, selection, read, labels, attributes, None if lazy else max_bytes
        )

    def value_norms(
        self,
        phase: str,
        *,
        keyframe: Index = None,
        camera: str | None = None,
        frame: int | Sequence[int] | None = None,
        step: Steps = None,
        layer: Index = None,
        head: Index = None,
        key: Group | None = None,
        lazy: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> xr.DataArray:
        """Load value norms: of what each key token would add through each head, ‖v_k W_O^h‖.

        Before any norm that follows the attention, without the projection's bias, within 0.05 %.

        Parameters
        ----------
        phase, keyframe, camera, frame, step, layer, key, lazy, max_bytes
            As for `attention`.
        head
            As `layer`.

        Returns
        -------
        DataArray (keyframe, [step], layer, head, key) without the dropped dimensions; float32, in the
        units of the hidden states; 0 where a layer has no such key, NaN where a keyframe has fewer
        tokens. Coordinates ``frame``, ``key_label``, ``key_span``.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing, or the result is too large.
        NotFoundError
            If the episode was captured without value norms.
        """
        spec = self._spec_of(phase, camera)
        self.part.check_norms(spec.path)
        keys = Dimension.of_tokens(self._tokens(spec, "key", key))
        selection = self._select(spec, keyframe, frame, step, layer, head, (("key", keys),))
        labels = {
            name: (axis, values[keys.positions])
            for name, (axis, values) in self._labels(spec).items()
            if axis == "key"
        }
        attributes = self._identity(spec) | {"long_name": "norm of the value through the head"}
        read = NormsRead(self.part, spec, _NO_LIMIT if lazy else max_bytes)
        return self._labelled(
            f"{spec.phase}_value_norm", selection, read, labels, attributes,
            None if lazy else max_bytes,
        )  # fmt: skip

    def hidden(
        self,
        phase: str,
        *,
        layer: Layers = None,
        span: Spans = None,
        tokens: Tokens = "mean",
        step: Steps = None,
        keyframe: Index = None,
        frame: int | Sequence[int] | None = None,
        lazy: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> xr.DataArray:
        """Load hidden states: what leaves a layer, residual stream included.

        Within 0.05 % of what the model computed, however large.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        layer
            A number, a slice or several, negative ones counted from the end; ``embedding`` is what enters
            layer 0, and stands at -1 along the dimension. None for all that are stored.
        span
            Of means, names of spans: ``task``, ``image:hand_camera``. Else a token group, or several.
        tokens
            ``mean``: over each span's tokens. ``last``: those that the policy makes actions of, after the
            final norm. ``all``: of every token, where the ingest was asked for it (``--hidden``).
        step, keyframe, frame, lazy, max_bytes
            As for `attention`.

        Returns
        -------
        DataArray (keyframe, [step], layer, span, feature) of means, (keyframe, [step], query, feature) of
        the last, (keyframe, [step], layer, query, feature) of all, without the dropped dimensions; float32;
        NaN where a keyframe lacks the token. Coordinates ``frame``, ``layer``, ``span`` or ``query``,
        ``query_label``, ``query_span``.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing, or the result is too large.
        NotFoundError
            If the episode was captured without them.
        """
        return hidden_states(
            self, self.phase(phase), tokens, layer, span, step, keyframe, frame,
            None if lazy else max_bytes,
        )  # fmt: skip

    def maps(
        self,
        phase: str,
        camera: str,
        *,
        layer: Index = None,
        head: Heads = None,
        step: Steps = None,
        reduce: Reduction = "max",
        keyframe: Index = None,
        frame: int | Sequence[int] | None = None,
        query: Group | None = None,
        sink_corrected: bool = False,
        active: Active = "image",
        weighting: Weighting = "raw",
        lazy: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> xr.DataArray:
        """Load maps of attention over one camera's patches.

        Overview maps answer when `query` is one of the stored groups and `weighting` is ``raw``: means
        within 0.05 %, maxima within 1.6 % of the unrounded. Else the full attention is read and reduced.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        camera
            On whose patches.
        layer, keyframe, frame
            As for `attention`.
        head
            As `layer`; or ``active``: in each layer the one that `active_head` names for this very
            map: of this query, reduced this way, at this step; at the keyframe, or over the episode
            where several are asked for.
        step
            As for `attention`, but None is the one that stands for the phase
            (`attnstore.store.rules.standing_step`): the last, of ``decode`` the first. Ignored in
            one-pass phases.
        reduce
            ``max`` or ``mean`` over the query tokens.
        query
            Query group; None is the phase's default (task, action).
        sink_corrected
            Take attention sinks out; see `attnstore.store.reader.sinks`.
        active
            As for `active_head`.
        weighting
            ``raw``, or ``value``: times the norm of what each key would add through the head, rows
            summing to 1 again; see `attnstore.store.format.weighting`.
        lazy
            Read on access, but for the choice of active heads.
        max_bytes
            Larger reads are refused; lazy ones never are.

        Returns
        -------
        DataArray (keyframe, [step], layer, head, row, col) without the dropped dimensions, which are
        scalar coordinates; float32 weights, 0..1, NaN where a keyframe lacks the camera. Coordinates
        ``frame`` and ``coverage`` (row, col): the share of each patch that shows image. Attribute
        ``geometry`` is the JSON of the camera's `Geometry`; ``active`` says what made heads active.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing, or the result is too large.
        NotFoundError
            If there is no active head, because no keyframe asked for has the camera; or no value norms.
        """
        spec = self.phase(phase, camera)
        self._check_camera(camera)
        if reduce not in ("max", "mean"):
            raise SelectionError(f"reduce is 'max' or 'mean'; got {reduce!r}")
        geometry = self.spec.geometry[camera]
        grid = tuple(
            (name, Dimension(np.arange(n), False))
            for name, n in zip(("row", "col"), geometry.grid, strict=True)
        )
        if step is None or spec.steps is None:
            step = standing_step(spec.phase, spec.steps)
        selection = self._select(spec, keyframe, frame, step, layer, head, grid)
        group = query if query is not None else spec.query_groups[0]
        attributes: dict[str, Any] = {}
        if head == "active":
            selection = self._with_active(
                selection, spec, camera, step, query=query, reduce=reduce, active=active,
                sink_corrected=sink_corrected, weighting=weighting,
            )  # fmt: skip
            attributes["active"] = describe_active(active)
        limit = _NO_LIMIT if lazy else max_bytes
        read: Read = self._map_read(spec, camera, reduce, group, weighting, limit)
        if sink_corrected:
            read = SinklessMapRead(read, spec.phase, camera, geometry, self.sink_keys, weighting)
        attributes |= self._identity(spec) | {
            "long_name": f"attention, {reduce} over the {_spell(group)} tokens",
            "camera": camera,
            "query": _spell(group),
            "reduce": reduce,
            "weighting": weighting,
            **({"sinks": "set to the median of the other patches"} if sink_corrected else {}),
            "geometry": geometry.to_json(),
        }
        labels = {"coverage": (("row", "col"), geometry.coverage())}
        name = f"{spec.phase}_map"
        return self._labelled(
            name, selection, read, labels, attributes, None if lazy else max_bytes
        )

    @overload
    def stats(
        self,
        phase: str,
        camera: str,
        metric: str,
        *,
        layer: Index = ...,
        head: Heads = ...,
        step: Steps = ...,
        keyframe: Index = ...,
        frame: int | Sequence[int] | None = ...,
        query: str | None = ...,
        active: Active = ...,
        weighting: Weighting = ...,
        lazy: bool = ...,
    ) -> xr.DataArray: ...

    @overload
    def stats(
        self,
        phase: str,
        camera: str,
        metric: list[str] | tuple[str, ...] | None = ...,
        *,
        layer: Index = ...,
        head: Heads = ...,
        step: Steps = ...,
        keyframe: Index = ...,
        frame: int | Sequence[int] | None = ...,
        query: str | None = ...,
        active: Active = ...,
        weighting: Weighting = ...,
        lazy: bool = ...,
    ) -> xr.Dataset: ...

    def stats(
        self,
        phase: str,
        camera: str,
        metric: str | list[str] | tuple[str, ...] | None = None,
        *,
        layer: Index = None,
        head: Heads = None,
        step: Steps = None,
        keyframe: Index = None,
        frame: int | Sequence[int] | None = None,
        query: str | None = None,
        active: Active = "image",
        weighting: Weighting = "raw",
        lazy: bool = False,
    ) -> xr.DataArray | xr.Dataset:
        """Load statistics of heads, of the unrounded weights: columns of table ``head_stats``.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        camera
            Of whose patches.
        metric
            ``entropy``, ``variance``, ``camera_mass``, ...: an array; several, or None for all: a dataset.
        layer, step, keyframe, frame
            As for `attention`; `step` is ignored in one-pass phases.
        head
            As for `maps`, with ``reduce="mean"``: statistics are of the mean over the query tokens.
        query
            One of `query_groups`; None is the first.
        active
            As for `active_head`.
        weighting
            ``raw``, or ``value``: times the norm of what each key would add through the head, rows
            summing to 1 again; see `attnstore.store.format.weighting`.
        lazy
            Read on access, but for the choice of active heads.

        Returns
        -------
        DataArray, or Dataset of them, (keyframe, [step], layer, head) without the dropped dimensions;
        float32; NaN where there is none. Attributes ``long_name`` and ``units`` are those of
        docs/schema.md.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing, or there are no statistics of the group.
        NotFoundError
            If there is no active head, because no keyframe asked for has the camera; or no value norms.
        """
        spec = self.phase(phase, camera)
        self._check_camera(camera)
        group = query if query is not None else spec.query_groups[0]
        step = None if spec.steps is None else step
        selection = self._select(spec, keyframe, frame, step, layer, head, ())
        about = self._identity(spec) | {"camera": camera, "query": group, "weighting": weighting}
        if head == "active":
            selection = self._with_active(
                selection, spec, camera, step, query=query, reduce="mean", active=active,
                weighting=weighting,
            )  # fmt: skip
            about["active"] = describe_active(active)

        def array(name: str) -> xr.DataArray:
            self._statistics.check(name, spec, group, weighting)
            read = partial(self._read_stats, spec, camera, group, name, weighting)
            text, unit = METRICS.get(name, ("of the patch that max is of", "patches"))
            attributes = {"long_name": text, "units": unit, **about}
            return self._labelled(
                name, selection, read, {}, attributes, None if lazy else _NO_LIMIT
            )

        if isinstance(metric, str):
            return array(metric)
        names = NUMERIC if metric is None else metric
        return xr.Dataset({name: array(name) for name in names}, attrs=about)

    def tree(self) -> xr.DataTree:
        """Return everything that is stored of the episode as a tree that is read on access.

        Returns
        -------
        DataTree: ``/PHASE`` (in phase vision ``/vision/CAMERA``) with ``attention``;
        ``/maps/PHASE/QUERY/CAMERA`` with ``mean`` and ``max``, of every step;
        ``/stats/PHASE/QUERY/CAMERA`` with a variable for each metric; ``/policy`` with ``actions``,
        ``state``, ... Arrays are those of `attention`, `maps`, `stats` and `policy_array`.
        """
        from .tree import episode_tree

        return episode_tree(self)

    def explain(
        self,
        phase: str,
        *,
        camera: str | None = None,
        keyframe: Index = None,
        step: Steps = None,
        layer: Index = None,
        head: Index = None,
        query: Group | None = None,
        key: Group | None = None,
        weighting: Weighting = "raw",
    ) -> Cost:
        """Say what a read would touch, without reading: tier, chunks, files, bytes.

        Parameters
        ----------
        phase, keyframe, step, layer, head, query, key
            As for `attention`, or with `camera` as for `maps`.
        camera
            With it, of `maps`; else of `attention`.
        weighting
            As for `attention`; by values it takes whole rows.

        Returns
        -------
        The cost; as text it is a line for people.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing.
        """
        spec = self.phase(phase, camera)
        group = query if query is not None else spec.query_groups[0]
        if camera is not None and step is None:
            step = standing_step(spec.phase, spec.steps)
        if camera is not None and group in spec.query_groups and weighting == "raw":
            self._check_camera(camera)
            grid = self.spec.geometry[camera].grid
            rest = tuple(
                (name, Dimension(np.arange(n), False))
                for name, n in zip(("row", "col"), grid, strict=True)
            )
            block = self._select(spec, keyframe, None, step, layer, head, rest).block
            path = f"maps/{spec.phase}/{group}/{camera}/max"
            return self._cost(block, "maps", path)
        if camera is not None:
            key, query = f"image:{camera}", group
        if weighting == "value":
            key = None
        rest = tuple(
            (axis, Dimension.of_tokens(self._tokens(spec, axis, wanted)))
            for axis, wanted in (("query", query), ("key", key))
        )
        block = self._select(spec, keyframe, None, step, layer, head, rest).block
        return self._cost(block, "full", f"{spec.path}/attention")

    def map_variance(
        self,
        phase: str,
        camera: str,
        *,
        layer: int,
        step: int | None = None,
        reduce: Reduction = "max",
        query: Group | None = None,
        keyframe: int | None = None,
        sink_corrected: bool = False,
        active: Active = "image",
        weighting: Weighting = "raw",
        maps: NDArray[np.float32] | None = None,
    ) -> NDArray[np.floating[Any]]:
        """Return by how much every head's map of a layer varies, which makes one the active head.

        Of stored groups' means it is what ``head_stats`` has of the unrounded weights; of maxima,
        of words and without sinks it is taken from the map itself.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        camera
            On whose patches.
        layer
            One layer.
        step, reduce, query, keyframe, sink_corrected, active, weighting
            As for `active_head`.
        maps
            These very maps, (keyframe, head, row, col) or (head, row, col), if they are loaded.

        Returns
        -------
        (keyframe, head), or (head,) of one keyframe, squared weights; NaN where there is no map.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing.
        """
        spec = self.phase(phase, camera)
        self._check_camera(camera)
        layer = check_index(layer, spec.layers, f"{phase} layer")
        if keyframe is not None:
            keyframe = check_index(keyframe, len(self.frames), "keyframe")
        check_active(active)
        group = query if query is not None else spec.query_groups[0]
        stored = isinstance(group, str) and group in spec.query_groups
        if stored and reduce == "mean" and not sink_corrected:
            name = VARIANCES[active]
            metric = self._statistics.metric(name, spec, camera, str(group), weighting)
            variance = at_steps(metric, self._steps(phase, step))[:, layer]
            return variance if keyframe is None else variance[keyframe]
        if maps is None:
            maps = self.maps(
                phase, camera, layer=layer, step=step, reduce=reduce, query=query,
                keyframe=keyframe, sink_corrected=sink_corrected, weighting=weighting,
            ).values  # fmt: skip
        return map_variance(maps, self.geometry(camera).coverage(), active)

    def active_head(
        self,
        phase: str,
        camera: str,
        *,
        layer: int,
        step: int | None = None,
        keyframe: int | None = None,
        query: Group | None = None,
        reduce: Reduction = "max",
        sink_corrected: bool = False,
        active: Active = "image",
        weighting: Weighting = "raw",
    ) -> int:
        """Return the head whose map varies most: at one keyframe, or (None) over the episode.

        Over the episode it is the largest mean of the keyframes that have the camera.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        camera
            On whose patches.
        layer
            One layer.
        keyframe
            Index; None is the whole episode.
        step, reduce, query, sink_corrected, weighting
            Which map, as for `maps`. ``head_stats``, the report and ``attnstore sql --named
            most-active-heads`` are of stored groups' means: ``reduce="mean"``.
        active
            ``image``: variance over the patches that show image, weighted by their coverage.
            ``lab``: over the whole grid, letterbox included, as the lab did.

        Returns
        -------
        The head's number.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing.
        NotFoundError
            If no keyframe asked for has the camera.
        """
        asked = (
            phase, camera, layer, step, keyframe, str(query), reduce, sink_corrected, active, weighting,
        )  # fmt: skip
        if asked not in self._active:
            variance = self.map_variance(
                phase, camera, layer=layer, step=step, reduce=reduce, query=query,
                keyframe=keyframe, sink_corrected=sink_corrected, active=active, weighting=weighting,
            )  # fmt: skip
            if keyframe is None:
                variance = mean_over_keyframes(variance)
            self._active[asked] = int(active_heads(variance))
        head = self._active[asked]
        if head == NO_HEAD:
            where = "any keyframe" if keyframe is None else f"keyframe {keyframe}"
            raise NotFoundError(
                f"{self.name}: no head of {phase} is active on {camera} at {where}: there is no map"
            )
        return head

    def mass(
        self,
        phase: str,
        camera: str,
        *,
        layer: int,
        step: int | None = None,
        query: str | None = None,
        weighting: Weighting = "raw",
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return attention on a camera's image and on its letterbox.

        Of the query group's mean, from the statistics, or from the full attention of a group that
        has none.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        camera
            On whose patches.
        layer
            One layer.
        step, query, weighting
            As for `maps`.

        Returns
        -------
        Two arrays (keyframe, head) of shares of the attention, 0..1; NaN without the camera.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing.
        """
        spec = self.phase(phase, camera)
        layer = check_index(layer, spec.layers, f"{phase} layer")
        if query is not None and query not in spec.query_groups:
            maps = self.maps(
                phase,
                camera,
                layer=layer,
                step=step,
                reduce="mean",
                query=query,
                weighting=weighting,
            )
            both = image_mass(maps.values, self.spec.geometry[camera].coverage())
            return both[0].astype(np.float32), both[1].astype(np.float32)
        steps = self._steps(phase, step)
        group = query if query is not None else spec.query_groups[0]
        image, letterbox = (
            at_steps(self._statistics.metric(metric, spec, camera, group, weighting), steps)[
                :, layer
            ]
            for metric in ("camera_mass", "letterbox_mass")
        )
        return image, letterbox

    def sink_keys(
        self,
        phase: str,
        *,
        layer: int,
        head: int,
        step: int | None = None,
        weighting: Weighting = "raw",
    ) -> list[tuple[str, int, int, float]]:
        """Return a head's attention sinks that lie on image patches; see table ``sinks``.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        layer, head
            Of one head.
        step
            One step; None is the one that stands for the phase.
        weighting
            As for `maps`.

        Returns
        -------
        (camera, row, col, mean attention 0..1) of each.

        Raises
        ------
        SelectionError
            If there is no such phase or step.
        """
        asked = self._asked_step(phase, step)
        wanted = self._step(phase, asked) if phase in STEPPED_PHASES else None
        rows = self._statistics.sinks(phase, layer, head, wanted, weighting)
        return [(r["camera"], r["row"], r["col"], r["mass"]) for r in rows if r["row"] is not None]

    def token_stats(self, phase: str, *, camera: str | None = None) -> xr.Dataset:
        """Load how every token's hidden state evolves through a phase's layers.

        Only of an ingest with ``--token-stats``; see `attnstore.store.reader.token_stats`.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        camera
            In phase ``vision``: whose image encoder.

        Returns
        -------
        Dataset of ``norm``, ``cosine_previous`` and ``cosine_embedding``, each (keyframe, [step],
        layer, token) float32, NaN where a keyframe lacks the token; coordinates ``frame``,
        ``token_label``, ``token_span``, ``token_kind`` and ``token_role``.

        Raises
        ------
        NotFoundError
            If the episode was ingested without.
        """
        from .token_stats import token_stats

        return token_stats(self, self._spec_of(phase, camera))

    def generated(self, keyframe: int) -> tuple[str, ...]:
        """Return the tokens that the policy generated, one a step of phase decode.

        As one text they are column ``generated`` of table ``keyframes``.

        Parameters
        ----------
        keyframe
            Index.

        Returns
        -------
        Their texts; none if there are none.

        Raises
        ------
        SelectionError
            If there is no such keyframe.
        """
        return self._generated.get(check_index(keyframe, len(self.frames), "keyframe"), ())

    def image_bytes(self, keyframe: int, camera: str) -> bytes:
        """Return a keyframe's encoded camera image, JPEG or PNG, which every decoder shows alike.

        What an ingest stored is returned as it is; what another writer stored is made `plain`.

        Parameters
        ----------
        keyframe
            Index.
        camera
            One of `cameras`.

        Returns
        -------
        The file's bytes.

        Raises
        ------
        SelectionError
            If there is no such keyframe or camera.
        EpisodeError
            If it is no image that a store holds, or not of its geometry's size.
        NotFoundError
            If there is no such image.
        """
        self._check_camera(camera)
        place = check_index(keyframe, len(self.frames), "keyframe"), camera
        try:
            data = self._images[place]
        except KeyError:
            raise NotFoundError(
                f"{self.name}: no image of {camera} at keyframe {keyframe}"
            ) from None
        try:
            header = read_header(data)
            if (header.height, header.width) != (source := self.geometry(camera).source):
                raise DamagedImageError(
                    f"it is {header.width}x{header.height} pixels; its geometry says "
                    f"{source[1]}x{source[0]}"
                )
            return plain(data)[0] if header.stripped is None else header.stripped
        except ImageError as error:
            raise EpisodeError(
                self.name, f"the stored image of {camera} at keyframe {keyframe}: {error}"
            ) from error

    def object_parts(self) -> tuple[Commit, ...]:
        """Return the object parts that count: one a camera and source, the one committed last.

        As they are now; a detector's before the gripper's.
        """
        paths, commit = self.part.paths, self.part.commit
        parts = committed_names(paths, commit.run, commit.episode)
        names = [part for part in parts if part.startswith("objects-")]
        latest = (latest_commit(paths, commit.run, commit.episode, name) for name in names)
        counting = counting_object_parts(c for c in latest if c is not None)
        return tuple(counting[place] for place in sorted(counting, key=lambda p: (p[2], p[1])))

    def object_masks(self) -> Mapping[tuple[int, str], Mapping[str, Mask]]:
        """Load the masks of `object_parts`: by (keyframe, camera), then by object, (height, width).

        An object that a detector calls ``gripper`` stands for the projected one.
        """
        masks: dict[tuple[int, str], dict[str, Mask]] = {}
        for commit in self.object_parts():
            for row in Part(self.part.paths, commit).table("object_masks").to_pylist():
                here = masks.setdefault((row["keyframe"], row["camera"]), {})
                if row["object"] not in here:
                    here[row["object"]] = decode_rle((row["height"], row["width"]), row["counts"])
        return masks

    def policy_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the policy's own arrays that there are, by name; see `policy_array`."""
        shapes = {}
        for name in ("actions", "actions_recorded", "state", "denoising"):
            with suppress(NotFoundError):
                shapes[name] = tuple(self.part.block(f"policy/{name}").shape)
        return shapes

    def policy_array(self, name: str) -> NDArray[np.float32]:
        """Load one of the policy's own arrays.

        Parameters
        ----------
        name
            ``actions`` (keyframe, horizon, action_dof) in the policy's normalised units,
            ``actions_recorded`` (keyframe, recorded_dof) and ``state`` (keyframe, state_dof) in the
            dataset's, or ``denoising`` (keyframe, step, horizon, action_dof), normalised.

        Returns
        -------
        float32.

        Raises
        ------
        NotFoundError
            If the episode has none of that name.
        """
        return np.asarray(self.part.block(f"policy/{name}").read((slice(None),)), np.float32)

    def _select(
        self, spec: PhaseSpec, keyframe: Index, frame: int | Sequence[int] | None, step: Steps, layer: Index,
        head: Heads, rest: tuple[tuple[str, Dimension], ...],
    ) -> Selection:  # fmt: skip
        """Resolve what is asked for; heads that are active are resolved by `_with_active`."""
        phase = spec.phase
        if frame is not None:
            if keyframe is not None:
                raise SelectionError(f"give keyframe or frame; got {keyframe} and {frame}")
            several = isinstance(frame, Sequence | np.ndarray)
            keyframe = [self.keyframe_of(f) for f in frame] if several else self.keyframe_of(frame)  # type: ignore[union-attr, arg-type]
        if isinstance(head, str) and head != "active":
            raise SelectionError(f"a head is a number, a slice, numbers or 'active'; got {head!r}")
        times = Dimension.of(keyframe, len(self.frames), "keyframe")
        at, own = self._steps_asked(spec, step, times)
        return Selection(
            times,
            at,
            Dimension.of(layer, spec.layers, f"{phase} layer"),
            None if head == "active" else Dimension.of(head, spec.heads, f"{phase} head"),
            rest,
            own,
        )

    def _steps_asked(
        self, spec: PhaseSpec, step: Steps, times: Dimension
    ) -> tuple[Dimension | None, Positions | None]:
        """Steps, or in phase ``decode`` each keyframe's own, -1 where its text is too short."""
        if isinstance(step, str) and step not in _STEP_WORDS:
            raise SelectionError(
                f"a step is a number, a slice, numbers, {', '.join(_STEP_WORDS)}; got {step!r}"
            )
        if spec.steps is None:
            if step is not None and not isinstance(step, str):
                raise SelectionError(f"phase {spec.phase} has no steps; got step {step}")
            return None, None
        if isinstance(step, str):
            step = _STEP_WORDS[step]
        if spec.phase == DECODE and not isinstance(step, slice | None):
            if isinstance(step, int | np.integer):
                if step < 0:
                    check_index(int(step), spec.steps, f"{spec.phase} step")
                    return None, self._steps(spec.phase, int(step))[times.positions]
            elif any(int(each) < 0 for each in step):
                raise SelectionError(
                    f"in phase {spec.phase} a negative step is of each keyframe's own text: ask for "
                    f"one at a time; got {list(step)}"
                )
        return Dimension.of(step, spec.steps, f"{spec.phase} step"), None

    def _with_active(
        self, selection: Selection, spec: PhaseSpec, camera: str, step: Steps, *, query: Group | None,
        reduce: Reduction, active: Active, weighting: Weighting, sink_corrected: bool = False,
    ) -> Selection:  # fmt: skip
        """Resolve each layer's active head."""
        if isinstance(step, str):
            step = _STEP_WORDS[step] if spec.steps is not None else None
        one_step = int(step) if isinstance(step, int | np.integer) else None
        times = selection.keyframe
        heads = np.array(
            [
                self.active_head(
                    spec.path, camera, layer=int(layer), step=one_step,
                    keyframe=int(times.positions[0]) if times.scalar else None,
                    query=query, reduce=reduce, sink_corrected=sink_corrected, active=active,
                    weighting=weighting,
                )
                for layer in selection.layer.positions
            ]
        )  # fmt: skip
        if selection.layer.scalar:
            return replace(selection, head=Dimension(heads, True))
        return replace(selection, active=heads)

    def _camera_of(self, key: Group | None) -> str:
        """Camera of the keys that are asked for."""
        camera = key.removeprefix("image:") if isinstance(key, str) else ""
        if camera not in self.cameras or key == camera:
            raise SelectionError(
                "head='active' is the head whose map of a camera varies most: say which by "
                f"key='image:CAMERA', or give a number; got key {key!r}"
            )
        return camera

    def _labelled(
        self, name: str, selection: Selection, read: Read, extra: Mapping[str, Any],
        attributes: Mapping[str, Any], max_bytes: int | None,
    ) -> xr.DataArray:  # fmt: skip
        return labelled(name, selection, read, self.frames, extra, attributes, max_bytes)

    def _map_read(
        self, spec: PhaseSpec, camera: str, reduce: Reduction, group: Group, weighting: Weighting,
        max_bytes: int,
    ) -> StoredMapRead | ReducedMapRead:  # fmt: skip
        weights = self._weights_read(spec, weighting, max_bytes)
        if isinstance(group, str) and group in spec.query_groups and weighting == "raw":
            return StoredMapRead(self.part, spec, camera, reduce, group, max_bytes)
        return ReducedMapRead(
            weights,
            self._tokens(spec, "query", [group] if isinstance(group, int) else group).indices,
            self._tokens(spec, "key", f"image:{camera}").indices,
            self.spec.geometry[camera].grid,
            reduce,
        )

    def _weights_read(
        self, spec: PhaseSpec, weighting: Weighting, max_bytes: int
    ) -> WeightsRead | CarriedRead:
        check_weighting(weighting)
        weights = WeightsRead(self.part, spec, max_bytes)
        if weighting == "raw":
            return weights
        self.part.check_norms(spec.path)
        return CarriedRead(weights, NormsRead(self.part, spec, max_bytes))

    def _read_stats(
        self, spec: PhaseSpec, camera: str, group: str, metric: str, weighting: Weighting,
        keyframes: Positions, steps: Positions | None, layers: Positions, heads: Positions,
    ) -> Float:  # fmt: skip
        dense = self._statistics.metric(metric, spec, camera, group, weighting)
        only = np.zeros(1, np.intp) if steps is None else steps
        values = dense[np.ix_(keyframes, only, layers, heads)]
        return values[:, 0] if steps is None else values

    def _identity(self, spec: PhaseSpec) -> dict[str, Any]:
        return {
            "phase": spec.phase,
            **({} if spec.camera is None else {"camera": spec.camera}),
            "episode": self.name,
            "run": self.run,
        }

    @cached_property
    def _geometries(self) -> str:
        """JSON of every camera's geometry: `to_netcdf` and `to_zarr` take text alone."""
        return json.dumps({c: json.loads(g.to_json()) for c, g in self.spec.geometry.items()})

    def _spec_of(self, phase: str, camera: str | None) -> PhaseSpec:
        spec = self.phase(phase, camera)
        if camera is not None and spec.camera != camera:
            raise SelectionError(
                f"phase {phase} is not of one camera: select its tokens by "
                f"query='image:{camera}' or key='image:{camera}'"
            )
        return spec

    def _cost(self, block: Block, tier: str, path: str) -> Cost:
        grid = self.part.grid(path)
        found = cost(block, tier, path, grid.chunk, grid.shard, grid.shape, 4)
        return replace(found, missing_bytes=self.part.absent_bytes(path, block.index))

    def _tokens(self, spec: PhaseSpec, axis: str, group: Group | None) -> TokenSelection:
        aligned = spec.query if axis == "query" else spec.key
        if group is not None and not isinstance(group, str):
            return select_tokens(aligned, group, where=f"{spec.path} {axis}")
        at = (spec.path, axis, group or "")
        if at not in self._selections:
            self._selections[at] = select_tokens(aligned, group, where=f"{spec.path} {axis}")
        return self._selections[at]

    def _labels(self, spec: PhaseSpec) -> TokenLabels:
        if spec.path not in self._token_labels:
            self._token_labels[spec.path] = labels_of_tokens(spec)
        return self._token_labels[spec.path]

    def _asked_step(self, phase: str, step: int | None) -> int:
        """Return the step as it is counted, or for None the one that stands for the phase."""
        return (standing_step(phase, self.steps(phase)) or 0) if step is None else step

    def _steps(self, phase: str, step: int | None) -> NDArray[np.intp]:
        """Step of every keyframe, (keyframe,); -1 where a text is too short to have it."""
        step = self._asked_step(phase, step)
        at = self._step(phase, step)
        if phase != "decode" or step >= 0:
            return np.full(len(self.frames), at)
        lengths = [len(self._generated.get(k, ())) for k in range(len(self.frames))]
        return np.maximum(np.array(lengths, np.intp) + step, -1)

    @cached_property
    def _generated(self) -> Mapping[int, tuple[str, ...]]:
        chosen: dict[int, list[tuple[int, str]]] = {}
        for row in self.part.table("tokens", ["keyframe", "axis", "index", "text"]).to_pylist():
            if row["axis"] == "step":
                chosen.setdefault(row["keyframe"], []).append((row["index"], row["text"]))
        return {k: tuple(text for _, text in sorted(steps)) for k, steps in chosen.items()}

    @cached_property
    def _images(self) -> Mapping[tuple[int, str], bytes]:
        table = self.part.table("frames", ["keyframe", "camera", "image"])
        return {(r["keyframe"], r["camera"]): r["image"] for r in table.to_pylist()}


def _spell(group: Group) -> str:
    """Spell a token group for an attribute."""
    return group if isinstance(group, str) else str(group)

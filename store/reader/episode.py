"""One committed episode: attention, overview maps, statistics and frames, by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..commits import Commit, committed_names, latest_commit
from ..commits.part import Part
from ..errors import EpisodeError, NotFoundError, SelectionError
from ..format.axes import STEPPED_PHASES
from ..format.rle import Mask, decode_rle
from ..format.statistics import image_mass
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
from . import sinks
from .blocks import Dimension, Index
from .head_stats import HeadStats, at_steps
from .selection import Group, check_index
from .slices import DEFAULT_MAX_BYTES, AttentionSlices

Reduction = Literal["max", "mean"]


class Episode(AttentionSlices):
    """A committed episode, read lazily; made by `Store.episode`. Safe to share between threads."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self._statistics = HeadStats(part)
        self._active: dict[tuple[Any, ...], int] = {}

    def _repr_html_(self) -> str:
        from .notebook import episode_html

        return episode_html(self)

    def maps(
        self,
        phase: str,
        camera: str,
        *,
        layer: Index = None,
        head: Index = None,
        step: int | None = None,
        reduce: Reduction = "max",
        keyframe: Index = None,
        query: Group | None = None,
        sink_corrected: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> NDArray[np.float32]:
        """Load maps of attention over one camera's patches, as NumPy.

        Overview maps answer when `query` is one of the stored groups: means within 0.05 %, maxima
        within 1.6 % of the unrounded. Else the full attention is read and reduced.

        Parameters
        ----------
        layer, head, keyframe
            Index (the dimension is dropped), slice, indices, or None for all.
        step
            Denoising step, ignored in one-pass phases; None is the one that stands for the phase
            (`attnstore.store.rules.standing_step`): the last, of ``decode`` the first. In phase
            ``decode`` a negative one counts from the end of each keyframe's own text; NaN where
            that is shorter.
        reduce
            ``max`` or ``mean`` over the query tokens.
        query
            Query group; None is the phase's default (task, action).
        sink_corrected
            Take attention sinks out; see `attnstore.store.reader.sinks`.
        max_bytes
            Larger reads are refused.

        Returns
        -------
        (keyframe, layer, head, row, col) without the dropped dimensions, weights 0..1.
        """
        if sink_corrected:
            raw = self.maps(
                phase, camera, layer=layer, head=head, step=step, reduce=reduce, keyframe=keyframe,
                query=query, max_bytes=max_bytes,
            )  # fmt: skip
            return self._without_sinks(raw, phase, camera, keyframe, layer, head, step)
        spec = self.phase(phase, camera)
        self._check_camera(camera)
        if reduce not in ("max", "mean"):
            raise SelectionError(f"reduce is 'max' or 'mean'; got {reduce!r}")
        grid = self.spec.geometry[camera].grid
        step = self._asked_step(phase, step)
        if phase == "decode" and step < 0:
            shape = self._map_block(spec, grid, keyframe, step, layer, head)
            shape.check_size(4, max_bytes, f"{phase} maps")
            at_each = self._keyframe(keyframe, None)
            last = self._steps(phase, step)
            maps = [
                self.maps(
                    phase, camera, layer=layer, head=head, step=max(int(last[k]), 0), reduce=reduce,
                    keyframe=int(k), query=query, max_bytes=max_bytes,
                ) + np.float32(0 if last[k] >= 0 else np.nan)
                for k in at_each.positions
            ]  # fmt: skip
            if maps:
                return maps[0] if at_each.scalar else np.stack(maps)
        group = query if query is not None else spec.query_groups[0]
        if isinstance(group, str) and group in spec.query_groups:
            block = self._map_block(spec, grid, keyframe, step, layer, head)
            block.check_size(4, max_bytes, f"{phase} maps")
            stored = self.part.map(spec.phase, group, camera, reduce, block.index)
            return np.asarray(block.pick(stored), np.float32)
        at = self._step(phase, step) if spec.steps is not None else None
        weights = self.values(
            spec.path, keyframe=keyframe, step=at, layer=layer, head=head,
            query=[group] if isinstance(group, int) else group, key=f"image:{camera}", max_bytes=max_bytes,
        ).astype(np.float32)  # fmt: skip
        if reduce == "max":
            reduced = np.fmax.reduce(weights, axis=-2)
        else:
            # Not np.nanmean: it warns where a keyframe lacks the whole group or the camera.
            there = ~np.isnan(weights)
            with np.errstate(invalid="ignore"):
                reduced = weights.sum(-2, where=there) / there.sum(-2)
        return np.asarray(reduced.reshape(*reduced.shape[:-1], *grid), np.float32)

    def _without_sinks(
        self, maps: NDArray[np.float32], phase: str, camera: str, keyframe: Index, layer: Index,
        head: Index, step: int | None,
    ) -> NDArray[np.float32]:  # fmt: skip
        """Correct each layer's and head's maps on its own: a sink belongs to a head."""
        times = self._keyframe(keyframe, None).positions
        layers = Dimension.of(layer, self.layers(phase), f"{phase} layer").positions
        heads = Dimension.of(head, self.heads(phase), f"{phase} head").positions
        full = maps.reshape(len(times), len(layers), len(heads), *maps.shape[-2:]).copy()
        for i, j in np.ndindex(len(layers), len(heads)):
            keys = self.sink_keys(phase, layer=int(layers[i]), head=int(heads[j]), step=step)
            own = [(row, col) for at, row, col, _ in keys if at == camera]
            full[:, i, j] = sinks.remove(full[:, i, j], self.geometry(camera), own)
        return full.reshape(maps.shape)

    def map(
        self,
        phase: str,
        camera: str,
        *,
        layer: int,
        head: int | Literal["active"] = "active",
        step: int | None = None,
        reduce: Reduction = "max",
        keyframe: int | None = None,
        query: Group | None = None,
        sink_corrected: bool = False,
        active: Active = "image",
    ) -> xr.DataArray:
        """Load one head's map with names and its geometry.

        Parameters
        ----------
        head
            ``active`` is the one that `active_head` names for this very map: of this query, reduced
            this way, at this step; at the keyframe, or over the episode when `keyframe` is None.
        step, reduce, query, sink_corrected
            As for `maps`.
        active
            As for `active_head`.

        Returns
        -------
        DataArray (keyframe, row, col), or (row, col) for one keyframe, with coordinate
        ``coverage`` and attributes ``geometry`` (JSON), ``camera``, ``reduce`` and, of the active
        head, ``active``: what made it so, in words.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing.
        NotFoundError
            If there is no active head, because no keyframe asked for has the camera.
        """
        attributes = {"camera": camera, "reduce": reduce}
        if head == "active":
            head = self.active_head(
                phase, camera, layer=layer, step=step, keyframe=keyframe, query=query,
                reduce=reduce, sink_corrected=sink_corrected, active=active,
            )  # fmt: skip
            attributes["active"] = describe_active(active)
        values = self.maps(
            phase,
            camera,
            layer=layer,
            head=head,
            step=step,
            reduce=reduce,
            keyframe=keyframe,
            query=query,
            sink_corrected=sink_corrected,
        )
        geometry = self.geometry(camera)
        dims = ("keyframe", "row", "col")[3 - values.ndim :]
        coords: dict[str, Any] = {
            "layer": layer,
            "head": head,
            "coverage": (("row", "col"), geometry.coverage()),
            "frame": ("keyframe", self.frames) if keyframe is None else int(self.frames[keyframe]),
        }
        attributes["geometry"] = geometry.to_json()
        return xr.DataArray(values, coords, dims, name=f"{phase}_map", attrs=attributes)

    def stats(
        self, metric: str, phase: str, camera: str, *, query: str | None = None
    ) -> NDArray[np.float32]:
        """Load a metric of ``head_stats``, (keyframe, step, layer, head); one-pass phases have one step."""
        self._check_camera(camera)
        spec = self.phase(phase, camera)
        group = query if query is not None else spec.query_groups[0]
        return self._statistics.metric(metric, spec, camera, group)

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
        maps: NDArray[np.float32] | None = None,
    ) -> NDArray[np.floating[Any]]:
        """Return by how much every head's map of a layer varies, which makes one the active head.

        Of stored groups' means it is what ``head_stats`` has of the unrounded weights; of maxima,
        of words and without sinks it is taken from the map itself.

        Parameters
        ----------
        step, reduce, query, sink_corrected, active
            As for `active_head`.
        maps
            These very maps, (keyframe, head, row, col) or (head, row, col), if they are loaded.

        Returns
        -------
        (keyframe, head), or (head,) of one keyframe; NaN where there is no map.
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
            metric = self._statistics.metric(VARIANCES[active], spec, camera, str(group))
            variance = at_steps(metric, self._steps(phase, step))[:, layer]
            return variance if keyframe is None else variance[keyframe]
        if maps is None:
            maps = self.maps(
                phase, camera, layer=layer, step=step, reduce=reduce, query=query,
                keyframe=keyframe, sink_corrected=sink_corrected,
            )  # fmt: skip
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
    ) -> int:
        """Return the head whose map varies most: at one keyframe, or (None) over the episode.

        Over the episode it is the largest mean of the keyframes that have the camera.

        Parameters
        ----------
        step, reduce, query, sink_corrected
            Which map, as for `maps`. ``head_stats``, the report and ``attnstore sql --named
            most-active-heads`` are of stored groups' means: ``reduce="mean"``.
        active
            ``image``: variance over the patches that show image, weighted by their coverage.
            ``lab``: over the whole grid, letterbox included, as the lab did.

        Raises
        ------
        SelectionError
            If a name or an index matches nothing.
        NotFoundError
            If no keyframe asked for has the camera.
        """
        asked = (phase, camera, layer, step, keyframe, str(query), reduce, sink_corrected, active)
        if asked not in self._active:
            variance = self.map_variance(
                phase, camera, layer=layer, step=step, reduce=reduce, query=query,
                keyframe=keyframe, sink_corrected=sink_corrected, active=active,
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
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return attention on a camera's image and on its letterbox, each (keyframe, head).

        Of the query group's mean, from the statistics, or from the full attention of a group that
        has none.
        """
        spec = self.phase(phase, camera)
        layer = check_index(layer, spec.layers, f"{phase} layer")
        if query is not None and query not in spec.query_groups:
            maps = self.maps(phase, camera, layer=layer, step=step, reduce="mean", query=query)
            both = image_mass(maps, self.spec.geometry[camera].coverage())
            return both[0].astype(np.float32), both[1].astype(np.float32)
        steps = self._steps(phase, step)
        image, letterbox = (
            at_steps(self.stats(metric, phase, camera, query=query), steps)[:, layer]
            for metric in ("camera_mass", "letterbox_mass")
        )
        return image, letterbox

    def sink_keys(
        self, phase: str, *, layer: int, head: int, step: int | None = None
    ) -> list[tuple[str, int, int, float]]:
        """Return sinks that lie on image patches: (camera, row, col, mean mass)."""
        asked = self._asked_step(phase, step)
        wanted = self._step(phase, asked) if phase in STEPPED_PHASES else None
        rows = self._statistics.sinks(phase, layer, head, wanted)
        return [(r["camera"], r["row"], r["col"], r["mass"]) for r in rows if r["row"] is not None]

    def token_stats(self, phase: str, *, camera: str | None = None) -> xr.Dataset:
        """Load how every token's hidden state evolves through a phase's layers.

        Only of an ingest with ``--token-stats``; see `attnstore.store.reader.token_stats`.

        Parameters
        ----------
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
        """Return the tokens that the policy generated, one a step of phase decode; none if none.

        As one text they are column ``generated`` of table ``keyframes``.
        """
        return self._generated.get(check_index(keyframe, len(self.frames), "keyframe"), ())

    def image_bytes(self, keyframe: int, camera: str) -> bytes:
        """Return a keyframe's encoded camera image, JPEG or PNG, which every decoder shows alike.

        What an ingest stored is returned as it is; what another writer stored is made `plain`.

        Raises
        ------
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

    def policy_array(self, name: str) -> NDArray[np.float32]:
        """Load ``actions``, ``actions_recorded``, ``state`` or ``denoising``, first axis keyframe.

        ``actions`` are (keyframe, horizon, action_dof), ``denoising`` (keyframe, step, horizon,
        action_dof) the chunk after each step, both in the policy's normalised units; the recorded
        ones, (keyframe, recorded_dof) and (keyframe, state_dof), in the dataset's.
        """
        return np.asarray(self.part.block(f"policy/{name}").read((slice(None),)), np.float32)

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

"""One committed episode: attention, overview maps, statistics and frames, by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..axes import STEPPED_PHASES
from ..errors import EpisodeError, NotFoundError, SelectionError
from ..image import DamagedImageError, ImageError, plain, read_header
from ..part import Part
from ..statistics import image_mass, image_variance
from .blocks import Index
from .head_stats import HeadStats, at_steps
from .selection import Group, check_index
from .slices import DEFAULT_MAX_BYTES, AttentionSlices

Reduction = Literal["max", "mean"]


class Episode(AttentionSlices):
    """A committed episode, read lazily; made by `Store.episode`. Safe to share between threads."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self._statistics = HeadStats(part)

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
        step: int = -1,
        reduce: Reduction = "max",
        keyframe: Index = None,
        query: Group | None = None,
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
            Denoising step; the last by default. Ignored in one-pass phases. In phase ``decode`` a
            negative one counts from the end of each keyframe's own text; NaN where that is shorter.
        reduce
            ``max`` or ``mean`` over the query tokens.
        query
            Query group; None is the phase's default (task, action).
        max_bytes
            Larger reads are refused.

        Returns
        -------
        (keyframe, layer, head, row, col) without the dropped dimensions, weights 0..1.
        """
        spec = self.phase(phase, camera)
        self._check_camera(camera)
        if reduce not in ("max", "mean"):
            raise SelectionError(f"reduce is 'max' or 'mean'; got {reduce!r}")
        grid = self.spec.geometry[camera].grid
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
        query: Group | None = None,
    ) -> xr.DataArray:
        """Load one head's map with names and its geometry.

        ``head="active"`` is the head with the largest variance: at that keyframe, or over the
        episode when `keyframe` is None.

        Returns
        -------
        DataArray (keyframe, row, col), or (row, col) for one keyframe, with coordinate
        ``coverage`` and attributes ``geometry`` (JSON) and ``camera``.
        """
        if head == "active":
            head = self.active_head(phase, camera, layer=layer, step=step, keyframe=keyframe)
        values = self.maps(
            phase,
            camera,
            layer=layer,
            head=head,
            step=step,
            reduce=reduce,
            keyframe=keyframe,
            query=query,
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
        return xr.DataArray(values, coords, dims, name=f"{phase}_map", attrs=attributes)

    def stats(
        self, metric: str, phase: str, camera: str, *, query: str | None = None
    ) -> NDArray[np.float32]:
        """Load a metric of ``head_stats``, (keyframe, step, layer, head); one-pass phases have one step."""
        self._check_camera(camera)
        spec = self.phase(phase, camera)
        group = query if query is not None else spec.query_groups[0]
        return self._statistics.metric(metric, spec, camera, group)

    def active_head(
        self, phase: str, camera: str, *, layer: int, step: int = -1, keyframe: int | None = None,
        query: str | None = None,
    ) -> int:  # fmt: skip
        """Return the head whose raw map has the largest variance.

        For one keyframe, or, when None, once for the episode by the mean over its keyframes. Of a
        group without statistics, by the mean maps from the full attention.
        """
        spec = self.phase(phase, camera)
        self._check_camera(camera)
        layer = check_index(layer, spec.layers, f"{phase} layer")
        if keyframe is not None:
            keyframe = check_index(keyframe, len(self.frames), "keyframe")
        group = spec.query_groups[0] if query is None else query
        if group not in spec.query_groups:
            maps = self.maps(
                phase, camera, layer=layer, step=step, reduce="mean", query=group,
                keyframe=None if keyframe is None else [keyframe],
            )  # fmt: skip
            variance = image_variance(maps, self.spec.geometry[camera].coverage())
            there = ~np.isnan(variance)
            total = variance.sum(0, where=there) / there.sum(0).clip(1)
            return int(total.argmax())
        steps = self._steps(phase, step)
        return int(self._statistics.active(spec, camera, group, steps, keyframe)[layer])

    def mass(
        self, phase: str, camera: str, *, layer: int, step: int = -1, query: str | None = None
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
        self, phase: str, *, layer: int, head: int, step: int = -1
    ) -> list[tuple[str, int, int, float]]:
        """Return sinks that lie on image patches: (camera, row, col, mean mass)."""
        wanted = self._step(phase, step) if phase in STEPPED_PHASES else None
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

    def policy_array(self, name: str) -> NDArray[np.float32]:
        """Load ``actions``, ``actions_recorded``, ``state`` or ``denoising``, first axis keyframe."""
        return np.asarray(self.part.block(f"policy/{name}").read((slice(None),)), np.float32)

    def _steps(self, phase: str, step: int) -> NDArray[np.intp]:
        """Step of every keyframe, (keyframe,); -1 where a text is too short to have it."""
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

"""Regions: which parts of the images the action depends on, whatever the attention says.

One region is replaced at a time: a cell of a grid (an effect map), an object of a detector in one
camera or in all, a whole camera, or a band of one map's pixels by rank. For each, the attention of every layer's map
on it is kept (`region_attention`), so that looked at and used can be held against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from attnstore.store.errors import UsageError
from attnstore.store.format.episode import EpisodeSpec
from attnstore.store.format.pixels import attention_on, pixel_heat, ranked_pixels
from attnstore.store.rules import Active, check_active

from .choices import camera_label, camera_sets, check_map, chosen_layers, step_number
from .fills import Fill, check_fill
from .keyframe import MapChoice, StoredKeyframe
from .variant import Mask, Probe, Variant, masked

By = Literal["cell", "object", "camera", "rank"]
BY: tuple[By, ...] = get_args(By)
TOGETHER = "object together"
"""Column ``target`` of an object that is replaced in several cameras at once; the ledger, where a
region is of one camera, has it not among its objects."""


@dataclass(frozen=True, slots=True)
class Regions(Probe):
    """Options of `attnstore probe regions`."""

    kind: ClassVar[str] = "regions"
    regions: ClassVar[bool] = True

    by: tuple[By, ...] = ("camera", "cell")
    cells: tuple[int, int] = (4, 4)
    """Rows and columns of the grid over each camera's image."""
    cameras: tuple[str, ...] = ("each",)
    """Cameras whose regions are replaced; of sets of several, whole cameras and objects are
    replaced in all at once."""
    fill: Fill = "mean"
    phase: str = ""
    """Phase of the map of ``rank``."""
    group: str = ""
    layers: tuple[int, ...] = ()
    """Layers of the maps of ``rank``."""
    heads: str = "mean"
    step: int | None = None
    bands: int = 10
    """Bands of equally many pixels, by rank."""
    active: Active = "image"
    """What makes a head the active one, where `heads` is ``active``."""

    def __post_init__(self) -> None:
        check_fill(self.fill)
        check_active(self.active)
        for by in self.by:
            if by not in BY:
                raise UsageError(f"regions are by {', '.join(BY)}; got {by!r}")
        if min(self.cells) < 1:
            raise UsageError(f"a grid has at least one row and column; got {self.cells}")
        if self.bands < 2:
            raise UsageError(f"bands by rank are at least 2; got {self.bands}")
        if "rank" in self.by and not (self.phase and self.group and self.layers):
            raise UsageError("regions by rank need the map: --phase, --query and --layers")

    @property
    def needs_objects(self) -> bool:
        """Whether objects are among the regions."""
        return "object" in self.by

    def check(self, spec: EpisodeSpec) -> None:
        """Check the cameras, and the map of ``rank``."""
        camera_sets(spec, self.cameras)
        if "rank" in self.by:
            check_map(spec, self.phase, self.group, self.heads, self.step)
            chosen_layers(spec, self.phase, self.layers)

    def forwards(self, spec: EpisodeSpec) -> int:
        """Count the variants of a keyframe; objects are not known before, and not counted."""
        sets = camera_sets(spec, self.cameras)
        singles = len({camera for cameras in sets for camera in cameras})
        return (
            len(sets) * ("camera" in self.by)
            + singles * self.cells[0] * self.cells[1] * ("cell" in self.by)
            + singles * len(self.layers) * self.bands * ("rank" in self.by)
        )

    def variants(self, keyframe: StoredKeyframe) -> Iterator[Variant]:
        """Yield sets of cameras: whole, or an object in all; then the regions of each camera."""
        sets = camera_sets(keyframe.spec, self.cameras)
        if "camera" in self.by:
            for cameras in sets:
                here = {c: keyframe.seen(c) for c in cameras if c in keyframe.cameras}
                if here:
                    label = camera_label(keyframe.spec, tuple(here))
                    yield self._region(keyframe, f"camera/{label}", here, "camera", label)
        if "object" in self.by:
            for cameras in sets:
                yield from self._together(keyframe, cameras)
        for camera in dict.fromkeys(c for cameras in sets for c in cameras):
            if camera not in keyframe.cameras:
                continue
            if "object" in self.by:
                yield from self._objects(keyframe, camera)
            if "cell" in self.by:
                yield from self._cells(keyframe, camera)
            if "rank" in self.by:
                yield from self._ranks(keyframe, camera)

    def _objects(self, keyframe: StoredKeyframe, camera: str) -> Iterator[Variant]:
        for name, mask in keyframe.objects(camera).items():
            seen = mask & keyframe.seen(camera)
            if seen.any():
                yield self._region(
                    keyframe, f"object/{camera}/{name}", {camera: seen}, "object", name
                )

    def _together(self, keyframe: StoredKeyframe, cameras: tuple[str, ...]) -> Iterator[Variant]:
        """Yield each object that several of the cameras show, removed from all of them.

        From one picture alone it is not gone: another may show it.
        """
        shown: dict[str, dict[str, Mask]] = {}
        for camera in (c for c in cameras if c in keyframe.cameras):
            for name, mask in keyframe.objects(camera).items():
                if (seen := mask & keyframe.seen(camera)).any():
                    shown.setdefault(name, {})[camera] = seen
        label = camera_label(keyframe.spec, cameras)
        for name, masks in shown.items():
            if len(masks) > 1:
                yield self._region(keyframe, f"object/{label}/{name}", masks, TOGETHER, name)

    def _cells(self, keyframe: StoredKeyframe, camera: str) -> Iterator[Variant]:
        seen = keyframe.seen(camera)
        rows = np.linspace(0, seen.shape[0], self.cells[0] + 1).round().astype(int)
        cols = np.linspace(0, seen.shape[1], self.cells[1] + 1).round().astype(int)
        for row in range(self.cells[0]):
            for col in range(self.cells[1]):
                mask = np.zeros_like(seen)
                inside = (slice(rows[row], rows[row + 1]), slice(cols[col], cols[col + 1]))
                mask[inside] = seen[inside]
                if mask.any():
                    place = f"{row},{col}"
                    yield self._region(
                        keyframe, f"cell/{camera}/{place}", {camera: mask}, "cell", place
                    )

    def _ranks(self, keyframe: StoredKeyframe, camera: str) -> Iterator[Variant]:
        geometry = keyframe.geometry(camera)
        for layer in self.layers:
            choice = MapChoice(
                self.phase, layer, self.group, self.heads, "mean", self.step, self.active
            )
            values = keyframe.map(camera, choice)
            order = ranked_pixels(pixel_heat(values, geometry))
            edges = np.linspace(0, len(order), self.bands + 1).round().astype(int)
            for band in range(self.bands):
                mask = np.zeros(geometry.source, np.bool_)
                mask.reshape(-1)[order[edges[band] : edges[band + 1]]] = True
                yield self._region(
                    keyframe, f"rank/{camera}/L{layer:02d}/{band}", {camera: mask}, "rank",
                    f"{band / self.bands:.2g}-{(band + 1) / self.bands:.2g}",
                    phase=self.phase, layer=layer, query_group=self.group, heads=self.heads,
                    step=step_number(keyframe.spec, self.phase, self.step),
                    attention=float(attention_on(mask, values, geometry)),
                )  # fmt: skip

    def _region(
        self,
        keyframe: StoredKeyframe,
        name: str,
        masks: Mapping[str, Mask],
        target: str,
        detail: str,
        **more: Any,
    ) -> Variant:
        columns = {"target": target, "detail": detail, **more}
        return masked(name, keyframe, masks, self.fill, columns)

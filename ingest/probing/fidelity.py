"""Mask fidelity: whether the action depends on the pixels that a map points at.

For every layer, the top share of the map's pixels is replaced, and as many pixels of the same
shape where little attention lies. The lab's fidelity of a layer is the metric of the first minus
that of the second. Curves do the same for every share of the pixels (RISE, Petsiuk et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError
from attnstore.store.format.episode import EpisodeSpec
from attnstore.store.format.pixels import attention_on, pixel_heat, ranked_pixels, top_pixels
from attnstore.store.rules import Active, check_active

from .choices import (
    camera_label,
    camera_sets,
    check_map,
    check_share,
    chosen_layers,
    step_number,
)
from .controls import Control, Moved, check_control, moved, scattered
from .fills import Fill, check_fill
from .keyframe import MapChoice, StoredKeyframe
from .variant import BASE, Mask, Probe, Variant, masked

Float = NDArray[np.float64]
CURVES = "intervention_curves"


@dataclass(frozen=True, slots=True)
class Fidelity(Probe):
    """Options of `attnstore probe fidelity`."""

    kind: ClassVar[str] = "fidelity"

    phase: str
    group: str
    """Query tokens of the maps."""
    layers: tuple[int, ...] | None = None
    """None: all."""
    heads: str = "mean"
    """As `attnstore.ingest.probing.keyframe.MapChoice.heads`."""
    reduce: Literal["mean", "max"] = "mean"
    step: int | None = None
    share: float = 0.1
    """Of each image's seen pixels."""
    fill: Fill = "mean"
    cameras: tuple[str, ...] = ("all",)
    """As `attnstore.ingest.probing.choices.camera_sets` takes them."""
    control: Control = "shape"
    repeats: int = 3
    """Controls of each mask."""
    curve_points: int = 0
    """Points of each deletion and insertion curve beyond 0; 0: no curves."""
    active: Active = "image"
    """What makes a head the active one, where `heads` is ``active``."""

    def __post_init__(self) -> None:
        check_share(self.share)
        check_fill(self.fill)
        check_control(self.control)
        check_active(self.active)
        if self.reduce not in ("mean", "max"):
            raise UsageError(f"maps are reduced over tokens by mean or max; got {self.reduce!r}")
        if self.repeats < 1:
            raise UsageError(f"a fidelity needs at least one control; got {self.repeats} repeats")

    def check(self, spec: EpisodeSpec) -> None:
        """Check phase, group, layers and cameras."""
        check_map(spec, self.phase, self.group, self.heads, self.step)
        chosen_layers(spec, self.phase, self.layers)
        camera_sets(spec, self.cameras)

    def forwards(self, spec: EpisodeSpec) -> int:
        """Count the variants of a keyframe."""
        each = self._high_repeats + self.repeats
        # The whole image replaced is one point that all orders share.
        each += self.curve_points and 1 + 2 * (self.curve_points - 1) * (1 + self.repeats)
        layers = chosen_layers(spec, self.phase, self.layers)
        return each * len(layers) * len(camera_sets(spec, self.cameras))

    @property
    def _high_repeats(self) -> int:
        # Other fills replace by the same every time.
        return self.repeats if self.fill == "noise" else 1

    def variants(self, keyframe: StoredKeyframe) -> Iterator[Variant]:
        """Yield attention, control and the curves' points, layer by layer."""
        spec = keyframe.spec
        for layer in chosen_layers(spec, self.phase, self.layers):
            choice = MapChoice(
                self.phase, layer, self.group, self.heads, self.reduce, self.step, self.active
            )
            for cameras in camera_sets(spec, self.cameras):
                here = tuple(c for c in cameras if c in keyframe.cameras)
                if here:
                    yield from self._layer(keyframe, choice, here)

    def _layer(
        self, keyframe: StoredKeyframe, choice: MapChoice, cameras: tuple[str, ...]
    ) -> Iterator[Variant]:
        name = f"L{choice.layer:02d}/{camera_label(keyframe.spec, cameras)}"
        shown: dict[str, Any] = {
            "phase": self.phase,
            "step": step_number(keyframe.spec, self.phase, self.step),
            "layer": choice.layer,
            "query_group": self.group,
            "heads": self.heads,
        }
        maps = {camera: keyframe.map(camera, choice) for camera in cameras}
        heat = {camera: pixel_heat(maps[camera], keyframe.geometry(camera)) for camera in cameras}
        high = {camera: top_pixels(heat[camera], self.share) for camera in cameras}

        def made(target: str, masks: Mapping[str, Mask], repeat: int, **more: Any) -> Variant:
            found = [attention_on(masks[c], maps[c], keyframe.geometry(c)) for c in cameras]
            columns = {
                **shown,
                "target": target,
                "share": self.share,
                "attention": float(np.mean(found)),
                **more,
            }
            return masked(
                f"{name}/{target}-{repeat}", keyframe, masks, self.fill, columns, repeat=repeat
            )

        for repeat in range(self._high_repeats):
            yield made("attention", high, repeat)
        for repeat in range(self.repeats):
            controls = {c: self._control(keyframe, high[c], heat[c], c, repeat) for c in cameras}
            masks = {c: control.mask for c, control in controls.items()}
            pieces = sum(control.pieces for control in controls.values())
            yield made("control", masks, repeat, pieces=pieces)
        if self.curve_points:
            yield from self._curves(keyframe, name, shown, heat)

    def _control(
        self, keyframe: StoredKeyframe, mask: Mask, heat: Float, camera: str, repeat: int
    ) -> Moved:
        random = keyframe.random("control", camera, repeat)
        move = moved if self.control == "shape" else scattered
        return move(mask, heat, random)

    def _curves(
        self,
        keyframe: StoredKeyframe,
        name: str,
        shown: Mapping[str, Any],
        heat: Mapping[str, Float],
    ) -> Iterator[Variant]:
        orders: list[tuple[str, int, dict[str, Float]]] = [("attention", 0, dict(heat))]
        for repeat in range(self.repeats):
            random = {}
            for camera in heat:
                numbers = keyframe.random("order", camera, repeat)
                grid = keyframe.geometry(camera).grid
                random[camera] = pixel_heat(numbers.random(grid), keyframe.geometry(camera))
            orders.append(("control", repeat, random))
        count = self.curve_points
        for target, repeat, by in orders:
            ranked = {camera: ranked_pixels(values) for camera, values in by.items()}
            for curve in ("deletion", "insertion"):
                for point in range(1, count):
                    masks = {}
                    for camera, order in ranked.items():
                        cut = round(point / count * len(order))
                        mask = np.zeros(heat[camera].size, np.bool_)
                        mask[order[:cut] if curve == "deletion" else order[cut:]] = True
                        masks[camera] = mask.reshape(heat[camera].shape)
                    columns = {
                        **shown,
                        "curve": curve,
                        "target": target,
                        "fraction": point / count,
                    }
                    yield masked(
                        f"{name}/{curve}-{target}-{repeat}-{point}", keyframe, masks, self.fill,
                        columns, repeat=repeat, table=CURVES,
                    )  # fmt: skip
        ends: dict[str, list[dict[str, Any]]] = {"whole": [], BASE: []}
        for target, repeat, _ in orders:
            for curve, last, first in (("deletion", "whole", BASE), ("insertion", BASE, "whole")):
                row = {"curve": curve, "target": target, "repeat": repeat}
                ends[last].append({**row, "fraction": 1.0})
                ends[first].append({**row, "fraction": 0.0})
        whole = {camera: keyframe.seen(camera) for camera in heat}
        end = masked(f"{name}/whole", keyframe, whole, self.fill, shown, table=CURVES)
        yield replace(end, rows=tuple(ends["whole"]))
        yield replace(
            end,
            name=f"{name}/{BASE}",
            observation=keyframe.observation,
            rows=tuple(ends[BASE]),
            unchanged=True,
        )

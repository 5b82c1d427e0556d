"""One head of one layer (or the most active one) over an episode's keyframes, ready to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from attnstore.store.geometry import Geometry

from . import sinks
from .labtree import Reduction
from .panel import Pane, percent
from .scale import ColorScale, Limits
from .source import EpisodeMaps

Heads = Mapping[str, NDArray[np.intp]]


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """What the overlays of a series of pictures show."""

    layer: int
    head: int | None
    """None: the most active head, which may differ between cameras and keyframes."""
    heads: Heads
    """Head drawn, by camera, (keyframe,)."""
    maps: Mapping[str, NDArray[np.float32]]
    """By camera, (keyframe, row, col)."""
    notes: Mapping[str, tuple[tuple[str, ...], ...]]
    """Facts printed above the overlay, by camera, one tuple a keyframe."""

    def at(self, keyframes: Sequence[int]) -> Track:
        """Keep some keyframes."""
        return replace(
            self,
            heads={c: h[keyframes] for c, h in self.heads.items()},
            maps={c: m[keyframes] for c, m in self.maps.items()},
            notes={c: tuple(n[k] for k in keyframes) for c, n in self.notes.items()},
        )

    def limits(
        self, scale: ColorScale, geometries: Mapping[str, Geometry]
    ) -> list[dict[str, Limits]]:
        """Find the ends of each keyframe's colour scale, by camera."""
        count = len(next(iter(self.maps.values())))
        if scale.scope != "frame":
            return [scale.limits(self.maps, geometries)] * count
        return [
            scale.limits({c: m[k] for c, m in self.maps.items()}, geometries) for k in range(count)
        ]

    def panes(self, keyframe: int, limits: Mapping[str, Limits]) -> dict[str, Pane]:
        """Give the overlays of a keyframe, by camera."""
        suffix = ", most active" if self.head is None else ""
        return {
            camera: Pane(
                maps[keyframe],
                limits[camera],
                f"L{self.layer:02d} H{int(self.heads[camera][keyframe]):02d}{suffix}",
                self.notes[camera][keyframe],
            )
            for camera, maps in self.maps.items()
        }


@dataclass(frozen=True, slots=True, eq=False)
class LayerMaps:
    """All heads of one layer of one phase."""

    layer: int
    maps: Mapping[str, NDArray[np.float32]]
    """By camera, (keyframe, head, row, col)."""
    image_mass: Mapping[str, NDArray[np.floating]]
    """Share of the attention on the camera's image, by camera, (keyframe, head)."""
    letterbox_mass: Mapping[str, NDArray[np.floating]]
    """Share on its letterbox, by camera, (keyframe, head)."""
    padded: frozenset[str]
    """Cameras whose input has a letterbox."""
    removed: Mapping[str, NDArray[np.float64]] | None
    """Share of the attention that was on removed sinks, by camera, (head,); None: not corrected."""

    @classmethod
    def load(
        cls,
        episode: EpisodeMaps,
        phase: str,
        layer: int,
        cameras: tuple[str, ...],
        *,
        step: int = -1,
        reduce: Reduction = "max",
        sink_corrected: bool = False,
        query: str | None = None,
    ) -> Self:
        """Read a layer's maps and masses."""
        maps, image, letterbox = {}, {}, {}
        for camera in cameras:
            maps[camera] = episode.maps(
                phase, camera, layer=layer, step=step, reduce=reduce, query=query
            )
            image[camera], letterbox[camera] = episode.mass(
                phase, camera, layer=layer, step=step, query=query
            )
        removed = None
        if sink_corrected:
            removed = {c: np.zeros(m.shape[1]) for c, m in maps.items()}
            maps = {c: m.copy() for c, m in maps.items()}
            for head in range(episode.heads(phase)):
                found = episode.sink_keys(phase, layer=layer, head=head, step=step)
                for camera in cameras:
                    own = [(row, col) for at, row, col, _ in found if at == camera]
                    mass = sum(share for at, _, _, share in found if at == camera)
                    removed[camera][head] = mass
                    geometry = episode.geometry(camera)
                    maps[camera][:, head] = sinks.remove(maps[camera][:, head], geometry, own)
        padded = frozenset(c for c in cameras if (episode.geometry(c).coverage() < 1).any())
        return cls(layer, maps, image, letterbox, padded, removed)

    def track(self, head: int) -> Track:
        """Follow one head through the episode."""
        heads = {c: np.full(len(m), head, np.intp) for c, m in self.maps.items()}
        return self._select(heads, head)

    def active(self, heads: Heads) -> Track:
        """Follow each camera's most active head.

        Parameters
        ----------
        heads
            By camera, (keyframe,).
        """
        return self._select(heads, None)

    def _select(self, heads: Heads, head: int | None) -> Track:
        maps = {c: m[np.arange(len(m)), heads[c]] for c, m in self.maps.items()}
        notes = {
            c: tuple(self._notes(c, k, int(h)) for k, h in enumerate(heads[c])) for c in self.maps
        }
        return Track(self.layer, head, heads, maps, notes)

    def _notes(self, camera: str, keyframe: int, head: int) -> tuple[str, ...]:
        image = float(self.image_mass[camera][keyframe, head])
        padding = float(self.letterbox_mass[camera][keyframe, head])
        notes = []
        if np.isfinite(image):
            text = f"{percent(image)} of attention on this image"
            if camera in self.padded and np.isfinite(padding):
                text += f", {percent(padding)} on its padding"
            notes.append(text)
        if self.removed is not None:
            mass = float(self.removed[camera][head])
            removed = (
                f"sink-corrected, {percent(mass)} removed" if mass > 0 else "no sink to correct"
            )
            notes.append(removed)
        return tuple(notes)

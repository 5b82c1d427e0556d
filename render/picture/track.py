"""One head of one layer (or the most active one) over an episode's keyframes, ready to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.geometry import Geometry
from attnstore.store.format.weighting import Weighting
from attnstore.store.rules import (
    NO_HEAD,
    Active,
    active_heads,
    mean_over_keyframes,
)

from .drawing import Reduction
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
    """Head drawn, by camera, (keyframe,); `NO_HEAD` where the keyframe lacks the camera."""
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
        return {
            camera: Pane(
                maps[keyframe], limits[camera], self._name(camera, keyframe),
                self.notes[camera][keyframe],
            )
            for camera, maps in self.maps.items()
        }  # fmt: skip

    def _name(self, camera: str, keyframe: int) -> str:
        head = int(self.heads[camera][keyframe])
        if head == NO_HEAD:
            return f"L{self.layer:02d}, not seen at this keyframe"
        return f"L{self.layer:02d} H{head:02d}" + (", most active" if self.head is None else "")


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
    variance: Mapping[str, NDArray[np.floating]]
    """What makes a head of these very maps the active one, by camera, (keyframe, head)."""
    removed: Mapping[str, NDArray[np.float64]] | None
    """Share of the attention that was on removed sinks, by camera, (head,); None: not corrected."""
    weighting: Weighting = "raw"

    @classmethod
    def load(
        cls,
        episode: EpisodeMaps,
        phase: str,
        layer: int,
        cameras: tuple[str, ...],
        *,
        step: int | None = None,
        reduce: Reduction = "max",
        sink_corrected: bool = False,
        query: str | None = None,
        active: Active = "image",
        weighting: Weighting = "raw",
    ) -> Self:
        """Read a layer's maps and masses."""
        maps, image, letterbox = {}, {}, {}
        for camera in cameras:
            maps[camera] = episode.maps(
                phase, camera, layer=layer, step=step, reduce=reduce, query=query,
                sink_corrected=sink_corrected, weighting=weighting,
            ).values  # fmt: skip
            image[camera], letterbox[camera] = episode.mass(
                phase, camera, layer=layer, step=step, query=query, weighting=weighting
            )
        removed = None
        if sink_corrected:
            removed = {c: np.zeros(m.shape[1]) for c, m in maps.items()}
            for head in range(episode.heads(phase)):
                for camera, _, _, mass in episode.sink_keys(
                    phase, layer=layer, head=head, step=step, weighting=weighting
                ):
                    if camera in removed:
                        removed[camera][head] += mass
        variance = {
            camera: episode.map_variance(
                phase, camera, layer=layer, step=step, reduce=reduce, query=query,
                sink_corrected=sink_corrected, active=active, weighting=weighting, maps=each,
            )
            for camera, each in maps.items()
        }  # fmt: skip
        padded = frozenset(c for c in cameras if (episode.geometry(c).coverage() < 1).any())
        return cls(layer, maps, image, letterbox, padded, variance, removed, weighting)

    def track(self, head: int) -> Track:
        """Follow one head through the episode."""
        heads = {c: np.full(len(m), head, np.intp) for c, m in self.maps.items()}
        return self._select(heads, head)

    def most_active(self, *, at_each: bool) -> Track:
        """Follow each camera's most active head.

        Parameters
        ----------
        at_each
            At each keyframe its own; else the episode's, which does not jump.
        """
        return self.active({c: self.active_heads(c, at_each=at_each) for c in self.maps})

    def active_heads(self, camera: str, *, at_each: bool) -> NDArray[np.intp]:
        """Return a camera's most active head, (keyframe,); `NO_HEAD` where there is no map."""
        variance = self.variance[camera]
        if at_each:
            return active_heads(variance)
        of_episode = active_heads(mean_over_keyframes(variance))
        seen = np.isfinite(variance).any(-1)
        return np.where(seen, of_episode, NO_HEAD)

    def active(self, heads: Heads) -> Track:
        """Follow given heads as the most active ones.

        Parameters
        ----------
        heads
            By camera, (keyframe,).
        """
        return self._select(heads, None)

    def _select(self, heads: Heads, head: int | None) -> Track:
        # Without a head all maps of the keyframe are NaN: any of them draws nothing.
        maps = {c: m[np.arange(len(m)), np.maximum(heads[c], 0)] for c, m in self.maps.items()}
        notes = {
            c: tuple(self._notes(c, k, int(h)) for k, h in enumerate(heads[c])) for c in self.maps
        }
        return Track(self.layer, head, heads, maps, notes)

    def _notes(self, camera: str, keyframe: int, head: int) -> tuple[str, ...]:
        if head == NO_HEAD:
            return ()
        image = float(self.image_mass[camera][keyframe, head])
        padding = float(self.letterbox_mass[camera][keyframe, head])
        notes = []
        if np.isfinite(image):
            what = "attention" if self.weighting == "raw" else "what is carried"
            text = f"{percent(image)} of {what} on this image"
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

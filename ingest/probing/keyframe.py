"""Committed keyframes as the policy saw them: observation, maps and object masks from the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import EpisodeError, IntegrityError
from attnstore.store.format.episode import EpisodeSpec
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.pixels import seen_pixels
from attnstore.store.format.tokens import TokenLayout
from attnstore.store.image import decode
from attnstore.store.reader import Episode
from attnstore.store.rules import Active

from ..policies.base import Observation

Mask = NDArray[np.bool_]
Masks = Mapping[tuple[int, str], Mapping[str, Mask]]
Float = NDArray[np.float64]
ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class MapChoice:
    """Which of the stored maps a mask is made from."""

    phase: str
    layer: int
    group: str
    heads: str = "mean"
    """``mean``, ``max``, ``active`` (of the episode, see `Episode.active_head`), or a number."""
    reduce: Literal["mean", "max"] = "mean"
    """Over the group's query tokens."""
    step: int | None = None
    """Of a stepped phase; negative ones count from the last, None is the one that stands for it."""
    active: Active = "image"
    """What makes a head the active one."""


@dataclass(frozen=True, slots=True)
class StoredKeyframe:
    """One keyframe of a committed episode."""

    episode: Episode = field(repr=False)
    index: int
    """Ordinal in the episode."""
    observation: Observation = field(repr=False)
    """As it was when the attention was captured."""
    actions: Float = field(repr=False)
    """The stored action chunk, (horizon, action_dof), normalised units."""
    masks: Callable[[], Masks] = field(repr=False)
    """`Episode.object_masks`, read once for all keyframes."""
    layouts: Mapping[str, TokenLayout] = field(default_factory=dict, repr=False)
    """Token layout per phase, as the policy makes it of the observation."""
    _maps: dict[tuple[str, str, str, str, int | None], Float] = field(
        default_factory=dict, repr=False
    )

    @property
    def frame(self) -> int:
        """Frame index in the recording."""
        return self.episode.spec.frames[self.index]

    @property
    def spec(self) -> EpisodeSpec:
        """Description of the episode."""
        return self.episode.spec

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that the policy saw here, in its order."""
        return tuple(self.observation.images)

    def geometry(self, camera: str) -> Geometry:
        """Return the transform between a camera's pixels and its patches."""
        return self.spec.geometry[camera]

    def seen(self, camera: str) -> Mask:
        """Pixels of a camera's image that the policy sees, (height, width)."""
        return seen_pixels(self.geometry(camera))

    def map(self, camera: str, choice: MapChoice) -> Float:
        """Return a stored overview map of this keyframe, reduced over heads, (row, col)."""
        c = choice
        maps = self._heads(c.phase, c.group, camera, c.reduce, c.step)[c.layer]
        if c.heads == "mean":
            return np.asarray(maps.mean(0))
        if c.heads == "max":
            return np.asarray(maps.max(0))
        if c.heads != ACTIVE:
            return np.asarray(maps[int(c.heads)])
        head = self.episode.active_head(
            c.phase, camera, layer=c.layer, step=c.step, query=c.group, reduce=c.reduce,
            active=c.active,
        )  # fmt: skip
        return np.asarray(maps[head])

    def layer_means(self, phase: str, group: str, camera: str) -> Float:
        """Maps of all layers at the step that stands, averaged over heads, (layer, row, col)."""
        return np.asarray(self._heads(phase, group, camera, "mean", None).mean(1))

    def _heads(
        self, phase: str, group: str, camera: str, reduce: Literal["mean", "max"], step: int | None
    ) -> Float:
        """(layer, head, row, col); read once, as every variant of the keyframe asks again."""
        place = (phase, group, camera, reduce, step)
        if place not in self._maps:
            maps = self.episode.maps(
                phase, camera, step=step, reduce=reduce, keyframe=self.index, query=group
            ).values
            self._maps[place] = np.asarray(maps, np.float64)
        return self._maps[place]

    def objects(self, camera: str) -> Mapping[str, Mask]:
        """Masks of the objects in a camera's image, by name; see `Episode.object_masks`."""
        return self.masks().get((self.index, camera), {})

    def random(self, *purpose: object) -> np.random.Generator:
        """Random numbers that are the same whatever the batching, the order or the worker."""
        text = "\0".join(map(str, (self.observation.seed, *purpose)))
        return _generator(text)

    def episode_random(self, *purpose: object) -> np.random.Generator:
        """Likewise, the same at every keyframe of the episode."""
        text = "\0".join(map(str, (self.spec.seeds[0], self.spec.name, *purpose)))
        return _generator(text)

    def with_images(self, images: Mapping[str, NDArray[np.uint8]]) -> Observation:
        """Return the observation with other images; the noise stays."""
        return replace(self.observation, images=images)

    def with_instruction(self, instruction: str) -> Observation:
        """Return the observation with another prompt; the noise stays."""
        return replace(self.observation, instruction=instruction)


def _generator(text: str) -> np.random.Generator:
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def stored_keyframes(episode: Episode, every: int = 1) -> Iterator[StoredKeyframe]:
    """Yield every so many-th keyframe of an episode, from the first.

    Raises
    ------
    EpisodeError
        If a stored image cannot be decoded.
    IntegrityError
        If a keyframe has no row, or no image.
    """
    rows = {row["keyframe"]: row for row in episode.part.table("keyframes").to_pylist()}
    images: dict[int, dict[str, dict[str, Any]]] = {}
    for image in episode.part.table("frames").to_pylist():
        images.setdefault(image["keyframe"], {})[image["camera"]] = image
    actions = np.asarray(episode.policy_array("actions"), np.float64)
    masks = cache(episode.object_masks)
    for index in range(0, len(episode.frames), every):
        if index not in rows or index not in images:
            raise IntegrityError(f"{episode.name}: keyframe {index} has no row or no image")
        seen = _observation(episode, rows[index], images[index])
        yield StoredKeyframe(episode, index, seen, actions[index], masks)


def _observation(
    episode: Episode, row: Mapping[str, Any], images: Mapping[str, Mapping[str, Any]]
) -> Observation:
    seen = {}
    for camera in (c for c in episode.cameras if c in images):
        try:
            seen[camera] = decode(images[camera]["image"])
        except ValueError as error:
            raise EpisodeError(
                episode.name,
                f"the stored image of {camera} at keyframe {row['keyframe']} is broken: {error}",
            ) from error
    state = np.array(row["state"], np.float32)
    return Observation(seen, str(row["instruction"]), state, int(row["seed"]))

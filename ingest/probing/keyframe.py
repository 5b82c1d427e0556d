"""Committed keyframes as the policy saw them: observation, maps and object masks from the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.axes import STEPPED_PHASES
from attnstore.store.commits import Commit, StorePaths, committed_names, latest_commit
from attnstore.store.engine import Index
from attnstore.store.episode import EpisodeSpec
from attnstore.store.errors import EpisodeError, IntegrityError
from attnstore.store.geometry import Geometry
from attnstore.store.image import decode
from attnstore.store.part import Part
from attnstore.store.pixels import seen_pixels
from attnstore.store.rle import decode_rle
from attnstore.store.tokens import TokenLayout

from ..policies.base import Observation

Mask = NDArray[np.bool_]
Float = NDArray[np.float64]
ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class MapChoice:
    """Which of the stored maps a mask is made from."""

    phase: str
    layer: int
    group: str
    heads: str = "mean"
    """``mean``, ``max``, ``active`` (largest mean variance over the episode), or a number."""
    reduce: str = "mean"
    """Over the group's query tokens: ``mean`` or ``max``."""
    step: int = -1
    """Of a stepped phase; negative ones count from the last."""


@dataclass(frozen=True, slots=True)
class StoredKeyframe:
    """One keyframe of a committed episode."""

    episode: StoredEpisode = field(repr=False)
    index: int
    """Ordinal in the episode."""
    observation: Observation = field(repr=False)
    """As it was when the attention was captured."""
    layouts: Mapping[str, TokenLayout] = field(default_factory=dict, repr=False)
    """Token layout per phase, as the policy makes it of the observation."""

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
        """Return a stored overview map of this keyframe, (row, col)."""
        return self.episode.map(self.index, camera, choice)

    def objects(self, camera: str) -> Mapping[str, Mask]:
        """Masks of the objects in a camera's image, by name; see `StoredEpisode.objects`."""
        return self.episode.objects.get((self.index, camera), {})

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


class StoredEpisode:
    """A committed episode, as far as probes need it.

    Parameters
    ----------
    paths
        The store.
    commit
        Of the base part.
    """

    def __init__(self, paths: StorePaths, commit: Commit) -> None:
        self.paths, self.commit = paths, commit
        self.part = Part(paths, commit)
        self._maps: dict[tuple[int, str, str, str, str], Float] = {}

    @property
    def spec(self) -> EpisodeSpec:
        """Description of the episode."""
        return self.part.spec

    def keyframes(self, every: int = 1) -> Iterator[StoredKeyframe]:
        """Yield every so many-th keyframe, from the first.

        Raises
        ------
        EpisodeError
            If a stored image cannot be decoded.
        IntegrityError
            If a keyframe has no row, or no image.
        """
        rows = {row["keyframe"]: row for row in self.part.table("keyframes").to_pylist()}
        images: dict[int, dict[str, dict[str, Any]]] = {}
        for image in self.part.table("frames").to_pylist():
            images.setdefault(image["keyframe"], {})[image["camera"]] = image
        for index in range(0, len(self.spec.frames), every):
            if index not in rows or index not in images:
                raise IntegrityError(f"{self.spec.name}: keyframe {index} has no row or no image")
            yield StoredKeyframe(self, index, self._observation(rows[index], images[index]))

    def _observation(
        self, row: Mapping[str, Any], images: Mapping[str, Mapping[str, Any]]
    ) -> Observation:
        seen = {}
        for camera in (c for c in self.spec.geometry if c in images):
            try:
                seen[camera] = decode(images[camera]["image"])
            except ValueError as error:
                raise EpisodeError(
                    self.spec.name,
                    f"the stored image of {camera} at keyframe {row['keyframe']} is broken: {error}",
                ) from error
        state = np.array(row["state"], np.float32)
        return Observation(seen, str(row["instruction"]), state, int(row["seed"]))

    @cached_property
    def actions(self) -> Float:
        """Stored action chunks, (keyframe, horizon, action_dof), normalised units."""
        values = self.part.block("policy/actions").read((slice(None),) * 3)
        return np.asarray(values, np.float64)

    @cached_property
    def recorded_dof(self) -> int:
        """Length of the recorded action."""
        return int(self.part.block("policy/actions_recorded").shape[-1])

    def map(self, keyframe: int, camera: str, choice: MapChoice) -> Float:
        """Return a stored overview map, reduced over heads, (row, col)."""
        heads = self._heads(keyframe, choice.phase, choice.group, camera, choice.reduce)
        step = choice.step if choice.phase in STEPPED_PHASES else 0
        maps = heads[step, choice.layer]
        if choice.heads == "mean":
            return np.asarray(maps.mean(0))
        if choice.heads == "max":
            return np.asarray(maps.max(0))
        head = self._active(camera, choice) if choice.heads == ACTIVE else int(choice.heads)
        return np.asarray(maps[head])

    def layer_means(self, keyframe: int, phase: str, group: str, camera: str, step: int) -> Float:
        """Maps of all layers, averaged over heads, (layer, row, col)."""
        heads = self._heads(keyframe, phase, group, camera, "mean")
        return np.asarray(heads[step if phase in STEPPED_PHASES else 0].mean(1))

    def _heads(self, keyframe: int, phase: str, group: str, camera: str, reduce: str) -> Float:
        """(step, layer, head, row, col); one-pass phases have one step."""
        place = (keyframe, phase, group, camera, reduce)
        if place not in self._maps:
            if any(known[0] != keyframe for known in self._maps):
                self._maps.clear()
            path = f"maps/{phase}/{group}/{camera}/{reduce}"
            rank = len(self.part.block(path).shape)
            index = (slice(keyframe, keyframe + 1), *([slice(None)] * (rank - 1)))
            values = np.asarray(self.part.map(phase, group, camera, reduce, index), np.float64)
            self._maps[place] = values[0] if phase in STEPPED_PHASES else values
        return self._maps[place]

    def _active(self, camera: str, choice: MapChoice) -> int:
        place = (camera, choice)
        if place not in self._active_heads:
            step: tuple[int, ...] = ()
            path = f"maps/{choice.phase}/{choice.group}/{camera}/mean"
            shape = self.part.block(path).shape
            if choice.phase in STEPPED_PHASES:
                step = (choice.step % shape[1],)
            whole = slice(None)
            index: Index = (whole, *step, choice.layer, whole, whole, whole)
            maps = self.part.map(choice.phase, choice.group, camera, "mean", index)
            variance = np.asarray(maps, np.float64).var((-2, -1)).mean(0)
            self._active_heads[place] = int(variance.argmax())
        return self._active_heads[place]

    @cached_property
    def _active_heads(self) -> dict[tuple[str, MapChoice], int]:
        return {}

    @cached_property
    def object_parts(self) -> tuple[Commit, ...]:
        """Committed parts with object masks: of detectors first, and the gripper's."""
        found = []
        for part in committed_names(self.paths, self.commit.run, self.commit.episode):
            if part.startswith("objects-"):
                commit = latest_commit(self.paths, self.commit.run, self.commit.episode, part)
                if commit is not None:
                    found.append(commit)
        return tuple(sorted(found, key=lambda c: (str(c.summary.get("source")), c.part)))

    @cached_property
    def objects(self) -> Mapping[tuple[int, str], Mapping[str, Mask]]:
        """Masks of the parts ``objects-...``, by (keyframe, camera), then by object.

        Where two parts have the same object, the first of `object_parts` counts.
        """
        found: dict[tuple[int, str], dict[str, Mask]] = {}
        for commit in self.object_parts:
            for row in Part(self.paths, commit).table("object_masks").to_pylist():
                masks = found.setdefault((row["keyframe"], row["camera"]), {})
                if row["object"] not in masks:
                    size = (row["height"], row["width"])
                    masks[row["object"]] = decode_rle(size, row["counts"])
        return found

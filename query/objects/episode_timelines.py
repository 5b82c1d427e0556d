"""Timelines of all chosen episodes: one answer for a report or a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from attnstore.store.errors import NotFoundError, SelectionError
from attnstore.store.format.weighting import Weighting
from attnstore.store.reader.episode import Episode
from attnstore.store.rules import standing_step

from ..groups.alignment import Aligned, align
from ..sql.chosen import Chosen
from ..sql.store import Store
from ..statistics import Float
from .choice import latest_object_parts
from .timeline import REGIONS, scene_masks, timeline


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeTimeline:
    """One episode's shares, averaged over heads and the chosen layers."""

    episode: Episode
    shares: xr.DataArray
    """(keyframe, [step], region); see `attnstore.query.objects.timeline.timeline`."""

    @property
    def last(self) -> xr.DataArray:
        """(keyframe, region) at the step that stands for the phase; see `attnstore.store.rules`."""
        if "step" not in self.shares.dims:
            return self.shares
        step = standing_step(self.shares.attrs["phase"], self.shares.sizes["step"])
        return self.shares.isel(step=step)


@dataclass(frozen=True, slots=True, eq=False)
class Timelines:
    """Of one phase, query group and camera."""

    phase: str
    camera: str
    query: str
    layers: tuple[int, ...]
    weighting: Weighting
    episodes: tuple[EpisodeTimeline, ...]
    without: Mapping[str, str]
    """Names of episodes that have none, and why."""

    @property
    def regions(self) -> tuple[str, ...]:
        """Those of `REGIONS` that something of an episode is in: without masks a share of 0 says nothing."""
        of_region = {"target": "target", "goal": "goal", "other": "others", "gripper": "gripper"}
        kept = {r for e in self.episodes for r, key in of_region.items() if e.shares.attrs[key]}
        return tuple(r for r in REGIONS if r in kept or r not in of_region)

    def aligned(self, outcome: str | None = None) -> Aligned | None:
        """Average over episodes at equal progress, curves in the order of `ALL`; None if there is none.

        Parameters
        ----------
        outcome
            Only episodes that ended so.
        """
        curves = [
            (np.asarray(e.last["progress"].values), np.asarray(e.last.values))
            for e in self.episodes
            if outcome in (None, e.episode.outcome)
        ]
        return align(curves) if curves else None

    def by_step(self) -> Float | None:
        """Average over keyframes, then episodes, (episode, step, region); None in a one-pass phase."""
        if not self.episodes or "step" not in self.episodes[0].shares.dims:
            return None
        return np.stack([np.asarray(e.shares.mean("keyframe").values) for e in self.episodes])


def timelines(
    store: Store,
    chosen: Chosen,
    phase: str,
    camera: str,
    *,
    query: str | None = None,
    layers: Sequence[int] | None = None,
    target: str | None = None,
    goal: str | None = None,
    weighting: Weighting = "raw",
    progress: Callable[[float, str], None] = lambda share, now: None,
) -> Timelines:
    """Measure where the attention of every chosen episode goes.

    Parameters
    ----------
    query, target, goal, weighting
        See `attnstore.query.objects.timeline`.
    layers
        Averaged over; by default all.
    progress
        Called with the share that is done, 0 to 1, and the episode that is at its turn.

    Raises
    ------
    NotFoundError
        If no episode has object masks of the camera, or an episode has no value norms to weight with.
    SelectionError
        If an episode has no such phase, camera or layer.
    """
    parts = latest_object_parts(store, chosen)
    found: list[EpisodeTimeline] = []
    without: dict[str, str] = {}
    group = query
    used: tuple[int, ...] = ()
    for number, episode_id in enumerate(chosen.episodes):
        episode = store.episode(episode_id, run=chosen.run)
        progress(number / len(chosen.episodes), episode.name)
        count = episode.phase(phase, camera).layers
        used = tuple(range(count)) if layers is None else tuple(layers)
        if any(not 0 <= layer < count for layer in used) or not used:
            raise SelectionError(f"{phase} has layers 0 to {count - 1}; got {list(used)}")
        group = group or episode.phase(phase, camera).query_groups[0]
        own = [c for (e, at, _), c in parts.items() if e == episode_id and at == camera]
        if weighting == "value":
            episode.part.check_norms(episode.phase(phase, camera).path)
        try:
            masks = scene_masks(store, episode, own, target=target, goal=goal)
            shares = timeline(
                episode, masks, phase, camera, query=group, layers=used, weighting=weighting
            )
        except NotFoundError as error:
            without[episode.name] = str(error)
            continue
        attributes = shares.attrs
        mean = shares.mean(("layer", "head"))
        found.append(EpisodeTimeline(episode, mean.assign_attrs(attributes)))
    if not found:
        raise NotFoundError(
            f"no episode of {chosen.run} has object masks of {camera}; `attnstore objects add "
            f"--masks DATASET --camera {camera}` keeps them"
        )
    return Timelines(phase, camera, group or "", used, weighting, tuple(found), without)


def cameras_with_objects(store: Store, chosen: Chosen) -> list[str]:
    """Cameras of which at least one episode has a detector's masks, in the run's order."""
    parts = latest_object_parts(store, chosen)
    there = {camera for _, camera, source in parts if source == "detector"}
    config, _ = store.run(chosen.run)
    return [camera for camera in config.cameras if camera in there]

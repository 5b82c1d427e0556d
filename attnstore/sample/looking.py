"""How strongly each head looks at what the instruction names, from a store and its masks.

Everything is read through `attnstore.query`; the policy is not needed. Arrays have one value per
episode, layer and head, the mean over the episode's keyframes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnstore.query import Episode, Store
from attnstore.query.objects.masks import open_detector_masks
from attnstore.query.objects.overlap import (
    PatchCover,
    cover_patches,
    object_metrics,
)

Float = NDArray[np.float64]
RESAMPLES = 4000
AGAINST = ("target", "other", "shuffled")
"""Masks that a head's map is measured against: the object that the instruction names, the other one
of its kind in the same picture, and the named one of another episode's picture."""


@dataclass(frozen=True, slots=True)
class Question:
    """Which tokens look at which object in which camera."""

    query: str
    """``cube word``, ``bowl word`` or ``action``."""
    thing: str
    """``cube`` or ``bowl``."""
    camera: str

    @property
    def phase(self) -> str:
        """Phase whose queries these tokens are."""
        return "suffix" if self.query == "action" else "prefix"


@dataclass(frozen=True, slots=True)
class Looking:
    """Answers to a question."""

    lift: Mapping[str, Float]
    """By `AGAINST`, (episode, layer, head); NaN where the object was never in view."""
    hit: Mapping[str, Float]


@dataclass(frozen=True, slots=True)
class Scene:
    """An episode, and where its objects are in one camera."""

    episode: Episode
    targets: Mapping[str, str]
    """By `Question.thing`: what the instruction names, ``red cube``."""
    covers: Sequence[Mapping[str, PatchCover]]
    """How each category's mask covers the camera's patches, one mapping a keyframe."""


def read_scenes(store: Store, dataset: Path, camera: str, run: str) -> list[Scene]:
    """Open every episode of a run, with its masks of a camera."""
    found = []
    names = store.sql(f"select name from episodes where run = '{run}' order by name").fetchall()
    for (name,) in names:
        episode = store.episode(name, run=run)
        words = episode.instruction.split()
        colours = {thing: words[words.index(thing) - 1] for thing in ("cube", "bowl")}
        source = open_detector_masks(name, dataset / name, camera)
        geometry = episode.geometry(camera)
        covers = [
            {
                mask.category: cover_patches(geometry, [mask.pixels])
                for mask in (source.read(frame, geometry.source) if frame in source.frames else [])
            }
            for frame in (int(frame) for frame in episode.frames)
        ]
        found.append(Scene(episode, {k: f"{c} {k}" for k, c in colours.items()}, covers))
    return found


def same_scenes(store: Store, scenes: Sequence[Scene], run: str) -> list[Scene]:
    """Return the same episodes in another run of the same cameras and stride."""
    return [replace(scene, episode=store.episode(scene.episode.name, run=run)) for scene in scenes]


def look(scenes: Sequence[Scene], question: Question, keyframes: int | None = None) -> Looking:
    """Measure every head of every episode.

    Parameters
    ----------
    keyframes
        Only the first so many: a window that episodes of any length have in common.
    """
    lift: dict[str, list[Float]] = {name: [] for name in AGAINST}
    hit: dict[str, list[Float]] = {name: [] for name in AGAINST}
    for number, scene in enumerate(scenes):
        stranger = scenes[(number + 1) % len(scenes)]
        maps = query_maps(scene, question)
        found: dict[str, list[tuple[Float, Float]]] = {name: [] for name in AGAINST}
        for turn, heads in enumerate(maps[:keyframes]):
            for name, cover in _covers(scene, stranger, question, turn):
                metrics = object_metrics(heads, cover)
                found[name].append((metrics["lift"][..., 0], metrics["pointing_hit"][..., 0]))
        empty = np.full(maps.shape[1:3], np.nan)
        for name, values in found.items():
            lift[name].append(_mean([v[0] for v in values], empty))
            hit[name].append(_mean([v[1] for v in values], empty))
    return Looking(
        {name: np.array(values) for name, values in lift.items()},
        {name: np.array(values) for name, values in hit.items()},
    )


def query_maps(scene: Scene, question: Question) -> Float:
    """Attention of the question's tokens, their mean, (keyframe, layer, head, row, col).

    Of the suffix, the last denoising step.
    """
    thing = question.query.removesuffix(" word")
    if question.phase == "prefix":
        colour = scene.targets[thing].split()[0]
        found = scene.episode.attention(
            "prefix", query=f"word:{colour}", key=f"image:{question.camera}"
        )
    else:
        found = scene.episode.attention(
            "suffix", step=-1, query="action", key=f"image:{question.camera}"
        )
    values = np.asarray(found.mean("query"), np.float64)
    grid = scene.episode.geometry(question.camera).grid
    return values.reshape(*values.shape[:-1], *grid)


def mean_interval(values: Float, seed: int = 0) -> list[float]:
    """Mean over episodes and its 95 % percentile interval (Efron 1979); NaN episodes left out."""
    known = values[~np.isnan(values)]
    draws = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
    low, high = np.percentile(known[draws].mean(1), [2.5, 97.5])
    return [float(known.mean()), float(low), float(high)]


def span(interval: Sequence[float], digits: int = 1) -> str:
    """Write a mean and its interval: ``10.2 (8.1 to 12.0)``."""
    mean, low, high = (f"{n:.{digits}f}" for n in interval)
    return f"{mean} ({low} to {high})"


def word_share(scenes: Sequence[Scene], thing: str) -> Float:
    """Attention of the action tokens, at the last step, to the named object's colour word.

    Returns
    -------
    (layer, head), the mean over keyframes and then episodes, 0..1.
    """
    shares = []
    for scene in scenes:
        colour = scene.targets[thing].split()[0]
        found = scene.episode.attention("suffix", step=-1, query="action", key=f"word:{colour}")
        shares.append(found.sum("key").mean(("query", "keyframe")))
    return np.asarray(np.mean(shares, axis=0), np.float64)


def _covers(
    scene: Scene, stranger: Scene, question: Question, turn: int
) -> Iterator[tuple[str, PatchCover]]:
    target = scene.targets[question.thing]
    here = scene.covers[turn]
    if target not in here:
        return
    yield "target", here[target]
    for category, cover in here.items():
        if category.endswith(question.thing) and category != target:
            yield "other", cover
    if turn < len(stranger.covers):
        shown = stranger.covers[turn].get(stranger.targets[question.thing])
        if shown is not None:
            yield "shuffled", shown


def _mean(values: list[Float], empty: Float) -> Float:
    if not values:
        return empty
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: the camera gets no attention
        return np.asarray(np.nanmean(values, axis=0))

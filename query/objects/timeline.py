"""Where the attention of a query group goes over an episode: target, goal, gripper, background.

One camera's image is divided into regions that do not overlap, by the object masks that
`attnstore objects add` keeps. Where masks overlap, the first of these has the pixel::

    target      the object that the instruction names first (`attnstore.query.objects.roles`)
    goal        the last other object that it names
    other       objects that it does not name
    gripper     the projected proxy; a detector's pixels go before it, since it knows no occlusion
    background  every other pixel that the policy sees

Each patch counts with the area of image that it shows, as in `attnstore.query.objects.overlap`. With the
group's mean attention M on the patches, a_p the area that patch p shows and c_p the part of it in a
region::

    share = camera_mass * Σ M c / Σ M a

``camera_mass`` is the camera's share of *all* the group's attention, from ``head_stats``. So these
five sum to it, and together with the rest they sum to 1::

    letterbox   this camera's padding
    cameras     the other cameras, their letterboxes included
    words       text tokens, without those that spell the state
    own         everything else: state, action and readout tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attnstore.store.arrays.groups import MAP_BITS
from attnstore.store.commits import Commit
from attnstore.store.commits.part import Part
from attnstore.store.errors import NotFoundError, SelectionError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.precision import rounding_error
from attnstore.store.format.rle import Mask, decode_rle
from attnstore.store.format.weighting import Weighting
from attnstore.store.reader.episode import Episode

from ..attention.shares import shares
from ..sql.store import Store
from .overlap import cover_patches
from .roles import Roles, find_roles
from .rows import MASKS

Float = NDArray[np.float64]

REGIONS = ("target", "goal", "other", "gripper", "background")
"""Of the camera's image, in the order in which they take pixels."""
REST = ("letterbox", "cameras", "words", "own")
ALL = (*REGIONS, *REST)
"""They sum to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneMasks:
    """The object masks of one episode and camera."""

    roles: Roles
    detected: Mapping[int, Mapping[str, Mask]]
    """Keyframe to object to its mask, of keyframes at which a detector found anything."""
    gripper: Mapping[int, Mask]
    has_detector: bool
    has_gripper: bool
    """Whether there is a part of projected gripper masks at all."""

    def regions(self, keyframe: int, size: tuple[int, int]) -> dict[str, Mask] | None:
        """Divide an image into `REGIONS` without the background; None where no detector looked."""
        if keyframe not in self.detected:
            return None
        found = {name: np.zeros(size, np.bool_) for name in REGIONS[:-1]}
        for name, mask in self.detected[keyframe].items():
            found[self.roles.role(name)] |= mask
        if keyframe in self.gripper:
            found["gripper"] |= self.gripper[keyframe]
        taken = np.zeros(size, np.bool_)
        for name in REGIONS[:-1]:
            found[name] &= ~taken
            taken |= found[name]
        return found


def scene_masks(
    store: Store,
    episode: Episode,
    parts: Sequence[Commit],
    *,
    target: str | None = None,
    goal: str | None = None,
) -> SceneMasks:
    """Read the masks of an episode's object parts; see `latest_object_parts`.

    Parameters
    ----------
    parts
        Of one camera, at most one of each source.
    target, goal
        Objects' names; by default those that the instruction names.
    """
    detected: dict[int, dict[str, Mask]] = {}
    gripper: dict[int, Mask] = {}
    sources = {str(commit.summary["source"]) for commit in parts}
    for commit in parts:
        for row in Part(store.paths, commit).table(MASKS).to_pylist():
            mask = decode_rle((row["height"], row["width"]), row["counts"])
            if row["source"] == "gripper":
                gripper[row["keyframe"]] = mask
            else:
                detected.setdefault(row["keyframe"], {})[row["object"]] = mask
    objects = {name for masks in detected.values() for name in masks}
    roles = find_roles(episode.instruction, objects, target=target, goal=goal)
    return SceneMasks(roles, detected, gripper, "detector" in sources, "gripper" in sources)


def timeline(
    episode: Episode,
    masks: SceneMasks,
    phase: str,
    camera: str,
    *,
    query: str | None = None,
    layers: Sequence[int] | None = None,
    weighting: Weighting = "raw",
) -> xr.DataArray:
    """Measure the share of attention on every region, at every keyframe and step.

    Parameters
    ----------
    masks
        From `scene_masks`, of the same camera.
    query
        Stored query group; None is the phase's default (task, action).
    layers
        By default all.
    weighting
        ``raw``, or ``value``: shares of what is carried; see `attnstore.store.format.weighting`.

    Returns
    -------
    (keyframe, step, layer, head, region) float64, 0..1, summing to 1 over ``region``
    (`ALL`); a one-pass phase has no step. A keyframe without detector masks is NaN in the five
    regions of the image, and a keyframe where the camera gets no attention is 0 there. Regions are
    those of overview maps, ``camera_mass`` and the rest of unrounded weights. Coordinate
    ``progress`` is the frame as a share of the last keyframe's. Attributes: ``target``, ``goal``
    (names or ""), ``others``, ``gripper``: whether it was projected; if not, its pixels count as
    background; ``error``: how far a share may be off for the maps' rounding, as a share of itself; not of
    value-weighted ones, whose maps are made of stored weights.

    Raises
    ------
    NotFoundError
        If no detector's masks are there, or no value norms to weight with.
    SelectionError
        If a name matches nothing.
    """
    if not masks.has_detector:
        raise NotFoundError(
            f"{episode.name}: no object masks of {camera}; `attnstore objects add --camera "
            f"{camera}` keeps them"
        )
    if not masks.detected:
        raise NotFoundError(f"{episode.name}: no object is in view of {camera} at any keyframe")
    spec = episode.phase(phase, camera)
    if camera not in spec.cameras:
        raise SelectionError(
            f"{phase} does not attend to {camera}; it has: {', '.join(spec.cameras)}"
        )
    group = query if query is not None else spec.query_groups[0]
    chosen = list(range(spec.layers)) if layers is None else list(layers)
    whole = shares(episode, phase, camera=spec.camera, query=group, weighting=weighting)
    if spec.steps is None:
        whole = whole.expand_dims("step", 1)
    whole = whole.transpose("keyframe", "step", "layer", "head", "span").isel(layer=chosen)
    coarse = _coarse(whole, camera)
    found = np.full((*coarse["image"].shape, len(ALL)), np.nan)
    for step in range(spec.steps or 1):
        maps = episode.maps(
            phase, camera, layer=chosen, step=step, reduce="mean", query=group, weighting=weighting
        ).values  # (keyframe, layer, head, row, col)
        for keyframe in range(len(episode.frames)):
            parts = _image_parts(maps[keyframe], masks, keyframe, episode.geometry(camera))
            mass = coarse["image"][keyframe, step]
            found[keyframe, step, ..., : len(REGIONS)] = parts * mass[..., None]
    for name in REST:
        found[..., ALL.index(name)] = coarse[name]
    frames = episode.frames
    array = xr.DataArray(
        found,
        dims=("keyframe", "step", "layer", "head", "region"),
        coords={
            "keyframe": np.arange(len(frames)),
            "frame": ("keyframe", frames),
            "progress": ("keyframe", frames / max(1, int(frames[-1]))),
            "step": np.arange(spec.steps or 1),
            "layer": chosen,
            "head": np.arange(spec.heads),
            "region": list(ALL),
        },
        name="share",
        attrs={
            "phase": phase,
            "camera": camera,
            "query": group,
            "target": masks.roles.target or "",
            "goal": masks.roles.goal or "",
            "others": list(masks.roles.others),
            "gripper": masks.has_gripper,
            "weighting": weighting,
            # Of a quotient: both its terms are of rounded weights.
            **(
                {"error": 2 * rounding_error(MAP_BITS["mean"]).relative}
                if weighting == "raw"
                else {}
            ),
            "units": "share of attention, 0..1",
        },
    )
    return array.isel(step=0, drop=True) if spec.steps is None else array


def _image_parts(
    maps: NDArray[np.floating], masks: SceneMasks, keyframe: int, geometry: Geometry
) -> Float:
    """Parts of a camera's attention per region, (layer, head, region), summing to 1."""
    regions = masks.regions(keyframe, geometry.source)
    shape = (*maps.shape[:-2], len(REGIONS))
    if regions is None:
        return np.full(shape, np.nan)
    cover = cover_patches(geometry, list(regions.values()))
    m = np.asarray(maps, np.float64)[..., cover.shown]
    total = m @ cover.area
    on = m @ cover.covered.T
    with np.errstate(invalid="ignore", divide="ignore"):
        named = np.where(total[..., None] > 0, on / total[..., None], 0.0)
    # What is left of the sum: the rounding of an edge must not make it negative.
    background = np.where(total > 0, np.maximum(1 - named.sum(-1), 0.0), 0.0)
    return np.asarray(np.concatenate([named, background[..., None]], -1))


def _coarse(whole: xr.DataArray, camera: str) -> dict[str, Float]:
    """Add the shares of spans up: this camera, its letterbox, and the rest."""
    modality, cameras = whole["modality"].values, whole["camera"].values
    mine = cameras == camera
    picked = {
        "image": mine & (modality == "image"),
        "letterbox": mine & (modality == "letterbox"),
        "cameras": ~mine & np.isin(modality, ("image", "letterbox")),
        "words": modality == "text",
    }
    picked["own"] = ~np.any(list(picked.values()), axis=0)
    values = np.asarray(whole.values, np.float64)
    # A span that a keyframe lacks gets nothing.
    return {name: np.nansum(values[..., at], axis=-1) for name, at in picked.items()}

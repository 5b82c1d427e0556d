"""An episode as a tree of datasets that are read on access; see `Episode.tree`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..commits import ARRAYS
from ..errors import NotFoundError
from .lazy import lazy

REDUCTIONS: tuple[Literal["mean", "max"], ...] = ("mean", "max")

if TYPE_CHECKING:
    from ..commits.part import Part
    from .episode import Episode


def episode_tree(episode: Episode) -> xr.DataTree:
    """Return the tree; the root says which episode it is."""
    spec = episode.spec
    moments = {
        "keyframe": np.arange(len(episode.frames)),
        "frame": ("keyframe", episode.frames),
    }
    about = {
        "run": episode.run,
        "episode": episode.id,
        "name": episode.name,
        "outcome": episode.outcome,
        "instruction": episode.instruction,
        "policy": episode.policy,
        "precision": spec.precision,
        **({} if episode.date is None else {"date": episode.date}),
    }
    nodes = {"/": xr.Dataset(coords=moments, attrs=about)}
    for path, phase in spec.phases.items():
        attention = episode.attention(path, camera=phase.camera, lazy=True)
        nodes[path] = attention.to_dataset(name="attention")
        for camera in episode.cameras if phase.camera is None else (phase.camera,):
            for group in phase.query_groups:
                nodes[f"maps/{phase.phase}/{group}/{camera}"] = xr.Dataset(
                    {
                        how: episode.maps(
                            path, camera, query=group, reduce=how, step="all", lazy=True
                        )
                        for how in REDUCTIONS
                    }
                )
                nodes[f"stats/{phase.phase}/{group}/{camera}"] = episode.stats(
                    path, camera, query=group, lazy=True
                )
    if (policy := _policy(episode.part)) is not None:
        nodes["policy"] = policy
    return xr.DataTree.from_dict(nodes, name=episode.id)


def _policy(part: Part) -> xr.Dataset | None:
    """The policy's own arrays, with the names and dimensions that they are stored with."""
    data = {}
    for name in ("actions", "actions_recorded", "state", "denoising"):
        try:
            told = part.description(f"{ARRAYS}/policy/{name}/zarr.json")
        except NotFoundError:
            continue  # kept on request, or not pulled
        read = partial(_read, part, f"policy/{name}")
        values = lazy(tuple(told["shape"]), np.dtype(np.float32), read)
        text = {"long_name": told.get("attributes", {}).get("description", name)}
        data[name] = (tuple(told["dimension_names"]), values, text)
    return xr.Dataset(data) if data else None


def _read(part: Part, path: str, index: tuple[int | slice, ...]) -> NDArray[Any]:
    return np.asarray(part.block(path).read(index), np.float32)

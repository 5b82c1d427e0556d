"""How a head's attention moves over time and over denoising steps.

Drift is the Jensen-Shannon divergence in bits, 0..1 (Lin 1991), between two distributions of a
query group's attention over one camera's patches; both definitions are in
`attnstore.store.format.statistics`. Consecutive keyframes and steps were compared at ingest, from the
unrounded weights. Any other pair is compared here, from overview maps, which are within 0.05 % of
them. Of a group that has no overview maps the stored attention is read, as precise as the run's.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attnstore.store.errors import SelectionError
from attnstore.store.format.episode import PhaseSpec
from attnstore.store.format.statistics import image_distribution, jensen_shannon
from attnstore.store.reader.blocks import Dimension, Index
from attnstore.store.reader.episode import Episode
from attnstore.store.rules import standing_step

Float = NDArray[np.float64]


def keyframe_drift(
    episode: Episode, phase: str, camera: str, *, query: str | None = None
) -> xr.DataArray:
    """Load the divergence of every head from the keyframe before.

    Parameters
    ----------
    query
        Stored query group; None is the phase's default (task, action).

    Returns
    -------
    (keyframe, step, layer, head) float32, bits, NaN at the first keyframe; a one-pass phase has
    no step.

    Raises
    ------
    SelectionError
        If phase, camera or group is not in the store.
    """
    return _stored("drift", episode, phase, camera, query)


def step_drift(
    episode: Episode, phase: str, camera: str, *, query: str | None = None
) -> xr.DataArray:
    """Load the divergence of every head from the denoising step before.

    Returns
    -------
    (keyframe, step, layer, head) float32, bits, NaN at the first step.

    Raises
    ------
    SelectionError
        If the phase has no steps, or phase, camera or group is not in the store.
    """
    _check_stepped(episode, phase)
    return _stored("step_drift", episode, phase, camera, query)


def keyframe_divergence(
    episode: Episode,
    phase: str,
    camera: str,
    *,
    layer: Index = None,
    head: Index = None,
    step: int | None = None,
    keyframes: Index = None,
    query: str | None = None,
) -> xr.DataArray:
    """Compute the divergence between every two keyframes.

    Parameters
    ----------
    layer, head, keyframes
        Index (of layer and head: the dimension is dropped), slice, indices, or None for all.
    step
        Denoising step, which one-pass phases ignore; None is the one that stands for the phase.
    query
        Query group; None is the phase's first stored one, of which overview maps are read.

    Returns
    -------
    (layer, head, keyframe, other_keyframe) float64, bits, symmetric, 0 on the diagonal; NaN for
    keyframes without the camera. ``.sel(other_keyframe=0)`` is the drift from the start.

    Raises
    ------
    SelectionError
        If a name or an index matches nothing.
    """
    spec = episode.phase(phase, camera)
    if step is None:
        step = standing_step(phase, spec.steps) or 0
    times = Dimension.of(keyframes, len(episode.frames), "keyframe").positions
    layers, heads = _heads(spec, layer, head)
    cover = episode.geometry(camera).coverage()
    blocks = []
    for index in layers.positions:
        maps = episode.maps(
            phase, camera, layer=int(index), head=heads.positions.tolist(), step=step,
            keyframe=times.tolist(), reduce="mean", query=query,
        )  # fmt: skip
        blocks.append(np.moveaxis(pairwise_divergence(image_distribution(maps, cover)), -1, 0))
    coords: dict[str, Any] = {
        "keyframe": times,
        "frame": ("keyframe", episode.frames[times]),
        "other_keyframe": times,
        "other_frame": ("other_keyframe", episode.frames[times]),
    }
    if spec.steps is not None:
        coords["step"] = step % spec.steps
    return _labelled("keyframe", blocks, layers, heads, coords, episode, phase, camera, query)


def step_divergence(
    episode: Episode,
    phase: str,
    camera: str,
    *,
    keyframe: int,
    layer: Index = None,
    head: Index = None,
    query: str | None = None,
) -> xr.DataArray:
    """Compute the divergence between every two denoising steps of a keyframe.

    Parameters
    ----------
    layer, head
        Index (the dimension is dropped), slice, indices, or None for all.
    query
        Query group; None is the phase's first stored one, of which overview maps are read.

    Returns
    -------
    (layer, head, step, other_step) float64, bits, symmetric, 0 on the diagonal.
    ``.sel(other_step=-1)`` does not count from the end; ``.isel`` does.

    Raises
    ------
    SelectionError
        If the phase has no steps, or a name or an index matches nothing.
    """
    steps = _check_stepped(episode, phase)
    at = int(Dimension.of(keyframe, len(episode.frames), "keyframe").positions[0])
    layers, heads = _heads(episode.phase(phase, camera), layer, head)
    cover = episode.geometry(camera).coverage()
    blocks = []
    for index in layers.positions:
        maps = [
            episode.maps(
                phase, camera, layer=int(index), head=heads.positions.tolist(), step=step,
                keyframe=at, reduce="mean", query=query,
            )
            for step in range(steps)
        ]  # fmt: skip
        p = image_distribution(np.stack(maps), cover)
        blocks.append(np.moveaxis(pairwise_divergence(p), -1, 0))
    numbers = np.arange(steps)
    coords = {
        "step": numbers,
        "other_step": numbers,
        "keyframe": at,
        "frame": int(episode.frames[at]),
    }
    return _labelled("step", blocks, layers, heads, coords, episode, phase, camera, query)


def pairwise_divergence(p: NDArray[np.floating]) -> Float:
    """Compute the Jensen-Shannon divergence between every two entries of the first axis.

    Parameters
    ----------
    p
        (n, ..., bin) distributions over the last axis.

    Returns
    -------
    (n, n, ...) float64, bits, symmetric, 0 on the diagonal (NaN where p is NaN).

    Examples
    --------
    >>> pairwise_divergence(np.eye(2))
    array([[0., 1.],
           [1., 0.]])
    """
    count = len(p)
    result = np.empty((count, count, *p.shape[1:-1]))
    # Row by row: all pairs at once would take the memory of p count times.
    for i in range(count):
        result[i, i:] = result[i:, i] = jensen_shannon(p[i], p[i:])
    return result


def _stored(
    metric: Literal["drift", "step_drift"],
    episode: Episode,
    phase: str,
    camera: str,
    query: str | None,
) -> xr.DataArray:
    spec = episode.phase(phase, camera)
    values = episode.stats(metric, phase, camera, query=query)
    array = xr.DataArray(
        values,
        dims=("keyframe", "step", "layer", "head"),
        coords={name: np.arange(n) for name, n in zip(
            ("keyframe", "step", "layer", "head"), values.shape, strict=True)}
        | {"frame": ("keyframe", episode.frames)},
        name=metric,
        attrs=_attributes(episode, phase, camera, query) | {"precision": "unrounded"},
    )  # fmt: skip
    return array if spec.steps is not None else array.isel(step=0, drop=True)


def _labelled(
    over: Literal["keyframe", "step"],
    blocks: list[Float],
    layers: Dimension,
    heads: Dimension,
    coords: dict[str, Any],
    episode: Episode,
    phase: str,
    camera: str,
    query: str | None,
) -> xr.DataArray:
    spec = episode.phase(phase, camera)
    overview = query is None or query in spec.query_groups
    array = xr.DataArray(
        np.stack(blocks),
        dims=("layer", "head", over, f"other_{over}"),
        coords=coords | {"layer": layers.positions, "head": heads.positions},
        name=f"{over}_divergence",
        attrs=_attributes(episode, phase, camera, query)
        | {"precision": "float32" if overview else episode.spec.precision},
    )
    return array.isel({n: 0 for n, d in (("layer", layers), ("head", heads)) if d.scalar})


def _attributes(episode: Episode, phase: str, camera: str, query: str | None) -> dict[str, Any]:
    return {
        "units": "bits",
        "source": "Jensen-Shannon divergence, Lin 1991",
        "phase": phase,
        "camera": camera,
        "query": query if query is not None else episode.phase(phase, camera).query_groups[0],
    }


def _heads(spec: PhaseSpec, layer: Index, head: Index) -> tuple[Dimension, Dimension]:
    return (
        Dimension.of(layer, spec.layers, f"{spec.phase} layer"),
        Dimension.of(head, spec.heads, f"{spec.phase} head"),
    )


def _check_stepped(episode: Episode, phase: str) -> int:
    steps = episode.steps(phase)
    if steps is None:
        stepped = [name for name in episode.phases if episode.steps(name) is not None]
        raise SelectionError(
            f"phase {phase} has no steps; phases with steps: {', '.join(stepped) or 'none'}"
        )
    return steps

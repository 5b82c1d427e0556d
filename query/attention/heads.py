"""Which heads look alike: distances between heads, and their clusters.

Clark et al. 2019, "What Does BERT Look At?", compare heads by the Jensen-Shannon divergence of
their attention, query token by query token, and average over the data; heads of a layer turn out
close. Here the data are an episode's keyframes. Clusters are those of average linkage (UPGMA,
Sokal & Michener 1958).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.statistics import image_distribution
from attnstore.store.reader.blocks import Dimension, Index
from attnstore.store.reader.episode import Episode
from attnstore.store.rules import standing_step

from .drift import pairwise_divergence

Float = NDArray[np.float64]
Metric = Literal["divergence", "cosine"]
Tokens = Literal["mean", "each"]


def head_distance(
    episode: Episode,
    phase: str,
    *,
    camera: str | None = None,
    query: str | None = None,
    layers: Index = None,
    keyframes: Index = None,
    step: int | None = None,
    metric: Metric = "divergence",
    tokens: Tokens = "mean",
) -> xr.DataArray:
    """Compute the distance between every two heads of a phase, averaged over keyframes.

    Parameters
    ----------
    camera
        Compare the distributions over this camera's patches (`image_distribution`); None compares
        them over all keys.
    query
        Query group; None is the phase's default (task, action).
    layers, keyframes
        Index, slice, indices, or None for all.
    step
        Denoising step, which one-pass phases ignore; None is the one that stands for the phase.
    metric
        ``divergence``: Jensen-Shannon, in bits; its square root is a metric. ``cosine``: 1 minus
        the cosine of the angle between the distributions.
    tokens
        ``mean`` compares the group's mean attention: of a camera and a stored group, from
        overview maps. ``each`` compares token by token and averages, which is Clark et al.'s
        definition; it reads the full attention and takes as many times longer as the group has
        tokens.

    Returns
    -------
    (unit, other) float64, 0..1, symmetric, 0 on the diagonal. A head has no distribution where
    it gives the camera no attention: two heads are compared at the tokens and keyframes where both
    have one, and are NaN where there is none. A unit is a head of a layer,
    ``L05H03``; coordinates ``layer`` and ``head`` along ``unit``. Attribute ``precision`` names the
    stored precision that it is computed from.

    Raises
    ------
    SelectionError
        If a name or an index matches nothing, or no chosen keyframe has the camera.
    UsageError
        If `metric` or `tokens` is none of the above.
    """
    if metric not in get_args(Metric):
        raise UsageError(f"metric is divergence or cosine; got {metric!r}")
    if tokens not in get_args(Tokens):
        raise UsageError(f"tokens is mean or each; got {tokens!r}")
    spec = episode.phase(phase, camera)
    phase = spec.path
    group = query if query is not None else spec.query_groups[0]
    if step is None:
        step = standing_step(phase, spec.steps) or 0
    chosen = Dimension.of(layers, spec.layers, f"{phase} layer").positions
    times = Dimension.of(keyframes, len(episode.frames), "keyframe").positions
    overview = camera is not None and tokens == "mean" and group in spec.query_groups
    distance = pairwise_divergence if metric == "divergence" else _pairwise_cosine
    units = len(chosen) * spec.heads
    total, count, seen = np.zeros((units, units)), np.zeros((units, units)), 0
    for p in _distributions(episode, phase, camera, group, chosen, times, step, tokens, overview):
        # One keyframe at a time, else memory grows with the square of heads times keyframes.
        found = distance(p)
        known = ~np.isnan(found)
        both = known.sum(-1)
        total += np.where(known, found, 0).sum(-1) / np.maximum(both, 1)
        count += both > 0
        seen += 1
    if not seen:
        raise SelectionError(f"{phase}: none of the chosen keyframes has camera {camera}")
    at = np.repeat(chosen, spec.heads), np.tile(np.arange(spec.heads), len(chosen))
    labels = [f"L{layer:02d}H{head:02d}" for layer, head in zip(*at, strict=True)]
    return xr.DataArray(
        np.where(count > 0, total / np.maximum(count, 1), np.nan),
        dims=("unit", "other"),
        coords={"unit": labels, "other": labels, "layer": ("unit", at[0]), "head": ("unit", at[1])},
        name=metric,
        attrs={
            "phase": spec.phase,
            "camera": camera or "",
            "query": group,
            "tokens": tokens,
            "keyframes": seen,
            "units": "bits" if metric == "divergence" else "1 - cosine",
            "source": "Clark et al. 2019",
            "precision": "float32" if overview else episode.spec.precision,
        },
    )


def cluster_heads(distance: xr.DataArray, *, clusters: int = 8) -> xr.Dataset:
    """Cluster heads by average linkage, and put them in an order in which alike ones are near.

    Parameters
    ----------
    distance
        Of `head_distance`.
    clusters
        Number of clusters.

    Returns
    -------
    Dataset with ``cluster`` (unit), 0-based in the order of the dendrogram; ``rank`` (unit),
    the place in that order (``ds.sortby("rank")``); and ``linkage`` (merge, column): clusters
    ``one`` and ``another`` merged at mean distance ``height`` into one of ``size`` heads. Clusters
    below the number of units are single heads, n + i is what merge i made, as SciPy writes it.

    Raises
    ------
    UsageError
        If `distance` is not symmetric or has NaN, or there are fewer heads than clusters.
    """
    values = np.asarray(distance.to_numpy(), np.float64)
    if values.ndim != 2 or not np.allclose(values, values.T, rtol=0, atol=1e-12):
        blind = np.isnan(np.diag(values)) if values.ndim == 2 else np.zeros(0, np.bool_)
        advice = ""
        if blind.any():
            names = distance[distance.dims[0]].to_numpy()[blind].tolist()
            advice = (
                f"; without attention to the camera: {', '.join(map(str, names))}. Leave heads out "
                "with distance.drop_sel(unit=NAMES, other=NAMES)"
            )
        raise UsageError(f"distances between heads must be a symmetric matrix without NaN{advice}")
    if not 1 <= clusters <= len(values):
        raise UsageError(f"clusters lies in 1..{len(values)}, the number of heads; got {clusters}")
    linkage = average_linkage(values)
    order = leaf_order(linkage)
    dim = distance.dims[0]
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order))
    coords: dict[Any, Any] = {n: c for n, c in distance.coords.items() if c.dims == (dim,)}
    return xr.Dataset(
        {
            "cluster": (dim, _cut(linkage, order, clusters)),
            "rank": (dim, rank),
            "linkage": (("merge", "column"), linkage),
        },
        coords=coords | {"column": ["one", "another", "height", "size"]},
        attrs={"source": "average linkage, Sokal & Michener 1958", **distance.attrs},
    )


def average_linkage(distance: Float) -> Float:
    """Merge the two nearest clusters until one is left; distances are means over all pairs.

    Of equally near ones the first in row order are merged.

    Returns
    -------
    (n - 1, 4): the merged clusters, the lower first, their distance, the number of items.

    Examples
    --------
    >>> average_linkage(np.array([[0.0, 4, 1], [4, 0, 6], [1, 6, 0]]))
    array([[0., 2., 1., 2.],
           [1., 3., 5., 3.]])
    """
    count = len(distance)
    work = np.array(distance, np.float64)
    np.fill_diagonal(work, np.inf)
    size, name = np.ones(count), np.arange(count)
    linkage = np.empty((max(count - 1, 0), 4))
    for merge in range(count - 1):
        i, j = np.divmod(int(work.argmin()), count)
        linkage[merge] = (*sorted((name[i], name[j])), work[i, j], size[i] + size[j])
        # Lance & Williams 1967: the mean over pairs follows from the two means.
        mean = (size[i] * work[i] + size[j] * work[j]) / (size[i] + size[j])
        work[i], work[:, i] = mean, mean
        work[i, i] = work[j] = work[:, j] = np.inf
        size[i] += size[j]
        name[i] = count + merge
    return linkage


def leaf_order(linkage: Float) -> NDArray[np.intp]:
    """Return the items in the order of the dendrogram, each merge's lower cluster first."""
    count = len(linkage) + 1
    members: dict[int, list[int]] = {i: [i] for i in range(count)}
    for merge, (one, another, _, _) in enumerate(linkage):
        members[count + merge] = members.pop(int(one)) + members.pop(int(another))
    return np.array(next(iter(members.values())), np.intp)


def _cut(linkage: Float, order: NDArray[np.intp], clusters: int) -> NDArray[np.intp]:
    count = len(order)
    members: dict[int, list[int]] = {i: [i] for i in range(count)}
    for merge, (one, another, _, _) in enumerate(linkage[: count - clusters]):
        members[count + merge] = members.pop(int(one)) + members.pop(int(another))
    first = {item: min(group) for group in members.values() for item in group}
    found = np.empty(count, np.intp)
    numbers: dict[int, int] = {}
    for item in order:
        found[item] = numbers.setdefault(first[int(item)], len(numbers))
    return found


def _pairwise_cosine(p: Float) -> Float:
    length = np.linalg.norm(p, axis=-1, keepdims=True)
    unit = p / length
    cosine = np.einsum("isk,jsk->ijs", unit, unit)
    np.einsum("iis->is", cosine)[:] = np.where(np.isnan(length[..., 0]), np.nan, 1)
    return np.asarray(np.clip(1 - cosine, 0, 1))


def _distributions(
    episode: Episode,
    phase: str,
    camera: str | None,
    group: str,
    layers: NDArray[np.intp],
    keyframes: NDArray[np.intp],
    step: int,
    tokens: Tokens,
    overview: bool,
) -> Iterator[Float]:
    """Per keyframe (unit, token, bin), each summing to 1, or NaN where a head gives the camera nothing.

    Keyframes without the camera are left out.
    """
    if overview and camera is not None:
        maps = episode.maps(
            phase, camera, layer=layers.tolist(), step=step, keyframe=keyframes.tolist(),
            reduce="mean", query=group,
        )  # fmt: skip
        there = maps[~np.isnan(maps).any((1, 2, 3, 4))]
        units = there.reshape(len(there), -1, 1, *maps.shape[-2:])
        yield from image_distribution(units, episode.geometry(camera).coverage())
        return
    for keyframe in keyframes:
        weights = episode.values(
            phase,
            keyframe=int(keyframe),
            step=step if episode.steps(phase) is not None else None,
            layer=layers.tolist(),
            query=group,
            key=None if camera is None else f"image:{camera}",
        ).astype(np.float64)
        flat = weights.reshape(-1, *weights.shape[2:])
        # What this keyframe lacks is NaN: rows of absent query tokens, columns of absent keys.
        flat = flat[:, ~np.isnan(flat).all((0, 2))]
        flat = flat[..., ~np.isnan(flat).any((0, 1))]
        if not flat.size:
            continue
        if tokens == "mean":
            flat = flat.mean(1, keepdims=True)
        if camera is not None:
            cover = episode.geometry(camera).coverage()
            yield image_distribution(flat.reshape(*flat.shape[:2], *cover.shape), cover)
        else:
            yield flat / flat.sum(-1, keepdims=True)

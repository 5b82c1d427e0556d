"""Two runs on the same episodes: how far apart their maps are, head by head.

Another checkpoint, another prompt, another data type: the frames are the same, so that maps are
compared at each keyframe, without a test over episodes. The divergence of two maps is the
Jensen-Shannon divergence in bits (0 equal, 1 disjoint) of ``P``, a camera's attention normalised
over the patches that show image (docs: `attnstore.store.format.statistics`), as `drift` is between
consecutive keyframes of one run.

Maps come from the overview tier, rounded to 11 significant bits (maxima to 6): a map and its stored
form are up to 2e-8 bits apart (maxima: 2e-5), and equal bytes 0. Less is not a difference.
Value-weighted maps are made of the stored weights of both runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import duckdb
import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.format.statistics import image_distribution, jensen_shannon
from attnstore.store.format.weighting import Weighting
from attnstore.store.reader.selection import check_index
from attnstore.store.rules import standing_step

if TYPE_CHECKING:
    from attnstore.store.reader.episode import Episode

    from ..sql.store import Store

Reduction = Literal["max", "mean"]
DIMS = ("camera", "keyframe", "step", "layer", "head")


def diff_runs(
    store: Store,
    run_a: str,
    run_b: str,
    episode: str,
    *,
    phase: str | None = None,
    cameras: Sequence[str] | None = None,
    query: str | None = None,
    step: int | Literal["last", "all"] = "last",
    weighting: Weighting = "raw",
) -> xr.DataArray:
    """Divergence between the maps of one episode in two runs.

    Parameters
    ----------
    episode
        Its name; both runs must have it.
    phase, cameras, query
        By default the prefix, all cameras of both runs, and the phase's first query group.
    step
        Denoising step of a stepped phase, negative ones from the end, or ``all``.
    weighting
        ``raw``, or ``value``: of maps of what is carried; see `attnstore.store.format.weighting`.

    Returns
    -------
    DataArray (camera, keyframe, step, layer, head), 0..1 bits, over the frames that are keyframes
    of both runs; ``frame`` is a coordinate of ``keyframe``; ``step`` is -1 in one-pass phases. NaN
    where a map is absent.

    Raises
    ------
    SelectionError
        If the runs have no camera, frame or head in common, or divide a camera into different
        patches.
    NotFoundError
        If a run has no value norms to weight with.
    """
    if run_a == run_b:
        raise UsageError(f"two runs are compared; got {run_a} twice")
    for run in (run_a, run_b):
        store.run(run)
    return diff_episodes(
        store.episode(episode, run=run_a),
        store.episode(episode, run=run_b),
        phase=phase,
        cameras=cameras,
        query=query,
        step=step,
        weighting=weighting,
    )


def diff_episodes(
    a: Episode,
    b: Episode,
    *,
    phase: str | None = None,
    cameras: Sequence[str] | None = None,
    query: str | None = None,
    step: int | Literal["last", "all"] = "last",
    reduce: Reduction = "mean",
    weighting: Weighting = "raw",
) -> xr.DataArray:
    """Divergence between the maps of two opened episodes; see `diff_runs`.

    Parameters
    ----------
    reduce
        Of the maps, over their query tokens; ``max`` for the maps that overlays show.
    """
    phase = phase or default_phase(a, b)
    shapes = [(e.layers(phase), e.heads(phase), e.steps(phase)) for e in (a, b)]
    if shapes[0] != shapes[1]:
        raise SelectionError(
            f"{a.name}: the runs' {phase} is of different shape, (layers, heads, steps) "
            f"{shapes[0]} and {shapes[1]}"
        )
    frames, in_a, in_b = np.intersect1d(a.frames, b.frames, return_indices=True)
    if not len(frames):
        raise SelectionError(f"{a.name}: no frame is a keyframe of both runs")
    chosen = _cameras(a, b, cameras)
    steps = _steps(shapes[0][2], step, phase)
    values = np.stack(
        [
            np.stack(
                [
                    jensen_shannon(
                        _distribution(a, phase, camera, query, s, reduce, weighting, in_a),
                        _distribution(b, phase, camera, query, s, reduce, weighting, in_b),
                    )
                    for s in steps
                ],
                axis=1,
            )
            for camera in chosen
        ]
    )
    return xr.DataArray(
        values,
        dims=DIMS,
        coords={
            "camera": list(chosen),
            "keyframe": np.arange(len(frames)),
            "frame": ("keyframe", frames),
            "step": steps,
            "layer": np.arange(shapes[0][0]),
            "head": np.arange(shapes[0][1]),
        },
        name="divergence",
        attrs={
            "units": "bits",
            "long_name": "Jensen-Shannon divergence between the runs' maps",
            "episode": a.name,
            "run_a": a.run,
            "run_b": b.run,
            "phase": phase,
            "query_group": query or a.phase(phase, chosen[0]).query_groups[0],
            "reduce": reduce,
            "weighting": weighting,
        },
    )


def default_phase(a: Episode, b: Episode) -> str:
    """Return the phase that is compared by default: the prefix, or the first that both have.

    Raises
    ------
    SelectionError
        If the runs have no phase in common.
    """
    shared = [p for p in a.phases if p in b.phases]
    phase = "prefix" if "prefix" in shared else next(iter(shared), None)
    if phase is None:
        raise SelectionError(f"{a.name}: the runs have no phase in common")
    return phase


def _distribution(
    episode: Episode,
    phase: str,
    camera: str,
    query_group: str | None,
    step: int,
    reduce: Reduction,
    weighting: Weighting,
    keyframes: NDArray[np.intp],
) -> NDArray[np.float64]:
    maps = episode.maps(
        phase, camera, step=max(step, 0), reduce=reduce, keyframe=keyframes.tolist(),
        query=query_group, weighting=weighting,
    ).values  # fmt: skip
    return image_distribution(maps, episode.geometry(camera).coverage())


def _cameras(a: Episode, b: Episode, wanted: Sequence[str] | None) -> Sequence[str]:
    """Return the cameras to compare, after checking that their patches are the same."""
    shared = [c for c in a.cameras if c in b.cameras]
    chosen = shared if wanted is None else list(wanted)
    unknown = [c for c in chosen if c not in shared]
    if unknown or not chosen:
        raise SelectionError(
            f"{a.name}: no camera {' or '.join(unknown)} in both runs; both have: "
            f"{', '.join(shared) or 'none'}"
        )
    for camera in chosen:
        covers = [e.geometry(camera).coverage() for e in (a, b)]
        if covers[0].shape != covers[1].shape or not np.allclose(covers[0], covers[1]):
            grids = [" × ".join(map(str, c.shape)) for c in covers]
            raise SelectionError(
                f"{a.name}: the runs see {camera} through different patches ({grids[0]} and "
                f"{grids[1]}, or another crop), so that their maps cannot be compared"
            )
    return chosen


def _steps(steps: int | None, wanted: int | Literal["last", "all"], phase: str) -> list[int]:
    if steps is None:
        if wanted not in ("last", "all"):
            raise SelectionError(f"phase {phase} has no steps; got step {wanted}")
        return [-1]
    if wanted == "all":
        return list(range(steps))
    if wanted == "last":
        wanted = standing_step(phase, steps) or 0
    return [check_index(wanted, steps, f"{phase} step")]


def diff_table(divergence: xr.DataArray) -> pa.Table:
    """Return a divergence as rows: a row per camera, keyframe, step, layer and head.

    Columns: ``run_a``, ``run_b``, ``episode``, ``phase``, ``query_group``, ``weighting``, ``camera``,
    ``frame``, ``step`` (null in one-pass phases), ``layer``, ``head``, ``divergence`` in bits.
    """
    at = dict(zip(DIMS, np.indices(divergence.shape).reshape(len(DIMS), -1), strict=True))
    size = divergence.size
    columns: dict[str, object] = {
        name: [divergence.attrs[name]] * size
        for name in ("run_a", "run_b", "episode", "phase", "query_group", "weighting")
    }
    columns["camera"] = divergence["camera"].values[at["camera"]]
    columns["frame"] = divergence["frame"].values[at["keyframe"]]
    step = divergence["step"].values[at["step"]]
    columns["step"] = pa.array(step, mask=step < 0)
    columns["layer"], columns["head"] = at["layer"], at["head"]
    columns["divergence"] = pa.array(divergence.values.reshape(-1), from_pandas=True)
    return pa.table(columns)


def rank_heads(divergences: Iterable[xr.DataArray]) -> pa.Table:
    """Rank heads by their divergence over all keyframes of the episodes.

    Columns: ``camera``, ``step``, ``layer``, ``head``; ``mean`` over keyframes, each keyframe
    counted once; ``max`` with its ``episode`` and ``frame``; ``keyframes``.
    """
    table = pa.concat_tables([diff_table(d) for d in divergences])
    keys = ["camera", "step", "layer", "head"]
    with duckdb.connect() as connection:
        connection.register("divergences", table)
        found = connection.sql(
            f"SELECT {', '.join(keys)}, avg(divergence) AS mean, max(divergence) AS max, "
            "arg_max(episode, divergence) AS episode, arg_max(frame, divergence) AS frame, "
            "count(divergence) AS keyframes FROM divergences "
            f"GROUP BY {', '.join(keys)} ORDER BY mean DESC NULLS LAST, {', '.join(keys)}"
        )
        return found.to_arrow_table()

"""Many episodes as one lazy dataset, its chunks whole shards; see `attnstore.query.Store.dataset`.

A chunk is read by whichever process computes it, from the episode's own files: what travels is the place
of the store and an episode's ids. So a reduction over all episodes holds as many chunks at a time as there
are threads, on one machine or on a Dask cluster that sees the store.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..arrays.chunking import MAP_KEYFRAMES
from ..commits import StorePaths, latest_commit
from ..commits.part import Part
from ..errors import MissingExtraError, NotFoundError, SelectionError
from ..format.axes import attention_dims, map_dims
from ..format.episode import PhaseSpec
from ..format.generated import DECODE
from ..format.tokens import WORD, AlignedAxis, Axis, Span, Token
from ..format.weighting import Weighting, check_weighting
from ..rules import standing_step
from .blocks import Float
from .episode import Episode, Steps
from .labels import labels_of_tokens
from .selection import select_tokens

Positions = NDArray[np.intp]
Reduction = Literal["mean", "max"]


@dataclass(frozen=True, slots=True)
class _Place:
    """One chunk: some keyframes of an episode."""

    paths: StorePaths
    run: str
    episode: str
    attempt: str
    start: int
    stop: int

    def open(self) -> Episode:
        return _opened(self.paths, self.run, self.episode, self.attempt)


@lru_cache(maxsize=16)
def _opened(paths: StorePaths, run: str, episode: str, attempt: str) -> Episode:
    commit = latest_commit(paths, run, episode)
    if commit is None or commit.attempt != attempt:
        raise NotFoundError(f"{run}/{episode} was replaced or removed; make the dataset anew")
    return Episode(Part(paths, commit))


def attention_dataset(
    episodes: Sequence[Episode], phase: str, query: str | None, key: str | None,
    weighting: Weighting = "raw",
) -> xr.Dataset:  # fmt: skip
    """Attention of a phase over episodes; see `attnstore.query.Store.dataset`."""
    specs = [episode.phase(phase) for episode in episodes]
    shape = _same_shape(episodes, specs)
    axes = {
        name: _across([getattr(spec, name) for spec in specs], episodes)
        for name in ("query", "key")
    }
    chosen = {
        name: _select(axes[name], group, len(episodes), f"{shape.path} {name}")
        for name, group in (("query", query), ("key", key))
    }
    spec = replace(shape, query=axes["query"], key=axes["key"])
    _check_weighting(episodes, specs, weighting)
    read = partial(
        _read_attention, phase=shape.path, steps=shape.steps, axes=axes, chosen=chosen,
        weighting=weighting,
    )  # fmt: skip
    dims = attention_dims(shape.phase)
    sizes = (
        *(() if shape.steps is None else (shape.steps,)),
        shape.layers, shape.heads, len(chosen["query"]), len(chosen["key"]),
    )  # fmt: skip
    labels = {
        name: (axis, values[chosen[axis]])
        for name, (axis, values) in labels_of_tokens(spec).items()
    }
    coords = {name: (name, indices) for name, indices in chosen.items()} | labels
    text = {"long_name": "attention weight", "phase": shape.phase, "weighting": weighting}
    return _dataset("attention", episodes, 1, dims, sizes, read, coords, text)


def map_dataset(
    episodes: Sequence[Episode], phase: str, camera: str, query: str | None, reduce: Reduction,
    step: Steps, weighting: Weighting = "raw",
) -> xr.Dataset:  # fmt: skip
    """Maps of a phase on a camera over episodes; see `attnstore.query.Store.dataset`."""
    specs = [episode.phase(phase, camera) for episode in episodes]
    shape = _same_shape(episodes, specs)
    if step is None or shape.steps is None:
        step = standing_step(shape.phase, shape.steps)
    # Says what is wrong with the question before the first chunk is read.
    _check_weighting(episodes, specs, weighting)
    asked = partial(
        _lazy_maps, phase=phase, camera=camera, query=query, reduce=reduce, step=step,
        weighting=weighting,
    )  # fmt: skip
    grids = {asked(episode).shape[-2:] for episode in episodes}
    if len(grids) > 1:
        raise SelectionError(
            f"maps on {camera} have {_these(grids)} patches; choose episodes of one grid"
        )
    whole = asked(episodes[0])
    dims = tuple(d for d in map_dims(shape.phase) if d in whole.dims)
    sizes = tuple(whole.sizes[d] for d in dims[1:])
    if "step" in dims:
        sizes = (shape.steps or 1, *sizes[1:])
    read = partial(_read_maps, maps=asked, steps=sizes[0] if "step" in dims else None)
    coverage = [episode.geometry(camera).coverage() for episode in episodes]
    coords: dict[Hashable, Any] = {}
    if all(np.array_equal(each, coverage[0]) for each in coverage):
        coords["coverage"] = (("row", "col"), coverage[0])
    else:
        of = np.repeat(np.arange(len(episodes)), [len(e.frames) for e in episodes])
        coords["coverage"] = (("keyframe", "row", "col"), np.stack(coverage)[of])
    group = query if query is not None else shape.query_groups[0]
    text = {
        "long_name": f"attention, {reduce} over the {group} tokens", "phase": shape.phase,
        "camera": camera, "query": group, "reduce": reduce, "weighting": weighting,
    }  # fmt: skip
    if "step" not in dims and "step" in whole.coords and whole["step"].ndim == 0:
        coords["step"] = int(whole["step"])
    stored = group in shape.query_groups and weighting == "raw"
    together = MAP_KEYFRAMES if stored else 1
    return _dataset("map", episodes, together, dims, sizes, read, coords, text)


def _lazy_maps(
    episode: Episode, phase: str, camera: str, query: str | None, reduce: Reduction,
    step: Steps, weighting: Weighting,
) -> xr.DataArray:  # fmt: skip
    try:
        return episode.maps(
            phase,
            camera,
            query=query,
            reduce=reduce,
            step=step,
            weighting=weighting,
            lazy=True,
        )
    except SelectionError as error:
        raise SelectionError(f"{episode.name}: {error}") from None


def _read_maps(
    place: _Place, *, maps: Callable[[Episode], xr.DataArray], steps: int | None
) -> Float:
    values = maps(place.open()).isel(keyframe=slice(place.start, place.stop)).values
    if steps is not None and values.shape[1] < steps:
        values = _padded(values, steps)
    return np.asarray(values, np.float32)


def _read_attention(
    place: _Place, *, phase: str, steps: int | None, axes: dict[str, AlignedAxis],
    chosen: dict[str, Positions], weighting: Weighting,
) -> Float:  # fmt: skip
    episode = place.open()
    spec = episode.phase(phase)
    homes = {
        name: _homes(axes[name], getattr(spec, name))[chosen[name]] for name in ("query", "key")
    }
    shape = [
        place.stop - place.start,
        *(() if steps is None else (steps,)),
        spec.layers,
        spec.heads,
    ]
    result = np.full((*shape, *(len(h) for h in homes.values())), np.nan, np.float32)
    here = {name: np.flatnonzero(home >= 0) for name, home in homes.items()}
    if not all(map(len, here.values())):
        return result
    values = episode.attention(
        phase,
        keyframe=slice(place.start, place.stop),
        query=homes["query"][here["query"]].tolist(),
        key=homes["key"][here["key"]].tolist(),
        weighting=weighting,
        max_bytes=1 << 62,
    ).values
    own = result if steps is None else result[:, : values.shape[1]]
    own[..., here["query"][:, None], here["key"]] = values
    return result


def _check_weighting(
    episodes: Sequence[Episode], specs: Sequence[PhaseSpec], weighting: Weighting
) -> None:
    check_weighting(weighting)
    for episode, spec in zip(episodes, specs, strict=True):
        if weighting == "value":
            episode.part.check_norms(spec.path)


def _homes(across: AlignedAxis, own: AlignedAxis) -> Positions:
    """Index on an episode's own axis of every token of the common one; -1 where it has none."""
    homes = np.full(len(across), -1, np.intp)
    for span in own:
        start = across[span.name].start
        homes[start : start + len(span)] = np.arange(span.start, span.stop)
    return homes


def _padded(values: Float, steps: int) -> Float:
    """Fill a shorter text's steps with NaN."""
    whole = np.full((len(values), steps, *values.shape[2:]), np.nan, np.float32)
    whole[:, : values.shape[1]] = values
    return whole


def _across(axes: Sequence[AlignedAxis], episodes: Sequence[Episode]) -> AlignedAxis:
    """Align the episodes' axes by their spans' names, each as long as its longest.

    Words that are not the same in all of them are numbered: no word is put on another's place.
    """
    try:
        whole = AlignedAxis.over([Axis(tuple(axis)) for axis in axes])
    except ValueError as error:
        raise SelectionError(
            f"the token layouts of {len(episodes)} episodes differ: {error}"
        ) from None
    texts: dict[str, set[tuple[str, ...]]] = {}
    for axis in axes:
        for span in axis:
            texts.setdefault(span.name, set()).add(tuple(t.text for t in span.tokens))

    def unnamed(span: Span) -> Span:
        if len(texts[span.name]) == 1:
            return span
        numbered = (Token(0, f"{span.name}[{i}]") for i in range(len(span)))
        return replace(span, tokens=tuple(numbered))

    return AlignedAxis(tuple(unnamed(span) for span in whole))


def _select(axis: AlignedAxis, group: str | None, episodes: int, where: str) -> Positions:
    if episodes > 1 and group is not None and WORD.fullmatch(group):
        raise SelectionError(
            f"{where}: {group} is other tokens in every prompt, and cannot be one axis of {episodes} "
            "episodes; name a span, a kind or a role, or ask for maps of the word: maps=CAMERA, query="
            f"{group!r}"
        )
    return select_tokens(axis, group, where=where).indices


def _same_shape(episodes: Sequence[Episode], specs: Sequence[PhaseSpec]) -> PhaseSpec:
    """Return the phase's shape, which is that of all episodes; in ``decode`` of the longest text."""
    if not episodes:
        raise SelectionError("no episode is chosen")
    first = specs[0]
    for what in ("layers", "heads", "steps"):
        if what == "steps" and first.phase == DECODE:
            continue
        found = {getattr(spec, what) for spec in specs}
        if len(found) > 1:
            runs = sorted({episode.run for episode in episodes})
            raise SelectionError(
                f"phase {first.path} has {_these(found)} {what}, in runs {', '.join(runs)}: "
                "choose one with run="
            )
    if first.steps is None:
        return first
    return replace(first, steps=max(spec.steps or 0 for spec in specs))


def _these(values: Iterable[Any]) -> str:
    return " and ".join(
        " x ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in sorted(values)
    )


def _dataset(
    name: str, episodes: Sequence[Episode], together: int, dims: tuple[str, ...],
    sizes: tuple[int, ...], read: Callable[[_Place], Float], coords: dict[Any, Any],
    attributes: dict[str, Any],
) -> xr.Dataset:  # fmt: skip
    try:
        import dask.array as da
    except ModuleNotFoundError as error:
        raise MissingExtraError("dataset() needs dask: pip install 'attnstore[dask]'") from error
    places = [
        _Place(
            e.part.paths,
            e.run,
            e.id,
            e.part.commit.attempt,
            start,
            min(start + together, len(e.frames)),
        )
        for e in episodes
        for start in range(0, len(e.frames), together)
    ]
    each = np.empty(len(places), object)
    each[:] = places
    values = da.map_blocks(  # type: ignore[no-untyped-call]  # dask is untyped here
        partial(_read_block, read=read),
        da.from_array(each, chunks=1, name=False),  # type: ignore[no-untyped-call]
        chunks=(tuple(p.stop - p.start for p in places), *((n,) for n in sizes)),
        new_axis=list(range(1, len(dims))),
        dtype=np.float32,
        meta=np.empty((0,) * len(dims), np.float32),
        name=f"attnstore-{name}-{uuid4().hex}",
    )
    counts = [len(e.frames) for e in episodes]
    along = {
        "episode": np.repeat([e.name for e in episodes], counts),
        "run": np.repeat([e.run for e in episodes], counts),
        "outcome": np.repeat([e.outcome for e in episodes], counts),
        "number": np.concatenate([np.arange(n) for n in counts]),
        "frame": np.concatenate([e.frames for e in episodes]),
    }
    labels = {key: ("keyframe", value) for key, value in along.items()}
    return xr.Dataset({name: (dims, values, attributes)}, coords=labels | coords)


def _read_block(places: NDArray[Any], *, read: Callable[[_Place], Float]) -> Float:
    return read(places[0])

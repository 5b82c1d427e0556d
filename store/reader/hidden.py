"""Hidden states as labelled arrays: of an episode, and of many behind one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from ..commits.part import Part
from ..errors import NotFoundError, SelectionError
from ..format.episode import PhaseSpec
from ..format.hidden import (
    EMBEDDING,
    Form,
    HiddenSpec,
    hidden_dims,
    hidden_layers,
    hidden_positions,
)
from .blocks import Block, Dimension, Float, Positions, too_large
from .labels import labelled
from .selection import check_index

if TYPE_CHECKING:
    from .episode import Episode, Steps

Tokens = Literal["mean", "last", "all"]
"""Which hidden states: means over spans, the last of those that actions are made of, or every token's."""
Layers = int | Literal["embedding"] | slice | Sequence[int | Literal["embedding"]] | None
Spans = str | Sequence[str] | None
_FORMS: dict[str, Form] = {"mean": "mean", "last": "last", "all": "tokens"}


@dataclass(frozen=True, slots=True)
class HiddenRead:
    """Reads one form of a phase's hidden states, as `attnstore.store.reader.blocks.Read`; of heads there is one."""

    part: Part
    spec: PhaseSpec
    form: Form
    max_bytes: int

    def __call__(
        self, keyframes: Positions, steps: Positions | None, layers: Positions, heads: Positions,
        places: Positions, features: Positions,
    ) -> Float:  # fmt: skip
        """Read the product of the positions."""
        along = [keyframes, *(() if steps is None else (steps,))]
        along += [] if self.form == "last" else [layers]
        dims = tuple(Dimension(each, False) for each in (*along, places, features))
        block = Block(hidden_dims(self.spec.phase, self.form), dims)
        block.check_size(4, self.max_bytes, f"{self.spec.path} hidden states")
        found = block.pick(self.part.hidden(self.spec.path, self.form, block.index))
        lead = found.shape[: len(along) - (self.form != "last")]
        return np.asarray(found, np.float32).reshape(
            *lead, len(layers) if self.form != "last" else 1, 1, len(places), len(features)
        )


def hidden_states(
    episode: Episode, phase: PhaseSpec, tokens: Tokens, layer: Layers, span: Spans, step: Steps,
    keyframe: Any, frame: Any, max_bytes: int | None,
) -> xr.DataArray:  # fmt: skip
    """Load hidden states of an episode; see `Episode.hidden`."""
    if tokens not in _FORMS:
        raise SelectionError(f"tokens is one of {', '.join(_FORMS)}; got {tokens!r}")
    form = _FORMS[tokens]
    # Says what is missing, and how to get it.
    episode.part.check_hidden(phase.path, form)
    hidden = phase.hidden
    assert hidden is not None
    numbers = np.array(hidden_layers(phase.layers, hidden, form) or (phase.layers,))
    if form == "last" and layer is not None:
        raise SelectionError("the last hidden states are after all layers; leave layer out")
    layers = _layers(episode, phase, layer, numbers) if form != "last" else _one()
    places, name, labels = _places(episode, phase, hidden, form, span)
    selection = replace(
        episode._select(phase, keyframe, frame, step, None, 0, ()),
        layer=layers,
        rest=((name, places), ("feature", Dimension(np.arange(hidden.features), False))),
    )
    if form != "last":
        labels["layer"] = ("layer", numbers[layers.positions])
    text = {
        "mean": "mean hidden state of a span's tokens",
        "last": "last hidden state",
        "tokens": "hidden state",
    }[form]
    attributes = episode._identity(phase) | {"long_name": text, "tokens": tokens}
    limit = 1 << 62 if max_bytes is None else max_bytes
    found = labelled(
        f"{phase.phase}_hidden", selection, HiddenRead(episode.part, phase, form, limit),
        episode.frames, labels, attributes, max_bytes,
    )  # fmt: skip
    return found.drop_vars("head" if form != "last" else ["head", "layer"])


def _one() -> Dimension:
    return Dimension(np.zeros(1, np.intp), True)


def _layers(episode: Episode, phase: PhaseSpec, asked: Layers, numbers: Positions) -> Dimension:
    """Positions on the stored axis of the layers that are asked for."""
    if asked is None:
        return Dimension(np.arange(len(numbers)), False)
    if isinstance(asked, slice):
        wanted = list(range(phase.layers)[asked])
    else:
        each_of = [asked] if isinstance(asked, int | np.integer | str) else asked
        wanted = [_number(phase, each) for each in each_of]
    if not wanted:
        raise SelectionError(f"{phase.path} layer: {asked} selects none of {phase.layers}")
    at = {int(number): i for i, number in enumerate(numbers)}
    if lost := [n for n in wanted if n not in at]:
        raise NotFoundError(
            f"{episode.name}: of layer {_called(lost[0])} of {phase.path} not every token is stored, of "
            f"{', '.join(map(_called, at))} it is; ingest it again with --hidden {_called(lost[0])}"
        )
    single = isinstance(asked, int | np.integer | str)
    return Dimension(np.array([at[n] for n in wanted]), single)


def _number(phase: PhaseSpec, layer: int | str) -> int:
    if isinstance(layer, str):
        if layer != "embedding":
            raise SelectionError(f"a layer is a number or 'embedding'; got {layer!r}")
        return EMBEDDING
    return check_index(int(layer), phase.layers, f"{phase.path} layer")


def _called(layer: int) -> str:
    return "embedding" if layer == EMBEDDING else str(layer)


def _places(
    episode: Episode, phase: PhaseSpec, hidden: HiddenSpec, form: Form, span: Spans
) -> tuple[Dimension, str, dict[str, Any]]:
    """Positions along spans or tokens, that dimension's name, and its labels."""
    groups = [span] if isinstance(span, str) else span
    if form == "mean":
        names = [each.name for each in phase.query]
        if unknown := [g for g in groups or () if g not in names]:
            raise SelectionError(
                f"{episode.name}: {phase.path} has no span {unknown[0]!r}; there are {', '.join(names)}"
            )
        at = np.array([names.index(g) for g in groups] if groups else range(len(names)), np.intp)
        of_spans: dict[str, Any] = {"span": ("span", np.array(names, np.str_)[at])}
        return Dimension(at, isinstance(span, str)), "span", of_spans
    stored = hidden_positions(phase.query, hidden, form)
    if groups:
        asked = {int(i) for g in groups for i in episode._tokens(phase, "query", g).indices}
        at = np.array([i for i, token in enumerate(stored) if int(token) in asked], np.intp)
        if not len(at):
            kept = hidden.last if form == "last" else hidden.spans
            raise NotFoundError(
                f"{episode.name}: no token of {', '.join(groups)} of {phase.path} is stored, those of "
                f"{', '.join(kept)} are"
            )
    else:
        at = np.arange(len(stored))
    labels: dict[str, Any] = {"query": ("query", stored[at])}
    for name, (axis, values) in episode._labels(phase).items():
        if axis == "query":
            labels[name] = ("query", values[stored[at]])
    return Dimension(at, False), "query", labels


def hidden_over(
    episodes: Sequence[Episode],
    read: Callable[..., xr.DataArray],
    max_bytes: int,
    progress: Callable[[float, str], None],
) -> xr.DataArray:
    """Put the hidden states of episodes behind one another; see `attnstore.query.Store.hidden`.

    Parameters
    ----------
    read
        Loads those of one, lazily or not: ``read(episode, lazy=True)``.
    progress
        Called with the share of the episodes that are read, and the next one's name.
    """
    if not episodes:
        raise SelectionError("no episode is chosen")
    lazy = [read(episode, lazy=True) for episode in episodes]
    first = lazy[0]
    for what in ("feature", "layer"):
        found = {tuple(each[what].values.ravel().tolist()) for each in lazy if what in each.coords}
        if len(found) > 1:
            runs = ", ".join(sorted({episode.run for episode in episodes}))
            raise SelectionError(
                f"hidden states have other {what}s from episode to episode, in runs {runs}: choose one with run="
            )
    size = sum(each.nbytes for each in lazy)
    if size > max_bytes:
        raise too_large(size, max_bytes, "hidden states")
    aligned = next((dim for dim in ("span", "query") if dim in first.dims), None)
    keys = [_token_keys(each, aligned) for each in lazy] if aligned else []
    every = _merged(keys)
    steps = max((each.sizes["step"] for each in lazy if "step" in each.dims), default=None)
    sizes = dict(first.sizes) | ({aligned: len(every)} if aligned else {})
    if steps is not None:
        sizes["step"] = steps
    counts = [each.sizes.get("keyframe", 1) for each in lazy]
    inner = [dim for dim in first.dims if dim != "keyframe"]
    whole = np.full((sum(counts), *(sizes[dim] for dim in inner)), np.nan, np.float32)
    start = 0
    for i, episode in enumerate(episodes):
        progress(i / len(episodes), episode.name)
        values = read(episode, lazy=False)
        values = values if "keyframe" in values.dims else values.expand_dims("keyframe")
        into: list[Any] = [slice(start, start + counts[i])]
        for dim in inner:
            own: Any = slice(0, values.sizes[dim])
            if dim == aligned:
                own = [every.index(key) for key in keys[i]]
            into.append(own)
        # One list among slices keeps the order of the axes.
        whole[tuple(into)] = values.transpose("keyframe", *inner).values
        start += counts[i]
    coords: dict[str, Any] = {
        str(name): value
        for name, value in first.coords.items()
        if "keyframe" not in value.dims and aligned not in value.dims and name not in ("frame", "keyframe", "step")
    }  # fmt: skip
    if "step" in first.coords and first["step"].ndim == 0:
        coords["step"] = first["step"]
    if aligned == "span":
        coords["span"] = ("span", np.array([name for name, _ in every], np.str_))
    elif aligned is not None:
        coords["query_span"] = (aligned, np.array([name for name, _ in every], np.str_))
        coords["offset"] = (aligned, np.array([offset for _, offset in every]))
    of_episode = {
        "episode": [e.name for e in episodes],
        "run": [e.run for e in episodes],
        "outcome": [e.outcome for e in episodes],
        "task": [e.spec.task or "" for e in episodes],
        "instruction": [e.instruction for e in episodes],
    }
    for name, texts in of_episode.items():
        coords[name] = ("keyframe", np.repeat(texts, counts))
    for name, source in (("number", "keyframe"), ("frame", "frame")):
        along = [np.atleast_1d(each[source].values) for each in lazy]
        coords[name] = ("keyframe", np.concatenate(along))
    attributes = {k: v for k, v in first.attrs.items() if k not in ("episode", "run")}
    return xr.DataArray(whole, coords, ("keyframe", *inner), name=first.name, attrs=attributes)


def _token_keys(array: xr.DataArray, dim: str | None) -> list[tuple[str, int]]:
    """What stands at each place along spans or tokens: (span, offset in it)."""
    if dim == "span":
        return [(str(name), 0) for name in array["span"].values]
    keys: list[tuple[str, int]] = []
    counts: dict[str, int] = {}
    for name in array["query_span"].values.tolist():
        counts[name] = counts.get(name, -1) + 1
        keys.append((name, counts[name]))
    return keys


def _merged(keys: Sequence[Sequence[tuple[str, int]]]) -> list[tuple[str, int]]:
    """Every key once: spans in the order in which they are met, each as long as its longest."""
    longest: dict[str, int] = {}
    for own in keys:
        for name, offset in own:
            longest[name] = max(longest.get(name, 0), offset)
    return [(name, offset) for name, most in longest.items() for offset in range(most + 1)]

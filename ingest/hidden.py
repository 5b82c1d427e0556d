"""Hidden states: which are stored of a phase, and what is kept of those that arrive.

Means over spans are of the states as the model computed them, summed in float32: a residual stream in
bfloat16 may pass what float16 holds. What is not finite is refused, and nothing becomes so on the way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import HealthError, UsageError
from attnstore.store.format.axes import VISION
from attnstore.store.format.episode import EpisodeSpec, PhaseSpec
from attnstore.store.format.hidden import (
    EMBEDDING,
    Form,
    HiddenSpec,
    hidden_positions,
    hidden_shape,
)
from attnstore.store.format.tokens import AlignedAxis, Axis, Span, TokenLayout

from .capture import HiddenRecord
from .encoders import owners
from .policies.base import LAST, NO_HIDDEN, Batch, HiddenChoice, PhaseShape, SpanStates
from .reduction import reduce_states

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]
EMBEDDING_WORD = "embedding"
"""How `EMBEDDING` is called among layers."""


def parse_hidden(text: str) -> HiddenChoice:
    """Parse ``LAYERS[:SPANS]``, each a list with commas; layers may be ranges.

    Raises
    ------
    UsageError
        If it is neither.

    Examples
    --------
    >>> parse_hidden("embedding,0-2,11:task,image:hand_camera")
    HiddenChoice(layers=(-1, 0, 1, 2, 11), spans=('task', 'image:hand_camera'))
    """
    listed, _, spans = text.partition(":")
    layers: set[int] = set()
    for entry in (each.strip() for each in listed.split(",")):
        first, dash, last = entry.partition("-")
        if entry == EMBEDDING_WORD:
            layers.add(EMBEDDING)
        elif first.isdecimal() and (last.isdecimal() if dash else not last):
            layers.update(range(int(first), int(last or first) + 1))
        else:
            raise UsageError(
                f"--hidden is LAYERS[:SPANS], such as 5,11 or 0-3:task,action; a layer is a number, a "
                f"range or {EMBEDDING_WORD!r}; got {entry!r}"
            )
    if not layers:
        raise UsageError(f"--hidden: {listed!r} is no layer")
    names = [name.strip() for name in spans.split(",") if name.strip()]
    return HiddenChoice(tuple(sorted(layers)), tuple(names))


def hidden_spec(
    shape: PhaseShape, query: AlignedAxis | Axis, choice: HiddenChoice | None
) -> HiddenSpec | None:
    """Say what is stored of a phase; None if nothing is asked for, or its width is not known."""
    if choice is None or shape.features is None:
        return None
    layers = tuple(n for n in choice.layers if n < shape.layers)
    spans = tuple(s.name for s in query if not choice.spans or _is_of(s, choice.spans))
    last = tuple(s.name for s in query if shape.last is not None and s.belongs_to(shape.last))
    chosen = bool(layers and spans)
    return HiddenSpec(
        shape.features, last, layers if chosen else (), spans if chosen else ()
    )  # fmt: skip


def check_choice(
    choice: HiddenChoice | None, shapes: Mapping[str, PhaseShape], queries: Mapping[str, Sequence[Span]]
) -> None:  # fmt: skip
    """Check that every layer and span that is asked for is one of the policy's.

    Parameters
    ----------
    shapes, queries
        Of every phase, and the spans of its queries, by its path.

    Raises
    ------
    UsageError
        With the first that is none, and those that there are.
    """
    if choice is None or not choice.layers:
        return
    own = {path: shape for path, shape in shapes.items() if shape.features is not None}
    for name in choice.spans:
        if not any(span.belongs_to(name) for path in own for span in queries[path]):
            there = dict.fromkeys(span.name for path in own for span in queries[path])
            raise UsageError(f"--hidden: no span {name!r}; there are {', '.join(there)}")
    asked = {
        path: shape.layers
        for path, shape in own.items()
        if not choice.spans or any(_is_of(span, choice.spans) for span in queries[path])
    }
    for layer in choice.layers:
        if not any(layer < layers for layers in asked.values()):
            counts = ", ".join(f"{path} has 0 to {n - 1}" for path, n in asked.items())
            raise UsageError(f"--hidden: no layer {layer}; {counts}")


def _is_of(span: Span, groups: Sequence[str]) -> bool:
    return any(span.belongs_to(group) for group in groups)


@dataclass(slots=True)
class _Kept:
    """Of one sample and phase, on the device, by (step, layer) or step."""

    means: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    tokens: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    last: dict[int, torch.Tensor] = field(default_factory=dict)


class HiddenStates:
    """Takes in one batch's hidden states; what is stored of them stays on the device until it is asked for.

    Parameters
    ----------
    spec
        The episode.
    batch
        What the policy acts on.
    layouts
        Token layouts of each sample, by the phase's path.
    """

    def __init__(
        self, spec: EpisodeSpec, batch: Batch, layouts: Sequence[Mapping[str, TokenLayout]]
    ) -> None:
        self._spec, self._batch, self._layouts = spec, batch, layouts
        self._kept: list[dict[str, _Kept]] = [{} for _ in layouts]

    def add(self, record: HiddenRecord) -> None:
        """Take in the hidden states of one layer, those that enter layer 0, or the last.

        Raises
        ------
        HealthError
            If they are not of the tokens and features that the policy says.
        """
        import torch

        if record.phase == VISION:
            return
        step = record.step or 0
        for row, sample, path in owners(record, len(record.states), self._batch):
            phase, query = self._spec.phases[path], self._layouts[sample][path].query
            if phase.hidden is None:
                continue
            kept = self._kept[sample].setdefault(path, _Kept())
            if record.layer == LAST:
                assert not isinstance(record.states, SpanStates)
                tokens = sum(len(s) for s in query if s.name in phase.hidden.last)
                _check(record, record.states[row], tokens, phase.hidden.features)
                kept.last[step] = record.states[row].to(torch.float32, copy=True)
                continue
            found = record.states
            if not isinstance(found, SpanStates):
                _check(record, found[row], None, phase.hidden.features, query)
                found = reduce_states(found[row], query, kept_spans(phase.hidden, record.layer))
            kept.means[step, record.layer] = found.mean
            if found.tokens is not None:
                kept.tokens[step, record.layer] = found.tokens

    def arrays(self, sample: int) -> Iterator[tuple[str, Form, Float]]:
        """Yield what is stored of one sample: the phase's path, the form, and its values, aligned.

        Raises
        ------
        HealthError
            If a layer or a step is missing, or a state is not finite.
        """
        for path, kept in self._kept[sample].items():
            phase, query = self._spec.phases[path], self._layouts[sample][path].query
            assert phase.hidden is not None
            steps = {step for step, _ in kept.means}
            _check_layers(path, phase, kept, steps)
            for form in phase.hidden.forms:
                yield path, form, _array(phase, query, kept, form)


def kept_spans(hidden: HiddenSpec, layer: int) -> Sequence[str]:
    """Spans of which every token is stored at a layer."""
    return hidden.spans if layer in hidden.layers else ()


def expects_hidden(
    paths: Collection[str], *, token_stats: bool, stored: HiddenChoice | None
) -> Collection[str]:
    """Paths of the phases whose every layer is to show its hidden states."""
    if token_stats:
        return paths
    return [p for p in paths if not p.startswith(VISION)] if stored is not None else ()


def _check(
    record: HiddenRecord, states: torch.Tensor, tokens: int | None, features: int, query: Axis | None = None
) -> None:  # fmt: skip
    where = f"{record.phase} " + (
        "last" if record.layer == LAST else f"layer {record.layer}"
    )  # fmt: skip
    found = tuple(states.shape)
    if found[-1] != features:
        raise HealthError(
            f"{where}: hidden states have {found[-1]} features, the policy says {features}; {NO_HIDDEN}"
        )
    if tokens is not None and found[0] != tokens:
        raise HealthError(f"{where}: {found[0]} hidden states arrived for {tokens} tokens")
    end = max(s.stop for s in query.model_slices) if query is not None else 0
    if end > found[0]:
        raise HealthError(
            f"{where}: the token layout ends at {end}, the hidden states have {found[0]} tokens"
        )


def _check_layers(path: str, phase: PhaseSpec, kept: _Kept, steps: set[int]) -> None:
    assert phase.hidden is not None
    wanted = {(step, layer) for step in steps for layer in range(EMBEDDING, phase.layers)}
    if missing := sorted(wanted - set(kept.means)):
        step, layer = missing[0]
        raise HealthError(f"{path} step {step} layer {layer}: no hidden states arrived")
    if phase.hidden.last and steps - set(kept.last):
        raise HealthError(
            f"{path}: the last hidden states of {len(kept.last)} of {len(steps)} steps arrived; "
            f"{NO_HIDDEN}"
        )


def _array(phase: PhaseSpec, query: Axis, kept: _Kept, form: Form) -> Float:
    import torch

    hidden = phase.hidden
    assert hidden is not None
    whole = np.full(
        hidden_shape(1, phase.steps or 1, phase.layers, phase.query, hidden, form)[1:], np.nan, np.float32
    )  # fmt: skip
    stored = hidden_positions(phase.query, hidden, form)
    names = [span.name for span in phase.query]
    if form == "mean":
        at = np.array([names.index(span.name) for span in query])
    else:
        chosen = hidden.last if form == "last" else hidden.spans
        index = {int(position): i for i, position in enumerate(stored)}
        at = np.array(
            [
                index[phase.query[span.name].start + i]
                for span in query
                if span.name in chosen
                for i in range(len(span))
            ],
            np.intp,
        )
    places: list[tuple[int, ...]]
    if form == "last":
        places, tensors = [(step,) for step in kept.last], list(kept.last.values())
    else:
        found = kept.means if form == "mean" else kept.tokens
        layers = range(EMBEDDING, phase.layers) if form == "mean" else hidden.layers
        places = [(step, layers.index(layer)) for step, layer in found]
        tensors = list(found.values())
    if tensors and len(at):
        values = torch.stack(tensors).cpu().numpy()
        if not np.isfinite(values).all():
            bad = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))
            layer = "last" if form == "last" else f"layer {[*found][bad][1]}"
            raise HealthError(
                f"{phase.path} {layer}: a hidden state is not finite; {NO_HIDDEN}"
            )  # fmt: skip
        for place, value in zip(places, values, strict=True):
            whole[place][at] = value
    return whole if phase.steps is not None else whole[0]

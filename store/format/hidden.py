"""Which hidden states of a phase are stored, and under which names.

A hidden state is what leaves a layer, residual stream included; what enters layer 0 counts as the layer
`EMBEDDING`. Three forms are stored:

- ``mean``: the mean over the tokens of every span of the queries, at every layer and the embedding;
- ``last``: the last hidden state of some tokens, after the final norm: what the policy makes actions of;
- ``tokens``: every token of chosen spans at chosen layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .axes import leading_dims
from .tokens import AlignedAxis

Form = Literal["mean", "last", "tokens"]
FORMS: tuple[Form, ...] = get_args(Form)
EMBEDDING = -1
"""The layer whose hidden states enter layer 0."""
HIDDEN_BITS = 11
"""Significant bits of stored hidden states, plain float32 otherwise: as many as float16 has, in the range
of bfloat16, in which massive activations of Gemma pass 65504."""


@dataclass(frozen=True, slots=True)
class HiddenSpec:
    """What is stored of a phase's hidden states."""

    features: int
    """Width of a hidden state."""
    last: tuple[str, ...] = ()
    """Spans of the queries whose last hidden states there are, in their order; none if the policy's actions
    are not made in this phase."""
    layers: tuple[int, ...] = ()
    """Layers of which there is every token of `spans`, ascending; `EMBEDDING` may be one."""
    spans: tuple[str, ...] = ()
    """In the order of the queries."""

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError(f"hidden states have at least one feature; got {self.features}")
        if bool(self.layers) != bool(self.spans):
            raise ValueError("layers and spans of hidden states are given together")
        if list(self.layers) != sorted({*self.layers}) or any(n < EMBEDDING for n in self.layers):
            raise ValueError(f"layers of hidden states ascend from {EMBEDDING}; got {self.layers}")

    @property
    def forms(self) -> tuple[Form, ...]:
        """Forms that are stored."""
        there: Mapping[Form, bool] = {
            "mean": True, "last": bool(self.last), "tokens": bool(self.layers),
        }  # fmt: skip
        return tuple(form for form in FORMS if there[form])


def hidden_layers(layers: int, hidden: HiddenSpec, form: Form) -> tuple[int, ...]:
    """Layers along the axis ``layer`` of a form; none of ``last``, which is after all of them.

    Examples
    --------
    >>> hidden_layers(3, HiddenSpec(8), "mean")
    (-1, 0, 1, 2)
    """
    if form == "mean":
        return tuple(range(EMBEDDING, layers))
    return hidden.layers if form == "tokens" else ()


def hidden_positions(query: AlignedAxis, hidden: HiddenSpec, form: Form) -> NDArray[np.intp]:
    """Index on the phase's query axis of every token of a form; none of ``mean``."""
    names = {"mean": (), "last": hidden.last, "tokens": hidden.spans}[form]
    parts = [np.arange(query[name].start, query[name].stop) for name in names]
    return np.concatenate(parts) if parts else np.empty(0, np.intp)


def hidden_dims(phase: str, form: Form) -> tuple[str, ...]:
    """Dimension names of an array of hidden states.

    Examples
    --------
    >>> hidden_dims("suffix", "last")
    ('keyframe', 'step', 'query', 'feature')
    """
    inner = {"mean": ("layer", "span"), "last": ("query",), "tokens": ("layer", "query")}[form]
    return (*leading_dims(phase), *inner, "feature")


def hidden_shape(
    keyframes: int, steps: int | None, layers: int, query: AlignedAxis, hidden: HiddenSpec, form: Form
) -> tuple[int, ...]:  # fmt: skip
    """Shape of an array of hidden states, by `hidden_dims`."""
    lead = (keyframes,) if steps is None else (keyframes, steps)
    along = hidden_layers(layers, hidden, form)
    tokens = len(query.spans) if form == "mean" else len(hidden_positions(query, hidden, form))
    return (*lead, *((len(along),) if along else ()), tokens, hidden.features)


def hidden_path(path: str, form: Form) -> str:
    """Place of an array in ``attention.zarr``, by the phase's path.

    Examples
    --------
    >>> hidden_path("suffix", "last"), hidden_path("prefix", "tokens")
    ('hidden/suffix/last', 'hidden_tokens/prefix/state')
    """
    # A group has one length of a dimension, and chosen layers are fewer.
    return f"hidden_tokens/{path}/state" if form == "tokens" else f"hidden/{path}/{form}"


def hidden_form(path: str) -> tuple[str, Form] | None:
    """Return (phase's path, form) of an array's path; None of other arrays."""
    folder, _, name = path.rpartition("/")
    if folder.startswith("hidden/") and name in ("mean", "last"):
        return folder.removeprefix("hidden/"), "mean" if name == "mean" else "last"
    if folder.startswith("hidden_tokens/") and name == "state":
        return folder.removeprefix("hidden_tokens/"), "tokens"
    return None


def hidden_to_json(hidden: HiddenSpec) -> dict[str, Any]:
    """Spell it for the episode's description; `hidden_from_json` restores an equal value."""
    return {
        "features": hidden.features,
        **({"last": list(hidden.last)} if hidden.last else {}),
        **({"layers": list(hidden.layers), "spans": list(hidden.spans)} if hidden.layers else {}),
    }


def hidden_from_json(raw: Mapping[str, Any] | None) -> HiddenSpec | None:
    """Restore what `hidden_to_json` wrote.

    Raises
    ------
    ValueError
        If it contradicts itself.
    """
    if raw is None:
        return None
    return HiddenSpec(
        int(raw["features"]),
        tuple(raw.get("last", ())),
        tuple(int(n) for n in raw.get("layers", ())),
        tuple(raw.get("spans", ())),
    )

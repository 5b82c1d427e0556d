"""Spans of tokens, token layouts, and their alignment over an episode's keyframes.

A span is a contiguous run of tokens of one kind. Padding is never part of a span: a layout counts
*valid* tokens only, and each span says where its first token stands in the model's own sequence.
Intervals are half-open; an index is literal, never clamped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Literal, get_args

Kind = Literal["image", "text", "state", "action", "readout", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TASK = "task"
"""Role of the instruction."""
REPEATED = "repeated"
"""Role of an instruction that stands beside the images once more, where it can attend to them."""
AGAIN = "task_repeat"
"""Name of the span where it stands beside the keyframe's own images."""
STATE = "state"
"""Role of a robot state that is written as text, and kind of one that has tokens of its own."""
GENERATED = "generated"
"""Role of text that the policy itself wrote; see `attnstore.store.format.generated`."""
TEMPLATE = "template"
"""Role of all other text: what stands around the instruction, such as BOS, labels, a newline."""
PADDING = "padding"
"""Role of tokens that fill up an instruction and are attended to like any other (Octo)."""
ROLES = (TASK, REPEATED, STATE, GENERATED, TEMPLATE, PADDING)
WORD = re.compile(r"(?:(?P<owner>.+):)?word:(?P<word>.+)", re.DOTALL)
"""How words of a text are called: ``word:cube``, ``template:word:robot``."""
_COARSE: tuple[Kind, ...] = ("state", "action", "readout")
"""Kinds whose tokens are one coarse span, whatever the spans' names."""


@dataclass(frozen=True, slots=True)
class Token:
    """One text token as the policy's tokenizer sees it."""

    id: int
    """Vocabulary index."""
    text: str
    """The string it stands for; a word's leading space is kept as a space."""


@dataclass(frozen=True, slots=True)
class Span:
    """A contiguous run of valid tokens of one kind on a query or key axis."""

    name: str
    """Unique on its axis: ``image:hand_camera``, ``task``, ``state[3]``, ``action``."""
    kind: Kind
    start: int
    """First index on the compact axis (padding stripped)."""
    stop: int
    model_start: int
    """Index of the first token in the model's own sequence, padding included."""
    camera: str | None = None
    """For image spans: the dataset's camera name."""
    grid: tuple[int, int] | None = None
    """For image spans: (rows, cols), row-major."""
    role: str | None = None
    """One of `ROLES`. Text spans have one, others may; images, states, actions and readouts have
    none."""
    tokens: tuple[Token, ...] = ()
    """For text spans: every token; none where generated text is not known yet."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"span {self.name!r}: kind is one of {', '.join(KINDS)}; got {self.kind!r}"
            )
        self._check_names()
        if not 0 <= self.start < self.stop:
            raise ValueError(
                f"span {self.name!r}: empty or negative interval [{self.start}, {self.stop})"
            )
        if (self.kind == "image") != (self.camera is not None and self.grid is not None):
            raise ValueError(
                f"span {self.name!r}: image spans, and only they, have a camera and a grid"
            )
        if self.grid is not None and self.grid[0] * self.grid[1] != len(self):
            raise ValueError(f"span {self.name!r}: grid {self.grid} has not {len(self)} patches")
        unknown = self.role == GENERATED and not self.tokens
        if self.kind == "text" and len(self.tokens) != len(self) and not unknown:
            raise ValueError(
                f"span {self.name!r}: {len(self.tokens)} token strings for {len(self)} tokens"
            )

    def _check_names(self) -> None:
        """Check that no name, kind or role of the span is a word for other tokens, too."""
        if self.role is None and self.kind == "text":
            raise ValueError(f"span {self.name!r}: text has a role, one of {', '.join(ROLES)}")
        if self.role is not None and (self.role not in ROLES or self.kind in ("image", *_COARSE)):
            raise ValueError(
                f"span {self.name!r}: a role is one of {', '.join(ROLES)}, of text or of kind "
                f"other; got {self.role!r} of kind {self.kind}"
            )
        own = (self.kind,) if self.kind in _COARSE else (self.role,)
        if self.name in (*KINDS, *ROLES) and self.name not in own:
            raise ValueError(
                f"span {self.name!r}: this is what all tokens of a kind or role are called, and "
                f"its own are of kind {self.kind}, role {self.role}: give it another name"
            )
        if WORD.fullmatch(self.name):
            raise ValueError(f"span {self.name!r}: word:WORD is how words are called")

    def __len__(self) -> int:
        return self.stop - self.start

    def belongs_to(self, group: str) -> bool:
        """Whether its tokens are of a group: the span's own name, its role or its kind."""
        return group in (self.name, self.role, self.kind)

    @property
    def mass_name(self) -> str:
        """The coarse span whose mass its tokens add to: its role, kind or name.

        A group of that name has just the tokens of the spans that say it: `belongs_to`.
        """
        if self.role is not None:
            return self.role
        return self.kind if self.kind in _COARSE else self.name


@dataclass(frozen=True, slots=True)
class Axis:
    """The spans of one query or key axis, contiguous from 0.

    Examples
    --------
    >>> axis = Axis((Span("state", "state", 0, 1, 0), Span("action", "action", 1, 9, 1)))
    >>> len(axis), axis.group("action")
    (9, (slice(1, 9, None),))
    """

    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        position, names = 0, set()
        for span in self.spans:
            if span.start != position:
                raise ValueError(
                    f"span {span.name!r} starts at {span.start}, the one before stops at {position}"
                )
            if span.name in names:
                raise ValueError(f"span name {span.name!r} stands twice on one axis")
            names.add(span.name)
            position = span.stop

    def __len__(self) -> int:
        return self.spans[-1].stop if self.spans else 0

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    def group(self, group: str) -> tuple[slice, ...]:
        """Slices of a query or key group: a kind, a role or a span's name; empty if absent."""
        return tuple(slice(s.start, s.stop) for s in self.spans if s.belongs_to(group))

    @property
    def model_slices(self) -> tuple[slice, ...]:
        """Where the valid tokens stand in the model's own sequence, neighbours merged."""
        merged: list[slice] = []
        for span in self.spans:
            start, stop = span.model_start, span.model_start + len(span)
            if merged and merged[-1].stop == start:
                merged[-1] = slice(merged[-1].start, stop)
            else:
                merged.append(slice(start, stop))
        return tuple(merged)

    def followed_by(self, other: Axis, *, model_offset: int) -> Axis:
        """Append `other`, whose model indices are shifted by `model_offset`."""
        shift = len(self)
        moved = tuple(
            replace(
                s,
                start=s.start + shift,
                stop=s.stop + shift,
                model_start=s.model_start + model_offset,
            )
            for s in other.spans
        )
        return Axis(self.spans + moved)


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """The spans of a phase's query and key axes at one keyframe."""

    phase: str
    query: Axis
    key: Axis


@dataclass(frozen=True, slots=True)
class AlignedAxis:
    """One axis of a stored array: each span at a fixed start, as long as its longest occurrence."""

    spans: tuple[Span, ...]

    @classmethod
    def over(cls, axes: Sequence[Axis]) -> AlignedAxis:
        """Align the axes of all keyframes of an episode.

        Raises
        ------
        ValueError
            If there is no axis, if the spans' orders in the keyframes exclude each other, or if a
            span changes its kind, camera, grid or role.
        """
        if not axes:
            raise ValueError("no keyframes to align")
        order: TopologicalSorter[str] = TopologicalSorter()
        longest: dict[str, Span] = {}
        for axis in axes:
            before: tuple[str, ...] = ()
            for span in axis:
                order.add(span.name, *before)
                before = (span.name,)
                known = longest.setdefault(span.name, span)
                for field in ("kind", "camera", "grid", "role"):
                    was, now = getattr(known, field), getattr(span, field)
                    if was != now:
                        raise ValueError(
                            f"span {span.name!r} changes its {field} between keyframes: "
                            f"{was!r}, then {now!r}"
                        )
                if len(span) > len(known):
                    longest[span.name] = span
        try:
            names = tuple(order.static_order())
        except CycleError as error:
            raise ValueError(
                "spans change their places between keyframes: " + " < ".join(error.args[1])
            ) from None
        start, spans = 0, []
        for name in names:
            span = longest[name]
            spans.append(replace(span, start=start, stop=start + len(span)))
            start += len(span)
        return cls(tuple(spans))

    def __len__(self) -> int:
        return self.spans[-1].stop if self.spans else 0

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    def __getitem__(self, name: str) -> Span:
        for span in self.spans:
            if span.name == name:
                return span
        raise KeyError(name)

    def place(self, axis: Axis) -> tuple[tuple[slice, slice], ...]:
        """Where a keyframe's compact tokens go: pairs (stored slice, compact slice), merged.

        Raises
        ------
        KeyError
            If a span is not on this axis.
        ValueError
            If a span is longer than its place.
        """
        pairs: list[tuple[slice, slice]] = []
        for span in axis:
            home = self[span.name]
            if len(span) > len(home):
                raise ValueError(
                    f"span {span.name!r} has {len(span)} tokens, its place only {len(home)}"
                )
            stored = slice(home.start, home.start + len(span))
            compact = slice(span.start, span.stop)
            if pairs and pairs[-1][0].stop == stored.start and pairs[-1][1].stop == compact.start:
                last_stored, last_compact = pairs[-1]
                pairs[-1] = (
                    slice(last_stored.start, stored.stop),
                    slice(last_compact.start, compact.stop),
                )
            else:
                pairs.append((stored, compact))
        return tuple(pairs)

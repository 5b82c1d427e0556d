"""What a call's entry in a journal says of what the policy saw and did, but for its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError
from ..format.geometry import Geometry
from ..format.tokens import Axis, Span, Token, TokenLayout
from .journal import Entry


@dataclass(frozen=True, slots=True)
class Picture:
    """A camera's image, as it is kept."""

    camera: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SeenCall:
    """One policy call."""

    number: int
    """Of the episode's calls, dropped ones included."""
    step: int
    """Environment step at which it happened; 0 where none are counted."""
    at: float
    """Seconds since the episode began."""
    dropped: int
    """Calls of the episode that were dropped before it."""
    instruction: str
    pictures: tuple[Picture, ...]
    state: NDArray[np.float32]
    actions: NDArray[np.float32]
    """(horizon, action_dof), normalised units."""
    layouts: Mapping[str, TokenLayout]
    """By phase."""
    geometry: Mapping[str, Geometry]
    """By camera."""
    shown: Mapping[str, Any] | None
    """Where the spool has its attention, while there is a spool; see `attnstore.store.recordings.spool`."""
    rest: bytes
    """The inputs' arrays."""


def read_call(entry: Entry) -> SeenCall:
    """Read a call's entry.

    Raises
    ------
    IntegrityError
        If what the entry says and its bytes contradict each other.
    """
    head, body, at = entry.head, entry.body, 0
    try:
        pictures = []
        for each in head["cameras"]:
            data = body[at : at + int(each["size"])]
            at += int(each["size"])
            pictures.append(Picture(str(each["camera"]), str(each["media_type"]), data))
        state, at = _floats(body, at, head["state"])
        actions, at = _floats(body, at, head["actions"])
        sample = head["sample"]
        return SeenCall(
            int(head["number"]), int(head["step"]), float(head["at"]), int(head["dropped"]),
            str(head["instruction"]), tuple(pictures), state, actions,
            layouts_from_json(sample["layouts"]),
            {str(c): Geometry.from_json(text) for c, text in sample["geometry"].items()},
            head.get("shown"), body[at:],
        )  # fmt: skip
    except IntegrityError:
        raise
    except Exception as error:
        raise IntegrityError(f"call {head.get('number')}: {error}") from error


def _floats(body: bytes, at: int, shape: Sequence[int]) -> tuple[NDArray[np.float32], int]:
    count = int(np.prod([int(n) for n in shape], dtype=np.int64))
    values = np.frombuffer(body, "<f4", count, at).astype(np.float32).reshape(shape)
    return values, at + 4 * count


def layouts_to_json(layouts: Mapping[str, TokenLayout]) -> dict[str, Any]:
    """Spell token layouts, by path of their phase."""
    return {
        path: {
            "phase": layout.phase,
            "query": [_span_to_json(s) for s in layout.query],
            "key": [_span_to_json(s) for s in layout.key],
        }
        for path, layout in layouts.items()
    }


def layouts_from_json(raw: Mapping[str, Any]) -> dict[str, TokenLayout]:
    """Read what `layouts_to_json` spelled."""
    return {
        str(path): TokenLayout(
            layout["phase"],
            Axis(tuple(_span_from_json(s) for s in layout["query"])),
            Axis(tuple(_span_from_json(s) for s in layout["key"])),
        )
        for path, layout in raw.items()
    }


_FIELDS = tuple(field.name for field in fields(Span) if field.name != "tokens")


def _span_to_json(span: Span) -> dict[str, Any]:
    # Not `asdict`, which copies every token: a tenth of the time that a call's writing takes.
    said = {name: v for name in _FIELDS if (v := getattr(span, name)) is not None}
    if span.tokens:
        said["tokens"] = [[t.id, t.text] for t in span.tokens]
    return said


def _span_from_json(raw: Mapping[str, Any]) -> Span:
    values = dict(raw)
    if "grid" in values:
        rows, cols = values["grid"]
        values["grid"] = (rows, cols)
    values["tokens"] = tuple(Token(int(i), str(text)) for i, text in values.get("tokens", ()))
    return Span(**values)

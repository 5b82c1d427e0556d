"""Selecting tokens by name, and indices by number, with errors that say what would match.

A token group is ``"text"``, ``"state"``, ``"action"``, ``"image"`` (a kind), a span's name
(``"task"``, ``"image:hand_camera"``), ``"text:WORD"`` (the tokens of a word in all text) or
``"SPAN:WORD"`` (in one text span), or ``"SPAN:START:STOP"`` (a range within a kind or span:
``"action:0:5"``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import SelectionError
from attnstore.store.tokens import AlignedAxis, Span

Group = str | int | slice | Sequence[int]
_RANGE = re.compile(r"(?P<group>.+):(?P<start>-?\d*):(?P<stop>-?\d*)")


@dataclass(frozen=True, slots=True)
class TokenSelection:
    """Indices of the selected tokens on a stored axis."""

    indices: NDArray[np.intp]
    """Ascending, without repeats."""
    scalar: bool = False
    """A single index was asked for: the dimension is dropped."""

    @property
    def block(self) -> slice:
        """Smallest slice that holds all of them."""
        return slice(int(self.indices[0]), int(self.indices[-1]) + 1)

    @property
    def contiguous(self) -> bool:
        """Whether the block holds nothing else."""
        return int(self.indices[-1]) - int(self.indices[0]) + 1 == len(self.indices)


def select_tokens(axis: AlignedAxis, group: Group | None, *, where: str) -> TokenSelection:
    """Find a group's tokens on an axis.

    Parameters
    ----------
    axis
        Aligned axis of the episode.
    group
        Name, index, slice or indices; None selects all.
    where
        The axis, for messages: ``suffix query``.

    Raises
    ------
    SelectionError
        If nothing matches; the message lists what would.
    """
    if group is None:
        return TokenSelection(np.arange(len(axis)))
    if isinstance(group, str):
        return TokenSelection(_named(axis, group, where))
    length = len(axis)
    if isinstance(group, (int, np.integer)):
        return TokenSelection(np.array([check_index(int(group), length, where)]), scalar=True)
    if isinstance(group, slice):
        indices = np.arange(length)[group]
    else:
        indices = np.unique([check_index(int(i), length, where) for i in group]).astype(np.intp)
    if not len(indices):
        raise SelectionError(f"{where}: {group} selects none of the {length} tokens")
    return TokenSelection(indices)


def check_index(index: int, length: int, what: str) -> int:
    """Return a literal index, negative ones counted from the end; never clamped."""
    if not -length <= index < length:
        raise SelectionError(
            f"{what} {index} is out of range: there are {length}, 0 to {length - 1}"
        )
    return index % length


def _named(axis: AlignedAxis, group: str, where: str) -> NDArray[np.intp]:
    found = _spans(axis, group)
    if len(found):
        return found
    ranged = _RANGE.fullmatch(group)
    if ranged is not None:
        base = _spans(axis, ranged["group"])
        if len(base):
            start = int(ranged["start"]) if ranged["start"] else None
            stop = int(ranged["stop"]) if ranged["stop"] else None
            part = base[start:stop]
            if not len(part):
                raise SelectionError(
                    f"{where}: {group!r} is empty; {ranged['group']!r} has {len(base)} tokens"
                )
            return part
    owner, _, word = group.partition(":")
    texts = [s for s in axis if s.tokens and owner in (s.kind, s.name)]
    if texts or owner == "text":
        found = _word(texts, word)
        if len(found):
            return found
        words = ", ".join(_words(texts)) or "none"
        raise SelectionError(f"{where}: no word {word!r} in the {owner}; its words: {words}")
    kinds = list(dict.fromkeys(s.kind for s in axis))
    names = [s.name for s in axis]
    raise SelectionError(
        f"{where}: no tokens {group!r}; kinds: {', '.join(kinds)}; spans: {', '.join(names)}; "
        "also text:WORD and SPAN:START:STOP"
    )


def _spans(axis: AlignedAxis, group: str) -> NDArray[np.intp]:
    parts = [np.arange(s.start, s.stop) for s in axis if group in (s.kind, s.name)]
    return np.concatenate(parts) if parts else np.empty(0, np.intp)


def _text(axis: Iterable[Span]) -> tuple[str, list[tuple[int, int, int]]]:
    text, places = "", []
    for span in axis:
        for offset, token in enumerate(span.tokens):
            places.append((len(text), len(text) + len(token.text), span.start + offset))
            text += token.text
        if span.tokens and span.role == "other":
            # A marker such as <bos> is not glued to the word that follows it.
            text += " "
    return text, places


def _words(axis: Iterable[Span]) -> list[str]:
    return list(dict.fromkeys(re.findall(r"[\w'-]+", _text(axis)[0])))


def _word(axis: Iterable[Span], word: str) -> NDArray[np.intp]:
    text, places = _text(axis)
    hits = re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    found = {
        index
        for hit in hits
        for low, high, index in places
        if low < hit.end() and high > hit.start()
    }
    return np.array(sorted(found), np.intp)


def token_labels(spans: Sequence[Span], length: int) -> NDArray[np.str_]:
    """One label per index: a text token's string, ``hand_camera[3,4]``, ``action[0]``."""
    labels = np.full(length, "", dtype=object)
    for span in spans:
        for offset in range(len(span)):
            if span.tokens:
                label = span.tokens[offset].text
            elif span.grid is not None:
                label = f"{span.camera}[{offset // span.grid[1]},{offset % span.grid[1]}]"
            elif len(span) == 1:
                label = span.name
            else:
                label = f"{span.name}[{offset}]"
            labels[span.start + offset] = label
    return labels.astype(np.str_)


def span_labels(spans: Sequence[Span], length: int) -> NDArray[np.str_]:
    """Return the name of the span that each index is in."""
    labels = np.full(length, "", dtype=object)
    for span in spans:
        labels[span.start : span.stop] = span.name
    return labels.astype(np.str_)

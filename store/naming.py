"""Naming tokens: which ones ``image``, ``task``, ``text:cube`` or ``action:0:5`` are on an axis.

A group is a kind (``text``, ``state``, ``action``, ``image``), a span's name (``task``,
``image:hand_camera``), ``text:WORD`` (the tokens of a word in all text) or ``SPAN:WORD`` (in one
text span), or ``SPAN:START:STOP`` (a range within a kind or span: ``action:0:5``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .errors import SelectionError
from .tokens import Span

_RANGE = re.compile(r"(?P<group>.+):(?P<start>-?\d*):(?P<stop>-?\d*)")


def find_tokens(axis: Iterable[Span], group: str) -> NDArray[np.intp]:
    """Find a group's tokens.

    Parameters
    ----------
    axis
        Spans of a query or key axis.

    Returns
    -------
    Indices on the axis, ascending; empty if there is no such group.

    Examples
    --------
    >>> from attnstore.store.tokens import Token
    >>> words = tuple(Token(i, text) for i, text in enumerate(("put", " the", " cu", "be")))
    >>> axis = (Span("state", "state", 0, 1, 0), Span("task", "text", 1, 5, 1, tokens=words))
    >>> [find_tokens(axis, g).tolist() for g in ("task", "text:cube", "text:0:2", "text:cub")]
    [[1, 2, 3, 4], [3, 4], [1, 2], []]
    """
    spans = tuple(axis)
    found = _spans(spans, group)
    if len(found):
        return found
    ranged = _RANGE.fullmatch(group)
    if ranged is not None:
        base = _spans(spans, ranged["group"])
        start = int(ranged["start"]) if ranged["start"] else None
        stop = int(ranged["stop"]) if ranged["stop"] else None
        if len(base):
            return base[start:stop]
    owner, _, word = group.partition(":")
    return _word(_texts(spans, owner), word) if word else np.empty(0, np.intp)


def lacks_word(axis: Iterable[Span], group: str) -> bool:
    """Whether a group names a word of a text that is there, without that word."""
    spans = tuple(axis)
    texts = _texts(spans, group.partition(":")[0])
    asked = ":" in group and not _RANGE.fullmatch(group)
    return asked and bool(texts) and not len(find_tokens(spans, group))


def not_found(axis: Iterable[Span], group: str, where: str) -> SelectionError:
    """Return the error that says what there is instead of a group.

    Parameters
    ----------
    where
        The axis, for the message: ``suffix query``.
    """
    spans = tuple(axis)
    ranged = _RANGE.fullmatch(group)
    if ranged is not None and len(base := _spans(spans, ranged["group"])):
        return SelectionError(
            f"{where}: {group!r} is empty; {ranged['group']!r} has {len(base)} tokens"
        )
    owner, _, word = group.partition(":")
    texts = _texts(spans, owner)
    if word and (texts or owner == "text"):
        words = ", ".join(_words(texts)) or "none"
        return SelectionError(f"{where}: no word {word!r} in the {owner}; its words: {words}")
    kinds = list(dict.fromkeys(s.kind for s in spans))
    names = [s.name for s in spans]
    return SelectionError(
        f"{where}: no tokens {group!r}; kinds: {', '.join(kinds)}; spans: {', '.join(names)}; "
        "also text:WORD and SPAN:START:STOP"
    )


def _spans(axis: Iterable[Span], group: str) -> NDArray[np.intp]:
    parts = [np.arange(s.start, s.stop) for s in axis if group in (s.kind, s.name)]
    return np.concatenate(parts) if parts else np.empty(0, np.intp)


def _texts(axis: Iterable[Span], owner: str) -> list[Span]:
    return [s for s in axis if s.tokens and owner in (s.kind, s.name)]


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

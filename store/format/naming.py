"""Naming tokens: which ones ``image``, ``task``, ``word:cube`` or ``action:0:5`` are on an axis.

A group has one name everywhere: as ``query`` and ``key``, in a knock-out, in the columns
``query_group`` and ``mass`` of the tables, in a page's address::

    image, text, state, action, readout, other       all tokens of a kind
    task, repeated, state, generated, template, padding       all tokens of a role
    image:hand_camera, state[3], readout_action      one span
    word:cube       a word of the instruction, or of text that the policy wrote
    OWNER:word:cube       a word of one kind, role or span of text: template:word:robot
    OWNER:START:STOP      a range of one of the above: action:0:5

``state`` is the robot's state, whether it has tokens of its own or is written into the prompt. A
name of a span may not be that of a kind or role (`attnstore.store.format.tokens.Span`), and a word has its
prefix, so that no name has two meanings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import SelectionError
from .tokens import AGAIN, GENERATED, KINDS, REPEATED, ROLES, STATE, TASK, TEMPLATE, WORD, Span

DEFAULT_GROUPS = (AGAIN, TASK, "action", "image", "readout", STATE)
"""Query groups that stand for a phase unless another is asked for, the first that it has: the
instruction, where it can attend to images; else what the phase computes."""
_RANGE = re.compile(r"(?P<group>.+):(?P<start>-?\d*):(?P<stop>-?\d*)")
_SPOKEN = (TASK, REPEATED, GENERATED)
"""Roles whose words a word is looked for in, unless it says in which."""


def default_group(groups: Sequence[str]) -> str | None:
    """Return the query group that stands for a phase unless another is asked for.

    Parameters
    ----------
    groups
        Those that have statistics.

    Examples
    --------
    >>> default_group(("text", "task")), default_group(("readout_action",)), default_group(("a", "b"))
    ('task', 'readout_action', None)
    """
    usual = [group for group in DEFAULT_GROUPS if group in groups]
    return usual[0] if usual else groups[0] if len(groups) == 1 else None


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
    >>> from attnstore.store.format.tokens import Token
    >>> words = tuple(Token(i, text) for i, text in enumerate(("put", " the", " cu", "be")))
    >>> axis = (Span("state", "state", 0, 1, 0), Span("task", "text", 1, 5, 1, role="task", tokens=words))
    >>> [find_tokens(axis, g).tolist() for g in ("task", "word:cube", "text:0:2", "word:cub")]
    [[1, 2, 3, 4], [3, 4], [1, 2], []]
    """
    spans = tuple(axis)
    found = _members(spans, group)
    if len(found):
        return found
    if asked := WORD.fullmatch(group):
        return _word(_texts(spans, asked["owner"]), asked["word"])
    ranged = _RANGE.fullmatch(group)
    if ranged is not None:
        start = int(ranged["start"]) if ranged["start"] else None
        stop = int(ranged["stop"]) if ranged["stop"] else None
        return _members(spans, ranged["group"])[start:stop]
    return np.empty(0, np.intp)


def lacks_word(axis: Iterable[Span], group: str) -> bool:
    """Whether a group names a word of a text that is there, without that word."""
    spans = tuple(axis)
    asked = WORD.fullmatch(group)
    return (
        asked is not None
        and bool(_texts(spans, asked["owner"]))
        and not len(find_tokens(spans, group))
    )


def not_found(axis: Iterable[Span], group: str, where: str) -> SelectionError:
    """Return the error that says what there is instead of a group.

    Parameters
    ----------
    where
        The axis, for the message: ``suffix query``.
    """
    spans = tuple(axis)
    if asked := WORD.fullmatch(group):
        return SelectionError(f"{where}: {_no_word(spans, asked['owner'], asked['word'])}")
    ranged = _RANGE.fullmatch(group)
    if ranged is not None and len(members := _members(spans, ranged["group"])):
        return SelectionError(
            f"{where}: {group!r} is empty; {ranged['group']!r} has {len(members)} tokens"
        )
    owner, _, rest = group.partition(":")
    if rest and (owner == "text" or any(s.tokens and s.belongs_to(owner) for s in spans)):
        # As words, and masses of roles, were called before each had a name of its own.
        role = TEMPLATE if rest == "other" else rest
        said = f"the role is called {role!r}, " if owner == "text" and role in ROLES else ""
        word = f"word:{rest}" if owner == "text" else f"{owner}:word:{rest}"
        return SelectionError(f"{where}: no tokens {group!r}: {said}a word is called {word!r}")
    names = [n for n in (*KINDS, *ROLES) if any(n in (s.kind, s.role) for s in spans)]
    named = [s.name for s in spans if s.name not in names]
    return SelectionError(
        f"{where}: no tokens {group!r}; there are {', '.join(dict.fromkeys((*names, *named)))}; "
        "also word:WORD and SPAN:START:STOP"
    )


def _no_word(spans: Sequence[Span], owner: str | None, word: str) -> str:
    texts = _texts(spans, owner)
    if not texts and owner and any(s.role == STATE and s.belongs_to(owner) for s in spans):
        return (
            f"{owner} has no words: its numbers differ from keyframe to keyframe; a value is "
            "state[0], state[1], …"
        )
    elsewhere = [
        name
        for name in dict.fromkeys(s.role for s in spans if s.tokens)
        if name is not None and len(_word(_texts(spans, name), word))
    ]
    if elsewhere:
        return (
            f"no word {word!r} in the {owner or 'instruction'}; there is {elsewhere[0]}:word:{word}"
        )
    words = ", ".join(_words(texts)) or "none"
    return f"no word {word!r} in the {owner or 'instruction'}; its words: {words}"


def _members(axis: Iterable[Span], group: str) -> NDArray[np.intp]:
    parts = [np.arange(s.start, s.stop) for s in axis if s.belongs_to(group)]
    return np.concatenate(parts) if parts else np.empty(0, np.intp)


def _texts(axis: Iterable[Span], owner: str | None) -> list[Span]:
    """Spans whose words can be asked for: those of the state are other ones at each keyframe."""
    texts = [s for s in axis if s.tokens and s.role not in (STATE, None)]
    if owner is None:
        return [s for s in texts if s.role in _SPOKEN]
    return [s for s in texts if s.belongs_to(owner)]


def _text(axis: Iterable[Span]) -> tuple[str, list[tuple[int, int, int]]]:
    text, places = "", []
    for span in axis:
        for offset, token in enumerate(span.tokens):
            places.append((len(text), len(text) + len(token.text), span.start + offset))
            text += token.text
        # What one span ends with, such as <bos>, is not glued to the word that follows it.
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

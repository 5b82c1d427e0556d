"""What a page says, apart from how it is written: sections of text, tables and figures.

Texts are plain; what stands between backticks is code, such as a command. Whatever a store says
(names, instructions, categories) may have been written by anybody: the writers escape every text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..charts.svg import Chart

Kind = Literal["text", "finding", "note", "missing"]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A text."""

    text: str
    kind: Kind = "text"
    """``finding``: what the numbers say; ``note``: a caveat; ``missing``: there is nothing to say
    yet, and which command changes that."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text; columns of numbers are set to the right."""

    title: str
    head: tuple[str, ...]
    """A name that the page's glossary has is linked to it."""
    rows: tuple[tuple[str, ...], ...]
    """As long as the head each."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, or a picture as an encoded file."""

    name: str
    """File name without extension, unique in the page."""
    content: Chart | bytes
    """Bytes are a JPEG."""
    caption: str


Block = Paragraph | Table | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """A headed part of a page."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page."""

    title: str
    lead: str
    """One or two sentences below the title."""
    sections: tuple[Section, ...]
    glossary: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Name to definition and unit, of the columns of its tables."""

    def figures(self) -> list[Figure]:
        """Every figure, in order.

        Raises
        ------
        ValueError
            If two have the same name.
        """
        found = [b for s in self.sections for b in s.blocks if isinstance(b, Figure)]
        names = [f.name for f in found]
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise ValueError(f"two figures are called {twice!r}")
        return found


def text(words: str) -> Paragraph:
    """Say something."""
    return Paragraph(words)


def finding(words: str) -> Paragraph:
    """Say what the numbers say."""
    return Paragraph(words, "finding")


def note(words: str) -> Paragraph:
    """Say what a reader must know to judge the numbers."""
    return Paragraph(words, "note")


def missing(words: str) -> Paragraph:
    """Say that there is nothing yet, and which command brings it."""
    return Paragraph(words, "missing")


def code_parts(words: str) -> Sequence[tuple[bool, str]]:
    """Split a text at its backticks: (is code, text).

    Examples
    --------
    >>> code_parts("run `attnstore ls` first")
    [(False, 'run '), (True, 'attnstore ls'), (False, ' first')]
    """
    pieces = words.split("`")
    return [(i % 2 == 1, piece) for i, piece in enumerate(pieces) if piece]


LONGEST = 4000
"""Characters of a text that are shown; a store is untrusted."""


def clean(words: str) -> str:
    """Text on one line: control characters and lone surrogates replaced, spaces joined."""
    whole = words[:LONGEST].encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(c if c.isprintable() else " " for c in whole).split())


def spaced(words: str, plain: str) -> str:
    """Give a cleaned piece of a text the space at its ends that it had."""
    before = " " if words[:1].isspace() else ""
    after = " " if plain and words[-1:].isspace() else ""
    return before + plain + after

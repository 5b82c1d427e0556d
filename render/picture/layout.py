"""Where things are in a picture: rectangles only, no pixels.

Every camera is a block of its original, its overlay and a colour bar, each under a line of text.
Blocks are stacked when they are broad and set side by side when they are tall, whichever is
nearer to a projector's 16:9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import NamedTuple

ASPECT = 16 / 9
TALLEST = 2
"""A pane's greatest height, in pane widths: what is taller still is fitted into that box."""


class Box(NamedTuple):
    """A rectangle of pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


@dataclass(frozen=True, slots=True)
class Metrics:
    """Sizes in pixels, which grow with the width of a pane."""

    pane_width: int

    def at(self, pixels: float, least: int = 1) -> int:
        """Scale a size that was chosen for panes of 640 pixels."""
        return max(least, round(pixels * self.pane_width / 640))

    @property
    def margin(self) -> int:
        """Around the picture."""
        return self.at(14, 4)

    @property
    def gap(self) -> int:
        """Between panes."""
        return self.at(10, 3)

    @property
    def title_font(self) -> int:
        """Instruction."""
        return self.at(32, 12)

    @property
    def detail_font(self) -> int:
        """Line under the title."""
        return self.at(21, 11)

    @property
    def label_font(self) -> int:
        """Lines above the panes, numbers of the colour bar."""
        return self.at(23, 11)

    @property
    def strip(self) -> int:
        """Height of one line above a pane."""
        return round(self.label_font * 1.45)

    @property
    def title(self) -> int:
        """Height of the title and its detail line."""
        return round(self.title_font * 1.35) + round(self.detail_font * 1.45)

    @property
    def bar(self) -> int:
        """Width of the colour bar."""
        return self.at(22, 8)

    @property
    def numbers(self) -> int:
        """Width of the colour bar's numbers."""
        return self.at(80, 38)


@dataclass(frozen=True, slots=True)
class Block:
    """One camera's boxes."""

    original: Box
    overlay: Box
    bar: Box
    original_label: Box
    overlay_label: Box
    lines: int
    """Lines of text above a pane."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A picture's size and its boxes."""

    width: int
    height: int
    title: Box
    blocks: tuple[Block, ...]
    headings: tuple[Box, ...] = ()
    """Over the columns of `arrange_pair`."""


def fit_pane(source: tuple[int, int], pane_width: int) -> tuple[int, int]:
    """Size of a camera's pane: as broad as a pane, at most `TALLEST` of that high, same aspect.

    Parameters
    ----------
    source
        (height, width) of the camera's image.

    Examples
    --------
    >>> fit_pane((720, 1280), 640), fit_pane((640, 480), 640)
    ((360, 640), (853, 640))
    """
    height, width = source
    scale = min(pane_width / width, TALLEST * pane_width / height)
    return max(1, round(height * scale)), max(1, round(width * scale))


def arrange(
    sources: Sequence[tuple[int, int]], pane_width: int, lines: int | None = None
) -> Layout:
    """Lay out the panes of cameras.

    Parameters
    ----------
    sources
        (height, width) of each camera's image.
    pane_width
        Pixels.
    lines
        Lines of text above each pane; by default one, or two where panes are narrow.
    """
    m = Metrics(pane_width)
    panes = [fit_pane(source, pane_width) for source in sources]
    if lines is None:
        lines = 1 if min(width for _, width in panes) >= m.at(560) else 2
    layouts = (_stacked(panes, lines, m), _beside(panes, lines, m))
    # in coarse steps, so that two cameras are stacked whatever their text: originals left,
    # overlays right, one column of colour bars
    return min(layouts, key=lambda lay: round(2 * abs(log(lay.width / lay.height / ASPECT))))


def arrange_pair(sources: Sequence[tuple[int, int]], pane_width: int, lines: int) -> Layout:
    """Lay out two overlays of each camera beside each other, in two columns with headings.

    A block's ``original`` is the left overlay; the colour bar is that of both.

    Parameters
    ----------
    sources
        (height, width) of each camera's image.
    pane_width
        Pixels.
    lines
        Lines of text of a heading.
    """
    m = Metrics(pane_width)
    room = m.strip * lines + m.gap
    layout = _stacked([fit_pane(source, pane_width) for source in sources], 2, m, room)
    first = layout.blocks[0]
    headings = tuple(
        Box(label.x, label.y - room, label.width, m.strip * lines)
        for label in (first.original_label, first.overlay_label)
    )
    return replace(layout, headings=headings)


def _bar_room(m: Metrics) -> int:
    return m.gap + m.bar + m.at(6) + m.numbers


def _slot(width: int, m: Metrics) -> int:
    # a narrow pane still needs room for its label
    return max(width, m.at(340))


def _block(
    first: tuple[int, int], second: tuple[int, int], pane: tuple[int, int], slot: int,
    lines: int, m: Metrics,
) -> Block:  # fmt: skip
    """Place a camera's panes, given the (x, y) of its original's and its overlay's text."""
    height, width = pane
    strip = m.strip * lines
    beside = first[1] == second[1]
    overlay = Box(second[0], second[1] + strip, width, height)
    return Block(
        original=Box(first[0], first[1] + strip, width, height),
        overlay=overlay,
        bar=Box(overlay.x + width + m.gap, overlay.y, m.bar, height),
        original_label=Box(*first, slot if beside else slot + _bar_room(m), strip),
        overlay_label=Box(*second, slot + _bar_room(m), strip),
        lines=lines,
    )


def _stacked(panes: Sequence[tuple[int, int]], lines: int, m: Metrics, heading: int = 0) -> Layout:
    slot = _slot(max(width for _, width in panes), m)
    blocks, y = [], m.margin + m.title + m.gap + heading
    for pane in panes:
        blocks.append(_block((m.margin, y), (m.margin + slot + m.gap, y), pane, slot, lines, m))
        y += m.strip * lines + pane[0] + m.gap
    width = 2 * m.margin + 2 * slot + m.gap + _bar_room(m)
    return _layout(width, y - m.gap + m.margin, blocks, m)


def _beside(panes: Sequence[tuple[int, int]], lines: int, m: Metrics) -> Layout:
    blocks, x, top = [], m.margin, m.margin + m.title + m.gap
    below = top + m.strip * lines + max(height for height, _ in panes) + m.gap
    for pane in panes:
        slot = _slot(pane[1], m)
        blocks.append(_block((x, top), (x, below), pane, slot, lines, m))
        x += slot + _bar_room(m) + 2 * m.gap
    height = 2 * below - top - m.gap + m.margin
    return _layout(x - 2 * m.gap + m.margin, height, blocks, m)


def _layout(width: int, height: int, blocks: Sequence[Block], m: Metrics) -> Layout:
    # even, so that no video codec has to pad
    width, height = width + width % 2, height + height % 2
    title = Box(m.margin, m.margin // 2, width - 2 * m.margin, m.title)
    return Layout(width, height, title, tuple(blocks))

"""The control of a mask: as many pixels, in the same shape, where little attention lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import UsageError

Mask = NDArray[np.bool_]
Float = NDArray[np.float64]
Control = Literal["shape", "pixels"]
CONTROLS: tuple[Control, ...] = get_args(Control)
LOWEST = 0.1
"""Share of the places where a shape fits that are low: those with the least attention."""


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """A control mask."""

    mask: Mask
    pieces: int
    """Pieces that were moved, each as it was; single pixels for control ``pixels``."""


def check_control(control: str) -> None:
    """Raise `UsageError` if there is no such control."""
    if control not in CONTROLS:
        raise UsageError(f"a control is one of {', '.join(CONTROLS)}; got {control!r}")


def scattered(mask: Mask, heat: Float, random: np.random.Generator) -> Moved:
    """Draw single pixels, as many as the mask has, among those with little attention.

    Little is at most the median over the seen pixels outside the mask; all of them, if those are
    too few.

    Raises
    ------
    UsageError
        If too few pixels are seen outside the mask.
    """
    free = np.isfinite(heat) & ~mask
    count = int(mask.sum())
    if int(free.sum()) < count:
        raise _too_large(count, int(free.sum()))
    low = free & (heat <= np.median(heat[free]))
    among = np.flatnonzero(low if int(low.sum()) >= count else free)
    found = np.zeros(mask.size, np.bool_)
    found[random.choice(among, count, replace=False)] = True
    return Moved(found.reshape(mask.shape), count)


def moved(mask: Mask, heat: Float, random: np.random.Generator) -> Moved:
    """Move a mask's shape to seen pixels with little attention.

    Every connected piece is moved on its own, largest first, and never onto the mask, another
    piece or unseen pixels. Of the places where it fits, those `LOWEST` in attention are drawn from.
    A piece that fits nowhere is cut in halves across its longer side.

    Parameters
    ----------
    mask
        (height, width).
    heat
        Attention of every pixel, (height, width); NaN where the policy sees nothing.

    Raises
    ------
    UsageError
        If too few pixels are seen outside the mask.
    """
    taken = ~np.isfinite(heat) | mask
    count = int(mask.sum())
    if int((~taken).sum()) < count:
        raise _too_large(count, int((~taken).sum()))
    warm = np.nan_to_num(heat).astype(np.float32)
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    waiting = [np.argwhere(labels == label) for label in range(1, int(labels.max()) + 1)]
    found = np.zeros(mask.shape, np.bool_)
    pieces = 0
    while waiting:
        waiting.sort(key=len)
        piece = waiting.pop()
        place = _place(piece, warm, taken, random)
        if place is None:
            waiting += _halves(piece)
            continue
        rows, cols = (piece - piece.min(0) + place).T
        found[rows, cols] = True
        taken[rows, cols] = True
        pieces += 1
    return Moved(found, pieces)


def _place(
    piece: NDArray[np.intp], warm: NDArray[np.float32], taken: Mask, random: np.random.Generator
) -> NDArray[np.intp] | None:
    """Top-left corner for a piece's box, or None if it fits nowhere."""
    corner = piece.min(0)
    shape = np.zeros(piece.max(0) - corner + 1, np.float32)
    shape[tuple((piece - corner).T)] = 1
    blocked, attention = taken.astype(np.float32), warm
    if len(piece) > 1:
        blocked = np.asarray(cv2.matchTemplate(blocked, shape, cv2.TM_CCORR), np.float32)
        attention = np.asarray(cv2.matchTemplate(attention, shape, cv2.TM_CCORR), np.float32)
    fits = np.argwhere(blocked < 0.5)
    if not len(fits):
        return None
    heats = attention[tuple(fits.T)]
    low = fits[heats <= np.quantile(heats, LOWEST)]
    for place in random.permutation(low):
        # The correlation is a Fourier transform's, with its rounding: look before moving.
        if not taken[tuple((piece - corner + place).T)].any():
            return np.asarray(place, np.intp)
    return None


def _halves(piece: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    sides = np.ptp(piece, axis=0)
    along = piece[:, int(sides[1] > sides[0])]
    middle = (along.min() + along.max() + 1) // 2
    return [piece[along < middle], piece[along >= middle]]


def _too_large(count: int, free: int) -> UsageError:
    return UsageError(
        f"the mask has {count} pixels, and only {free} are seen outside it: a control of the same "
        "size does not fit; use a smaller --share"
    )

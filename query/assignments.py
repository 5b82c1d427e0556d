"""Assignments of episodes to two groups that leave each stratum its sizes: all of them, or some at random."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from math import comb, prod

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Int = NDArray[np.intp]
Single = NDArray[np.float32]

LISTED = 16
"""Episodes of a stratum whose assignments are listed, so that a draw is one number: 12,870 at most."""


class Assignments:
    """Assignments of episodes to groups that leave each stratum its sizes.

    Episodes are taken in an `order` in which strata follow each other, those of the same sizes
    together: for many small ones, one call draws all their assignments.
    """

    def __init__(self, in_a: Bool, stratum: Int) -> None:
        kinds: dict[tuple[int, int], list[Int]] = {}
        for place in _places(stratum):
            kinds.setdefault((len(place), int(in_a[place].sum())), []).append(place)
        self.kinds = {kind: len(kinds[kind]) for kind in sorted(kinds)}
        """Episodes, and those in group a: how many strata have them."""
        self.order = np.concatenate(
            [*(p for kind in self.kinds for p in kinds[kind]), np.zeros(0, np.intp)]
        )
        self.ways: int = prod(comb(*kind) ** times for kind, times in self.kinds.items())

    def list(self, start: int, block: Single) -> None:
        """Fill a block, (assignment, episode) ones and zeros, with assignments in their order."""
        sizes = [comb(*kind) for kind, times in self.kinds.items() for _ in range(times)]
        numbers = iter(np.unravel_index(np.arange(start, start + len(block)), sizes or (1,)))
        at = 0
        for (size, chosen), times in self.kinds.items():
            for _ in range(times):
                block[:, at : at + size] = _choices(size, chosen)[next(numbers)]
                at += size

    def draw(self, rng: np.random.Generator, block: Single) -> None:
        """Fill a block, (assignment, episode) ones and zeros, each assignment as likely as any other."""
        at = 0
        for (size, chosen), times in self.kinds.items():
            if size <= LISTED:
                choices = _choices(size, chosen)
                drawn = choices[rng.integers(0, len(choices), (len(block), times), np.uint16)]
            else:
                drawn = np.tile(np.arange(size) < chosen, (len(block) * times, 1))
                rng.permuted(drawn, axis=1, out=drawn)
            width = size * times
            block[:, at : at + width] = drawn.reshape(len(block), width)
            at += width


@lru_cache(maxsize=256)
def _choices(size: int, chosen: int) -> Bool:
    """Every way to choose so many of so many, (way, episode)."""
    listed = np.array(list(combinations(range(size), chosen)), np.intp)
    table = np.zeros((len(listed), size), bool)
    np.put_along_axis(table, listed, True, axis=1)
    return table


def _places(stratum: Int) -> list[Int]:
    """Return where each stratum's episodes are."""
    order = np.argsort(stratum, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1) if len(order) else []

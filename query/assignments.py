"""Assignments of episodes to two groups that leave each stratum its sizes: all of them, or some at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb, prod

import numpy as np
from numpy.typing import NDArray

from .threads import in_threads

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
Int = NDArray[np.intp]

LISTED = 16
"""Episodes of a stratum whose assignments are listed, so that a draw is one number: 12,870 at most."""
BLOCK = 1 << 20
"""Numbers held at a time by one intermediate result: 8 MB."""
PARTS = 40
"""Parts that the strata are divided into, at most."""
PASSES = 10
"""Times that the draws of a part are used, at most."""
DIRECT = 1 << 23
"""Labels, episodes times assignments, that are drawn one by one; of more, draws are used again."""


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

    def every(self) -> Bool:
        """Return each assignment once, (assignment, episode) who is in group a."""
        sizes = [comb(*kind) for kind, times in self.kinds.items() for _ in range(times)]
        numbers = iter(np.unravel_index(np.arange(self.ways), sizes or (1,)))
        listed = [
            _choices(*kind)[next(numbers)]
            for kind, times in self.kinds.items()
            for _ in range(times)
        ]
        return np.concatenate([np.zeros((self.ways, 0), bool), *listed], axis=1)

    def draw(self, rng: np.random.Generator, block: Bool) -> None:
        """Fill a block, (assignment, episode) who is in group a, each assignment as likely as any other."""
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


@dataclass(frozen=True, slots=True)
class Tried:
    """Assignments that are put together from pools of assignments of parts; made by `try_every` and `try_some`."""

    parts: list[Int]
    """Episodes of each part."""
    pools: list[Bool]
    """Of each part: (assignment, episode) who is in group a."""
    turns: Int
    """(part, pass) by how much each pool is turned round: its row ``k + turn`` is of the k-th assignment."""

    def sums(self, values: Float) -> Float:
        """Sum over the episodes that each assignment has in group a, (pass × assignment, column).

        Parameters
        ----------
        values
            (episode, column).
        """
        rows, passes = len(self.pools[0]), self.turns.shape[1]
        found = np.zeros((passes, rows, values.shape[1]))
        for part, pool, turns in zip(self.parts, self.pools, self.turns.tolist(), strict=True):
            some = np.zeros((rows, values.shape[1]))
            width = max(1, BLOCK // rows)
            for start in range(0, len(part), width):
                at = slice(start, start + width)
                some += pool[:, at].astype(np.float64) @ values[part[at]]
            for whole, turn in zip(found, turns, strict=True):
                whole[: rows - turn] += some[turn:]
                whole[rows - turn :] += some[:turn]
        return found.reshape(-1, values.shape[1])


def try_every(in_a: Bool, stratum: Int) -> Tried:
    """Try each assignment once; there must not be many."""
    assignments = Assignments(in_a, stratum)
    return Tried([assignments.order], [assignments.every()], np.zeros((1, 1), np.intp))


def try_some(in_a: Bool, stratum: Int, total: int, seed: int) -> Tried:
    """Try assignments at random, the observed one the first of them.

    Strata are divided into parts, and a pool of assignments is drawn of each part, the observed one its
    first. In the first pass the k-th assignment is made of the k-th of every pool; in each further pass the
    pools are turned round, each by a number drawn at random. So ten thousand assignments of 10,000 episodes
    are a thousand draws and sums of forty numbers each. Of few episodes, or of few strata, there is one pass:
    assignments that are drawn independently.

    Why p is exact: where groups do not matter, all members of a pool are draws from one distribution,
    whichever of them was observed, and any pass can be called the first, since the others differ from it by
    random turns. So the observed assignment is as likely as each other one to have any given rank among all
    (the argument of Hemerik & Goeman 2018, TEST 27). What it costs is variance: docs/decisions/053.

    Parameters
    ----------
    in_a, stratum
        (episode,) who is observed in group a, and number of the stratum.
    total
        Assignments, the observed one included.
    """
    parts = _divided(stratum)
    chances = [Assignments(in_a[part], stratum[part]) for part in parts]
    parts = [part[of.order] for part, of in zip(parts, chances, strict=True)]
    passes = _passes([len(part) for part in parts], total)
    pools = [np.empty((total // passes, len(part)), bool) for part in parts]
    turns = np.random.default_rng([seed, 0]).integers(0, total // passes, (len(parts), passes))
    turns[:, 0] = 0
    rows = max(1, BLOCK // max(len(part) for part in parts))

    def draw(block: tuple[int, int]) -> None:
        number, start = block
        pool = pools[number][start : start + rows]
        # a seed a block: which thread draws it does not matter
        chances[number].draw(np.random.default_rng([seed, 1 + number, start]), pool)
        if start == 0:
            pool[0] = in_a[parts[number]]

    in_threads(draw, [(n, at) for n in range(len(parts)) for at in range(0, len(pools[n]), rows)])
    return Tried(parts, pools, turns)


def _divided(stratum: Int) -> list[Int]:
    """Divide episodes into parts of whole strata, of about as many episodes each."""
    places = sorted(_places(stratum), key=len)
    ends = np.cumsum([len(place) for place in places])
    of_part = ((ends - 1) * PARTS // max(1, len(stratum))).tolist()
    parts: dict[int, list[Int]] = {}
    for number, place in zip(of_part, places, strict=True):
        parts.setdefault(number, []).append(place)
    return [np.concatenate(part) for part in parts.values()]


def _passes(sizes: list[int], total: int) -> int:
    """Return how often draws are used: a divisor of their number, one where parts are few or all is little."""
    episodes = sum(sizes)
    alike = episodes**2 // max(1, sum(size * size for size in sizes))  # parts, if equal ones
    most = min(PASSES, 1 + episodes * total // DIRECT, 1 + (alike - 1) // 4)
    return next(n for n in range(max(1, most), 0, -1) if total % n == 0)


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

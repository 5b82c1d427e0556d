"""What a comparison could show at best, before its values are looked at.

Few episodes have few assignments to two groups, so there is a smallest p that no values can go
below (`smallest_p`). Benjamini-Hochberg over m tests rejects the k
smallest p-values if the k-th is at most ``k α / m``. So, with ``p_min(k)`` the k-th smallest of the
tests' smallest p-values:

* nothing can pass if ``p_min(k) > k α / m`` for every k; where all tests have one design that is
  ``p_min > α``, since even all m at their smallest would need α;
* k heads *together* can pass if ``p_min(k) ≤ k α / m``, and the least such k is what is asked of
  the data: heads that all reach their smallest p at once;
* one head can pass alone if ``p_min(1) ≤ α / m``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, comb

import numpy as np

from ..assignments import Assignments
from ..resampling import EXACT, Bool, Float, Int, stratum_sizes


@dataclass(frozen=True, slots=True)
class Attainable:
    """The limits of a design."""

    alpha: float
    """False discovery rate that is asked for."""
    tests: int
    """Tests in the family, those without values left out."""
    assignments: int
    """Ways to assign the episodes to the groups within strata."""
    smallest_p: float
    """Smallest p that a test of the family could reach."""
    permutations: int
    """Sampled permutations; 0 if every assignment was tried."""
    together: int | None
    """Fewest tests that must reach their smallest p for any to pass; None if nothing can."""
    paired: bool = False
    """Whether recordings are compared with themselves."""

    @property
    def conclusive(self) -> bool:
        """Whether any values at all could pass."""
        return self.together is not None

    @property
    def needed_together(self) -> int:
        """Episodes per group (pairs, if paired) for all tests together to be able to pass."""
        return self._needed(self.alpha)

    @property
    def needed_alone(self) -> int:
        """Episodes per group (pairs, if paired) for one test alone to be able to pass."""
        return self._needed(self.alpha / max(self.tests, 1))

    def _needed(self, p: float) -> int:
        return pairs_needed(p) if self.paired else episodes_needed(p)

    def text(self, a: str, b: str, strata: str) -> str | None:
        """Say what cannot be concluded and what it would take; None if a single test can pass.

        Parameters
        ----------
        a, b
            The groups with their sizes: ``2 success``.
        strata
            What compared episodes share: ``task and date``; empty if nothing.
        """
        if self.tests == 0:
            return "nothing can be concluded: no head has values in both groups"
        if self.assignments == 1:
            return (
                f"nothing can be concluded: no two episodes of different groups have the same "
                f"{strata}, so that a difference may be one of {strata}; it takes at least "
                f"{self.needed_together} episodes per group of the same {strata} for all tests "
                f"together, {self.needed_alone} for a single one, or other strata"
            )
        if self.together == 1:
            return None
        first = self.alpha / self.tests
        if self.together is None:
            start = "nothing can be concluded: "
        else:
            start = f"no single test of {self.tests} can pass, only {self.together} together: "
        if self.permutations and self.smallest_p <= 1 / (self.permutations + 1):
            return (
                f"{start}{self.permutations} permutations give no p below {self.smallest_p:.2g}; "
                f"one test needs {first:.2g}, so at least {ceil(1 / first) - 1} permutations"
            )
        same = f" of the same {strata}" if strata and not self.paired else ""
        inside = f" within {strata}" if strata else ""
        unit = "recordings in both groups" if self.paired else f"episodes per group{same}"
        return (
            f"{start}with {a} against {b} there are {self.assignments} ways to exchange "
            f"episodes{inside}, so no p is below {self.smallest_p:.2g}; at q ≤ {self.alpha:g} over "
            f"{self.tests} tests it takes at least {self.needed_together} {unit} for all tests "
            f"together, {self.needed_alone} for a single one"
        )


def smallest_p(in_a: Bool, stratum: Int, permutations: int) -> float:
    """Return the smallest two-sided p that any values could reach under this design.

    One assignment in N is the observed one. If the groups are equally large in every stratum that
    has both, exchanging the groups everywhere is an assignment too, and only turns the sign: then
    it is 2/N (2 against 2: 2/6). A sample of B permutations cannot go below 1/(B + 1).

    Examples
    --------
    >>> smallest_p(np.array([True, True, False, False]), np.zeros(4, int), 9999)
    0.3333333333333333
    """
    total = Assignments(in_a, stratum).ways
    if total == 1:
        return 1.0
    a, b = stratum_sizes(in_a, stratum)
    both = (a > 0) & (b > 0)
    design = (2 if (a == b)[both].all() else 1) / total
    return design if total <= max(EXACT, permutations) else max(design, 1 / (permutations + 1))


def fewest_together(smallest: Float, alpha: float) -> int | None:
    """Fewest tests that Benjamini-Hochberg can reject, given the smallest p of each; None if none.

    Examples
    --------
    >>> fewest_together(np.full(144, 2 / 70), 0.05), fewest_together(np.full(144, 2 / 6), 0.05)
    (83, None)
    """
    ranks = np.arange(1, len(smallest) + 1)
    # the rule's own comparison, kept apart from rounding: 0.05 * 3 / 3 is not 0.05
    passes = np.sort(smallest) * len(smallest) <= ranks * alpha * (1 + 1e-12)
    return int(ranks[passes][0]) if passes.any() else None


def episodes_needed(p: float) -> int:
    """Fewest episodes per group, all in one stratum, whose smallest p is at most `p`.

    Examples
    --------
    >>> episodes_needed(0.05), episodes_needed(0.05 / 144)
    (4, 8)
    """
    return _least(lambda n: p * comb(2 * n, n) >= 2)


def pairs_needed(p: float) -> int:
    """Fewest recordings that are in both groups whose smallest p is at most `p`.

    Examples
    --------
    >>> pairs_needed(0.05)
    6
    """
    return _least(lambda n: p * 2.0**n >= 2)


def _least(enough: Callable[[int], bool]) -> int:
    n = 1
    while not enough(n):
        n += 1
    return n

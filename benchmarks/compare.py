"""False stars and power of ``compare groups``: families of 32 heads where nothing, or one, differs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attnstore.query.resampling import benjamini_hochberg, permutation_test, welch_test

from .measure import Figure, Setting

Float = NDArray[np.float64]

SIZES = ((12, 12), (10, 30), (6, 18), (5, 20))
SHORT, LONG = 8, 16
"""Keyframes of a success and of a failure."""
HEADS = 32
EFFECT = 2.0
"""Difference of the one head, in standard deviations of a success's mean."""
AT_ONCE = 50
"""Families that share one set of permutations."""


def episode_means(successes: int, failures: int, level: float, rng: np.random.Generator) -> Float:
    """Return (episode, head) means of correlated keyframes around an episode's own level."""
    rows = []
    for length in [SHORT] * successes + [LONG] * failures:
        noise = rng.normal(size=(length + 10, HEADS * AT_ONCE))
        for t in range(1, len(noise)):
            noise[t] += 0.5 * noise[t - 1]
        rows.append(noise[10:].mean(0) + level * rng.normal(size=HEADS * AT_ONCE))
    return np.array(rows)


def rates(
    successes: int, failures: int, level: float, batches: int, permutations: int
) -> dict[str, tuple[float, float]]:
    """Share of families with a false star, and of those where one differing head has one."""
    in_a = np.arange(successes + failures) < successes
    one = np.zeros(len(in_a), np.intp)
    rng = np.random.default_rng(0)
    counts = {name: np.zeros(2) for name in ("permutation", "Welch", "both")}
    for batch in range(batches):
        x = episode_means(successes, failures, level, rng)
        apart = x[:, ::HEADS].copy()
        apart[in_a] += EFFECT * x[in_a].std()
        x = np.concatenate([x, apart], axis=1)
        p = {
            "permutation": permutation_test(x, in_a, one, permutations=permutations, seed=batch).p,
            "Welch": welch_test(x, in_a, one),
        }
        p["both"] = np.fmax(p["permutation"], p["Welch"])
        for name, values in p.items():
            null, effect = values[:-AT_ONCE].reshape(AT_ONCE, HEADS), values[-AT_ONCE:]
            for row, first in zip(null, effect, strict=True):
                counts[name][0] += (benjamini_hochberg(row) <= 0.05).any()
                counts[name][1] += benjamini_hochberg(np.append(first, row[1:]))[0] <= 0.05
    families = batches * AT_ONCE
    return {name: (float(c[0] / families), float(c[1] / families)) for name, c in counts.items()}


def run(setting: Setting) -> list[Figure]:
    batches, permutations = (1, 199) if setting.toy else (40, 9999)
    figures = []
    for successes, failures in SIZES:
        for level in (0.0, 0.5):
            found = rates(successes, failures, level, batches, permutations)
            what = f"{successes}:{failures}, own level {level:g}"
            for name, (false, power) in found.items():
                figures += [
                    Figure(f"{what}: families with a false star, {name}", 100 * false, "%",
                           aim="<= 6" if name == "both" and not setting.toy else "",
                           note="5 % and two standard errors of 2000 families"),
                    Figure(f"{what}: power at one head, {name}", 100 * power, "%"),
                ]  # fmt: skip
    return figures

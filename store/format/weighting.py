"""What attention is weighted with: nothing, or the value that is carried.

``raw`` is the softmax's weight A_qk. ``value`` is A_qk times the norm of what key k would add through
the head, ‖v_k W_O^h‖, divided by the row's sum: the share of the head's output by size, 0..1 (Kobayashi
et al. 2020, "Attention is Not Only a Weight"). A sink whose value is next to nothing is dark in it.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import SelectionError
from .precision import Error

Weighting = Literal["raw", "value"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)


def check_weighting(weighting: str) -> None:
    """Refuse a word that is no weighting.

    Raises
    ------
    SelectionError
        With those that there are.
    """
    if weighting not in WEIGHTINGS:
        raise SelectionError(f"weighting is one of {', '.join(WEIGHTINGS)}; got {weighting!r}")


def described(weighting: Weighting) -> str:
    """Say it before a noun: nothing of raw attention, else ``value-weighted`` and a space."""
    return "" if weighting == "raw" else f"{weighting}-weighted "


def value_weighted(weights: Any, norms: Any) -> Any:
    """Weight attention by value norms: the one implementation, for NumPy's arrays and torch's tensors.

    Parameters
    ----------
    weights
        (..., query, key) attention over *all* keys of each row.
    norms
        (..., key) norm of what each key would add.

    Returns
    -------
    (..., query, key), rows sum to 1; NaN in a row of which nothing is carried.

    Examples
    --------
    A sink without a value, and two other keys:

    >>> import numpy as np
    >>> value_weighted(np.array([[0.8, 0.1, 0.1]]), np.array([0.0, 1.0, 3.0])).round(3).tolist()
    [[0.0, 0.25, 0.75]]
    """
    carried = weights * norms[..., None, :]
    return carried / carried.sum(-1)[..., None]


def carried(weights: NDArray[Any], norms: NDArray[Any]) -> NDArray[Any]:
    """Weight stored attention by stored norms: what is absent takes no part, and stays absent.

    Parameters
    ----------
    weights, norms
        As for `value_weighted`; NaN where a keyframe lacks the token.

    Returns
    -------
    (..., query, key), rows sum to 1; NaN where the weight is, and in a row of which nothing is carried.
    """
    absent = np.isnan(weights)
    with np.errstate(invalid="ignore"):
        found = value_weighted(np.where(absent, 0, weights), np.nan_to_num(norms))
    found[absent] = np.nan
    return np.asarray(found)


def carried_error(
    weights: NDArray[Any], norms: NDArray[Any], weight: Error, norm: Error
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bound how far `carried` of rounded weights and norms may lie from that of unrounded ones.

    Parameters
    ----------
    weights, norms
        As for `carried`.
    weight, norm
        Of the stored weights and norms; of norms the relative one counts.

    Returns
    -------
    Two arrays (...): the relative and the absolute part of an `Error` that holds for every query and
    key, and so for means and maxima over them; infinite where there is no bound.

    Notes
    -----
    A product is within ``R`` of itself, ``R = (1 + r)(1 + n) - 1``, and ``d (1 + n)`` times its norm; a
    row's sum within ``p`` of itself, ``p = R + d (1 + n) sum(norms) / sum(weights * norms)``. A quotient
    of both is within ``(1 + R) / (1 - p) - 1`` of itself and ``d (1 + n) max(norms) / (1 - p)`` over the sum.
    """
    w = np.nan_to_num(np.asarray(weights, np.float64))
    v = np.nan_to_num(np.asarray(norms, np.float64))
    grown = 1 + float(norm.relative)
    product = (1 + float(weight.relative)) * grown - 1
    least = float(weight.absolute) * grown
    present = ~np.isnan(weights).all(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = np.where(present, (w * v[..., None, :]).sum(-1), np.inf)
        off = product + least * v.sum(-1)[..., None] / sums
        known = (sums > 0) & (off < 1)
        relative = np.where(known, (1 + product) / (1 - off) - 1, np.inf)
        absolute = np.where(known, least * v.max(-1)[..., None] / (1 - off) / sums, np.inf)
    return relative.max(-1), absolute.max(-1)

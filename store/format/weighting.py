"""What attention is weighted with: nothing, or the value that is carried.

``raw`` is the softmax's weight A_qk. ``value`` is A_qk times the norm of what key k would add through
the head, ‖v_k W_O^h‖, divided by the row's sum: the share of the head's output by size, 0..1 (Kobayashi
et al. 2020, "Attention is Not Only a Weight"). A sink whose value is next to nothing is dark in it.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from ..errors import SelectionError

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

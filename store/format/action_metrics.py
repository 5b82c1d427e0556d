"""How much an intervention changes what a policy does: definitions, vectorised NumPy.

Between the base action chunk a and the variant's b, from the same initial noise, in the policy's
normalised action units, over the whole chunk and the real degrees of freedom d (policies pad
their actions)::

    mse    = mean over horizon and d of (b - a)^2
    si_mse = min over alpha >= 0 of |alpha b - a|^2 / |a|^2
    scale  = |b| / |a|
    cosine = a . b / (|a| |b|)

``si_mse`` leaves out how long the action is: 0 for any b = c a with c > 0, and 1 where nothing of
a is left in b's direction. With alpha < 0 allowed a reversed action would score 0; here it
scores 1. What is undefined is NaN: everything but mse where a is 0, and cosine where b is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Array = NDArray[np.floating[Any]]
Float = NDArray[np.float64]


def action_metrics(base: Array, variants: Array, dof: int) -> dict[str, Float]:
    """Compare action chunks with the base's.

    Parameters
    ----------
    base
        Base action chunk, (..., horizon, action_dof); broadcast against `variants`.
    variants
        Action chunks of the variants, (..., horizon, action_dof).
    dof
        Real degrees of freedom: the first so many components count.

    Returns
    -------
    Per name in `attnstore.store.tables.probes.ACTION_METRICS`, the leading axes' shape, float64.

    Raises
    ------
    UsageError
        If the chunks have no such degrees of freedom.

    Examples
    --------
    >>> a = np.array([[1.0, 0.0]])
    >>> found = action_metrics(a, np.stack([2 * a, -a, a[:, ::-1]]), 2)
    >>> {name: value.tolist() for name, value in found.items()}
    {'mse': [0.5, 2.0, 1.0], 'si_mse': [0.0, 1.0, 1.0], 'scale': [2.0, 1.0, 1.0], \
'cosine': [1.0, -1.0, 0.0]}
    """
    if not 1 <= dof <= base.shape[-1]:
        raise UsageError(
            f"actions have {base.shape[-1]} components, {dof} cannot be their real degrees of "
            "freedom"
        )
    a: Float = np.asarray(base, np.float64)[..., :dof]
    b: Float = np.asarray(variants, np.float64)[..., :dof]
    both = (-2, -1)
    dot = np.asarray((a * b).sum(both))
    a2, b2 = np.asarray((a * a).sum(both)), np.asarray((b * b).sum(both))
    with np.errstate(invalid="ignore", divide="ignore"):
        alpha = np.where(b2 > 0, np.maximum(dot, 0) / b2, 0.0)
        # The difference itself, and not 1 - cosine^2: equal actions give exactly 0.
        left = ((alpha[..., None, None] * b - a) ** 2).sum(both)
        length = np.sqrt(a2)
        return {
            "mse": np.asarray(((b - a) ** 2).mean(both)),
            "si_mse": np.where(a2 > 0, left / a2, np.nan),
            "scale": np.where(a2 > 0, np.sqrt(b2) / length, np.nan),
            "cosine": np.where((a2 > 0) & (b2 > 0), dot / (length * np.sqrt(b2)), np.nan),
        }


def curve_area(fraction: Array, value: Array) -> Float:
    """Area under a deletion or insertion curve over fractions 0..1, by the trapezoidal rule.

    Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models"
    (BMVC), where the value is the class's probability; here it is a metric of the action.

    Parameters
    ----------
    fraction
        Share of the pixels that are removed (deletion) or shown (insertion), (point,), ascending
        from 0 to 1.
    value
        (..., point).

    Examples
    --------
    >>> curve_area(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0])).item()
    0.5
    """
    x: Float = np.asarray(fraction, np.float64)
    y: Float = np.asarray(value, np.float64)
    if len(x) < 2 or x[0] != 0 or x[-1] != 1 or (np.diff(x) <= 0).any():
        raise UsageError(f"a curve's fractions ascend from 0 to 1; got {x.tolist()}")
    return np.asarray((np.diff(x) * (y[..., 1:] + y[..., :-1]) / 2).sum(-1))

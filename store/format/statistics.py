"""The definitions of the numbers (semantics version 2), vectorised NumPy.

Every function takes the weights averaged over a query group, ``(..., key)`` or, for one camera, its
map ``(..., row, col)``; leading axes (keyframe, step, layer, head) are kept. ``coverage`` is the
fraction of each patch that shows source image: a patch's attention times its coverage is attention
on the image, the rest is attention on the letterbox. For one camera, ``P`` is the attention on the
image over the patches with coverage > 0, normalised to sum 1, and ``N`` is the sum of the coverage.
A camera that gets no attention has no P: what is made of P is NaN then, NULL in tables.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Float = NDArray[np.float64]

SEMANTICS = 2
"""Raised when a definition changes, so that runs with different definitions are not mixed."""
SINK_THRESHOLD = 0.3
"""Gu et al. 2024, "When Attention Sink Emerges in Language Models": epsilon = 0.3."""
SINK_FRACTION = 0.8
"""Share of an episode's keyframes in which a key must exceed the threshold."""


def image_distribution(maps: Array, coverage: Array) -> Float:
    """Distribution of a camera's attention over the patches that show image, ``P``.

    Parameters
    ----------
    maps
        Raw map, (..., row, col).
    coverage
        Fraction of each patch that shows source image, (row, col).

    Returns
    -------
    (..., patch) float64 over the patches with coverage > 0, row-major, summing to 1; NaN where the
    image gets no attention at all or a weight is absent.
    """
    inside = np.asarray(coverage, np.float64).reshape(-1)
    shown = inside > 0
    flat = np.asarray(maps, np.float64).reshape(*maps.shape[:-2], -1)[..., shown]
    weighted = flat * inside[shown]
    with np.errstate(invalid="ignore"):
        return np.asarray(weighted / weighted.sum(-1, keepdims=True))


def entropy(p: Array, image_area: float) -> Float:
    """Normalised Shannon entropy of `image_distribution`, ``-sum P log P / log N``.

    ``image_area`` is N, the sum of coverage in patches. Uniform attention over whole patches
    gives 1, a single patch 0. Where half-covered patches push it past 1 it is clipped to 1.

    Examples
    --------
    >>> entropy(np.full(8, 1 / 8), 8.0).item(), entropy(np.eye(8)[0], 8.0).item()
    (1.0, 0.0)
    """
    p = np.asarray(p, np.float64)
    terms = p * np.log(p, out=np.zeros_like(p), where=p != 0)
    spread = -terms.sum(-1)
    # Not more than one patch of image: wherever the attention lies, it is concentrated there.
    relative = spread / np.log(image_area) if image_area > 1 else 0.0 * spread
    return np.asarray(np.clip(relative, 0.0, 1.0) + 0.0)  # no -0.0


def top_mass(p: Array, fraction: float = 0.1) -> Float:
    """Share of P held by its largest ``ceil(fraction * patches)`` patches, 0..1."""
    p = np.asarray(p, np.float64)
    count = max(1, int(np.ceil(fraction * p.shape[-1] - 1e-9)))
    largest = np.partition(p, p.shape[-1] - count, axis=-1)[..., -count:]
    return np.asarray(largest.sum(-1))


def gini(p: Array) -> Float:
    """Gini coefficient of P over patches: 0 for equal shares, ``1 - 1/n`` for one patch.

    Examples
    --------
    >>> gini(np.full(4, 0.25)).item(), gini(np.array([0.0, 0, 0, 1])).item()
    (0.0, 0.75)
    """
    p = np.sort(np.asarray(p, np.float64), axis=-1)
    n = p.shape[-1]
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return np.asarray((p * ranks).sum(-1) / (n * p.sum(-1)))


def jensen_shannon(p: Array, q: Array) -> Float:
    """Jensen-Shannon divergence in bits, 0..1, over the last axis (Lin 1991).

    Examples
    --------
    >>> jensen_shannon(np.array([1.0, 0]), np.array([0.0, 1])).item()
    1.0
    """
    one: Float = np.asarray(p, np.float64)
    other: Float = np.asarray(q, np.float64)
    m = (one + other) / 2

    def divergence(a: Float) -> Float:
        ratio = np.divide(a, m, out=np.ones_like(m), where=a > 0)
        return np.asarray((a * np.log2(ratio)).sum(-1))

    return np.asarray(np.clip((divergence(one) + divergence(other)) / 2, 0.0, 1.0))


def image_mass(maps: Array, coverage: Array) -> tuple[Float, Float]:
    """Attention on a camera's image and on its letterbox; a half-covered patch counts to both.

    Returns
    -------
    (image, letterbox), each of the leading axes' shape.
    """
    cover = np.asarray(coverage, np.float64)
    raw = np.asarray(maps, np.float64)
    return (raw * cover).sum((-2, -1)), (raw * (1 - cover)).sum((-2, -1))


def image_variance(maps: Array, coverage: Array) -> Float:
    """Variance of a camera's map over the image: patches count as much as they show of it.

    ``sum w (a - m)^2 / N`` with ``m = sum w a / N``, ``w`` the coverage and ``a`` the raw map. What
    lies on the letterbox takes no part. It grows with the square of the camera's share of the
    attention, so it ranks heads within a camera.

    Parameters
    ----------
    maps
        Raw map, (..., row, col).
    coverage
        Fraction of each patch that shows source image, (row, col).

    Returns
    -------
    (...) float64, squared share of attention; NaN where a weight is absent.

    Examples
    --------
    The third patch is letterbox, the second shows image on half of it:

    >>> image_variance(np.array([[0.1, 0.4, 0.5]]), np.array([[1.0, 0.5, 0.0]])).round(9).item()
    0.02
    """
    inside = np.asarray(coverage, np.float64).reshape(-1)
    shown = inside > 0
    flat = np.asarray(maps, np.float64).reshape(*maps.shape[:-2], -1)[..., shown]
    weight = inside[shown] / inside[shown].sum()
    mean = flat @ weight
    return np.asarray(((flat - mean[..., None]) ** 2) @ weight)


def grid_variance(maps: Array) -> Float:
    """Variance of a map over all patches of the grid, those of the letterbox like any other.

    The rule by which heads were called active before the image alone counted: bright padding can
    choose the head. See `image_variance`.

    Examples
    --------
    >>> grid_variance(np.array([[0.0, 0.5], [0.5, 0.0]])).item()
    0.0625
    """
    return np.asarray(np.asarray(maps, np.float64).var((-2, -1)))


def largest(maps: Array, share: Array) -> tuple[Float, NDArray[np.intp], NDArray[np.intp]]:
    """Find the patch with the most attention on the image, or on the letterbox.

    Parameters
    ----------
    maps
        Raw map, (..., row, col).
    share
        What of each patch counts, (row, col): the coverage for the image, ``1 - coverage`` for the
        letterbox. So a patch of which a sliver shows image is not the image's largest for what
        lies on its letterbox.

    Returns
    -------
    (value, row, col), each (...): ``max(share * map)``, at most the mass that counts, and where it
    is; the first of several, row-major; NaN where a weight is absent.

    Examples
    --------
    >>> found = largest(np.array([[0.1, 0.4, 0.5]]), np.array([[1.0, 0.5, 0.0]]))
    >>> [each.item() for each in found]
    [0.2, 0, 1]
    """
    raw = np.asarray(maps, np.float64) * np.asarray(share, np.float64)
    flat = raw.reshape(*raw.shape[:-2], -1)
    best = flat.argmax(-1)
    return flat.max(-1), best // raw.shape[-1], best % raw.shape[-1]

"""How alike the hidden states of two runs are: debiased linear CKA, layer by layer.

Centred kernel alignment of the linear kernels of two representations of the same inputs (Kornblith et al.
2019, "Similarity of Neural Network Representations Revisited"), with the unbiased estimator HSIC_1 (Song et
al. 2012, "Feature Selection via Dependence Maximization"; Nguyen et al. 2021): with more features than
inputs, which is the rule here, the biased one is near 1 whatever the representations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from attnstore.store.errors import SelectionError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from attnstore.store.reader.episode import Steps
    from attnstore.store.reader.hidden import Tokens

    from ..sql.store import Store

Float = NDArray[np.float64]
FEWEST = 4
"""Inputs below which HSIC_1 is not defined."""


def hsic_unbiased(k: Float, loading: Float) -> float:
    """HSIC_1 of two Gram matrices, (n, n), whose diagonals are 0.

    ``[tr(K L) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'K L 1] / (n(n-3))``; Song et al. 2012, equation 5.
    """
    n = len(k)
    rows, other = k.sum(0), loading.sum(0)
    trace = float((k * loading).sum())
    both = float(rows.sum() * other.sum()) / ((n - 1) * (n - 2))
    return (trace + both - 2 / (n - 2) * float(rows @ other)) / (n * (n - 3))


def debiased_cka(x: Float, y: Float) -> float:
    """Debiased linear CKA of two representations of the same inputs.

    Parameters
    ----------
    x, y
        (input, feature) each; widths may differ.

    Returns
    -------
    At most 1, which is for equal up to rotation, shift and scale; about 0 for unrelated ones; NaN where one
    of them is constant.

    Raises
    ------
    UsageError
        If there are fewer than 4 inputs, or not as many of both.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((50, 200))
    >>> round(debiased_cka(x, 3 * x + 1), 6)
    1.0
    >>> abs(debiased_cka(x, np.random.default_rng(1).standard_normal((50, 300)))) < 0.1
    True
    """
    if len(x) != len(y) or len(x) < FEWEST:
        raise UsageError(
            f"CKA takes at least {FEWEST} keyframes, as many of both; got {len(x)} and {len(y)}"
        )
    grams = [_gram(each) for each in (x, y)]
    own = [hsic_unbiased(each, each) for each in grams]
    if min(own) <= 0:
        return float("nan")
    return hsic_unbiased(*grams) / float(np.sqrt(own[0] * own[1]))


def _gram(values: Float) -> Float:
    # HSIC_1 is the same for shifted kernels' features; centred, float64 loses nothing to a large mean.
    centred = values - values.mean(0)
    gram = np.asarray(centred @ centred.T)
    np.fill_diagonal(gram, 0)
    return gram


def compare_hidden(
    store: Store,
    run_a: str,
    run_b: str,
    *,
    phase: str,
    span: str | None = None,
    tokens: Tokens = "mean",
    step: Steps = "last",
    episodes: Sequence[str] = (),
    where: str | None = None,
    progress: Callable[[float, str], None] = lambda share, now: None,
) -> xr.DataArray:
    """Debiased linear CKA between two runs' hidden states at the same keyframes.

    Parameters
    ----------
    run_a, run_b
        Ids of runs.
    phase, span, tokens, step
        As for `Store.hidden`; of one span. With ``tokens="last"`` the mean over the tokens is compared.
    episodes, where
        Which episodes; by default all.
    progress
        Called with the share that is done, 0 to 1, and what is at its turn.

    Returns
    -------
    DataArray (layer_a, layer_b), float64; of the last hidden states a single number. Attributes
    ``keyframes`` and ``episodes`` say of how many.

    Raises
    ------
    UsageError
        If the runs do not have the same keyframes, or fewer than 4.
    NotFoundError
        If an episode has no hidden states.
    """
    if run_a == run_b:
        raise UsageError(f"two runs are compared; got {run_a} twice")
    both = []
    for number, run in enumerate((run_a, run_b)):
        store.run(run)

        def read(share: float, name: str, number: int = number) -> None:
            progress((number + share) / 4, name)

        found = store.hidden(
            phase=phase,
            span=span,
            tokens=tokens,
            step=step,
            run=run,
            episodes=episodes,
            where=where,
            progress=read,
        )
        both.append(found)
    places = [list(zip(e["episode"].values, e["frame"].values, strict=True)) for e in both]
    # Both are in order of name and keyframe.
    _check_same(places, (run_a, run_b))
    layers = [
        (e["layer"].values if "layer" in e.dims else np.array([np.nan])) for e in both
    ]  # fmt: skip
    values = [[_rows(e, i) for i in range(len(own))] for e, own in zip(both, layers, strict=True)]
    result = np.empty((len(values[0]), len(values[1])))
    for i, j in np.ndindex(result.shape):
        progress(0.5 + 0.5 * (i * len(values[1]) + j) / result.size, "similarity of layers")
        result[i, j] = debiased_cka(values[0][i], values[1][j])
    return xr.DataArray(
        result,
        {"layer_a": layers[0], "layer_b": layers[1]},
        ("layer_a", "layer_b"),
        name="cka",
        attrs={
            "long_name": "debiased linear CKA", "run_a": run_a, "run_b": run_b, "phase": phase,
            "span": span or "", "keyframes": len(places[0]), "episodes": len({e for e, _ in places[0]}),
        },
    )  # fmt: skip


def _rows(states: xr.DataArray, layer: int) -> Float:
    values = states.isel(layer=layer) if "layer" in states.dims else states
    extra = [d for d in values.dims if d not in ("keyframe", "feature", "query")]
    if extra:
        raise SelectionError(
            f"similarity is of one span and one step; there are several along {extra[0]}"
        )
    if "query" in values.dims:
        values = values.mean("query")
    found = values.transpose("keyframe", "feature").values.astype(np.float64)
    if not np.isfinite(found).all():
        raise SelectionError("a keyframe lacks the span; choose one that all of them have")
    return found


def _check_same(places: Sequence[Sequence[tuple[str, int]]], runs: tuple[str, str]) -> None:
    a, b = (set(each) for each in places)
    if a == b:
        return
    for mine, other, run, lacking in ((a, b, *runs), (b, a, *runs[::-1])):
        if only := sorted(mine - other):
            raise UsageError(
                f"the runs have other keyframes: {len(only)} of {run} are not in {lacking}, the first is frame "
                f"{only[0][1]} of {only[0][0]}; ingest the same episodes with the same --stride, or choose "
                "episodes that both have (--episode, --where)"
            )

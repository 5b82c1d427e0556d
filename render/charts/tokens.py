"""How tokens evolve through the layers, as curves: norm and cosines of each kind of token, as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.rules import standing_step
from attnstore.store.tables.base import TOKEN_METRICS

from .objects import Curve, layer_chart, legend
from .svg import Chart, stack

if TYPE_CHECKING:
    import xarray as xr


def token_chart(stats: xr.Dataset, *, step: int | None = None) -> Chart:
    """Draw mean and ± one standard deviation over keyframes and tokens, a curve per span.

    Parameters
    ----------
    stats
        From `attnstore.query.Episode.token_stats`.
    step
        Denoising step, ignored in one-pass phases; None is the one that stands for the phase.

    Returns
    -------
    Three panels in a row; ``.svg`` is the document.

    Raises
    ------
    IndexError
        If there is no such step.
    """
    if "step" in stats.dims:
        if step is None:
            step = standing_step(stats.attrs["phase"], stats.sizes["step"])
        stats = stats.isel(step=step)
    spans = list(dict.fromkeys(stats.token_span.values.tolist()))
    panels = [
        layer_chart(
            f"{stats.attrs['phase']}: {name}",
            "mean of tokens and keyframes; band: ± sd",
            [_curve(stats, name, span) for span in spans],
        )
        for name in TOKEN_METRICS
    ]
    return stack([legend(spans), stack(panels, columns=len(panels))], columns=1)


def _curve(stats: xr.Dataset, metric: str, span: str) -> Curve:
    of_span = stats[metric].isel(token=np.flatnonzero(stats.token_span == span))
    values = of_span.transpose("layer", ...).values
    values = values.reshape(len(values), -1)
    there = np.isfinite(values)
    mean = _over(values, there)
    sd = np.sqrt(_over((values - mean[:, None]) ** 2, there))
    return Curve(span, _known(mean), _known(sd))


def _over(values: NDArray[Any], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of each row's finite values; NaN where there are none."""
    count = there.sum(-1)
    total = np.where(there, values, 0).sum(-1, dtype=np.float64)
    return np.asarray(np.where(count, total / np.maximum(count, 1), np.nan))


def _known(values: NDArray[np.float64]) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]

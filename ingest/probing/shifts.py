"""How the maps change between the base and an intervention: rows of ``map_shifts``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnstore.store.format.geometry import Geometry
from attnstore.store.format.statistics import image_distribution, image_mass, jensen_shannon
from attnstore.store.format.tokens import Axis

from .forward import MapPlace, Ran

Float = NDArray[np.float64]


def map_shift(base: Float, variant: Float, coverage: NDArray[np.floating[Any]]) -> dict[str, Float]:
    """Measure how much maps of one camera change.

    Parameters
    ----------
    base, variant
        Raw maps, (..., row, col).
    coverage
        Fraction of each patch that shows source image, (row, col).

    Returns
    -------
    Columns of ``map_shifts``, of the leading axes' shape; NaN where undefined.
    """
    p, q = image_distribution(base, coverage), image_distribution(variant, coverage)
    before, after = image_mass(base, coverage)[0], image_mass(variant, coverage)[0]
    a, b = p - p.mean(-1, keepdims=True), q - q.mean(-1, keepdims=True)
    spread = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    dark = (before <= 0) | (after <= 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # What is left of a constant map's deviations is rounding.
        correlation = np.where(spread > 1e-18, (a * b).sum(-1) / spread, np.nan)
    return {
        "l2": np.where(dark, np.nan, np.sqrt(((p - q) ** 2).sum(-1))),
        "correlation": np.where(dark, np.nan, np.clip(correlation, -1.0, 1.0)),
        "jensen_shannon": np.where(dark, np.nan, jensen_shannon(p, q)),
        "mass_change": np.asarray(after - before),
    }


def shift_rows(base: Ran, variant: Ran, geometry: Mapping[str, Geometry]) -> list[dict[str, Any]]:
    """Return the rows of one variant, without its keys: every head's map of every camera."""
    rows = []
    for place, before in base.maps.items():
        if place not in variant.maps:
            continue
        phase, step, layer, group = place
        for camera, form in geometry.items():
            one = _camera(base, place, before, camera, form)
            other = _camera(variant, place, variant.maps[place], camera, form)
            if one is None or other is None:
                continue
            found = map_shift(one, other, form.coverage())
            rows += [
                {
                    "phase": phase, "step": step, "layer": layer, "head": head,
                    "query_group": group, "camera": camera,
                    **{name: float(values[head]) for name, values in found.items()},
                }
                for head in range(len(one))
            ]  # fmt: skip
    return rows


def _camera(
    ran: Ran, place: MapPlace, values: Float, camera: str, geometry: Geometry
) -> Float | None:
    axis: Axis = ran.layouts[place[0]].key
    for span in axis:
        if span.camera == camera:
            return values[:, span.start : span.stop].reshape(-1, *geometry.grid)
    return None

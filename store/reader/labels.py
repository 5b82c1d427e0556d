"""A selection as xarray shows it: values, now or on access, with coordinates and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..format.episode import PhaseSpec
from .blocks import Read, Selection, too_large
from .lazy import lazy as lazy_data
from .selection import span_labels, token_labels

TokenLabels = dict[str, tuple[str, NDArray[Any]]]
"""Coordinates along queries and keys: the axis, and values over its whole length."""


def labels_of_tokens(spec: PhaseSpec) -> TokenLabels:
    """Return label and span of every query and key of a phase."""
    labels: TokenLabels = {}
    for axis, aligned in (("query", spec.query), ("key", spec.key)):
        labels[f"{axis}_label"] = (axis, token_labels(aligned.spans, len(aligned)))
        labels[f"{axis}_span"] = (axis, span_labels(aligned.spans, len(aligned)))
    return labels


def labelled(
    name: str, selection: Selection, read: Read, frames: NDArray[np.int32], extra: Mapping[str, Any],
    attributes: Mapping[str, Any], max_bytes: int | None,
) -> xr.DataArray:  # fmt: skip
    """Read a selection, and label it.

    Parameters
    ----------
    frames
        Frame index of every keyframe of the episode.
    extra
        Further coordinates: dimensions, or the dimension, and values.
    max_bytes
        A larger result is refused; None reads on access.

    Returns
    -------
    DataArray float32, of the selection's dimensions.

    Raises
    ------
    SelectionError
        If the result is too large.
    """
    data: Any
    if max_bytes is None:
        part = partial(selection.read_part, read)
        data = lazy_data(selection.shape, np.dtype(np.float32), part)
    else:
        size = 4 * int(np.prod(selection.shape, dtype=np.int64))
        if size > max_bytes:
            raise too_large(size, max_bytes, name.replace("_", " "))
        data = selection.read(read)
    coords = selection.coordinates(frames)
    for label, (dims, values) in extra.items():
        here = (dims,) if isinstance(dims, str) else dims
        if all(dim in selection.dims for dim in here):
            coords[label] = (dims, values)
        else:
            coords[label] = values[0]
    return xr.DataArray(data, coords, selection.dims, name=name, attrs=attributes)

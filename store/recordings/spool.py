"""What a live episode showed, read while its spool is there: maps of the newest calls, before any commit.

A spool is the recorder's own file beside a journal. A call's entry says under ``shown`` where its attention
is: ``groups``, the query group that stands for each phase, and ``tensors``, one row for each layer of each
step in the order in which they came: phase, layer, offset, data type, heads, queries, keys. Padding is
stripped, so that a tensor's axes are the call's token layout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError
from ..format.statistics import image_mass
from ..format.tokens import TokenLayout
from ..rules import active_heads, map_variance
from .call import SeenCall

Float = NDArray[np.float32]
_ITEMS = {"float32": "<f4", "float16": "<f2", "float64": "<f8", "bfloat16": "<u2"}
MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class CallMaps:
    """Where one call's query group looked in one camera, at the step that stands for the phase."""

    phase: str
    camera: str
    query: str
    """The query group."""
    maps: Float
    """Largest weight over the group's tokens, (layer, head, row, col)."""
    camera_mass: NDArray[np.float64]
    """Attention on the camera's image, of the group's mean, (layer, head)."""
    active: NDArray[np.intp]
    """Each layer's head whose map varies most, in this call: an episode's is known when it is over."""


def read_maps(spool: int, call: SeenCall) -> list[CallMaps]:
    """Reduce what a call showed to its cameras' maps.

    Parameters
    ----------
    spool
        File descriptor of the episode's spool.

    Returns
    -------
    By phase and camera; empty if the call was not captured.

    Raises
    ------
    IntegrityError
        If the spool does not have what the call says.
    """
    if call.shown is None:
        return []
    try:
        places: dict[str, dict[int, list[Any]]] = {}
        for phase, layer, *place in call.shown["tensors"]:
            # Of a phase with steps the last one stands for it, and comes last.
            places.setdefault(str(phase), {})[int(layer)] = place
        found = []
        for phase, layers in places.items():
            layout = call.layouts[phase]
            group = str(call.shown["groups"][phase])
            rows = layout.query.group(group)
            if not rows or set(layers) != set(range(len(layers))):
                continue
            reduced = [_reduced(spool, layers[n], layout, rows) for n in range(len(layers))]
            mean, largest = (np.stack(each) for each in zip(*reduced, strict=True))
            found += _by_camera(call, phase, group, layout, mean, largest)
        return found
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise IntegrityError(f"what call {call.number} showed cannot be read: {error}") from None


def _by_camera(
    call: SeenCall, phase: str, group: str, layout: TokenLayout, mean: Float, largest: Float
) -> list[CallMaps]:
    """Cut (layer, head, key) into the cameras' maps."""
    found = []
    for span in layout.key:
        if span.camera is None or span.grid is None or span.camera not in call.geometry:
            continue
        shape = (*mean.shape[:2], *span.grid)
        coverage = call.geometry[span.camera].coverage()
        maps = largest[..., span.start : span.stop].reshape(shape)
        on_image, _ = image_mass(mean[..., span.start : span.stop].reshape(shape), coverage)
        active = active_heads(map_variance(maps, coverage))
        found.append(CallMaps(phase, span.camera, group, maps, on_image, active))
    return found


def _reduced(
    spool: int, place: list[Any], layout: TokenLayout, rows: tuple[slice, ...]
) -> tuple[Float, Float]:
    """Mean and largest weight over a group's tokens, each (head, key)."""
    offset, dtype, heads, queries, keys = place
    shape = (int(heads), int(queries), int(keys))
    if shape[1:] != (len(layout.query), len(layout.key)) or dtype not in _ITEMS:
        raise ValueError(f"a tensor {shape} of {dtype}, for {len(layout.query)} queries")
    item = np.dtype(_ITEMS[dtype])
    size = int(np.prod(shape, dtype=np.int64)) * item.itemsize
    if not 0 <= size <= MAX_BYTES:
        raise ValueError(f"a tensor of {size} bytes")
    data = os.pread(spool, size, int(offset))
    if len(data) != size:
        raise ValueError(f"the spool ends at byte {int(offset) + len(data)}")
    values = np.frombuffer(data, item).reshape(shape)
    block = np.concatenate([values[:, at] for at in rows], 1)
    if dtype == "bfloat16":  # the upper half of a float32
        block = (block.astype(np.uint32) << 16).view(np.float32)
    block = block.astype(np.float32, copy=False)
    return block.mean(1), block.max(1)


def shown_to_json(
    groups: Mapping[str, str], tensors: list[tuple[str, int, int, str, tuple[int, ...]]]
) -> dict[str, Any]:
    """Spell where a call's attention is: phase, layer, offset, data type, shape of each tensor."""
    return {
        "groups": dict(groups),
        "tensors": [[phase, n, at, dtype, *shape] for phase, n, at, dtype, shape in tensors],
    }

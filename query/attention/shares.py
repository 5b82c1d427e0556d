"""Which share of the attention goes to each camera, its letterbox, the words, state and actions.

The modality shares by layer of Chen et al. 2024, "An Image is Worth 1/2 Tokens After Layer 2"
(FastV), with the letterbox of each camera counted apart: it shows no image.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xarray as xr

from attnstore.store.errors import SelectionError
from attnstore.store.format.episode import PhaseSpec
from attnstore.store.format.tokens import STATE
from attnstore.store.format.weighting import Weighting, check_weighting
from attnstore.store.reader.blocks import Dimension, Index
from attnstore.store.reader.episode import Episode

Heads = Literal["each", "mean"]
_KEYS = ("keyframe", "step", "layer", "head")
_PARTS = {"camera": "camera_mass", "letterbox": "letterbox_mass"}
"""Columns of what a camera's tokens are divided into, by the beginning of the span's name."""


def shares(
    episode: Episode,
    phase: str,
    *,
    camera: str | None = None,
    query: str | None = None,
    heads: Heads = "each",
    keyframe: Index = None,
    step: Index = None,
    weighting: Weighting = "raw",
) -> xr.DataArray:
    """Load the share of a query group's attention on every coarse span of keys.

    From columns ``mass``, ``camera_mass`` and ``letterbox_mass`` of table ``head_stats``: of the
    unrounded weights, averaged over the group's tokens.

    Parameters
    ----------
    camera
        In phase ``vision``: whose image encoder.
    query
        Stored query group; None is the phase's default (task, action).
    heads
        ``mean`` averages over the heads of a layer.
    keyframe, step
        Index (the dimension is dropped), slice, indices, or None for all.
    weighting
        ``raw``, or ``value``: of what is carried; see `attnstore.store.format.weighting`.

    Returns
    -------
    (keyframe, step, layer, head, span) float32, 0..1, summing to 1 over ``span``; a one-pass
    phase has no step. NaN where a keyframe lacks the span. Spans are ``camera:CAMERA`` (on what
    shows image) and ``letterbox:CAMERA`` (on padding), which divide the tokens of
    ``image:CAMERA`` by area, and names of keys (``task``, ``template``, ``state``, ``action``), in
    the order of the keys; coordinate ``modality`` is ``image``, ``letterbox``, ``text``, ``state``
    (also where it is written as text), ``action``, ``readout`` or ``other``, and coordinate
    ``camera`` the camera's name or nothing:
    ``.groupby("modality").sum()`` and ``.groupby("camera").sum()`` add up.

    Raises
    ------
    SelectionError
        If a name or an index matches nothing, or `heads` is none of the above.
    NotFoundError
        If there are no value norms to weight with.
    """
    check_weighting(weighting)
    spec = episode.phase(phase, camera)
    if heads not in ("each", "mean"):
        raise SelectionError(f"heads is 'each' or 'mean'; got {heads!r}")
    if step is not None and spec.steps is None:
        raise SelectionError(f"phase {phase} has no steps; got step {step}")
    group = query if query is not None else spec.query_groups[0]
    times = Dimension.of(keyframe, len(episode.frames), "keyframe")
    steps = Dimension.of(step, spec.steps or 1, f"{phase} step")
    if weighting == "value":
        episode.part.check_norms(spec.path)
    rows = _rows(episode, spec, group, weighting)
    names, modalities, cameras = zip(*_spans(spec), strict=True)
    dense = np.full(
        (len(episode.frames), spec.steps or 1, spec.layers, spec.heads, len(names)),
        np.nan,
        np.float32,
    )
    # Spans that a row lacks stay NaN; rows of different cameras repeat the same mass.
    for batch in rows.to_batches():
        mass = batch["mass"]
        offsets = mass.offsets.to_numpy()
        row = [pc.fill_null(batch[key], 0).to_numpy() for key in _KEYS]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        span = pc.fill_null(pc.index_in(mass.keys[entries], pa.array(names)), -1).to_numpy()
        whole = span >= 0  # a camera's tokens are divided
        at = [np.repeat(each, np.diff(offsets))[whole] for each in row]
        dense[(*at, span[whole])] = mass.items[entries].to_numpy()[whole]
        for part, column in _PARTS.items():
            own = [f"{part}:{camera}" for camera in batch["camera"].to_pylist()]
            span = pc.index_in(pa.array(own), pa.array(names)).to_numpy()
            dense[(*row, span)] = batch[column].to_numpy()
    array = xr.DataArray(
        dense[times.positions][:, steps.positions],
        dims=(*_KEYS, "span"),
        coords={
            "keyframe": times.positions,
            "frame": ("keyframe", episode.frames[times.positions]),
            "step": steps.positions,
            "layer": np.arange(spec.layers),
            "head": np.arange(spec.heads),
            "span": list(names),
            "modality": ("span", list(modalities)),
            "camera": ("span", list(cameras)),
        },
        name="share",
        attrs={
            "phase": spec.phase,
            "query": group,
            "weighting": weighting,
            "units": "share of attention, 0..1",
            "source": "modality shares, Chen et al. 2024 (FastV)",
            "precision": "unrounded",
        },
    )
    if spec.steps is None:
        array = array.isel(step=0, drop=True)
    elif steps.scalar:
        array = array.isel(step=0)
    if times.scalar:
        array = array.isel(keyframe=0)
    return array.mean("head", keep_attrs=True) if heads == "mean" else array


def _rows(episode: Episode, spec: PhaseSpec, group: str, weighting: Weighting) -> pa.Table:
    columns = ["phase", "query_group", "weighting", "camera", *_KEYS, "mass", *_PARTS.values()]
    table = episode.part.table("head_stats", columns)
    of_phase = pc.and_(
        pc.equal(table["phase"], spec.phase), pc.equal(table["weighting"], weighting)
    )
    if spec.camera is not None:
        of_phase = pc.and_(of_phase, pc.equal(table["camera"], spec.camera))
    rows = table.filter(pc.and_(of_phase, pc.equal(table["query_group"], group)))
    if not rows.num_rows:
        groups = pc.unique(table.filter(of_phase)["query_group"])
        raise SelectionError(
            f"no statistics of query group {group!r} in {spec.path}; there are: "
            f"{', '.join(groups.to_pylist()) or 'none'}"
        )
    return rows


def _spans(spec: PhaseSpec) -> list[tuple[str, str, str]]:
    """(name, modality, camera) of each coarse span, in the order of the keys."""
    found: dict[str, tuple[str, str, str]] = {}
    for span in spec.key:
        if span.camera is not None:
            for part, modality in zip(_PARTS, ("image", "letterbox"), strict=True):
                found[f"{part}:{span.camera}"] = (f"{part}:{span.camera}", modality, span.camera)
        else:
            modality = STATE if span.mass_name == STATE else span.kind
            found[span.mass_name] = (span.mass_name, modality, "")
    return list(found.values())

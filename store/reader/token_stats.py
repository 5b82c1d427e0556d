"""Table ``token_stats`` of an episode as labelled arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import xarray as xr

from ..errors import NotFoundError
from ..format.episode import PhaseSpec
from ..tables.base import TOKEN_METRICS
from .selection import span_labels, token_labels

if TYPE_CHECKING:
    from .episode import Episode

TABLE = "token_stats"
_KEYS = ("keyframe", "step", "layer", "index")


def token_stats(episode: Episode, spec: PhaseSpec) -> xr.Dataset:
    """Load a phase's token statistics; see `Episode.token_stats`."""
    if all(file.path != f"{TABLE}.parquet" for file in episode.part.commit.files):
        raise NotFoundError(
            f"{episode.name}: no token statistics; `attnstore ingest ... --token-stats` keeps them, "
            "in a run of their own"
        )
    table = episode.part.table(TABLE)
    keep = pc.equal(table["phase"], spec.phase)
    if spec.camera is not None:
        keep = pc.and_(keep, pc.equal(table["camera"], spec.camera))
    rows = table.filter(keep)
    shape = (len(episode.frames), spec.steps or 1, spec.layers, len(spec.query))
    at = tuple(pc.fill_null(rows[key], 0).to_numpy() for key in _KEYS)
    spans = spec.query.spans
    data = {}
    for name, (text, unit) in TOKEN_METRICS.items():
        dense = np.full(shape, np.nan, np.float32)
        dense[at] = rows[name].to_numpy()
        attributes = {"long_name": text, "units": unit}
        data[name] = (("keyframe", "step", "layer", "token"), dense, attributes)
    found = xr.Dataset(
        data,
        coords={
            "keyframe": np.arange(shape[0]),
            "frame": ("keyframe", episode.frames),
            "step": np.arange(shape[1]),
            "layer": np.arange(spec.layers),
            "token": np.arange(shape[3]),
            "token_label": ("token", token_labels(spans, shape[3])),
            "token_span": ("token", span_labels(spans, shape[3])),
            "token_kind": ("token", [s.kind for s in spans for _ in range(len(s))]),
            "token_role": ("token", [s.role or "" for s in spans for _ in range(len(s))]),
        },
        attrs={"phase": spec.phase, "episode": episode.name, "run": episode.run}
        | ({} if spec.camera is None else {"camera": spec.camera}),
    )
    return found if spec.steps is not None else found.isel(step=0, drop=True)

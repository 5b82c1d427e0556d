"""Statistics of heads as dense arrays, and what follows from them: active heads, masses, sinks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..commits.part import Part
from ..errors import SelectionError
from ..format.episode import EpisodeSpec, PhaseSpec
from ..format.weighting import Weighting, check_weighting
from ..tables.base import METRICS

Float = NDArray[np.float32]
_KEYS = ("phase", "camera", "query_group", "weighting", "keyframe", "step", "layer", "head")
NUMERIC = (*METRICS, "argmax_row", "argmax_col")
"""Columns of ``head_stats`` that can be asked for."""


class HeadStats:
    """Table ``head_stats`` of one episode, by (phase, camera, query group) and metric."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._dense: dict[tuple[str, str, str, str, Weighting], Float] = {}

    @property
    def _spec(self) -> EpisodeSpec:
        return self._part.spec

    def metric(
        self, name: str, phase: PhaseSpec, camera: str, group: str, weighting: Weighting = "raw"
    ) -> Float:
        """Return a metric, (keyframe, step, layer, head); one-pass phases have one step.

        Raises
        ------
        SelectionError
            If the table has no such column, or no rows for the query group.
        NotFoundError
            If there are no value norms to weight with.
        """
        key = (phase.path, camera, group, name, weighting)
        if key not in self._dense:
            self._dense[key] = self._load(name, phase, camera, group, weighting)
        return self._dense[key]

    def check(self, name: str, spec: PhaseSpec, group: str, weighting: Weighting) -> None:
        """Check that there is such a metric, and that it was kept of a query group, so weighted.

        Raises
        ------
        SelectionError
            If not; the message lists those that there are.
        NotFoundError
            If there are no value norms to weight with.
        """
        check_weighting(weighting)
        if weighting == "value":
            self._part.check_norms(spec.path)
        if name not in NUMERIC:
            raise SelectionError(f"head_stats has no metric {name!r}; it has: {', '.join(NUMERIC)}")
        if group not in spec.query_groups:
            raise SelectionError(
                f"no statistics of query group {group!r} in {spec.path}; there are: "
                f"{', '.join(spec.query_groups)}"
            )

    def _load(
        self, name: str, spec: PhaseSpec, camera: str, group: str, weighting: Weighting
    ) -> Float:
        self.check(name, spec, group, weighting)
        # Not the whole table: its column of masses is most of it.
        table = self._part.table("head_stats", [*_KEYS, name])
        keep = pc.and_(
            pc.and_(pc.equal(table["phase"], spec.phase), pc.equal(table["camera"], camera)),
            pc.and_(pc.equal(table["query_group"], group), pc.equal(table["weighting"], weighting)),
        )
        rows = table.filter(keep)
        if not rows.num_rows:
            groups = ", ".join(spec.query_groups)
            raise SelectionError(
                f"no statistics of query group {group!r} in {spec.path}; there are: {groups}"
            )
        shape = (len(self._spec.frames), spec.steps or 1, spec.layers, spec.heads)
        dense = np.full(shape, np.nan, np.float32)
        step = rows["step"].fill_null(0).to_numpy()
        at = (rows["keyframe"].to_numpy(), step, rows["layer"].to_numpy(), rows["head"].to_numpy())
        dense[at] = rows[name].to_numpy()
        dense.setflags(write=False)
        return dense

    def sinks(
        self, phase: str, layer: int, head: int, step: int | None, weighting: Weighting
    ) -> list[dict[str, Any]]:
        """Return the rows of table ``sinks`` of one head."""
        asked = (phase, layer, head, step, weighting)
        return [
            row
            for row in self._part.table("sinks").to_pylist()
            if tuple(row[k] for k in ("phase", "layer", "head", "step", "weighting")) == asked
        ]


def at_steps(values: Float, steps: NDArray[np.intp]) -> Float:
    """Take one step of each keyframe.

    Parameters
    ----------
    values
        (keyframe, step, layer, head).
    steps
        (keyframe,); where it is negative the result is NaN.

    Returns
    -------
    (keyframe, layer, head).
    """
    chosen = values[np.arange(len(values)), np.maximum(steps, 0)]
    chosen[steps < 0] = np.nan
    return chosen

"""Statistics of heads as dense arrays, and what follows from them: active heads, masses, sinks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..episode import EpisodeSpec, PhaseSpec
from ..errors import SelectionError
from ..part import Part

Float = NDArray[np.float32]


class HeadStats:
    """Table ``head_stats`` of one episode, by (phase, camera, query group) and metric."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._dense: dict[tuple[str, str, str, str], Float] = {}

    @property
    def _spec(self) -> EpisodeSpec:
        return self._part.spec

    def metric(self, name: str, phase: PhaseSpec, camera: str, group: str) -> Float:
        """Return a metric, (keyframe, step, layer, head); one-pass phases have one step.

        Raises
        ------
        SelectionError
            If the table has no such column, or no rows for the query group.
        """
        key = (phase.path, camera, group, name)
        if key not in self._dense:
            self._dense[key] = self._load(name, phase, camera, group)
        return self._dense[key]

    def _load(self, name: str, spec: PhaseSpec, camera: str, group: str) -> Float:
        table = self._part.table("head_stats")
        numeric = [f.name for f in table.schema if str(f.type) in ("float", "int16")]
        if name not in numeric:
            raise SelectionError(f"head_stats has no metric {name!r}; it has: {', '.join(numeric)}")
        keep = pc.and_(
            pc.and_(pc.equal(table["phase"], spec.phase), pc.equal(table["camera"], camera)),
            pc.equal(table["query_group"], group),
        )
        rows = table.select(["keyframe", "step", "layer", "head", name]).filter(keep)
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

    def active(
        self,
        phase: PhaseSpec,
        camera: str,
        group: str,
        steps: NDArray[np.intp],
        keyframe: int | None,
    ) -> NDArray[np.intp]:
        """Return the head with the largest variance of each layer, (layer,).

        At one keyframe, or, when None, by the mean over the episode's keyframes.

        Parameters
        ----------
        steps
            As in `at_steps`.
        """  # fmt: skip
        variance = at_steps(self.metric("variance", phase, camera, group), steps)
        chosen = variance[keyframe] if keyframe is not None else _mean(variance)
        # A head without a value (a camera that the keyframe lacks) is the least active.
        return np.asarray(np.nan_to_num(chosen, nan=-1.0).argmax(-1), np.intp)

    def sinks(self, phase: str, layer: int, head: int, step: int | None) -> list[dict[str, Any]]:
        """Return the rows of table ``sinks`` of one head."""
        return [
            row
            for row in self._part.table("sinks").to_pylist()
            if (row["phase"], row["layer"], row["head"], row["step"]) == (phase, layer, head, step)
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


def _mean(values: Float) -> Float:
    """Mean over the first axis, of what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    total = np.where(there, values, 0).sum(axis=0, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)

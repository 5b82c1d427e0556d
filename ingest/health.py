"""The health gate: what must hold of a batch's capture before any of it may be committed."""

from __future__ import annotations

from collections.abc import Mapping

from attnstore.store.errors import HealthError
from attnstore.store.tokens import TokenLayout

from .capture import Record, Session
from .policies.base import Batch, PhaseShape

ROW_TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 3e-3, "float16": 2e-3}
"""How far a row may be from summing to 1: softmax is in float32, then rounded to the dtype."""


def check_axes(record: Record, layout: TokenLayout, shape: PhaseShape) -> None:
    """Check one layer's weights against the token layout, before anything is cut out of them.

    Raises
    ------
    HealthError
        If heads, queries or keys are not what the layout says.
    """
    _, heads, queries, keys = record.weights.shape
    where = f"{record.phase} layer {record.layer}"
    if heads != shape.heads:
        raise HealthError(
            f"{where}: {heads} heads arrived, the policy's configuration has {shape.heads}"
        )
    for axis, length in ((layout.query, queries), (layout.key, keys)):
        last = max(s.stop for s in axis.model_slices)
        if last > length:
            raise HealthError(
                f"{where}: the token layout ends at {last}, "
                f"the attention's axis has {length} tokens"
            )


def check_rows(record: Record, low: float, high: float, keyframe: int) -> None:
    """Check that every valid row sums to 1 within the data type's tolerance.

    Raises
    ------
    HealthError
        If a sum is off, or is NaN.
    """
    dtype = str(record.weights.dtype).removeprefix("torch.")
    tolerance = ROW_TOLERANCE.get(dtype, 3e-3)
    if not (1 - tolerance <= low and high <= 1 + tolerance):
        where = f"keyframe {keyframe}, {record.phase} layer {record.layer}"
        step = "" if record.step is None else f", step {record.step}"
        raise HealthError(
            f"{where}{step}: attention rows sum to {low:.6g} .. {high:.6g}, "
            f"not to 1 within {tolerance:g} ({dtype}); weights may be NaN or are not probabilities"
        )


def check_complete(
    session: Session, phases: Mapping[str, PhaseShape], batch: Batch, *, encoder: bool
) -> None:
    """Check that every layer of every step arrived, and that every camera was encoded.

    `encoder` says whether the policy's vision tower is watched.

    Raises
    ------
    HealthError
        If a count is off.
    """
    for phase, shape in phases.items():
        expected = shape.layers * (shape.steps or 1)
        found = session.counts.get(phase, 0)
        if found != expected:
            raise HealthError(
                f"phase {phase}: {found} layers arrived, {expected} were expected "
                f"({shape.layers} layers x {shape.steps or 1} steps)"
            )
    cameras = sum(len(sample.geometry) for sample in batch.samples)
    # More is possible: where samples differ in cameras, the batch is filled with empty images.
    if encoder and session.encoded_images < cameras:
        raise HealthError(
            f"{session.encoded_images} images went through the vision tower, "
            f"{cameras} camera images were given"
        )

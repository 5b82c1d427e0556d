"""The health gate: what must hold of a batch's capture before any of it may be committed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attnstore.store.errors import HealthError
from attnstore.store.format.axes import VISION, split_path
from attnstore.store.format.generated import DECODE
from attnstore.store.format.tokens import TokenLayout

from .capture import Record, Session
from .policies.base import Batch, PhaseShape

ROW_TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 4e-3, "float16": 2e-3}
"""How far a row may be from summing to 1: softmax is in float32, then rounded to the dtype.

Rounding to bfloat16's 8 significant bits moves a weight, hence a sum of them, by at most 2^-8.
"""


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
        # An encoder has no padding: tokens beyond the layout would be patches of another grid.
        if last > length or (record.phase == VISION and last != length):
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
    tolerance = ROW_TOLERANCE.get(dtype, 4e-3)
    if not (1 - tolerance <= low and high <= 1 + tolerance):
        where = f"keyframe {keyframe}, {record.phase} layer {record.layer}"
        step = "" if record.step is None else f", step {record.step}"
        raise HealthError(
            f"{where}{step}: attention rows sum to {low:.6g} .. {high:.6g}, "
            f"not to 1 within {tolerance:g} ({dtype}); weights may be NaN or are not probabilities"
        )


def check_encoded(batch: Batch) -> None:
    """Check that the adapter says of every camera's image when it goes through the encoder.

    Raises
    ------
    HealthError
        If one is missing, or stands twice.
    """
    listed = sorted(place for place in batch.encoded if place is not None)
    wanted = sorted((i, c) for i, sample in enumerate(batch.samples) for c in sample.geometry)
    if listed != wanted:
        raise HealthError(
            f"the batch lists the images {listed} in the vision tower, its samples have {wanted}"
        )


def check_complete(
    session: Session,
    phases: Mapping[str, PhaseShape],
    batch: Batch,
    *,
    encoder: bool,
    hidden: Collection[str] = (),
) -> None:
    """Check that every layer of every step arrived, and that every camera was encoded.

    `encoder` says whether the policy's vision tower is watched, `hidden` of which phases, by path, hidden
    states are.

    Raises
    ------
    HealthError
        If a count is off.
    """
    for path, shape in phases.items():
        phase, camera = split_path(path)
        passes, of = shape.steps or 1, "steps"
        if phase == DECODE:
            passes = _generated_steps(session, shape, batch)
        elif camera is not None:
            passes, of = len(batch.encoded), "images"
        expected, found = shape.layers * passes, session.counts.get(phase, 0)
        shown = session.hidden_counts.get(phase, 0) if path in hidden else expected
        for count, what in ((found, "layers"), (shown, "layers' hidden states")):
            if count != expected:
                raise HealthError(
                    f"phase {phase}: {count} {what} arrived, {expected} were expected "
                    f"({shape.layers} layers x {passes} {of})"
                )
    cameras = sum(len(sample.geometry) for sample in batch.samples)
    # More is possible: where samples differ in cameras, the batch is filled with empty images.
    if encoder and session.encoded_images < cameras:
        raise HealthError(
            f"{session.encoded_images} images went through the vision tower, "
            f"{cameras} camera images were given"
        )


def _generated_steps(session: Session, shape: PhaseShape, batch: Batch) -> int:
    counts = [len(written.tokens) for written in session.generated]
    if len(counts) != len(batch) or not all(0 < c <= (shape.steps or 0) for c in counts):
        raise HealthError(
            f"phase {DECODE}: the policy generated {counts or 'no'} tokens for {len(batch)} "
            f"samples, 1 to {shape.steps} are expected for each"
        )
    return max(counts)

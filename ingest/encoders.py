"""Phase ``vision``: what it adds to a policy's own phases, one array and token layout per camera."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attnstore.store.errors import HealthError, UsageError
from attnstore.store.format.axes import VISION, phase_path
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import Axis, Span, TokenLayout

from .capture import HiddenRecord, Record
from .policies.base import Batch, EncoderShape, PhaseShape, Policy, Sample, Watch


def all_shapes(policy: Policy, cameras: Iterable[str], watch: Watch) -> dict[str, PhaseShape]:
    """Shape of every phase that is captured, by its path.

    Raises
    ------
    UsageError
        If the policy cannot show what is asked for.
    """
    shapes = dict(policy.phases)
    if watch.vision:
        encoder = policy.encoder_shape()
        # A class token's map is what "the attention of a ViT" mostly means.
        named = [name for name, count in encoder.leading if count == 1]
        shape = PhaseShape(encoder.layers, encoder.heads, None, ("image", *named), causal=False)
        shapes |= {phase_path(VISION, camera): shape for camera in cameras}
    return shapes


def all_layouts(policy: Policy, sample: Sample, watch: Watch) -> dict[str, TokenLayout]:
    """Token layout of every phase that is captured, by its path.

    Raises
    ------
    UsageError
        If the encoder's patches are not those of the camera's geometry.
    """
    layouts = dict(sample.layouts)
    if watch.vision:
        encoder = policy.encoder_shape()
        layouts |= {
            phase_path(VISION, camera): encoder_layout(encoder, camera, sample.geometry)
            for camera in sample.geometry
        }
    return layouts


def encoder_layout(
    encoder: EncoderShape, camera: str, geometry: Mapping[str, Geometry]
) -> TokenLayout:
    """Layout of one camera's encoder: the leading tokens, then its patches, on both axes.

    Raises
    ------
    UsageError
        If the encoder's patches are not those of the camera's geometry.
    """
    grid = geometry[camera].grid
    if grid != encoder.grid:
        raise UsageError(
            f"--vision: the image encoder has {_grid(encoder.grid)} patches, {camera} has "
            f"{_grid(grid)} image tokens: attention between patches that are merged into tokens "
            "afterwards cannot be stored; leave --vision out"
        )
    spans, start = [], 0
    for name, count in encoder.leading:
        spans.append(Span(name, "other", start, start + count, start))
        start += count
    stop = start + grid[0] * grid[1]
    spans.append(Span(f"image:{camera}", "image", start, stop, start, camera=camera, grid=grid))
    axis = Axis(tuple(spans))
    return TokenLayout(VISION, axis, axis)


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"


def owners(record: Record | HiddenRecord, rows: int, batch: Batch) -> list[tuple[int, int, str]]:
    """Say whose the rows of a captured tensor are: (row, sample, path of the phase).

    `rows` is the length of its first dimension.

    Raises
    ------
    HealthError
        If more images went through the encoder than the batch has.
    """
    if record.phase != VISION:
        samples = range(len(batch)) if record.samples is None else record.samples
        return [(i, i, record.phase) for i in samples]
    end = record.first + rows
    if end > len(batch.encoded):
        raise HealthError(
            f"{end} images went through the vision tower, the batch lists "
            f"{len(batch.encoded)}: whose attention this is cannot be known"
        )
    places = enumerate(batch.encoded[record.first : end])
    return [(i, place[0], phase_path(VISION, place[1])) for i, place in places if place is not None]

"""Which tokens a Pi0 of transformers sees, read off its processor's output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from attnstore.store.format.geometry import Geometry
from attnstore.store.format.tokens import Axis, Span, TokenLayout

from ..base import Observation, PolicyError, Sample
from ..prompt import text_spans


def read_sample(
    config: Any, processor: Any, inputs: Any, row: int, observation: Observation
) -> Sample:
    """Return the token layout of both phases and every camera's geometry.

    Parameters
    ----------
    config, processor
        The checkpoint's.
    inputs
        What the processor made of a batch.
    row
        The observation's in the batch.

    Raises
    ------
    PolicyError
        If image tokens, cameras and patch grids do not agree.
    """
    geometry = {
        camera: image_geometry(config, processor, image.shape[:2])
        for camera, image in observation.images.items()
    }
    prefix = _prefix_axis(config, processor, inputs, row, observation, geometry)
    horizon = int(config.chunk_size)
    suffix = Axis(
        (
            Span("state", "state", 0, 1, 0),
            Span("action", "action", 1, 1 + horizon, 1),
        )
    )
    key = prefix.followed_by(suffix, model_offset=int(inputs["input_ids"].shape[1]))
    return Sample(
        {
            "prefix": TokenLayout("prefix", prefix, prefix),
            "suffix": TokenLayout("suffix", suffix, key),
        },
        geometry,
    )


def encoded(inputs: Any, samples: Sequence[Sample]) -> tuple[tuple[int, str] | None, ...]:
    """Whose each image is: the model flattens (sample, camera slot), gaps included."""
    places: list[tuple[int, str] | None] = []
    for row, (shown, sample) in enumerate(
        zip(inputs["pixel_attention_mask"].tolist(), samples, strict=True)
    ):
        slots = zip_longest(shown, sample.geometry)
        places += [(row, camera) if here and camera else None for here, camera in slots]
    return tuple(places)


def _prefix_axis(
    config: Any,
    processor: Any,
    inputs: Any,
    row: int,
    observation: Observation,
    geometry: Mapping[str, Geometry],
) -> Axis:
    ids = inputs["input_ids"][row].tolist()
    valid = inputs["attention_mask"][row].bool().tolist()
    present = inputs["pixel_attention_mask"][row].tolist()
    image_id = config.vlm_config.image_token_id
    image_at = [i for i, token in enumerate(ids) if token == image_id and valid[i]]
    cameras = [c for c, shown in zip(observation.images, present, strict=False) if shown]
    if not cameras or len(image_at) % len(cameras):
        raise PolicyError(f"{len(image_at)} image tokens cannot be shared by cameras {cameras}")
    count = len(image_at) // len(cameras)
    spans: list[Span] = []
    for i, camera in enumerate(cameras):
        run = image_at[i * count : (i + 1) * count]
        grid = geometry[camera].grid
        if run[-1] - run[0] + 1 != count or grid[0] * grid[1] != count:
            raise PolicyError(
                f"camera {camera}: {count} image tokens at {run[0]}..{run[-1]}, grid {grid}"
            )
        start = spans[-1].stop if spans else 0
        name = f"image:{camera}"
        spans.append(Span(name, "image", start, start + count, run[0], camera=camera, grid=grid))
    text_at = [i for i, shown in enumerate(valid) if shown and ids[i] != image_id]
    spans += text_spans(processor.tokenizer, ids, text_at, start=spans[-1].stop)
    return Axis(tuple(spans))


def image_geometry(config: Any, processor: Any, source: tuple[int, int]) -> Geometry:
    """Return the transform of an image of so many (rows, columns) to the patch grid.

    Raises
    ------
    PolicyError
        If the processor resizes by a rule that is not known.
    """
    from transformers.image_utils import get_image_size_for_max_height_width

    image = processor.image_processor
    size, pad, patch = (
        dict(image.size),
        dict(image.pad_size),
        config.vlm_config.vision_config.patch_size,
    )
    if "max_height" in size:
        resized = get_image_size_for_max_height_width(source, size["max_height"], size["max_width"])
    elif "height" in size:
        resized = (size["height"], size["width"])
    else:
        raise PolicyError(
            f"the image processor's size {size} is not understood; its geometry is unknown"
        )
    frame = (int(pad["height"]), int(pad["width"])) if image.do_pad else tuple(resized)
    count = math.isqrt(int(image.image_seq_length))
    if (frame[0] // patch) * (frame[1] // patch) != int(image.image_seq_length):
        raise PolicyError(
            f"images of {frame} in patches of {patch} are not {count * count} image tokens"
        )
    return Geometry.letterbox(
        (int(source[0]), int(source[1])),
        (frame[0], frame[1]),
        (patch, patch),
        anchor="top-left",
        resized=(int(resized[0]), int(resized[1])),
    )

"""What a checkpoint's processor makes of prompts and images, and where each image's pixels went."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from attnstore.store.format.geometry import Geometry

from ..base import Observation, ObservationError, PolicyError
from ..checkpoint import one_line
from ..prompt import Prompt
from .geometry import dynamic_geometry, is_dynamic, plain_geometry


def process(processor: Any, prompts: Sequence[Prompt], observations: Sequence[Observation]) -> Any:
    """Run the processor; prompts of unequal length are padded on the left.

    Raises
    ------
    ObservationError
        If it cannot take them.
    """
    bos = processor.tokenizer.bos_token
    # A chat template may have written it already.
    special = {"add_special_tokens": False} if bos and prompts[0].text.startswith(bos) else {}
    try:
        with warnings.catch_warnings():
            # PaliGemma's processor copies a tensor into an array in a way that NumPy 2 deprecates.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            inputs = processor(
                # torch warns about arrays that it cannot write to, which decoders return
                images=[
                    [np.require(i, requirements=["C", "W"]) for i in o.images.values()]
                    for o in observations
                ],
                text=[p.text for p in prompts],
                padding=True,
                padding_side="left",
                return_tensors="pt",
                **special,
            )
    except (ValueError, RuntimeError) as error:
        raise ObservationError(
            f"the checkpoint's processor refuses the observation: {one_line(error)}"
        ) from error
    inputs.pop("labels", None)  # PaliGemma's, for training
    return inputs


def image_geometry(
    image_processor: Any, config: Any, inputs: Any, observations: Sequence[Observation]
) -> list[dict[str, Geometry]]:
    """Geometry of every camera of every observation, from the processor's output.

    Raises
    ------
    PolicyError
        If the processor makes something of an image that is not understood.
    """
    owners = [(row, camera) for row, o in enumerate(observations) for camera in o.images]
    dynamic = is_dynamic(image_processor)
    made = inputs["image_grid_thw"] if dynamic else inputs["pixel_values"]
    if len(made) != len(owners) or (not dynamic and made.ndim != 4):
        raise PolicyError(
            f"the processor made {tuple(made.shape)} of {len(owners)} images: one picture of each "
            "is expected (images cut into tiles are not understood)"
        )
    geometry: list[dict[str, Geometry]] = [{} for _ in observations]
    for own, (row, camera) in zip(made, owners, strict=True):
        height, width = observations[row].images[camera].shape[:2]
        if dynamic:
            found = dynamic_geometry(image_processor, (height, width), own.tolist())
        else:
            pixels = int(own.shape[-2]), int(own.shape[-1])
            patch = config.vision_config.patch_size
            found = plain_geometry(image_processor, patch, (height, width), pixels)
        geometry[row][camera] = found
    return geometry

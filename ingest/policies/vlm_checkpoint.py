"""Reading a vision-language checkpoint, and saying what is wrong with a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..optional import require
from .base import PolicyError
from .checkpoint import model_type, one_line


def read_checkpoint(checkpoint: str, directory: str) -> tuple[Any, Any]:
    """Read configuration and processor, without weights.

    Raises
    ------
    PolicyError
        If it is no readable checkpoint of an image-text-to-text model.
    """
    transformers: Any = require("transformers", "ingest", "policy vlm")
    kind = model_type(checkpoint, Path(directory))
    known = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if kind not in known:
        raise PolicyError(
            f"{checkpoint}: its config.json is of {kind!r}, not of an image-text-to-text model"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(directory)
        processor = transformers.AutoProcessor.from_pretrained(directory)
    except Exception as error:
        # Whatever transformers raises for a bad file means the same to the user.
        raise PolicyError(
            f"{checkpoint}: not a readable vision-language checkpoint ({one_line(error)})"
        ) from error
    return config, processor


def read_weights(checkpoint: str, directory: str, dtype: str | None) -> Any:
    """Load the model, in the checkpoint's data type if None is given.

    Raises
    ------
    PolicyError
        If weights cannot be loaded, or some are missing.
    """
    import torch

    transformers: Any = require("transformers", "ingest", "policy vlm")
    try:
        model, report = transformers.AutoModelForImageTextToText.from_pretrained(
            directory,
            dtype=getattr(torch, dtype) if dtype else "auto",
            output_loading_info=True,
        )
    except Exception as error:
        raise PolicyError(f"{checkpoint}: weights cannot be loaded ({one_line(error)})") from error
    if missing := sorted(report["missing_keys"]):
        # transformers fills them with random numbers and only warns.
        raise PolicyError(
            f"{checkpoint}: {len(missing)} weights are missing from the checkpoint: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
        )
    return model

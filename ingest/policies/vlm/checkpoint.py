"""Reading a vision-language checkpoint, and saying what is wrong with a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...optional import require
from ..base import PolicyError
from ..checkpoint import model_type, one_line


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

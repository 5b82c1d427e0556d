"""The sample's policy with random weights: what its architecture looks at before any training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from attnstore.ingest.optional import require


def save_untrained(checkpoint: Path, directory: Path, seed: int = 0) -> None:
    """Save a checkpoint of the same configuration and processor, with random weights.

    Parameters
    ----------
    checkpoint
        A Pi0 of transformers.
    directory
        Where to; must not exist.
    """
    transformers: Any = require("transformers", "ingest", "the untrained policy")
    import torch

    config = transformers.PI0Config.from_pretrained(checkpoint)
    torch.manual_seed(seed)
    transformers.PI0ForConditionalGeneration(config).to(torch.float16).save_pretrained(directory)
    for file in checkpoint.iterdir():
        if not (directory / file.name).exists():
            shutil.copy(file, directory)

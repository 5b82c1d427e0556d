"""A Pi0 checkpoint's configuration, processor and weights, through transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attnstore.store.errors import MissingExtraError

from ...optional import require
from ..base import PolicyError
from ..checkpoint import model_type, one_line

FIRST = (5, 23)
"""The first transformers whose processor keeps a checkpoint's statistics: with those before it the
state was normalised otherwise, and the same checkpoint acted otherwise."""


def processing() -> Any:
    """Return transformers, if it is one that processes Pi0's inputs right.

    Raises
    ------
    MissingExtraError
        If it is not installed, or older.
    """
    transformers = require("transformers", "ingest", "policy pi0")
    found = transformers.__version__
    if tuple(int(n) for n in found.split(".")[:2]) < FIRST:
        raise MissingExtraError(
            f"policy pi0 needs transformers {'.'.join(map(str, FIRST))} or newer, and {found} is "
            "installed, whose processor loses the statistics of the state: pip install -U transformers, "
            "in an environment of its own if LeRobot is here, which caps it"
        )
    return transformers


def read_checkpoint(checkpoint: str, directory: str) -> tuple[Any, Any]:
    """Return configuration and processor of a checkpoint directory.

    Raises
    ------
    MissingExtraError
        If transformers is missing or too old.
    PolicyError
        If it is of another model, or cannot be read.
    """
    transformers = processing()
    # transformers builds a Pi0 of any configuration, with a warning only.
    if (found := model_type(checkpoint, Path(directory))) != "pi0":
        raise PolicyError(f"{checkpoint}: its config.json is of {found!r}, not 'pi0'")
    try:
        return (
            transformers.PI0Config.from_pretrained(directory),
            transformers.AutoProcessor.from_pretrained(directory),
        )
    except Exception as error:
        # Whatever transformers raises for a bad file (OSError, ValueError, KeyError, ...) means
        # the same to the user.
        raise PolicyError(
            f"{checkpoint}: not a readable Pi0 checkpoint ({one_line(error)})"
        ) from error


def apply_stats(processor: Any, file: str | None) -> None:
    """Give a processor the state's normalisation that it lacks, from a JSON file."""
    if file is not None:
        try:
            stats = json.loads(Path(file).read_text())
            processor.state_mean, processor.state_std = stats["state_mean"], stats["state_std"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PolicyError(
                f"{file}: JSON with state_mean and state_std is expected ({error!r})"
            ) from None
    if processor.state_mean is None or processor.state_std is None:
        raise PolicyError(
            "the checkpoint's processor has no state_mean and state_std, so a robot state cannot "
            "be normalised: pass --policy-option stats=FILE with those of the training dataset"
        )

"""A small trained policy and episodes that it drove, for a first run without any download."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["checkpoint_path", "episodes_path"]


def episodes_path() -> Path:
    """Return the directory that holds the episodes' ``success/`` and ``failure/``."""
    return _toy_cube() / "episodes"


def checkpoint_path() -> Path:
    """Return the policy's checkpoint, as transformers saves any."""
    return _toy_cube() / "checkpoint"


def _toy_cube() -> Path:
    # wheels are always installed unpacked: the resource is a real directory
    return Path(str(files(__name__).joinpath("toy_cube")))

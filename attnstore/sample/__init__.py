"""Four small simulated episodes in the DROID layout, for a first run without any download."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["sample_path"]


def sample_path() -> Path:
    """Return the directory that holds the sample's ``success/`` and ``failure/`` episodes."""
    # wheels are always installed unpacked: the resource is a real directory
    return Path(str(files(__name__).joinpath("droid")))

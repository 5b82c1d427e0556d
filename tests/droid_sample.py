"""Four small simulated episodes in the DROID layout, with videos, image files and masks."""

from __future__ import annotations

from pathlib import Path


def sample_path() -> Path:
    """Return the directory that holds the episodes' ``success/`` and ``failure/``."""
    return Path(__file__).parent / "data" / "droid"

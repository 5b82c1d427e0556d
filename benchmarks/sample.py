"""The recorded episodes that benchmarks take their images from: those of the tests."""

from __future__ import annotations

from pathlib import Path


def sample_path() -> Path:
    """Return the directory that holds the episodes' ``success/`` and ``failure/``."""
    return Path(__file__).parents[1] / "tests" / "data" / "droid"

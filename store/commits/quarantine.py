"""Episodes that the health gate kept out of the store, and why."""

from __future__ import annotations

from typing import Any

from .files import read_document
from .holding import StorePaths
from .log import log_of


def quarantined(paths: StorePaths) -> list[dict[str, Any]]:
    """Return why episodes were not committed; those that were committed later are left out.

    Returns
    -------
    Entries with ``run``, ``part``, ``name``, ``reason`` and ``created``, oldest first of each
    episode.
    """
    history = log_of(paths).update()
    kept = []
    for file in sorted(paths.quarantine.glob("*/*/*.json")):
        run, episode, entry = file.parts[-3], file.parts[-2], read_document(file, "quarantine")
        if history.latest(run, episode, entry["part"]) is None:
            kept.append(entry)
    return kept

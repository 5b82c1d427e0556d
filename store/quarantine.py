"""Episodes that the health gate kept out of the store, and why."""

from __future__ import annotations

from typing import Any

from .commit import latest_commit
from .paths import StorePaths, read_json


def quarantined(paths: StorePaths) -> list[dict[str, Any]]:
    """Return why episodes were not committed; those that were committed later are left out.

    Returns
    -------
    Entries with ``run``, ``part``, ``name``, ``reason`` and ``created``, oldest first of each
    episode.
    """
    found = []
    for file in sorted(paths.quarantine.glob("*/*/*.json")):
        run, episode, entry = file.parts[-3], file.parts[-2], read_json(file)
        if latest_commit(paths, run, episode, entry.get("part", "base")) is None:
            found.append(entry)
    return found

"""Saying afterwards how an episode ended: its part once more, but for the description."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

from ..errors import NotFoundError
from . import ARRAYS, Attempt, Commit, Key, StorePaths, latest_commit
from .files import read_bounded

_DESCRIPTION = f"{ARRAYS}/zarr.json"


def set_outcome(
    paths: StorePaths, key: Key, outcome: str, attributes: Mapping[str, Any]
) -> Commit | None:
    """Commit the next revision of an episode's part, with another outcome.

    Its files are those of the revision before, as hard links where the file system has them; only the
    description and the commit's summary say something else.

    Parameters
    ----------
    key
        (run, episode, part) of what an ingest committed.
    outcome
        ``success``, ``failure`` or ``unknown``.
    attributes
        What is known of the episode besides, such as its reward; JSON values.

    Returns
    -------
    The commit; None if the part says so already.

    Raises
    ------
    NotFoundError
        If there is no such part.
    ConflictError
        If another writer committed the part meanwhile.
    """
    before = latest_commit(paths, *key)
    if before is None:
        raise NotFoundError(f"{paths.name}: there is no {key[2]} of {key[1]} in run {key[0]}")
    source = before.directory(paths)
    root = json.loads(read_bounded(source / _DESCRIPTION))
    found = root["attributes"]["attnstore_episode"]
    known = found.get("attributes") or {}
    if found["outcome"] == outcome and {**known, **attributes} == known:
        return None
    found["outcome"], found["attributes"] = outcome, {**known, **attributes}
    attempt = Attempt(paths, *key)
    try:
        for file in before.files:
            target = attempt.path / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.path == _DESCRIPTION:
                target.write_text(json.dumps(root, indent=2, allow_nan=False))
                continue
            try:
                os.link(source / file.path, target)
            except OSError:
                shutil.copyfile(source / file.path, target)
                continue  # a copy is read again when it is published
            attempt.finished(target, file.size, file.sha256)
        return attempt.publish({**before.summary, "outcome": outcome}, after=before.revision)
    except BaseException:
        attempt.discard()
        raise

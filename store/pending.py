"""Marks of commits that are being made, so that a catalog knows when it need not look.

An empty file ``commits/.pending-<attempt>`` exists from before a commit file is created until after.
Making and removing it changes the time of ``commits/``, so whoever sees an old time and no mark
knows that nothing was committed since. A writer that is killed leaves its mark for `collect`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .paths import sync_directory

PREFIX = ".pending-"
CHANGED = "changed"
"""File beside ``commits/`` whose content is another one after every commit: what a reader over HTTP,
who sees no times of directories, has instead of them."""


@contextmanager
def pending(commits: Path, attempt: str) -> Iterator[None]:
    """Mark that an attempt is being committed, for the time of a ``with``."""
    commits.mkdir(parents=True, exist_ok=True)
    mark = commits / f"{PREFIX}{attempt}"
    mark.touch()
    # Durable before the commit is: else a power failure could keep the commit and an old time.
    sync_directory(commits)
    try:
        yield
    finally:
        # Before the mark goes, and if that fails it stays: either of them makes readers look.
        if renew(commits):
            try:
                mark.unlink()
            except FileNotFoundError:
                # gc took it for abandoned, perhaps before the commit: change the time once more.
                mark.touch()
                mark.unlink(missing_ok=True)


def renew(commits: Path) -> bool:
    """Give `CHANGED` a content that it never had; say whether that could be written."""
    token = uuid.uuid4().hex
    temporary = commits.parent / f".tmp-{token}"
    try:
        temporary.write_text(token)
        temporary.replace(commits.parent / CHANGED)
    except OSError:
        temporary.unlink(missing_ok=True)
        return False
    return True

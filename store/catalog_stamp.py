"""When a catalog generation may be trusted without looking at every commit.

Beside a generation lies ``catalog-000123.stamp``: the times of ``runs/``, ``commits/`` and each
``commits/<run>/`` as they were before a scan that found the generation complete. While they are
the same, and no commit is pending, nothing was committed or removed since. Without the file, or
in doubt, the commits are scanned; it may be deleted and rewritten at any time.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from .errors import IntegrityError
from .paths import StorePaths, read_json
from .pending import CHANGED, PREFIX

RACY = 2_000_000_000
"""Nanoseconds that a time must be past to be evidence: the coarsest tick of a file system (FAT)."""
_log = logging.getLogger(__name__)

Times = dict[str, list[int]]
"""Directory, relative to the store, to its times of modification and of change."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What `take` saw."""

    times: Times
    clock: int
    """The file system's time before the others were read."""
    changed: str | None
    """Content of the store's file ``changed``: for readers over HTTP, who see no times."""

    def is_evidence(self) -> bool:
        """Whether a later change is bound to show, and not to fall into the same tick."""
        return max(map(max, self.times.values())) <= self.clock - RACY


def stamp_path(generation: Path) -> Path:
    """Where the stamp of a generation lies."""
    return generation.with_suffix(".stamp")


def is_current(paths: StorePaths, generation: Path) -> bool:
    """Whether a generation includes everything that is committed, as far as times can tell."""
    try:
        found = read_json(stamp_path(generation))
        return {"generation": _identity(generation), "times": _times(paths)} == {
            name: found.get(name) for name in ("generation", "times")
        }
    except (OSError, IntegrityError):
        return False


def take(paths: StorePaths) -> Stamp | None:
    """Read the times, before a scan; None if they are no evidence of anything.

    They are not while a commit is pending, in a store that cannot be written, and on a file system
    that does not update the times of directories.
    """
    if paths.remote:
        return None
    # The file system's own clock, not the host's: on a server they differ.
    probe = paths.catalog / f".tmp-{uuid.uuid4().hex}"
    try:
        paths.catalog.mkdir(exist_ok=True)
        before = _times_of(paths.catalog)
        probe.touch()
        try:
            clock = probe.stat().st_mtime_ns
            after = _times_of(paths.catalog)
        finally:
            probe.unlink(missing_ok=True)
        if before == after:
            return None
        file = paths.root / CHANGED
        changed = file.read_text() if file.is_file() else None
        times = _times(paths)
    except OSError:
        return None
    return None if times is None else Stamp(times, clock, changed)


def record(stamp: Stamp | None, generation: Path) -> None:
    """Write that a scan after `stamp` found the generation complete, if that can be relied on."""
    if stamp is None or not stamp.is_evidence():
        return
    temporary = generation.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        value = {
            "generation": _identity(generation), "times": stamp.times, "changed": stamp.changed,
        }  # fmt: skip
        temporary.write_text(json.dumps(value))
        temporary.replace(stamp_path(generation))
    except OSError as error:
        _log.debug("%s cannot be written: %s", stamp_path(generation), error)
        temporary.unlink(missing_ok=True)


def _identity(generation: Path) -> list[int]:
    """What tells a generation from another one that got its number after it was deleted."""
    status = generation.stat()
    return [status.st_size, status.st_mtime_ns]


def _times(paths: StorePaths) -> Times | None:
    """Times of the directories that change with every commit; None if one is pending."""
    found = {name: _times_of(paths.root / name) for name in ("runs", "commits")}
    for name in sorted(os.listdir(paths.commits)):  # noqa: PTH208
        if name.startswith(PREFIX):
            return None
        directory = paths.commits / name
        if directory.is_dir():
            found[f"commits/{name}"] = _times_of(directory)
    return found


def _times_of(directory: Path) -> list[int]:
    # The time of change cannot be set back: a copy that keeps the other times is scanned once.
    status = directory.stat()
    return [status.st_mtime_ns, status.st_ctime_ns]

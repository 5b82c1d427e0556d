"""The stores that are served: found by id, their episodes kept open."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attnstore.store.catalog import seed_log
from attnstore.store.commits import (
    SAFE,
    Commit,
    Revision,
    StorePaths,
    check_marker,
    latest_commit,
    log_of,
)
from attnstore.store.commits.part import Part
from attnstore.store.errors import IntegrityError, UsageError
from attnstore.store.opening import open_store
from attnstore.store.reader.episode import Episode
from attnstore.store.recordings.progress import UnderWay

from .config import Limits
from .guard.refusal import Refusal
from .sql.children import Children

LISTINGS = 256
"""Commits whose lists of files are kept."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenEpisode:
    """An episode, and what tells this state of it from every other."""

    episode: Episode
    version: str
    """Revision and attempt of its base part; a part is never changed under one."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a committed attempt."""

    directory: Path
    digests: Mapping[str, str]
    """SHA-256 by path relative to the directory."""


class ServedStore:
    """One store. Safe to use from many threads."""

    def __init__(self, id: str, root: Path, limits: Limits) -> None:
        self.id = id
        self.paths: StorePaths = open_store(root.resolve())
        seed_log(self.paths)
        self.own = Children(self.paths, limits)
        """Processes for the service's own questions: a user's slow one is not in their way."""
        self.users = Children(self.paths, limits)
        """Processes for the user's SQL."""
        self.under_way = UnderWay(self.paths.recordings)
        """Episodes that are being recorded into it."""
        self._limits = limits
        self._open: OrderedDict[tuple[str, str, int], OpenEpisode] = OrderedDict()
        self._listings: OrderedDict[tuple[str, str, str, str], Listing] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def store_id(self) -> str:
        """The id that was given to the store when it was made."""
        return str(check_marker(self.paths.root)["store_id"])

    def episode(self, run: str, episode: str) -> OpenEpisode:
        """Open an episode by its ids.

        Raises
        ------
        Refusal
            404 if there is none.
        IntegrityError
            If it may not be opened; see `Part.check`.
        """
        _check_ids(run, episode)
        latest = log_of(self.paths).update().latest(run, episode, "base")
        if latest is None:
            raise Refusal(404, f"store {self.id} has no episode {episode} in run {run}")
        key = (run, episode, latest.number)
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        commit = latest_commit(self.paths, run, episode)
        if commit is None:
            raise Refusal(404, f"store {self.id} has no episode {episode} in run {run}")
        part = Part(self.paths, commit)
        part.check(self._limits.table_bytes)
        found = OpenEpisode(Episode(part), version_of(commit))
        with self._lock:
            self._open[key] = found
            while len(self._open) > self._limits.open_episodes:
                self._open.popitem(last=False)
        return found

    def listing(self, run: str, episode: str, part: str, attempt: str) -> Listing | None:
        """Return the files of an attempt that a commit names; None if there is none."""
        key = (run, episode, part, attempt)
        with self._lock:
            if key in self._listings:
                self._listings.move_to_end(key)
                return self._listings[key]
        log = log_of(self.paths)
        fact = log.update().attempts.get(attempt)
        if fact is not None and fact.key == (run, episode, part):
            assert fact.revision is not None
            try:
                commit = log.commit(Revision(fact.number, fact.revision, attempt))
            except IntegrityError:
                return None
            digests = {f.path: f.sha256 for f in commit.files}
            found = Listing(commit.directory(self.paths), digests)
            with self._lock:
                self._listings[key] = found
                while len(self._listings) > LISTINGS:
                    self._listings.popitem(last=False)
            return found
        return None

    def close(self) -> None:
        """End the processes."""
        self.own.close()
        self.users.close()


def version_of(commit: Commit) -> str:
    """What tells a revision of a part from every other one."""
    return f"{commit.revision}-{commit.attempt}"


def _check_ids(*ids: str) -> None:
    for value in ids:
        if not SAFE.fullmatch(value):
            raise Refusal(404, "an id is one of those that the service lists")


def serve_stores(roots: tuple[Path, ...], limits: Limits) -> dict[str, ServedStore]:
    """Open stores and give each an id: its directory's name, numbered if there are several.

    Raises
    ------
    NotFoundError, IntegrityError
        If one is no store.
    """
    stores: dict[str, ServedStore] = {}
    for root in roots:
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", root.resolve().name.removesuffix(".attn"))
        name = name.strip("-_")[:64] or "store"
        id, number = name, 1
        while id in stores:
            number += 1
            id = f"{name}-{number}"
        store = ServedStore(id, root, limits)
        if any(store.paths.root == other.paths.root for other in stores.values()):
            raise UsageError(f"{root} is named twice")
        stores[id] = store
    return stores

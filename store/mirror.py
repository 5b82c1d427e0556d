"""A store elsewhere, read through a cache on this machine that has the same layout.

Committed files never change, so the cache fetches each when it is first needed, whole and verified,
and keeps it. Only what is committed is asked anew, once for every opening: the copy that is open
stays as it was then. Processes share a cache without locks: a file gets its name when it is whole.
docs/decisions/009-remote.md
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .commit import Commit, Key, StoredFile
from .errors import IntegrityError, NotFoundError, UsageError
from .fetching import Wanted, fetch_all, place_file, remove_abandoned
from .paths import MARKER, MAX_JSON, StorePaths, check_id, open_store, read_json
from .remote import Index, Transport, local_path, open_transport, shown, split_token
from .remote_http import at_once
from .remote_local import Directory
from .remote_token import token_for

if TYPE_CHECKING:
    pass

SMALL = 1 << 20
"""Largest marker and run configuration, in bytes."""
INDEX = "index.json"


def cache_root() -> Path:
    """Directory of all caches: ``ATTNSTORE_CACHE``, or ``attnstore`` in the user's cache directory."""
    if named := os.environ.get("ATTNSTORE_CACHE"):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "attnstore"


@dataclass(frozen=True, slots=True)
class MirrorPaths(StorePaths):
    """The cache of a store elsewhere; `open_mirror` makes it."""

    url: str
    found: Index = field(repr=False, compare=False)
    """What the store had when it was opened."""

    @property
    def name(self) -> str:
        """The URL, without a password."""
        return shown(self.url)

    @property
    def partial(self) -> bool:
        """Files are fetched when they are needed."""
        return True

    @property
    def remote(self) -> bool:
        """What was committed is in `found`."""
        return True

    @property
    def transport(self) -> Transport:
        """Access to the store, of this process."""
        return _transport(self.url, os.getpid(), token_for(self.url))

    @property
    def scratch(self) -> Path:
        """Unfinished downloads."""
        return self.root / "unfinished"

    def check_writable(self) -> None:
        """Refuse: a store at a URL is read-only."""
        raise UsageError(
            f"{shown(self.url)} is read-only: this writes to a store, which takes its local path "
            "(attnstore pull makes a local copy)"
        )

    def entries(self, *below: str) -> list[str]:
        """Names of runs, of a run's episodes, or of an episode's parts."""
        level: object = self.found.commits
        for name in below:
            level = level.get(name, {}) if isinstance(level, dict) else {}
        return sorted(level) if isinstance(level, dict) else []

    def listings(self) -> Iterator[tuple[Key, str]]:
        """Every part's latest commit, as the cached catalog lists it."""
        for key, revisions in self.found.parts():
            latest = max(revisions, key=int)
            yield key, listing(latest, revisions[latest])

    def need(self, commit: Commit, files: Iterable[StoredFile]) -> None:
        """Fetch files of a commit that are not here.

        Raises
        ------
        NotFoundError
            If one is not at the source any more.
        IntegrityError
            If one is not what was committed.
        AttnstoreError
            If one cannot be had.
        """
        directory = commit.directory(self)
        below = directory.relative_to(self.root).as_posix()
        wanted = [Wanted(f"{below}/{f.path}", directory / f.path, f) for f in files]
        absent = [w for w in wanted if not w.is_here()]
        for fetched in fetch_all(self.transport, absent, self.scratch):
            if isinstance(fetched.error, NotFoundError):
                raise NotFoundError(
                    f"{fetched.error}: it was replaced or removed, or is not copied there yet; "
                    "open the store again"
                )
            if fetched.error is not None:
                raise fetched.error

    def need_commits(self, run: str | None = None, episode: str | None = None) -> None:
        """Fetch the latest commit files of everything, a run or an episode that are not here."""
        wanted: list[str] = []
        for name in self.entries() if run is None else [run]:
            for each in self.entries(name) if episode is None else [episode]:
                for part in self.entries(name, each):
                    revisions = self.found.commits[name][each][part]
                    wanted.append(f"commits/{name}/{each}/{part}/{max(revisions, key=int)}.json")
        at_once(self._fetch_commit, [p for p in wanted if not (self.root / p).is_file()])

    def _fetch_commit(self, path: str) -> None:
        target = self.root / path
        temporary = self.scratch / uuid.uuid4().hex
        try:
            place_file(self.transport, path, temporary, self.scratch, MAX_JSON)
            if temporary.stat().st_size:
                read_json(temporary)  # what broke on the way is no JSON; a commit has no other hash
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
        except IntegrityError as error:
            raise IntegrityError(f"{shown(self.url)}/{path}: {error}") from None
        finally:
            temporary.unlink(missing_ok=True)
        if not target.stat().st_size:
            # Torn by a crash: never was a commit, and the one before counts (`latest_commit`).
            folder, _, name = path.rpartition("/")
            _, run, episode, part = folder.split("/")
            lower = [r for r in self.found.commits[run][episode][part] if int(r) < int(name[:-5])]
            if lower:
                self._fetch_commit(f"{folder}/{max(lower, key=int)}.json")

    def prepare_catalog(self) -> None:
        """Take over the store's newest catalog generation, unless that was done."""
        from .mirror_catalog import adopt

        adopt(self)

    def cached(self) -> CachedPaths:
        """Return what of this store is on this machine."""
        return CachedPaths(self.root)


@dataclass(frozen=True, slots=True)
class CachedPaths(StorePaths):
    """What a mirror holds already; nothing is fetched."""

    @property
    def partial(self) -> bool:
        """Most files may be missing."""
        return True

    def expects(self, commit: Commit, file: StoredFile) -> bool:
        """Nothing is lost that is not cached."""
        return False


def listing(revision: str, tag: str) -> str:
    """What a mirror's catalog keeps to notice a change of a part."""
    return f"{revision}.json {tag}"


def open_mirror(url: str) -> MirrorPaths:
    """Open a store at a URL.

    Raises
    ------
    NotFoundError
        If there is none.
    UsageError
        If the URL is of no known kind, or what reads it is not installed.
    AttnstoreError
        If it cannot be reached.
    """
    url = url.rstrip("/")
    transport = _transport(url, os.getpid(), token_for(url))
    home = cache_root() / _slug(url)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = home / "unfinished"
    marker = scratch / uuid.uuid4().hex
    try:
        place_file(transport, MARKER, marker, scratch, SMALL)
        store = check_id(str(read_json(marker).get("store_id")), "store id")
        # Another store at the same URL is another cache.
        root = home / store
        for folder in ("runs", "commits", "data", "catalog"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        marker.replace(root / MARKER)
        open_store(root)
    except NotFoundError:
        raise NotFoundError(f"{shown(url)} is not an attnstore store: it has no {MARKER}") from None
    except IntegrityError as error:
        raise type(error)(f"{shown(url)}: {error}") from None
    finally:
        marker.unlink(missing_ok=True)
    remove_abandoned(scratch)
    remove_abandoned(root / "unfinished")
    before = _kept_index(root)
    paths = MirrorPaths(root, url, transport.index(before))
    if paths.found.by_catalog:
        from .mirror_catalog import committed

        found = committed(paths)
        if found is None:
            found = transport.index(None, thorough=True)
        paths = MirrorPaths(root, url, found)
    _forget_what_changed(paths, before)
    missing = [f"runs/{r}.json" for r in paths.found.runs if not (root / f"runs/{r}.json").exists()]
    at_once(lambda p: place_file(transport, p, root / p, paths.scratch, SMALL), missing)
    _keep_index(paths)
    return paths


@lru_cache(maxsize=32)
def _transport(url: str, process: int, token: str | None) -> Transport:
    # Per process: connections do not survive a fork. Per token: that of the environment may change.
    return open_transport(url)


def _slug(url: str) -> str:
    url, _ = split_token(url)
    parts = urlsplit(url)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{parts.hostname or ''}{parts.path}").strip("-.")
    return f"{readable[-60:]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def _kept_index(root: Path) -> Index | None:
    try:
        return Index.from_json(read_json(root / INDEX))
    except (OSError, IntegrityError):
        return None


def _keep_index(paths: MirrorPaths) -> None:
    from json import dumps

    temporary = paths.scratch / uuid.uuid4().hex
    paths.scratch.mkdir(exist_ok=True)
    temporary.write_text(dumps(paths.found.to_json()))
    temporary.replace(paths.root / INDEX)


def _forget_what_changed(paths: MirrorPaths, before: Index | None) -> None:
    """Remove cached commits and runs that are not the store's any more."""
    now = dict(paths.found.parts())
    for key, revisions in before.parts() if before is not None else ():
        kept = now.get(key)
        folder = paths.part_commits(*key)
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        for revision, tag in revisions.items():
            if kept.get(revision) != tag:
                (folder / f"{revision}.json").unlink(missing_ok=True)
    for run, tag in before.runs.items() if before is not None else ():
        if paths.found.runs.get(run) != tag:
            (paths.runs / f"{run}.json").unlink(missing_ok=True)


def open_url(url: str) -> StorePaths:
    """Open a store at a URL, for reading; a ``file://`` URL is a local path.

    Raises
    ------
    AttnstoreError
        As `open_store` and `open_mirror`.
    """
    path = local_path(url)
    return open_mirror(url) if path is None else open_store(path)


def transport_for(paths: StorePaths) -> Transport:
    """Access to the files of an open store, wherever it is."""
    return paths.transport if isinstance(paths, MirrorPaths) else Directory(paths.root)

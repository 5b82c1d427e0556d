"""A store elsewhere, read through a cache on this machine that has the same layout.

Committed files never change, so the cache fetches each when it is first needed, whole and verified,
and keeps it. Only the log is asked anew, once for every opening, for entries above those that are
here: the copy that is open stays as it was then. Nothing has to be listed for that. Processes share a
cache without locks: a file gets its name when it is whole. docs/decisions/009-remote.md
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from ..catalog import NAME, NEWEST, made_from, seed_log, take_over
from ..catalog.generations import MadeFrom
from ..commits import (
    MARKER,
    MAX_JSON,
    Commit,
    Layout,
    Pieces,
    StoredFile,
    StorePaths,
    check_id,
    check_marker,
    log_of,
    parse_json,
    read_bounded,
    read_document,
    read_json,
)
from ..errors import AttnstoreError, DeniedError, IntegrityError, NotFoundError, UsageError
from .fetching import Wanted, at_once, fetch_all, place_file, remove_abandoned
from .local import Directory
from .pieces import PiecesOf
from .token import token_for
from .transport import Transport, shown, split_token

SMALL = 1 << 20
"""Largest marker and run configuration, in bytes."""
BEHIND = 64
"""New entries from which the source's catalog is worth fetching instead."""
_FIRST, _MORE = 2, 64
"""Entries that are asked for at a time; two, so that one that was lost does not hide the others."""
_log = logging.getLogger(__name__)


def open_transport(url: str) -> Transport:
    """Open a URL; nothing is requested before the first call, except to recognise a service.

    Raises
    ------
    UsageError
        If the URL is of no known kind.
    MissingExtraError
        If what reads it is not installed.
    """
    url, token = split_token(url)
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise UsageError(f"{shown(url)}: a store's URL has no ? and no #; files are named below it")
    if parts.scheme in ("s3", "gs", "gcs"):
        from .objects import ObjectStore

        return ObjectStore(url)
    if parts.scheme == "hf":
        from .hub import HubStore

        return HubStore(url)
    if parts.scheme in ("http", "https"):
        from .http import open_http

        return open_http(url, token)
    raise UsageError(
        f"{shown(url)}: a store is a path, or a URL with s3://, gs://, hf://, http://, https:// or file://"
    )


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
    last: int
    """Last entry of the log when it was opened."""

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
        """Whether this is a cache: it is."""
        return True

    @property
    def head(self) -> int:
        """Last entry of the log when it was opened."""
        return self.last

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

    def pieces(self, commit: Commit) -> Pieces | None:
        """Return what fetches pieces of a commit's shards; None if the server gives whole files."""
        if not self.transport.ranges:
            return None
        directory = commit.directory(self)
        below = directory.relative_to(self.root)

        def whole(file: StoredFile) -> Path:
            self.need(commit, [file])
            return directory / file.path

        place = self.root / "pieces" / below.relative_to("data")
        return PiecesOf(self.transport, below.as_posix(), place, whole)

    def need_entry(self, number: int) -> None:
        """Fetch an entry of the log that is not here.

        Raises
        ------
        NotFoundError
            If it is not at the source.
        AttnstoreError
            If it cannot be had.
        """
        file = self.entry(number)
        if not file.is_file():
            place_file(self.transport, _relative(number), file, self.scratch, MAX_JSON)

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

    @property
    def sparse(self) -> bool:
        """Entries of the log that nobody asked for are not here."""
        return True

    def expects(self, commit: Commit, file: StoredFile) -> bool:
        """Nothing is lost that is not cached."""
        return False


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
        data = read_bounded(marker, SMALL)
        if data.lstrip()[:1] == b"<":
            raise NotFoundError(
                f"{shown(url)} is not an attnstore store: the server answers with a web page instead "
                f"of {MARKER}; it may want you to log in, or have another address"
            )
        store = check_id(str(parse_json(data, MARKER).get("store_id")), "store id")
        # Another store at the same URL is another cache.
        root = home / store
        for folder in (Layout(root).runs, Layout(root).log, Layout(root).data):
            folder.mkdir(parents=True, exist_ok=True)
        marker.replace(root / MARKER)
        check_marker(root)
    except NotFoundError as error:
        _, missing, where = str(error).partition(f"{MARKER}: not found")
        if not missing:
            raise
        raise NotFoundError(
            f"{shown(url)} is not an attnstore store: it has no {MARKER}{where}"
        ) from None
    except IntegrityError as error:
        raise type(error)(f"{shown(url)}: {error}") from None
    finally:
        marker.unlink(missing_ok=True)
    remove_abandoned(scratch)
    remove_abandoned(root / "unfinished")
    paths = MirrorPaths(root, url, Arrivals(transport, root).last())
    seed_log(paths)
    runs = log_of(paths).update().runs

    def fetch_run(run: str) -> None:
        try:
            place_file(transport, f"runs/{run}.json", paths.run_file(run), paths.scratch, SMALL)
        except NotFoundError as error:
            _log.warning("%s", error)  # who asks for it is told so

    at_once(fetch_run, [run for run in runs if not paths.run_file(run).exists()])
    return paths


def _relative(number: int) -> str:
    return f"commits/log/{number:010d}.json"


class Arrivals:
    """Which entries of the log a source has, beyond those that are here."""

    def __init__(self, transport: Transport, root: Path) -> None:
        self._transport = transport
        self._here = StorePaths(root)
        self._scratch = root / "unfinished"
        self._says_denied: bool | None = None
        self._made: MadeFrom | None = None

    def last(self) -> int:
        """Fetch what is new; return the number of the log's last entry."""
        known = self._known()
        if known and not self._is_same(known):
            _log.warning("%s has another log than before: read anew", self._transport.url)
            shutil.rmtree(self._here.log)
            shutil.rmtree(self._here.catalog)
            known = 0
        if not known:
            known = self._take_catalog(0)
        return self.beyond(known)

    def beyond(self, known: int) -> int:
        """Fetch the entries after one that is known; return the number of the log's last."""
        last, size = known, _FIRST
        while True:
            numbers = range(last + 1, last + size + 1)
            found = [n for n in numbers if self._here.entry(n).is_file()]
            found += self._fetch([n for n in numbers if n not in found])
            if not found:
                if not last and self._says_denied:
                    raise DeniedError(
                        f"{self._transport.url}/{_relative(1)}: the server gives neither this file "
                        "nor says that it is not there (403), so nobody knows what is committed"
                    )
                return last
            last = max(found)
            if last - known > BEHIND:
                known = last = max(last, self._take_catalog(last))
            size = _MORE

    def _known(self) -> int:
        """Last entry that is here; all up to it are, or a catalog has what they say."""
        self._made = made_from(self._here)
        known = 0 if self._made is None else self._made.head
        while self._here.entry(known + 1).is_file():
            known += 1
        return known

    def _is_same(self, number: int) -> bool:
        """Whether the source's entry is the one that is known here."""
        temporary = self._scratch / uuid.uuid4().hex
        try:
            self._place(number, temporary)
            theirs = hashlib.sha256(read_bounded(temporary)).hexdigest()
        except NotFoundError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        if self._here.entry(number).is_file():
            return hashlib.sha256(read_bounded(self._here.entry(number))).hexdigest() == theirs
        return self._made is not None and self._made.tip == theirs

    def _take_catalog(self, above: int) -> int:
        """Take over the source's newest catalog, if it has more; return up to where it goes."""
        room = self._scratch / uuid.uuid4().hex
        temporary = room / NEWEST
        url = f"{self._transport.url}/catalog"
        try:
            place_file(self._transport, f"catalog/{NEWEST}", temporary, self._scratch, SMALL)
            newest = read_document(temporary, "newest")
            path, head = newest["path"], int(newest["head"])
            wanted = [path, *newest.get("layers", [])]
            if not all(NAME.fullmatch(each.removeprefix("catalog/")) for each in wanted):
                raise IntegrityError(f"{url}/{NEWEST}: names no catalog")
            if head <= above:
                return above
            files = [room / each.removeprefix("catalog/") for each in wanted]
            for each, file in zip(wanted, files, strict=True):
                free = shutil.disk_usage(self._scratch).free // 2
                place_file(self._transport, each, file, self._scratch, free)
            taken = take_over(self._here, files[0], files[1:])
        except NotFoundError:
            return above
        except (IntegrityError, DeniedError) as error:
            # The log says the same, in more requests.
            _log.warning("%s cannot be used: %s", url, error)
            return above
        finally:
            shutil.rmtree(room, ignore_errors=True)
        try:
            self._place(taken.head, self._here.entry(taken.head))
        except NotFoundError:
            taken.path.unlink()
            raise IntegrityError(
                f"{self._transport.url}/{_relative(taken.head)} is missing, though the catalog there "
                "was made from it: entries of the log were lost, or are not copied yet"
            ) from None
        data = read_bounded(self._here.entry(taken.head))
        if hashlib.sha256(data).hexdigest() != taken.tip:
            _log.warning("%s is of another log, and not used", url)
            taken.path.unlink()
            return above
        return taken.head

    def _fetch(self, numbers: Sequence[int]) -> list[int]:
        """Fetch entries; return those that are at the source."""

        def fetch(number: int) -> bool:
            try:
                self._place(number, self._here.entry(number))
            except NotFoundError:
                return False
            except DeniedError:
                if self._denies_what_is_not_there():
                    return False
                raise
            return True

        came = [n for n, found in zip(numbers, at_once(fetch, numbers), strict=True) if found]
        if any(not self._is_entry(n) for n in came):
            self._check_missing_is_said(came)
        return came

    def _place(self, number: int, target: Path) -> None:
        place_file(self._transport, _relative(number), target, self._scratch, MAX_JSON)

    def _is_entry(self, number: int) -> bool:
        try:
            return read_json(self._here.entry(number)).get("number") == number
        except IntegrityError:
            return False

    def _check_missing_is_said(self, came: Sequence[int]) -> None:
        """Tell a damaged entry from a server that answers everything with some page."""
        temporary = self._scratch / uuid.uuid4().hex
        try:
            self._place(0, temporary)  # the first has number 1
        except (NotFoundError, DeniedError):
            return
        finally:
            temporary.unlink(missing_ok=True)
        for number in came:
            self._here.entry(number).unlink(missing_ok=True)
        raise AttnstoreError(
            f"{self._transport.url}: the server answers with a page (200) where it has no file, so "
            f"nobody knows what is committed; {_relative(0)} must be answered with 404"
        )

    def _denies_what_is_not_there(self) -> bool:
        """Whether 403 is how this server says that there is no file, as S3 does without listings."""
        if self._says_denied is None:
            temporary = self._scratch / uuid.uuid4().hex
            try:
                self._place(0, temporary)
                self._says_denied = False
            except NotFoundError:
                self._says_denied = False
            except DeniedError:
                self._says_denied = True
            finally:
                temporary.unlink(missing_ok=True)
        return self._says_denied


@lru_cache(maxsize=32)
def _transport(url: str, process: int, token: str | None) -> Transport:
    # Per process: connections do not survive a fork. Per token: that of the environment may change.
    return open_transport(url)


def forget_transports() -> None:
    """Open every transport anew: what says how stores are reached has changed."""
    _transport.cache_clear()


def _slug(url: str) -> str:
    url, _ = split_token(url)
    parts = urlsplit(url)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{parts.hostname or ''}{parts.path}").strip("-.")
    return f"{readable[-60:]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def transport_for(paths: StorePaths) -> Transport:
    """Access to the files of an open store, wherever it is."""
    return paths.transport if isinstance(paths, MirrorPaths) else Directory(paths.root)

"""What a store elsewhere has to offer, and how its URL is opened.

A store that is not on this machine is read through a `Transport`: it lists what is committed, and
fetches files whole. Files are immutable and every file of a part is verified against its commit
(`attnstore.store.fetching`), so a transport is trusted with nothing but to try. There is no read of
a byte range: shards are 1 to 4 MB, and only of a whole file the SHA-256 is known.

========================  ===========================================================
``s3://``, ``gs://``      object stores through fsspec; one request lists 1,000 files
``http://``, ``https://`` a file server that lists directories as HTML, or a service
``file://``               the local path: no copy is made
========================  ===========================================================

A service needs a token: as it prints its own address, ``http://host:port/?token=TOKEN``, or from the
variable ``ATTNSTORE_TOKEN``, which only this machine's servers get and those that
``ATTNSTORE_TOKEN_HOSTS`` names (`attnstore.store.remote_token`). It is sent as ``Authorization:
Bearer``, not to where a server redirects, and is in no message and no name of a cache.

**The contract of a service** (`attnstore serve`), for ``URL`` without a trailing slash. It is
recognised by ``GET URL/v1/stores`` answering a JSON array of objects that have an ``id``, when
there is no ``URL/attnstore.json``. Of several stores one is named as ``URL/v1/stores/<id>``. Below
``URL/v1/stores/<id>`` a service offers

- ``GET files/<path>``: any file of the store, by its path relative to the store, immutable but for
  ``attnstore.json``; 404 if there is none;
- ``GET index``: ``{"runs": {run: tag}, "commits": {run: {episode: {part: {revision: tag}}}},
  "catalog": {"path", "size", "tag"} or null}``, revisions being file names without ``.json``, and a
  tag any text that changes with the file; served with an ETag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from .commit import Key
from .errors import IntegrityError, UsageError
from .paths import SAFE

Revisions = dict[str, str]
"""File name of a revision without ``.json``, to its tag."""
Commits = dict[str, dict[str, dict[str, Revisions]]]
"""Run, episode, part to revisions."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that is not part of any commit."""

    path: str
    """Relative to the store."""
    size: int | None
    """Bytes; None if the listing does not say."""
    tag: str
    """Changes with the content; empty if the listing has nothing of the kind."""


@dataclass(frozen=True, slots=True)
class Index:
    """What a remote store had when it was opened. Names that are not safe are left out."""

    runs: dict[str, str]
    """Run to tag."""
    commits: Commits
    catalog: RemoteFile | None = None
    """Newest generation."""
    changed: str | None = None
    """Content of the file ``changed``."""
    scanned: float = 0.0
    """When all folders were listed with this `changed`, seconds since 1970."""
    seen: float = 0.0
    """When this `changed` was first seen."""
    by_catalog: bool = False
    """The catalog says what is committed: `commits` is to be filled from it."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        catalog = self.catalog
        return {
            "runs": self.runs,
            "commits": self.commits,
            "catalog": None
            if catalog is None
            else {"path": catalog.path, "size": catalog.size, "tag": catalog.tag},
            "changed": self.changed,
            "scanned": self.scanned,
            "seen": self.seen,
            "by_catalog": self.by_catalog,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Index:
        """Take an index apart that anybody may have written.

        Raises
        ------
        IntegrityError
            If it is not one.
        """
        try:
            catalog = value.get("catalog")
            return cls(
                {str(r): str(t) for r, t in value["runs"].items() if SAFE.fullmatch(r)},
                {
                    run: {
                        episode: {
                            part: {str(n): str(t) for n, t in revisions.items() if is_revision(n)}
                            for part, revisions in parts.items()
                            if SAFE.fullmatch(part)
                        }
                        for episode, parts in episodes.items()
                        if SAFE.fullmatch(episode)
                    }
                    for run, episodes in value["commits"].items()
                    if SAFE.fullmatch(run)
                },
                None if catalog is None else _remote_file(catalog),
                value.get("changed"),
                float(value.get("scanned", 0)),
                float(value.get("seen", 0)),
                bool(value.get("by_catalog")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"not an index of a store ({error!r})") from None

    def parts(self) -> Iterator[tuple[Key, Revisions]]:
        """Yield every part that has a revision."""
        for run, episodes in self.commits.items():
            for episode, parts in episodes.items():
                for part, revisions in parts.items():
                    if revisions:
                        yield (run, episode, part), revisions


def _remote_file(value: Mapping[str, Any]) -> RemoteFile:
    size = value.get("size")
    return RemoteFile(
        str(value["path"]), None if size is None else int(size), str(value.get("tag", ""))
    )


def is_revision(name: str) -> bool:
    """Whether a name is that of a revision."""
    return 6 <= len(name) <= 18 and name.isascii() and name.isdigit()


class Transport(Protocol):
    """Access to a store elsewhere, for reading; safe to use from many threads."""

    url: str
    """For messages: without a password."""

    def index(self, known: Index | None, *, thorough: bool = False) -> Index:
        """List what is committed, in few requests.

        Parameters
        ----------
        known
            What this returned before, as it was kept; it may spare requests.
        thorough
            List all folders, however many requests it takes: the catalog cannot be read.

        Raises
        ------
        AttnstoreError
            If the listing cannot be had.
        """
        ...

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Write a whole file to `target`.

        Parameters
        ----------
        path
            Relative to the store.
        limit
            Bytes; a larger file is refused while it arrives.

        Raises
        ------
        NotFoundError
            If there is no such file.
        IntegrityError
            If it is larger than `limit`.
        AttnstoreError
            If it cannot be had; it is worth another try.
        """
        ...


def is_url(name: str) -> bool:
    """Whether a store's name is a URL and not a path."""
    return "://" in name


def local_path(url: str) -> Path | None:
    """Path that a ``file://`` URL names; None for others."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{url}: a file URL has no host; write file:///path/of/the/store")
    return Path(unquote(parts.path))


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
        from .remote_objects import ObjectStore

        return ObjectStore(url)
    if parts.scheme in ("http", "https"):
        from .remote_http import open_http

        return open_http(url, token)
    raise UsageError(
        f"{shown(url)}: a store is a path, or a URL with s3://, gs://, http://, https:// or file://"
    )


def split_token(url: str) -> tuple[str, str | None]:
    """Take the token out of a service's address, as it prints it.

    Examples
    --------
    >>> split_token("http://127.0.0.1:8732/?token=secret")
    ('http://127.0.0.1:8732', 'secret')
    """
    parts = urlsplit(url)
    name, _, token = parts.query.partition("=")
    if parts.scheme not in ("http", "https") or name != "token" or "&" in token:
        return url, None
    return parts._replace(query="", path=parts.path.rstrip("/")).geturl(), unquote(token)


def shown(url: str) -> str:
    """Return a URL for messages, without user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

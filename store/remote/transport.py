"""What a store elsewhere has to offer, and how its URL is opened.

A store that is not on this machine is read through a `Transport`, which fetches files, whole or a part
of their bytes, and does nothing else. What is committed needs no listing: the log's entries have
numbers, and the one after the last is not there. Files are immutable, every whole file of a part is
verified against its commit (`attnstore.store.remote.fetching`) and every piece of a shard by its
CRC-32C (`attnstore.store.remote.pieces`), so a transport is trusted with nothing but to try.

========================  ===========================================================
``s3://``, ``gs://``      object stores through fsspec
``hf://``                 a repository or bucket of the Hugging Face Hub
``http://``, ``https://`` any web server, or a service
``file://``               the local path: no copy is made
========================  ===========================================================

A service needs a token: as it prints its own address, ``http://host:port/?token=TOKEN``, or from the
variable ``ATTNSTORE_TOKEN``, which only this machine's servers get and those that
``ATTNSTORE_TOKEN_HOSTS`` names (`attnstore.store.remote.token`). It is sent as ``Authorization:
Bearer``, not to where a server redirects, and is in no message and no name of a cache.

**The contract of a service** (`attnstore serve`), for ``URL`` without a trailing slash. It is
recognised by ``GET URL/v1/stores`` answering a JSON array of objects that have an ``id``, when
there is no ``URL/attnstore.json``. Of several stores one is named as ``URL/v1/stores/<id>``. Below
that it offers ``GET files/<path>``: any file of the store, by its path relative to the store,
immutable but for ``attnstore.json`` and ``catalog/newest.json``; 404 if there is none; with header
``Range``, 206 and those bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from ..errors import UsageError


class Transport(Protocol):
    """Access to a store elsewhere, for reading; safe to use from many threads."""

    url: str
    """For messages: without a password."""
    ranges: bool
    """Whether parts of files can be had, as far as it is known."""

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
        DeniedError
            If the server does not give it, and does not say whether there is one.
        IntegrityError
            If it is larger than `limit`.
        AttnstoreError
            If it cannot be had; it is worth another try.
        """
        ...

    def fetch_range(self, path: str, start: int, stop: int, size: int) -> bytes | None:
        """Return bytes `start` to `stop` of a file.

        Parameters
        ----------
        size
            Of the whole file; one of another size is refused where the server says it.

        Returns
        -------
        The bytes; None if the server gives whole files alone, which `ranges` says from then on.

        Raises
        ------
        NotFoundError, DeniedError, IntegrityError, AttnstoreError
            As `fetch`.
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

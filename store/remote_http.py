"""Stores on a web server: one that lists directories as HTML, or a service.

``python -m http.server``, nginx with ``autoindex on``, Apache and Caddy list directories as pages of
links. They show no times that could be relied on, and one folder a request, so 1,000 episodes would
be 2,000 requests. Two things spare them:

- the store's file ``changed`` has another content after every commit. While it has the one that it
  had when all folders were listed, nothing was committed since;
- a catalog generation's stamp says for which content of ``changed`` it is complete. If that is the
  present one, the generation lists what is committed, and no folder has to be.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urljoin, urlsplit

from .catalog import NAME
from .errors import AttnstoreError, IntegrityError, NotFoundError
from .paths import MARKER, MAX_JSON, SAFE, read_json
from .pending import CHANGED, PREFIX
from .remote import Commits, Index, RemoteFile, Transport, is_revision, shown
from .remote_files import fetch_from, file_system
from .remote_token import token_for

T = TypeVar("T")
CONNECTIONS = 16
"""Requests at a time."""
SETTLED = 60.0
"""Seconds from which a listing is believed that was made after `changed` was first seen: a store
that is being copied may have its new `changed` before its new commits."""


def open_http(url: str, token: str | None = None) -> Transport:
    """Open a file server, or a service if that is what answers.

    Parameters
    ----------
    token
        Of a service; by default that of the environment, if it is for this server
        (`attnstore.store.remote_token`).
    """
    server = FileServer(url, token or token_for(url))
    try:
        server.read(MARKER, 1 << 20)
    except NotFoundError:
        service = _service(server)
        return server if service is None else service
    return server


class _Pages:
    """Files below a URL."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = shown(url).rstrip("/")
        self._base = url.rstrip("/")
        self._token = token
        headers = {"Accept-Encoding": "identity"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._files: Any = file_system(
            "aiohttp",
            "http",
            "http",
            self.url,
            encoded=True,
            # A proxy of the environment, and bytes as they are stored.
            client_kwargs={"trust_env": True, "headers": headers},
        )

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Write a whole file to `target`."""
        fetch_from(self._files, f"{self._base}/{quote(path)}", target, limit, f"{self.url}/{path}")

    def read(self, path: str, limit: int = MAX_JSON) -> bytes:
        """Return the content of a small file."""
        with tempfile.TemporaryDirectory(prefix="attnstore-") as folder:
            target = Path(folder) / "page"
            self.fetch(path, target, limit)
            return target.read_bytes()


class FileServer(_Pages):
    """A web server's directory; a `Transport`."""

    def index(self, known: Index | None, *, thorough: bool = False) -> Index:
        """List runs, catalog generations, and what is committed unless it is known."""
        now = time.time()
        changed = self._text(CHANGED)
        runs = {
            stem: ""
            for name in self._names("runs")
            if (stem := name.removesuffix(".json")) != name and SAFE.fullmatch(stem)
        }
        numbers = [int(m[1]) for name in self._names("catalog") if (m := NAME.fullmatch(name))]
        catalog = None
        if numbers:
            catalog = RemoteFile(f"catalog/catalog-{max(numbers):06d}.duckdb", None, changed or "")
        top = self._names("commits")
        found = Index(runs, {}, catalog, changed, now, now)
        if known is not None and known.changed == changed:
            found = replace(found, seen=known.seen)
        certain = changed is not None and not any(name.startswith(PREFIX) for name in top)
        if certain and not thorough:
            if (
                known is not None
                and known.changed == changed
                and (known.by_catalog or known.scanned - known.seen >= SETTLED)
            ):
                return replace(known, runs=runs)
            if catalog is not None and self._is_complete(catalog, changed):
                return replace(found, by_catalog=True)
        return replace(found, commits=self._commits(top))

    def _is_complete(self, catalog: RemoteFile, changed: str | None) -> bool:
        try:
            stamp = json.loads(self.read(catalog.path.removesuffix(".duckdb") + ".stamp"))
            return bool(stamp["changed"] == changed)
        except (NotFoundError, ValueError, KeyError, TypeError):
            return False

    def _commits(self, top: Iterable[str]) -> Commits:
        runs = [name for name in top if SAFE.fullmatch(name)]
        # Breadth first, so that every level is listed by all connections.
        episodes = self._below([f"commits/{run}" for run in runs])
        parts = self._below(episodes)
        commits: Commits = {}
        for path in self._below(parts):
            _, run, episode, part, name = path.split("/")
            if name.endswith(".json") and is_revision(name[:-5]):
                of_run = commits.setdefault(run, {}).setdefault(episode, {})
                of_run.setdefault(part, {})[name[:-5]] = ""
        return commits

    def _below(self, folders: Sequence[str]) -> list[str]:
        listed = at_once(self._names, folders)
        return [
            f"{folder}/{name}"
            for folder, names in zip(folders, listed, strict=True)
            for name in names
            if SAFE.fullmatch(name)
        ]

    def _names(self, folder: str) -> list[str]:
        """Names in a directory; none if it is not there."""
        try:
            page = self.read(f"{folder}/")
        except NotFoundError:
            return []
        base = urlsplit(f"{self._base}/{folder}/")
        links = _Links()
        links.feed(page.decode("utf-8", "replace"))
        names: dict[str, None] = {}
        for link in links.found:
            target = urlsplit(urljoin(base.geturl(), link))
            name = unquote(target.path.removeprefix(base.path).rstrip("/"))
            inside = target.netloc == base.netloc and target.path.startswith(base.path)
            if inside and not target.query and name and "/" not in name:
                names[name] = None
        return list(names)

    def _text(self, path: str) -> str | None:
        try:
            return self.read(path, 1 << 10).decode("ascii", "replace")
        except (NotFoundError, IntegrityError):
            return None


class Service(_Pages):
    """One store of a service; a `Transport`. The contract is in `attnstore.store.remote`."""

    def index(self, known: Index | None, *, thorough: bool = False) -> Index:
        """Ask what is committed: one request."""
        with tempfile.TemporaryDirectory(prefix="attnstore-") as folder:
            target = Path(folder) / "index.json"
            fetch_from(self._files, f"{self._base}/index", target, MAX_JSON, f"{self.url}/index")
            return Index.from_json(read_json(target))

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Write a whole file to `target`."""
        super().fetch(f"files/{path}", target, limit)


def _service(server: FileServer) -> Service | None:
    """Recognise a service, or a store of one; None if nothing of the kind answers."""
    if "/v1/stores/" in server._base:
        return Service(server._base, server._token)
    try:
        stores = json.loads(server.read("v1/stores"))
        ids = [str(store["id"]) for store in stores]
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None
    if len(ids) != 1:
        choices = ", ".join(f"{server.url}/v1/stores/{each}" for each in ids)
        raise AttnstoreError(f"{server.url} serves {len(ids)} stores; name one: {choices}")
    return Service(f"{server._base}/v1/stores/{quote(ids[0], safe='')}", server._token)


def at_once(function: Callable[[str], T], arguments: Sequence[str]) -> list[T]:
    """Call a function with each argument, several at a time; results in their order."""
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        try:
            return list(threads.map(function, arguments))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


class _Links(HTMLParser):
    """Where a page's links go."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]

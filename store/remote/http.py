"""Stores on a web server: one that serves files, or a service."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..commits import MARKER, MAX_JSON
from ..errors import AttnstoreError, IntegrityError, NotFoundError
from .downloads import fetch_from, file_system, tried
from .token import token_for
from .transport import Transport, shown


def open_http(url: str, token: str | None = None) -> Transport:
    """Open a file server, or a service if that is what answers.

    Parameters
    ----------
    token
        Of a service; by default that of the environment, if it is for this server
        (`attnstore.store.remote.token`).
    """
    server = FileServer(url, token or token_for(url))
    try:
        server.read(MARKER, 1 << 20)
    except NotFoundError:
        service = _service(server)
        return server if service is None else service
    return server


class FileServer:
    """A web server's directory; a `Transport`."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = shown(url).rstrip("/")
        self._base = url.rstrip("/")
        self._token = token
        self.ranges = True
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

    def fetch_range(self, path: str, start: int, stop: int, size: int) -> bytes | None:
        """Return bytes `start` to `stop` of a file; None if the server gives whole files alone."""
        from fsspec.asyn import sync

        if not self.ranges:
            return None
        said = f"{self.url}/{path}"

        async def request() -> bytes | None:
            url = self._files.encode_url(f"{self._base}/{quote(path)}")
            session = await self._files.set_session()
            async with session.get(url, headers={"Range": f"bytes={start}-{stop - 1}"}) as answer:
                self._files._raise_not_found_for_status(answer, url)
                if answer.status != 206:
                    return None
                place = answer.headers.get("Content-Range", "")
                if place != f"bytes {start}-{stop - 1}/{size}":
                    raise IntegrityError(
                        f"{said}: the server has {place or 'no Content-Range'} where bytes "
                        f"{start}-{stop - 1} of {size} were asked for"
                    )
                return bytes(await answer.content.readexactly(stop - start))

        data: bytes | None = tried(lambda: sync(self._files.loop, request), said)
        self.ranges = data is not None
        return data

    def read(self, path: str, limit: int = MAX_JSON) -> bytes:
        """Return the content of a small file."""
        with tempfile.TemporaryDirectory(prefix="attnstore-") as folder:
            target = Path(folder) / "page"
            self.fetch(path, target, limit)
            return target.read_bytes()


class Service(FileServer):
    """One store of a service; a `Transport`. The contract is in `attnstore.store.remote.transport`."""

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Write a whole file to `target`."""
        super().fetch(f"files/{path}", target, limit)

    def fetch_range(self, path: str, start: int, stop: int, size: int) -> bytes | None:
        """Return bytes `start` to `stop` of a file; None if the server gives whole files alone."""
        return super().fetch_range(f"files/{path}", start, stop, size)


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

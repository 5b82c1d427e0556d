"""Stores in an object store: S3 and what speaks it, Google Cloud Storage.

Credentials, endpoints and anonymous access are those of s3fs and gcsfs: the usual environment
variables and files, or ``FSSPEC_S3_ANON=true``, ``FSSPEC_S3_ENDPOINT_URL=...``.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import AttnstoreError
from .downloads import fetch_from, file_system, range_from
from .refusals import of_reading
from .transport import shown


class ObjectStore:
    """A bucket's prefix; a `Transport`."""

    ranges = True

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = shown(url).rstrip("/")
        self._s3 = parts.scheme == "s3"
        self._prefix = (parts.netloc + parts.path).rstrip("/")
        if self._s3:
            self._files: Any = file_system("s3fs", "s3", "s3", self.url)
        else:
            self._files = file_system("gcsfs", "gcs", "gs", self.url)

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Write a whole file to `target`."""
        name, said = f"{self._prefix}/{path}", f"{self.url}/{path}"
        fetch_from(self._files, name, target, limit, said, partial(self._explain, path))

    def fetch_range(self, path: str, start: int, stop: int, size: int) -> bytes:
        """Return bytes `start` to `stop` of a file."""
        name, said = f"{self._prefix}/{path}", f"{self.url}/{path}"
        return range_from(self._files, name, start, stop, said, partial(self._explain, path))

    def _explain(self, path: str, error: Exception, last: bool) -> AttnstoreError | None:
        if not self._s3:
            return None
        session = import_module("botocore.session").get_session()
        return of_reading(error, self.url, path, session, last)

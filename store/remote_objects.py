"""Stores in an object store: S3 and what speaks it, Google Cloud Storage.

Credentials, endpoints and anonymous access are those of s3fs and gcsfs: the usual environment
variables and files, or ``FSSPEC_S3_ANON=true``, ``FSSPEC_S3_ENDPOINT_URL=...``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .catalog import NAME
from .errors import NotFoundError
from .paths import SAFE
from .remote import Commits, Index, RemoteFile, is_revision, shown
from .remote_files import fetch_from, file_system, tried


class ObjectStore:
    """A bucket's prefix; a `Transport`.

    An index is listed anew each time: 1,000 commits are one request.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = shown(url).rstrip("/")
        self._prefix = (parts.netloc + parts.path).rstrip("/")
        if parts.scheme == "s3":
            self._files: Any = file_system("s3fs", "s3", "s3", self.url)
        else:
            self._files = file_system("gcsfs", "gcs", "gs", self.url)

    def index(self, known: Index | None, *, thorough: bool = False) -> Index:
        """List runs, commits and catalog generations."""
        runs = {
            stem: tag
            for (name,), tag, _ in self._listed("runs", 1)
            if (stem := name.removesuffix(".json")) != name and SAFE.fullmatch(stem)
        }
        commits: Commits = {}
        for (run, episode, part, name), tag, _ in self._listed("commits", 4):
            revision = name.removesuffix(".json")
            if is_revision(revision) and all(map(SAFE.fullmatch, (run, episode, part))):
                parts = commits.setdefault(run, {}).setdefault(episode, {})
                parts.setdefault(part, {})[revision] = tag
        generations = sorted(
            (int(match[1]), RemoteFile(f"catalog/{name}", size, tag))
            for (name,), tag, size in self._listed("catalog", 1)
            if (match := NAME.fullmatch(name))
        )
        return Index(runs, commits, generations[-1][1] if generations else None)

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Write a whole file to `target`."""
        fetch_from(self._files, f"{self._prefix}/{path}", target, limit, f"{self.url}/{path}")

    def _listed(self, below: str, depth: int) -> Iterator[tuple[list[str], str, int | None]]:
        """Yield names below a folder that are `depth` deep, their tags and sizes."""
        folder = f"{self._prefix}/{below}"
        try:
            found = tried(lambda: self._files.find(folder, detail=True), f"{self.url}/{below}")
        except NotFoundError:
            return
        for name, entry in found.items():
            path = name[len(folder) + 1 :].split("/")
            if len(path) == depth:
                tag = entry.get("ETag") or entry.get("etag") or entry.get("LastModified") or ""
                yield path, str(tag), entry.get("size")

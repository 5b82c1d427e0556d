"""Files of a mirror as DuckDB opens them: fetched at that moment."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from ..catalog.views import SCHEME
from ..commits import latest_commit
from ..errors import NotFoundError

if TYPE_CHECKING:
    from .mirror import MirrorPaths


class _Reader(io.BufferedReader):
    """A file that closes when it is dropped, which is how DuckDB leaves it."""

    def __del__(self) -> None:
        self.close()


class MirrorFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Read-only file system of a mirror's committed files, by their absolute cache paths."""

    protocol = SCHEME
    cachable = False

    def __init__(self, paths: MirrorPaths) -> None:
        super().__init__()
        self._paths = paths
        self._root = paths.root.resolve()

    def open(self, path: str, mode: str = "rb", **options: Any) -> IO[bytes]:
        """Open a file, fetching it first if it is not here."""
        return _Reader(io.FileIO(self._here(path)))

    def glob(self, path: str, **options: Any) -> list[str]:
        """Return the path: a catalog names files, never patterns."""
        return [path]

    def exists(self, path: str, **options: Any) -> bool:
        """Whether there is such a file: the catalog says so."""
        return True

    def isfile(self, path: str) -> bool:
        """Whether it is a file."""
        return True

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return size and type."""
        return {"name": path, "size": self._here(path).stat().st_size, "type": "file"}

    def modified(self, path: str) -> datetime:
        """Return a constant: committed files do not change."""
        return datetime(2000, 1, 1, tzinfo=UTC)

    def _here(self, path: str) -> Path:
        file = Path(path.removeprefix(f"{SCHEME}://"))
        if file.is_file():
            return file
        run, episode, attempt, name = file.relative_to(self._root).parts[1:]
        commit = latest_commit(self._paths, run, episode, attempt.rpartition(".")[0])
        if commit is None or commit.attempt != attempt.rpartition(".")[2]:
            raise NotFoundError(
                f"{self._paths.url}: {run}/{episode} was replaced; open the store again"
            )
        self._paths.need(commit, [f for f in commit.files if f.path == name])
        return file

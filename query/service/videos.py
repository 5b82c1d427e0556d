"""Videos that were drawn for somebody: kept on disk until there are too many."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path


class VideoFolder:
    """A temporary directory of videos, the least recently used ones removed.

    Parameters
    ----------
    most
        Bytes that are kept.
    """

    def __init__(self, most: int) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._most = most
        self._lock = threading.Lock()

    def get(self, name: str, draw: Callable[[Path], None]) -> Path:
        """Return a video, drawing it if it is not there. One is drawn at a time.

        Parameters
        ----------
        name
            What it shows, as a file name: equal names are equal videos.
        """
        with self._lock:
            if self._directory is None:
                self._directory = tempfile.TemporaryDirectory(prefix="attnstore-videos-")
            path = Path(self._directory.name) / name
            if not path.is_file():
                draw(path)
            # Its time says when it was last asked for.
            path.touch()
            self._make_room(path)
        return path

    def _make_room(self, kept: Path) -> None:
        files = sorted(kept.parent.iterdir(), key=lambda f: f.stat().st_mtime_ns, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > self._most and file != kept:
                # A client that is reading it keeps it open: it goes when the client does.
                file.unlink()

    def close(self) -> None:
        """Remove all."""
        with self._lock:
            if self._directory is not None:
                self._directory.cleanup()

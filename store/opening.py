"""Making a store, and opening one: a whole one, a pulled copy, or one at a URL."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from .commits import (
    MARKER,
    PULLED,
    StorePaths,
    check_marker,
    create_exclusive,
    now,
    sync_directory,
)
from .commits.layout import ROOT_ENTRIES
from .errors import UsageError
from .format.version import written
from .remote.transport import is_url, local_path


def create_store(name: Path | str) -> StorePaths:
    """Make an empty store, or open the one that is there, for writing: by a path, or at ``s3://``.

    Raises
    ------
    UsageError
        If the directory has other content, which is never overwritten.
    AttnstoreError
        As `open_store`, which knows what can be wrong with a bucket.
    """
    if (url := _url(name)) is not None:
        from .remote.spool import create_spooled

        return create_spooled(url)
    root = _path(name)
    if (root / MARKER).exists():
        return open_store(root)
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file; a store is a directory")
    # A kill while the marker was made leaves its temporary name behind; that is no foreign content.
    if root.exists() and any(
        p.name not in ROOT_ENTRIES and not p.name.startswith(".tmp-") for p in root.iterdir()
    ):
        raise UsageError(
            f"{root} exists, is not empty and has no {MARKER}; name a new or empty directory"
        )
    paths = StorePaths(root)
    for directory in (paths.runs, paths.log, paths.data, paths.catalog):
        directory.mkdir(parents=True, exist_ok=True)
    sync_directory(paths.log.parent)
    marker = {
        "format": written(),
        "store_id": uuid.uuid4().hex,
        "created": now(),
    }
    create_exclusive(paths.marker, marker)
    return open_store(root)


def open_store(name: Path | str) -> StorePaths:
    """Open a store for writing and check its format version: by a path, or at ``s3://``.

    Raises
    ------
    NotFoundError
        If there is no store of this name.
    UnsupportedFormatError
        If a newer major format version wrote it.
    IntegrityError
        If the marker file cannot be read.
    AttnstoreError
        If a bucket cannot be written; see `attnstore.store.remote.spool.open_spooled`.
    """
    if (url := _url(name)) is not None:
        from .remote.spool import open_spooled

        return open_spooled(url)
    root = _path(name)
    check_marker(root)
    if os.fspath(root).startswith("~"):
        root = root.absolute()  # DuckDB takes a leading ~ for the home directory
    if not (root / PULLED).is_dir():
        return StorePaths(root)
    from .remote.pulled import PulledPaths  # with the catalog, hence DuckDB and Arrow

    return PulledPaths(root)


def open_paths(name: str | os.PathLike[str]) -> StorePaths:
    """Open a store for reading by a path or a URL; a ``file://`` URL is a path.

    Raises
    ------
    AttnstoreError
        As `open_store`; and if a URL is of no known kind, or cannot be reached.
    """
    text = os.fspath(name)
    path = local_path(text) if is_url(text) else Path(text)
    if path is not None:
        return open_store(path)
    from .remote.mirror import open_mirror

    return open_mirror(text)


def _url(name: Path | str) -> str | None:
    """Return the URL that a name is, unless it names a path."""
    return name if isinstance(name, str) and is_url(name) and local_path(name) is None else None


def _path(name: Path | str) -> Path:
    if isinstance(name, str) and is_url(name):
        return local_path(name) or Path(name)
    return Path(name)

"""Where the files of a LeRobotDataset lie: a folder, or a hub repository fetched file by file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attnstore.store.errors import AttnstoreError, NotFoundError, UsageError

from ...optional import require

INFO = "meta/info.json"


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """A dataset's files by their paths relative to its root."""

    source: str
    """Folder or hub id, as the user named it."""
    root: Path
    """The folder, or the hub cache's snapshot of one commit."""
    commit: str | None = None
    """The hub's commit; None for a folder."""

    def find(self, relative: str) -> Path | None:
        """Return a file's place, fetched from the hub if it is not here; None if there is none.

        Raises
        ------
        AttnstoreError
            If the hub cannot give it.
        """
        path = self.root / relative
        if path.is_file():
            return path
        if self.commit is None:
            return None
        hub = require("huggingface_hub", "ingest", "reading a dataset from the hub")
        try:
            return Path(
                hub.hf_hub_download(
                    self.source, relative, repo_type="dataset", revision=self.commit
                )
            )
        except hub.errors.EntryNotFoundError:
            return None
        except Exception as error:
            raise AttnstoreError(
                f"{self.source}: the hub does not give {relative} ({type(error).__name__}: "
                f"{_one_line(error)})"
            ) from error

    def under(self, folder: str) -> list[Path]:
        """Return the Parquet files of ``{folder}/*/``, sorted; a hub's ``meta`` is here already.

        Hidden ones are none of it: macOS leaves ``._file-000.parquet`` beside a copied file.
        """
        found = sorted((self.root / folder).glob("*/*.parquet"))
        return [path for path in found if not path.name.startswith(".")]


def open_files(source: str, revision: str | None = None) -> DatasetFiles:
    """Find a dataset; of a hub repository ``meta/`` is fetched, the rest when it is read.

    Parameters
    ----------
    source
        Folder with ``meta/info.json``, or hub id ``owner/name``.
    revision
        Branch, tag or commit of a hub repository.

    Raises
    ------
    NotFoundError
        If it is a path and there is no such dataset.
    UsageError
        If a revision is given for a folder.
    AttnstoreError
        If the hub cannot give it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UsageError(f"a revision belongs to a hub dataset; {source} is a folder")
        if not (path / INFO).is_file():
            raise NotFoundError(
                f"{source}: no {INFO} in it; expected the root of a LeRobotDataset, with meta/, "
                "data/ and videos/"
            )
        return DatasetFiles(source, path.resolve())
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise NotFoundError(f"{source}: no such folder, and no hub id (owner/name)")
    hub = require("huggingface_hub", "ingest", "reading a dataset from the hub")
    try:
        root = Path(
            hub.snapshot_download(
                source, repo_type="dataset", revision=revision, allow_patterns=["meta/**"]
            )
        )
    except Exception as error:
        # Whatever the hub's client raises (no network, no such repository, no permission), the
        # user's remedy is the same.
        raise AttnstoreError(
            f"{source}: neither a folder nor a hub dataset that can be fetched "
            f"({type(error).__name__}: {_one_line(error)})"
        ) from error
    if not (root / INFO).is_file():
        raise NotFoundError(f"{source}: the hub's dataset has no {INFO}: it is no LeRobotDataset")
    return DatasetFiles(source, root, root.name)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:240]

"""An open store: where it is, and what a copy that does not hold everything does about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .entry import Commit, StoredFile
from .files import create_exclusive
from .layout import Layout


class Pieces(Protocol):
    """What is here of the files of one commit, of which pieces are enough."""

    @property
    def directory(self) -> Path:
        """Where the files are, with holes for what is not here."""
        ...

    def missing(self, file: StoredFile, pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return those of the (start, stop) of a file's bytes that are not here."""
        ...

    def bring(
        self,
        file: StoredFile,
        pieces: Iterable[tuple[int, int]],
        check: Callable[[int, bytes], None],
    ) -> None:
        """Have pieces of a file here; `check` raises if the bytes at a start are not to be kept."""
        ...


@dataclass(frozen=True, slots=True)
class StorePaths(Layout):
    """A store on a file system, whole: every committed file is there.

    The mirror of a store elsewhere, the spool of one in a bucket that is written, and a pulled copy are
    the other kinds; what differs between them is below, and only that.
    """

    @property
    def name(self) -> str:
        """The store for messages: its path, or its URL."""
        return str(self.root)

    @property
    def partial(self) -> bool:
        """Whether committed files may be missing here without being lost."""
        return False

    @property
    def remote(self) -> bool:
        """Whether this is a cache of a store elsewhere."""
        return False

    @property
    def head(self) -> int | None:
        """Number of the last entry of the log that counts; None: as the directory says."""
        return None

    @property
    def sparse(self) -> bool:
        """Whether entries of the log may be missing here without being lost."""
        return False

    def check_writable(self) -> None:
        """Raise `UsageError` if nothing may be committed here."""

    def look(self, *, anew: bool = False) -> None:
        """Learn of entries of the log that came; on a file system the directory tells.

        Parameters
        ----------
        anew
            Although that was asked a moment ago.
        """

    def create(self, file: Path, data: bytes | Mapping[str, Any]) -> bool:
        """Create a file of the store whole, unless its name is taken; say whether this call did."""
        return create_exclusive(file, data)

    def deliver(self, directory: Path, files: Sequence[StoredFile]) -> None:
        """Have an attempt's files, which are durable here, where the store is."""

    def delivered(self, directory: Path, files: Sequence[StoredFile]) -> None:
        """Take notice that they are committed."""

    def shelve(self, generation: Path, head: int, tip: str, *, anew: bool = False) -> None:
        """Have a catalog, which is here and was made up to an entry, where the store is.

        Parameters
        ----------
        anew
            Although one is there that knows as much.
        """

    def cached(self) -> StorePaths:
        """Return what is on this machine."""
        return self

    def need(self, commit: Commit, files: Iterable[StoredFile]) -> None:
        """Have these files of a commit here, whole, before they are read.

        A whole store does nothing: its readers check what they open.
        """

    def pieces(self, commit: Commit) -> Pieces | None:
        """Return what has pieces of a commit's files here; None where files are had whole."""
        return None

    def need_entry(self, number: int) -> None:
        """Have an entry of the log here before it is read."""

    def expects(self, commit: Commit, file: StoredFile) -> bool:
        """Whether a file that is not here is lost."""
        return True

    def how_to_get(self) -> str:
        """Say how files that are not here, and that `need` does not get, can be had."""
        return "its file is missing"

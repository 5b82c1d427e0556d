"""A store on this machine, as a source of copies."""

from __future__ import annotations

import shutil
from pathlib import Path

from .errors import AttnstoreError, IntegrityError, NotFoundError, NotPulledError, UsageError
from .part import resolve
from .remote import Index


class Directory:
    """A store's directory; a `Transport` that cannot list: a store on this machine lists itself."""

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root

    def index(self, known: Index | None, *, thorough: bool = False) -> Index:
        """Refuse."""
        raise UsageError(f"{self.url} is a path: open it as one")

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Copy a whole file to `target`."""
        try:
            source = resolve(self._root / path, self._root)
            size = source.stat().st_size
            if size > limit:
                raise IntegrityError(f"{source}: {size} bytes, at most {limit} are expected")
            shutil.copyfile(source, target)
        except FileNotFoundError:
            if (self._root / "pulled").is_dir():
                raise NotPulledError(f"{self.url}/{path} was not pulled there") from None
            raise NotFoundError(f"{self.url}/{path}: not found") from None
        except OSError as error:
            raise AttnstoreError(f"{self.url}/{path}: {error.strerror or error}") from None

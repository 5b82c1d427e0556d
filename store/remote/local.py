"""A store on this machine, as a source of copies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..boundary import is_full
from ..commits import PULLED, open_regular
from ..commits.part import resolve
from ..errors import AttnstoreError, IntegrityError, NotFoundError, NotPulledError


class Directory:
    """A store's directory; a `Transport`."""

    ranges = False

    def __init__(self, root: Path) -> None:
        self.url = str(root)
        self._root = root

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Copy a whole file to `target`."""
        try:
            source = resolve(self._root / path, self._root)
            with open_regular(source) as stream, target.open("wb") as copy:
                size = os.fstat(stream.fileno()).st_size
                if size > limit:
                    raise IntegrityError(f"{source}: {size} bytes, at most {limit} are expected")
                shutil.copyfileobj(stream, copy, 1 << 20)
        except FileNotFoundError:
            if (self._root / PULLED).is_dir():
                raise NotPulledError(f"{self.url}/{path} was not pulled there") from None
            raise NotFoundError(f"{self.url}/{path}: not found") from None
        except OSError as error:
            if is_full(error):
                raise  # where it is copied to, not here
            raise AttnstoreError(f"{self.url}/{path}: {error.strerror or error}") from None

    def fetch_range(self, path: str, start: int, stop: int, size: int) -> None:
        """Say that files are copied whole."""

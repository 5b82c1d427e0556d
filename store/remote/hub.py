"""Stores on the Hugging Face Hub, ``hf://datasets/ORGANISATION/NAME/PATH``, through huggingface_hub's file system.

A file is one request: its directories are never listed. Token, mirror and proxies are the Hub's own
(``hf auth login`` or ``HF_TOKEN``, ``HF_ENDPOINT``). docs/decisions/041-site-and-package.md
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import AttnstoreError, DeniedError, IntegrityError, NotFoundError, UsageError
from .downloads import file_system, first_line, tried
from .transport import shown

_BLOCK = 8 << 20
"""Bytes of a request."""


class HubStore:
    """A folder of a repository or bucket of the Hub; a `Transport`.

    Parameters
    ----------
    url
        ``hf://datasets/ORGANISATION/NAME[@REVISION]/PATH``; also of models, spaces and buckets.

    Raises
    ------
    UsageError
        If the URL names no repository.
    MissingExtraError
        If huggingface_hub is not installed.
    """

    ranges = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._prefix = self.url.removeprefix("hf://")
        typed = self._prefix.partition("/")[0] in ("datasets", "models", "spaces", "buckets")
        if len([part for part in self._prefix.split("/") if part]) < 2 + typed:
            raise UsageError(
                f"{shown(url)}: a store on the Hub is at hf://datasets/ORGANISATION/NAME/PATH"
            )
        # The variable is read anew: huggingface_hub keeps what it was when it was imported.
        self._files: Any = file_system(
            "huggingface_hub", "hf", "hf", self.url, endpoint=os.environ.get("HF_ENDPOINT") or None
        )
        # Asked before every file, and answered by a listing of its folder: only files are fetched here.
        self._files.isdir = lambda path: False

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Write a whole file to `target`."""
        said = f"{self.url}/{path}"

        def once() -> None:
            size = 0
            with target.open("wb") as out:
                # In pieces, and a byte beyond the limit: neither memory nor disk takes more. Reading the
                # file as a stream does not end in all versions of huggingface_hub.
                while True:
                    asked = min(_BLOCK, limit + 1 - size)
                    data = self._range(path, size, size + asked, limit + 1)
                    out.write(data)
                    size += len(data)
                    if size > limit:
                        raise IntegrityError(
                            f"{said}: {size} bytes or more, at most {limit} are expected"
                        )
                    if len(data) != asked:
                        return

        tried(once, said, partial(self._explain, path))

    def fetch_range(self, path: str, start: int, stop: int, size: int) -> bytes:
        """Return bytes `start` to `stop` of a file."""
        said = f"{self.url}/{path}"

        def once() -> bytes:
            data = self._range(path, start, stop, size)
            if len(data) != stop - start:
                raise IntegrityError(
                    f"{said}: {len(data)} bytes came, {stop - start} were asked for"
                )
            return data

        return tried(once, said, partial(self._explain, path))

    def _range(self, path: str, start: int, stop: int, size: int) -> bytes:
        """Bytes from `start` on, to `stop` at most; none where the file ends before."""
        # Without a size the file's directory would be listed.
        name = f"{self._prefix}/{path}"
        with self._files.open(name, "rb", size=size, cache_type="none") as source:
            source.seek(start)
            try:
                return bytes(source.read(stop - start))
            except OSError as error:
                if getattr(getattr(error, "response", None), "status_code", None) != 416:
                    raise
                return b""

    def _explain(self, path: str, error: Exception, last: bool) -> AttnstoreError | None:
        # The file system wraps some of the Hub's errors; those that it does not wrap have httpx's as cause.
        told = error.__cause__ or error
        kinds = {kind.__name__ for each in (error, told) for kind in type(each).__mro__}
        answers = (getattr(each, "response", None) for each in (error, told))
        status = next((a.status_code for a in answers if a is not None), None)
        if "RevisionNotFoundError" in kinds:
            return NotFoundError(f"{self.url}: the repository has no such revision")
        if "RepositoryNotFoundError" in kinds and "GatedRepoError" not in kinds:
            return NotFoundError(
                f"{self.url}: no such repository, or a private one: then `hf auth login` or HF_TOKEN"
            )
        if "GatedRepoError" in kinds or (status in (401, 403) and "HfHubHTTPError" in kinds):
            return DeniedError(
                f"{self.url}: the Hub does not give it to whoever asks here: `hf auth login` or HF_TOKEN, "
                "and accept its conditions if it has some"
            )
        if kinds & {"HFValidationError", "HfUriError"}:
            return UsageError(f"{self.url}: {first_line(told)}")
        if status == 404:
            return NotFoundError(f"{self.url}/{path}: not found")
        return None

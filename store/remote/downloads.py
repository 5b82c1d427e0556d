"""Files behind an fsspec file system: the one way in which any transport fetches."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from ..boundary import is_full
from ..errors import (
    AttnstoreError,
    DeniedError,
    IntegrityError,
    MissingExtraError,
    NotFoundError,
)

T = TypeVar("T")
Explain: TypeAlias = Callable[[Exception, bool], AttnstoreError | None]
"""What a server's own errors mean, and whether it is asked for the last time; None: as everywhere."""
PAUSES = (0.2, 1.0)
"""Seconds before a failed request is made again."""


def file_system(module: str, extra: str, protocol: str, url: str, **options: Any) -> Any:
    """Open an fsspec file system whose listings are not cached.

    Raises
    ------
    MissingExtraError
        If its package is not installed.
    """
    try:
        import_module(module)
        fsspec = import_module("fsspec")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in (module, "fsspec"):
            raise
        raise MissingExtraError(
            f"reading {url} needs {error.name}: pip install 'attnstore[{extra}]'"
        ) from error
    return fsspec.filesystem(
        protocol, use_listings_cache=False, skip_instance_cache=True, **options
    )


def fetch_from(
    files: Any, name: str, target: Path, limit: int, said: str, explain: Explain | None = None
) -> None:
    """Fetch a file, as `Transport.fetch`.

    Parameters
    ----------
    files
        fsspec file system.
    name
        As the file system names the file.
    said
        As messages name it.
    """

    def once() -> None:
        files.get_file(name, str(target), callback=_bound(limit, said))

    tried(once, said, explain)


def range_from(
    files: Any, name: str, start: int, stop: int, said: str, explain: Explain | None = None
) -> bytes:
    """Fetch a part of a file of an object store, as `Transport.fetch_range`."""

    def once() -> bytes:
        data = bytes(files.cat_file(name, start=start, end=stop))
        if len(data) != stop - start:
            raise IntegrityError(f"{said}: {len(data)} bytes came, {stop - start} were asked for")
        return data

    return tried(once, said, explain)


def tried(request: Callable[[], T], said: str, explain: Explain | None = None) -> T:
    """Make a request, again if it fails for a reason that may pass; one-line errors.

    Raises
    ------
    OSError
        If this machine has no room for what comes.
    """
    for pause in (*PAUSES, None):
        try:
            return request()
        except AttnstoreError:
            raise
        # Each file system has errors of its own (aiohttp's, botocore's, Google's), with no common root.
        except Exception as error:
            if is_full(error):
                raise
            if explain is not None and (told := explain(error, pause is None)) is not None:
                raise told from None
            status = getattr(error, "status", None)
            if isinstance(error, FileNotFoundError):
                raise NotFoundError(f"{said}: not found") from None
            if isinstance(error, PermissionError):
                raise DeniedError(f"{said}: access denied ({first_line(error)})") from None
            if status == 403:
                raise DeniedError(f"{said}: the server does not give this file (403)") from None
            if status == 401:
                raise AttnstoreError(
                    f"{said}: access denied; a service needs its token: open the address that it "
                    "prints, or set ATTNSTORE_TOKEN, which another machine gets only if "
                    "ATTNSTORE_TOKEN_HOSTS names it"
                ) from None
            if pause is None:
                raise AttnstoreError(f"{said}: {_failure(error)}") from None
            time.sleep(pause)
    raise AssertionError("unreachable")


def _failure(error: BaseException) -> str:
    """Say why a request failed; aiohttp's own words name the address once more, and little else."""
    status = getattr(error, "status", None)
    kind = type(error).__name__
    if kind == "TooManyRedirects":
        return "the server redirects in a circle"
    if "Redirect" in kind:
        return f"the server redirects to {first_line(error)}, which is no address of a store"
    if isinstance(status, int) and status >= 400:
        reason = getattr(error, "message", "")
        return f"the server answers {status}{f' ({reason})' if reason else ''}"
    if "payload is not completed" in str(error):
        return "the connection ended within the file, or the server announces more than it sends"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Return what an error says, on one line."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _bound(limit: int, said: str) -> Any:
    from fsspec.callbacks import Callback

    class Bound(Callback):  # type: ignore[misc]  # fsspec has no types
        """Stops a download that is larger than it may be."""

        def set_size(self, size: int | None) -> None:
            self._check(size or 0)
            super().set_size(size)

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            self._check(self.value)

        def _check(self, size: int) -> None:
            if size > limit:
                raise IntegrityError(f"{said}: {size} bytes or more, at most {limit} are expected")

    return Bound()

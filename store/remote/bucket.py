"""Writing objects to a bucket of S3, or of what speaks it: whole, verified, and once.

Through obstore: it puts objects on the condition that there is none, in parts where they are large, and
again where a server is busy. Credentials, region and endpoint are found as every AWS tool finds them,
by botocore. docs/decisions/027-stores-on-s3.md
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..commits import MAX_JSON, StoredFile, hash_file
from ..errors import (
    AttnstoreError,
    DeniedError,
    IntegrityError,
    MissingExtraError,
    NotFoundError,
    UsageError,
)
from .downloads import first_line
from .fetching import at_once
from .refusals import elsewhere, endpoint, no_credentials, no_profile, of_code, region, unreachable
from .transport import shown

T = TypeVar("T")
PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before a failed request is made again, beyond what obstore repeats by itself."""
RETRIES = 8
"""Of obstore, at 503, lost connections and the like; with longer and longer pauses."""
PART = 8 << 20
"""Bytes of a part of a large object."""
PARTED = 16 << 20
"""Size from which an object is sent in parts."""
RIVALS = 4
"""Writers of one name by which it is found out whether only one of them wins."""
_CREDENTIALS_LAST = timedelta(minutes=15)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lying:
    """An object that lies in the bucket."""

    path: str
    """Relative to the store."""
    size: int
    modified: datetime
    """By the server's clock."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload in parts that was neither completed nor given up."""

    path: str
    id: str
    began: datetime


class Bucket:
    """A bucket's prefix, for writing; safe to use from many threads.

    Parameters
    ----------
    url
        ``s3://bucket/prefix``.

    Raises
    ------
    UsageError
        If the URL names no bucket.
    MissingExtraError
        If obstore is not installed.
    DeniedError
        If there are no credentials.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc:
            raise UsageError(
                f"{shown(url)}: a store is written on this machine or at s3://BUCKET/PATH"
            )
        self.url, self.name = shown(url).rstrip("/"), parts.netloc
        self._prefix = parts.path.strip("/")
        self._obstore = _module("obstore", self.url)
        session = session_for(self.url)
        self.endpoint = endpoint(session)
        self._session = session
        credentials = session.get_credentials()
        if credentials is None:
            raise no_credentials(self.url)

        def lend() -> dict[str, Any]:
            frozen = credentials.get_frozen_credentials()
            return {
                "access_key_id": frozen.access_key,
                "secret_access_key": frozen.secret_key,
                "token": frozen.token,
                "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
            }

        self._lend = lend
        self._objects = self._open(retries=RETRIES, patience=timedelta(seconds=120))

    def _open(self, retries: int, patience: timedelta) -> Any:
        config: dict[str, Any] = {
            "region": region(self._session),
            "conditional_put": "etag",
            "checksum_algorithm": "sha256",
        }
        options: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(seconds=120),
        }
        if self.endpoint is not None:
            config["endpoint"] = self.endpoint
            options["allow_http"] = self.endpoint.startswith("http://")
        return self._obstore.store.S3Store(
            self.name,
            prefix=self._prefix or None,
            config=config,
            client_options=options,
            credential_provider=self._lend,
            retry_config={
                "max_retries": retries,
                "retry_timeout": patience,
                "backoff": {
                    "init_backoff": timedelta(milliseconds=200),
                    "max_backoff": timedelta(seconds=15),
                    "base": 2,
                },
            },
        )

    def check(self) -> None:
        """Find out, before anything is written, whether stores can be written here.

        Some writers put one object of a name of its own, on the condition that there is none. It is
        deleted again.

        Raises
        ------
        NotFoundError
            If there is no such bucket.
        DeniedError
            If it may not be written.
        UsageError
            If not exactly one of the writers won.
        AttnstoreError
            If the server does not answer.
        """
        objects = self._open(retries=1, patience=timedelta(seconds=20))
        path = f".tmp-{uuid.uuid4().hex}"
        won: list[bool] = []
        try:
            try:
                # All at once, and one who is late.
                for rivals in (RIVALS, 1):
                    bodies = [uuid.uuid4().hex.encode() for _ in range(rivals)]
                    won += at_once(
                        lambda body: self._create(objects, path, body, (0.2, 0.5)), bodies
                    )
            except AttnstoreError as error:
                if not re.search(r"NotImplemented|\b501\b", str(error)):
                    raise
                won = [True, True]
        finally:
            try:
                self._obstore.delete(objects, path)
            except Exception as error:
                _log.info("%s/%s was not deleted: %s", self.url, path, first_line(error))
        if sum(won) != 1:
            raise UsageError(
                f"{self.url}: this server does not put on a condition (of {len(won)} writers of one "
                f"name, {sum(won)} won; If-None-Match: * allows one), so two writers could commit over each "
                "other; nothing was written: write a local store and `attnstore push` it elsewhere"
            )

    def create(self, path: str, data: bytes) -> bool:
        """Put an object unless there is one of its name; say whether these bytes are there now.

        A request whose answer was lost may have done its work: so what is there is compared. What is
        given twice must therefore be told apart by its bytes, as entries are by their attempt.
        """
        return self._create(self._objects, path, data, PAUSES)

    def _create(self, objects: Any, path: str, data: bytes, pauses: Sequence[float]) -> bool:
        exists = self._obstore.exceptions.AlreadyExistsError
        unclear: Exception | None = None
        for pause in (*pauses, None):
            try:
                self._obstore.put(objects, path, data, mode="create", use_multipart=False)
                return True
            except exists as error:
                unclear = error
                there = self._read(objects, path)
                if there is not None:
                    return there == data
                # Another writer's request was under way (409 of S3), and came to nothing.
            except Exception as error:
                unclear = error
                told = self._told(path, error)
                if isinstance(told, NotFoundError | DeniedError) or pause is None:
                    raise told from None
            if pause is not None:
                time.sleep(pause)
        raise AttnstoreError(f"{self.url}/{path}: {first_line(unclear or Exception())}")

    def replace(self, path: str, data: bytes) -> None:
        """Put an object, whatever is there."""
        self._tried(path, lambda: self._obstore.put(self._objects, path, data, use_multipart=False))

    def read(self, path: str) -> bytes | None:
        """Read a small object; None if there is none."""
        return self._tried(path, lambda: self._read(self._objects, path))

    def _read(self, objects: Any, path: str) -> bytes | None:
        try:
            found = self._obstore.get(objects, path)
            if found.meta["size"] > MAX_JSON:
                raise IntegrityError(f"{self.url}/{path}: larger than any such file of a store")
            return bytes(found.bytes())
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None

    def upload(self, path: str, file: Path, expected: StoredFile) -> None:
        """Put a file that is what was, or will be, committed; the server compares what arrives.

        Raises
        ------
        IntegrityError
            If the file is not as expected.
        AttnstoreError
            If it cannot be put; no part of it stays.
        """
        if file.stat().st_size != expected.size or hash_file(file) != expected.sha256:
            raise IntegrityError(f"{file}: its bytes differ from what was committed (SHA-256)")
        in_parts = expected.size > PARTED

        def send() -> None:
            self._obstore.put(
                self._objects,
                path,
                file,
                use_multipart=in_parts,
                chunk_size=PART,
                max_concurrency=4,
            )

        try:
            self._tried(path, send)
        except BaseException:
            if in_parts:
                self._give_up(path)
            raise

    def _give_up(self, path: str) -> None:
        try:
            for upload in self.unfinished(path):
                self.abort(upload)
        except Exception as error:
            _log.warning("%s/%s: parts may be left, gc takes them: %s", self.url, path, error)

    def upload_all(self, files: Sequence[tuple[str, Path, StoredFile]]) -> None:
        """Put files, several at a time; errors are those of `upload`."""
        at_once(lambda each: self.upload(*each), files)

    def lying(self, below: str) -> Iterator[Lying]:
        """Yield every object below a folder of the store."""
        found = self._tried(below, lambda: list(self._obstore.list(self._objects, below or None)))
        for batch in found:
            for each in batch:
                yield Lying(each["path"], each["size"], each["last_modified"])

    def first(self, count: int) -> list[str]:
        """Return the paths of some objects."""

        def ask() -> list[str]:
            for batch in self._obstore.list(self._objects, chunk_size=count):
                return [each["path"] for each in batch][:count]
            return []

        return self._tried("", ask)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; one that is not there is no error."""
        paths = list(paths)
        for start in range(0, len(paths), 1000):
            some = paths[start : start + 1000]
            try:
                self._tried(some[0], partial(self._obstore.delete, self._objects, some))
            except NotFoundError:
                continue

    def unfinished(self, below: str = "") -> list[Unfinished]:
        """Uploads in parts that were not completed, of a folder or an object of the store."""
        prefix = f"{self._prefix}/{below}".lstrip("/")
        pages = self._client().get_paginator("list_multipart_uploads")
        skip = len(self._prefix) + 1 if self._prefix else 0

        def ask() -> list[Unfinished]:
            return [
                Unfinished(each["Key"][skip:], each["UploadId"], each["Initiated"])
                for page in pages.paginate(Bucket=self.name, Prefix=prefix)
                for each in page.get("Uploads", ())
            ]

        found = self._tried(below, ask)
        return [u for u in found if not below or f"{u.path}/".startswith(f"{below}/")]

    def abort(self, upload: Unfinished) -> None:
        """Delete the parts of an upload."""
        key = "/".join(p for p in (self._prefix, upload.path) if p)

        def ask() -> None:
            self._client().abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload.id)

        try:
            self._tried(upload.path, ask)
        except NotFoundError:
            return  # completed or aborted meanwhile

    def _client(self) -> Any:
        config = _module("botocore.config", self.url).Config(
            connect_timeout=10, retries={"mode": "standard", "max_attempts": 5},
            s3={"addressing_style": "path"} if self.endpoint else {},
        )  # fmt: skip
        return self._session.create_client(
            "s3", region_name=region(self._session), endpoint_url=self.endpoint, config=config
        )

    def _tried(self, path: str, request: Callable[[], T]) -> T:
        for pause in (*PAUSES[:4], None):
            try:
                return request()
            except AttnstoreError:
                raise
            except Exception as error:
                told = self._told(path, error)
                if isinstance(told, NotFoundError | DeniedError) or pause is None:
                    raise told from None
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _told(self, path: str, error: Exception) -> AttnstoreError:
        """Say in one line why a request failed."""
        if isinstance(error, AttnstoreError):
            return error
        text = str(error)
        code = re.search(r"<Code>(\w+)</Code>|\((\w+)\) when calling", text)
        named = next((c for c in code.groups() if c), "") if code else ""
        if found := of_code(named, self.url, self._session):
            return found
        exceptions = self._obstore.exceptions
        if isinstance(error, FileNotFoundError) or named == "NoSuchUpload":
            return NotFoundError(f"{self.url}/{path}: not found")
        denied = exceptions.PermissionDeniedError, exceptions.UnauthenticatedError
        if isinstance(error, denied) or named == "AccessDenied":
            return DeniedError(
                f"{self.url}: the credentials may not write this bucket, or list, read and delete "
                f"below this path ({named or 'access denied'})"
            )
        if "redirect" in text.lower():
            return elsewhere(self.url, self._session)
        if re.search(r"error sending request|[Cc]onnect|dns error|timed out", text):
            reason = "no answer in time" if "timed out" in text else "no connection"
            return unreachable(self.url, self._session, reason)
        message = re.search(r"<Message>([^<]*)</Message>", text)
        said = f"{named}: {message[1]}" if message else first_line(error)
        return AttnstoreError(f"{self.url}/{path}: {said}")


def session_for(url: str) -> Any:
    """Read anew what variables and files of this machine say of S3: botocore's session.

    Raises
    ------
    MissingExtraError
        If botocore is not installed.
    UsageError
        If AWS_PROFILE names no profile.
    """
    session = _module("botocore.session", url).get_session()
    try:
        session.get_scoped_config()
    except _module("botocore.exceptions", url).ProfileNotFound as error:
        raise no_profile(url, error.kwargs["profile"]) from error
    return session


def _module(name: str, url: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"writing {url} needs {error.name}: pip install 'attnstore[s3]'"
        ) from error

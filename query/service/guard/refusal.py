"""What a client is told when it does not get what it asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from starlette.responses import JSONResponse

from attnstore.store.errors import (
    AttnstoreError,
    IntegrityError,
    MissingExtraError,
    NotFoundError,
    UsageError,
)

_log = logging.getLogger(__name__)
_PATH = re.compile(
    r"(?<![\w./:~-])(?:[A-Za-z]:)?[/\\](?:[^\s/\\:;,'\"()]+[/\\])+([^\s/\\:;,'\"()]*)"
)
_CODES = {
    400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found",
    405: "method_not_allowed", 406: "not_acceptable", 408: "timeout", 413: "too_large",
    415: "unsupported_media_type", 416: "bad_range", 421: "wrong_host", 422: "bad_parameters",
    429: "busy", 500: "internal", 501: "not_installed", 503: "unavailable", 504: "deadline",
}  # fmt: skip


class Refusal(AttnstoreError):
    """A request that is not answered, with its HTTP status."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    def response(self, roots: Iterable[Path] = ()) -> JSONResponse:
        """Make the answer: ``{"error": {"code", "message"}}``."""
        code = _CODES.get(self.status, "error")
        body = {"error": {"code": code, "message": without_paths(str(self), roots)}}
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(body, self.status, headers)


def refusal_of(error: Exception) -> Refusal:
    """Say an error in HTTP's terms; what nobody intended is logged and not told."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, NotFoundError):
        return Refusal(404, str(error))
    if isinstance(error, MissingExtraError):
        return Refusal(501, str(error))
    if isinstance(error, UsageError):
        return Refusal(400, str(error))
    if isinstance(error, IntegrityError):
        return Refusal(500, f"the store is damaged: {error}")
    if isinstance(error, AttnstoreError):
        return Refusal(500, str(error))
    _log.error("unexpected error", exc_info=error)
    return Refusal(500, "an internal error; the service's log has it")


def without_paths(message: str, roots: Iterable[Path] = ()) -> str:
    """Take absolute paths out of a message: below a store they become relative, else a name.

    Examples
    --------
    >>> without_paths("/data/lab.attn/runs/x.json: not JSON", [Path("/data/lab.attn")])
    'runs/x.json: not JSON'
    >>> without_paths("no file /home/me/secret/weights.bin; rows/s is 3")
    'no file weights.bin; rows/s is 3'
    """
    for root in sorted({str(r) for r in roots}, key=len, reverse=True):
        message = message.replace(f"{root}/", "").replace(root, "the store")
    return _PATH.sub(lambda found: found[1] or "a directory", message)

"""Who may ask: the name that a request was sent to, the page that sent it, and the token.

- ``Host`` must be one of the service's names. A page of another site that has its own name
  resolved to 127.0.0.1 (DNS rebinding) still sends that name.
- ``Origin`` and ``Sec-Fetch-Site`` must be the service's own. Another port of localhost is the same
  *site*, so that SameSite cookies alone would let it in.
- The token comes as ``Authorization: Bearer``, or once in the address of the page, whence it goes
  into a cookie that scripts cannot read and out of the address.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit

from .refusal import Refusal

OPEN = frozenset({"/v1/health"})
"""Paths that need no token; they say nothing about the stores."""
API = "/v1/"
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/]+))(?::[0-9]{1,5})?")
TOKEN = "token"  # the parameter's name


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a request before its body is read."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    """By lower-case name; a name that came twice is joined by a comma, as HTTP reads it."""

    @property
    def is_api(self) -> bool:
        """Whether it is for the service and not for its page."""
        return self.path.startswith(API)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A browser that brings the token in the address: it gets the cookie, and this address."""

    location: str
    cookie: str
    """Value of ``Set-Cookie``."""


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one service."""

    token: str = field(repr=False)
    hosts: tuple[str, ...]

    def check(self, head: Head) -> Arrival | None:
        """Let a request in, or not.

        Raises
        ------
        Refusal
            421 for a foreign ``Host``, 403 for a foreign page, 401 without the token.
        """
        self._check_host(head)
        self._check_origin(head)
        if head.path in OPEN:
            return None
        given = dict(parse_qsl(head.query, keep_blank_values=True)).get(TOKEN)
        if given is not None and not head.is_api and head.method == "GET":
            if not _equal(given, self.token):
                raise Refusal(401, "that token is not this service's; it prints the right address")
            return Arrival(_without_token(head), self._set_cookie())
        if not self._knows_token(head):
            raise Refusal(
                401,
                "no token: open the address that `attnstore serve` printed, or send "
                "'Authorization: Bearer TOKEN'",
            )
        return None

    def _check_host(self, head: Head) -> None:
        name = _host_name(head.headers.get("host", ""))
        if name not in self.hosts:
            raise Refusal(421, f"this service does not answer to {name[:80]!r}; see --allow-host")

    def _check_origin(self, head: Head) -> None:
        origin = head.headers.get("origin")
        if origin is not None:
            parts = _split(origin)
            if parts != head.headers.get("host", "").lower():
                raise Refusal(403, "requests from pages of another origin are not answered")
        site = head.headers.get("sec-fetch-site", "none")
        if site in ("none", "same-origin"):
            return
        # A link from elsewhere may lead to the page; it opens without the cookie, or with a token.
        navigates = (
            head.method == "GET"
            and not head.is_api
            and head.headers.get("sec-fetch-mode") == "navigate"
            and head.headers.get("sec-fetch-dest") == "document"
        )
        if not navigates:
            raise Refusal(403, "requests from pages of another site are not answered")

    def _knows_token(self, head: Head) -> bool:
        scheme, _, given = head.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return _equal(given.strip(), self.token)
        name, value = self._cookie()
        for pair in head.headers.get("cookie", "").split(";"):
            key, _, found = pair.strip().partition("=")
            if key == name and _equal(found, value):
                return True
        return False

    def _cookie(self) -> tuple[str, str]:
        """Name and value. Cookies are sent to every port of a host, so neither gives the token."""
        key = self.token.encode()
        name = hmac.digest(key, b"attnstore cookie name", "sha256").hex()[:8]
        return f"attnstore_{name}", hmac.digest(key, b"attnstore cookie", "sha256").hex()

    def _set_cookie(self) -> str:
        name, value = self._cookie()
        return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict"


def _equal(given: str, expected: str) -> bool:
    # Of digests, so that neither content nor length can be told from the time it takes.
    one, other = (hashlib.sha256(t.encode(errors="replace")).digest() for t in (given, expected))
    return hmac.compare_digest(one, other)


def _host_name(host: str) -> str:
    """Name in a ``Host`` header, without port.

    >>> _host_name("[::1]:8732"), _host_name("LocalHost:80"), _host_name("a:b:c")
    ('::1', 'localhost', '')
    >>> _host_name("[::1].evil")
    ''
    """
    # Starlette's TrustedHostMiddleware splits at the first colon, and takes no IPv6 address.
    found = _HOST.fullmatch(host.strip().lower())
    return "" if found is None else found[1] or found[2].rstrip(".")


def _split(origin: str) -> str | None:
    """``host:port`` of an origin; None if it is none (``null``)."""
    try:
        parts = urlsplit(origin.strip().lower())
    except ValueError:
        return None  # such as http://[::1
    return parts.netloc if parts.scheme in ("http", "https") and parts.netloc else None


def _without_token(head: Head) -> str:
    rest = [(k, v) for k, v in parse_qsl(head.query, keep_blank_values=True) if k != TOKEN]
    # One slash: a browser takes "//host" for another host.
    path = "/" + head.path.lstrip("/\\")
    return path + (f"?{urlencode(rest)}" if rest else "")

"""Which servers the environment's token is for.

A token opens a service with all that it serves. It lies in the environment of everything that a
user runs, and a store's URL may come from anyone: so it is sent to this machine's own servers, and
to others only if they are named.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from ..errors import UsageError

TOKEN, HOSTS = "ATTNSTORE_TOKEN", "ATTNSTORE_TOKEN_HOSTS"
_PORTS = {"http": 80, "https": 443}


def token_for(url: str) -> str | None:
    """Return the token of variable ``ATTNSTORE_TOKEN``, if it is for this URL's server.

    It is for servers of this machine (``localhost`` and loopback addresses) and for those that
    ``ATTNSTORE_TOKEN_HOSTS`` names, as ``host`` or ``host:port``, separated by commas.

    Raises
    ------
    UsageError
        If ``ATTNSTORE_TOKEN_HOSTS`` has something else in it.
    """
    token = os.environ.get(TOKEN)
    if not token:
        return None
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    named = [_server(entry) for entry in os.environ.get(HOSTS, "").split(",") if entry.strip()]
    meant = any(host == own and port in (wanted or port,) for own, wanted in named)
    return token if meant or _is_loopback(host) else None


def _server(entry: str) -> tuple[str, int | None]:
    parts = urlsplit(f"//{entry.strip()}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(
            f"{HOSTS} is host or host:port, separated by commas, such as "
            f"lab.example.org,10.0.0.5:8732; got {entry.strip()!r}"
        )
    return host, port


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""What a service allows, and how it is reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names that a client on this machine may put into ``Host``."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request, and all of them together, may cost."""

    slice_bytes: int = 64 << 20
    """Largest array that is read for a request."""
    body_bytes: int = 64 << 10
    """Largest request body."""
    open_requests: int = 128
    """Requests under way at once, slow readers included; further ones get 429."""
    reads: int = 4
    """Slices and maps that are read, and overlays that are drawn, at once."""
    queries: int = 2
    """The user's SQL statements that run at once, over all stores."""
    waiting: int = 64
    """Requests that may wait for reads; further ones get 429."""
    waiting_queries: int = 32
    """Statements that may wait; further ones get 429."""
    sql_seconds: float = 10.0
    """A statement that runs longer is killed with the process that it runs in."""
    sql_memory: int = 512 << 20
    """DuckDB's own limit. The process may have 512 MB more, beyond what it starts with."""
    sql_bytes: int = 32 << 20
    """Largest result of a statement, as sent."""
    unread_bytes: int = 512 << 20
    """Answers that wait in memory for who reads them, all together; further ones get 429."""
    unread_bytes_of_client: int = 256 << 20
    """Those of one client's address."""
    send_seconds: float = 30.0
    """A client that takes no bytes for as long is disconnected."""
    open_episodes: int = 16
    """Episodes that stay open, with their statistics and images in memory."""
    table_bytes: int = 2 << 30
    """Largest table of an episode, uncompressed, that is read."""
    compared_episodes: int = 500
    """Episodes whose maps a difference is computed from."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Which stores are served, and to whom."""

    stores: tuple[Path, ...]
    token: str
    """Who knows it may read everything that is served."""
    hosts: tuple[str, ...] = LOOPBACK
    """Names that ``Host`` may have, without port."""
    limits: Limits = field(default_factory=Limits)
    page: Path | None = None
    """Directory of the viewer page; its ``index.html`` is at ``/``."""

    def __post_init__(self) -> None:
        if not self.stores:
            raise ValueError("a service needs at least one store")
        if len(self.token) < 16:
            raise ValueError("a token has at least 16 characters")

"""A running service: its stores, its limits, and how a question gets to them."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import orjson
from starlette.requests import Request

from .config import ServiceConfig
from .guard.admission import Gate
from .guard.refusal import Refusal
from .served import ServedStore, serve_stores
from .sql.children import Child
from .sql.sandbox import Form

T = TypeVar("T")


class Service:
    """What the endpoints share; made by `create_app`."""

    def __init__(self, config: ServiceConfig) -> None:
        limits = config.limits
        self.config = config
        self.stores = serve_stores(config.stores, limits)
        self.reading = Gate("reads", limits.reads, limits.waiting)
        self.listing = Gate("lists", 2, limits.waiting)
        self.asking = Gate(
            "SQL statements", limits.queries, limits.waiting_queries, int(limits.sql_seconds)
        )

    def store(self, id: str) -> ServedStore:
        """Find a store by the id that the service lists.

        Raises
        ------
        Refusal
            404, with the ids.
        """
        try:
            return self.stores[id]
        except KeyError:
            raise Refusal(
                404, f"no store {id[:80]!r}; there are: {', '.join(self.stores)}"
            ) from None

    async def read(self, work: Callable[[], T]) -> T:
        """Read from a store, or draw what was read, in a thread."""
        return await self.reading.run(work)

    async def rows(self, store: ServedStore, sql: str) -> list[dict[str, Any]]:
        """Ask the service's own question of a catalog."""
        body = await self.listing.run(lambda: store.own.ask(sql, "json"))
        return _rows(body)

    async def users_sql(self, store: ServedStore, sql: str, form: Form, request: Request) -> bytes:
        """Run the user's SQL; the process that runs it is killed if the client goes away."""
        running = _Running()
        work = self.asking.run(lambda: store.users.ask(sql, form, running.began), abandon=True)
        return await watched(request, work, running.stop)

    async def users_rows(
        self, store: ServedStore, sql: str, request: Request
    ) -> list[dict[str, Any]]:
        """Run SQL that the user wrote, or wrote a part of, and return its rows."""
        return _rows(await self.users_sql(store, sql, "json", request))

    def close(self) -> None:
        """End the processes."""
        for store in self.stores.values():
            store.close()


class _Running:
    """The process that a statement runs in, once there is one."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def began(self, child: Child) -> None:
        with self._lock:
            self._child = child
            if self._stopped:
                child.kill()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.kill()


async def watched(request: Request, work: Awaitable[T], stop: Callable[[], None]) -> T:
    """Wait for `work`, and stop it if the client disconnects before."""
    result: list[T] = []
    try:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        stop()
                        group.cancel_scope.cancel()
                        return

            group.start_soon(watch)
            result.append(await work)
            group.cancel_scope.cancel()
    except BaseExceptionGroup as failures:
        # The group wraps what the work raised; there is one.
        raise failures.exceptions[0] from None
    if not result:
        raise Refusal(400, "the client went away")
    return result[0]


def _rows(body: bytes) -> list[dict[str, Any]]:
    found = orjson.loads(body)
    names = [column["name"] for column in found["columns"]]
    return [dict(zip(names, row, strict=True)) for row in found["rows"]]


def service_of(request: Request) -> Service:
    """Return the service that a request is for."""
    service: Service = request.app.state.service
    return service

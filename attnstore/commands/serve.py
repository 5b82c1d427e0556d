"""``attnstore serve``: stores over HTTP, for a browser, for curl, and for `attnstore.open`."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import MissingExtraError, UsageError

from .options import FiniteNumber, StoreCommand, StoreName, stores_to_read
from .output import console

if TYPE_CHECKING:
    from attnstore.query.service import ServiceConfig

PORT = 8732
TOKEN = "ATTNSTORE_TOKEN"  # the variable's name


@click.command(cls=StoreCommand)
@stores_to_read
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    metavar="NAME",
    help="Name under which the service may be reached besides localhost; repeatable.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Read the token from a file.  [default: {TOKEN}, or a new random one]",
)
@click.option(
    "--sql-seconds",
    type=FiniteNumber(0.1, 3600),
    default=10,
    show_default=True,
    help="Time that an SQL statement may take.",
)
@click.option(
    "--sql-memory",
    type=click.IntRange(64, 1 << 20),
    default=512,
    show_default=True,
    metavar="MB",
    help="Memory that an SQL statement may take.",
)
@click.option(
    "--max-slice",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    metavar="MB",
    help="Largest slice of attention that is sent.",
)
@click.option("--open/--no-open", "open_page", default=False, help="Open the page in a browser.")
@click.option("--json", "as_json", is_flag=True, help="Print the address as JSON on stdout.")
def serve(
    stores: tuple[StoreName, ...],
    host: str,
    port: int,
    allowed: tuple[str, ...],
    token_file: Path | None,
    sql_seconds: float,
    sql_memory: int,
    max_slice: int,
    open_page: bool,
    as_json: bool,
) -> None:
    """Serve one or several stores, read-only, to whoever knows the token.

    It listens on this machine alone. From another one: ssh -L 8732:127.0.0.1:8732 HOST

    Examples
    --------
    attnstore serve lab.attn --open
    curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8732/v1/stores
    ATTNSTORE_TOKEN=$TOKEN python -c "import attnstore; attnstore.open('http://127.0.0.1:8732')"
    """
    if not stores:
        raise UsageError("no store: name at least one, or set ATTNSTORE")
    urls = [name for name in stores if isinstance(name, str)]
    if urls:
        raise UsageError(f"{urls[0]} is a URL; `attnstore pull` makes a copy that can be served")
    local = tuple(name for name in stores if isinstance(name, Path))
    try:
        import uvicorn

        from attnstore.query.service import LOOPBACK, Limits, ServiceConfig, create_app
        from attnstore.query.service.guard.connections import GuardedConnection
        from attnstore.render.serving import PAGE, router
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("attnstore"):
            raise
        raise MissingExtraError(
            f"serve needs {error.name}: pip install 'attnstore[serve]'"
        ) from None

    token = _token(token_file)
    named = () if host in ("0.0.0.0", "::") else (host.lower(),)
    limits = replace(
        Limits(), sql_seconds=sql_seconds, sql_memory=sql_memory << 20, slice_bytes=max_slice << 20
    )
    hosts = tuple(dict.fromkeys((*LOOPBACK, *named, *(name.lower() for name in allowed))))
    config = ServiceConfig(local, token, hosts, limits, PAGE)
    app = create_app(config, router)
    listening = _listen(host, port)
    address = _address(host, listening.getsockname()[1])
    _say(config, address, as_json)
    if host not in LOOPBACK:
        console().print(
            "[yellow]anyone on the network can read the token and the data on their way: "
            "this is plain HTTP[/yellow]",
        )
    if open_page:
        import webbrowser

        webbrowser.open(f"{address}/?token={token}")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            # A line of it would hold the token.
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            http=GuardedConnection,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
        )
    )
    server.run(sockets=[listening])


def _token(file: Path | None) -> str:
    found = file.read_text().strip() if file is not None else os.environ.get(TOKEN, "").strip()
    if file is None and not found:
        return secrets.token_urlsafe(24)
    if len(found) < 16 or not found.isascii() or not found.isprintable() or " " in found:
        raise UsageError("a token has at least 16 printable ASCII characters without blanks")
    return found


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another --port"
        ) from None
    listening.listen(128)
    return listening


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _say(config: ServiceConfig, address: str, as_json: bool) -> None:
    if as_json:
        said = {"url": address, "token": config.token, "stores": [str(s) for s in config.stores]}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        return
    say = console()
    say.print(f"serving {', '.join(str(s) for s in config.stores)}; stop with Ctrl-C", markup=False)
    say.print(f"  page    {address}/?token={config.token}", markup=False, soft_wrap=True)
    say.print(f"  service {address}/v1/  token {config.token}", markup=False, soft_wrap=True)

"""Options and output that several commands share."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from attnstore.store.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
CONFIG = "attnstore.toml"


StoreName = Path | str
"""A store as it is named on the command line: its path, or its URL."""


def store_option(function: F) -> F:
    """Add ``--store``; the command gets it as ``store: StoreName | None``."""
    return click.option(
        "--store",
        metavar="PATH|URL",
        default=None,
        callback=_resolve,
        help="Directory of the store, or its URL to read it.  [default: ATTNSTORE, or attnstore.toml]",
    )(function)


def json_option(function: F) -> F:
    """Add ``--json``: one JSON object a line on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print NDJSON on stdout.")(function)


def active_option(function: F) -> F:
    """Add ``--active``: what makes a head the most active one."""
    return click.option(
        "--active",
        type=click.Choice(["image", "lab"]),
        default="image",
        show_default=True,
        help="The most active head is that whose map has the largest variance: over the patches "
        "that show image, or (lab) over the whole grid, letterbox included.",
    )(function)


def _resolve(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> StoreName | None:
    if value is not None or context.resilient_parsing:
        return None if value is None else _path_or_url(value)
    if named := os.environ.get("ATTNSTORE"):
        return _path_or_url(named)
    here = Path.cwd()
    for directory in (here, *here.parents):
        file = directory / CONFIG
        if file.is_file():
            try:
                store = tomllib.loads(file.read_text()).get("store")
            except tomllib.TOMLDecodeError as error:
                raise UsageError(f"{file}: {error}") from None
            if isinstance(store, str):
                return store if "://" in store else directory / store
    return None


def _path_or_url(name: str) -> StoreName:
    return name if "://" in name else Path(name)


def store_to_read(store: StoreName | None) -> StoreName:
    """Return the store's path or URL, for a command that only reads.

    Raises
    ------
    UsageError
        If none was named.
    """
    if store is None:
        raise UsageError(
            f'no store: pass --store PATH, set ATTNSTORE, or put store = "PATH" in {CONFIG}'
        )
    return store


def need_store(store: StoreName | None) -> Path:
    """Return the store's path, for a command that writes to it.

    Raises
    ------
    UsageError
        If none was named, or a URL.
    """
    named = store_to_read(store)
    if isinstance(named, str):
        raise UsageError(
            f"{named} is a URL, which is read-only: this command writes to a store and takes its "
            "local path (attnstore pull makes a local copy)"
        )
    return named


def console() -> Console:
    """Console on stderr for progress and summaries."""
    return Console(stderr=True, highlight=False)


def print_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print one JSON object a line."""
    for row in rows:
        sys.stdout.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def size_text(count: float) -> str:
    """Return bytes for people.

    Examples
    --------
    >>> size_text(2_745_434), size_text(0)
    ('2.7 MB', '0 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def span_text(seconds: float) -> str:
    """Return a duration for people.

    Examples
    --------
    >>> span_text(42.0), span_text(5700.0)
    ('42 s', '1 h 35 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"

"""``attnstore --version``: the versions that a bug report needs."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import click

from attnstore import __version__
from attnstore.store.format.version import FORMAT_MAJOR, FORMAT_MINOR

LIBRARIES = ("numpy", "zarr", "tensorstore", "duckdb", "pyarrow", "xarray")
OPTIONAL = ("torch", "transformers", "jax", "lerobot")


def versions() -> str:
    """Return attnstore's version, then one line each of the format, Python and libraries.

    Read from what is installed, without importing it.
    """
    lines = [
        f"attnstore {__version__}",
        f"store format {FORMAT_MAJOR}.{FORMAT_MINOR}",
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
    ]
    found = {name: _version(name) for name in (*LIBRARIES, *OPTIONAL)}
    lines += [f"{name} {version or 'is not installed'}" for name, version in found.items()]
    return "\n".join(lines)


def version_option(function: Any) -> Any:
    """Add ``--version``."""

    def show(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
        if asked and not context.resilient_parsing:
            click.echo(versions())
            context.exit()

    return click.option(
        "--version",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show the versions of attnstore, its format and what it stands on, and exit.",
    )(function)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

"""Root of the command line: ``attnstore``."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import click

from attnstore import __version__
from attnstore.store.errors import AttnstoreError

from .commands.cnn import cnn
from .commands.compare import compare
from .commands.demo import demo
from .commands.export import export
from .commands.ingest import ingest, policies
from .commands.listing import ls
from .commands.objects import objects
from .commands.probe import probe
from .commands.pull import pull
from .commands.render import render
from .commands.render_cnn import render_cnn
from .commands.report import report
from .commands.serve import serve
from .commands.sql import sql
from .commands.timeline import timeline
from .commands.tokens import tokens
from .commands.upkeep import catalog, gc, remove, verify


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="attnstore")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, with tracebacks, on stderr.")
def cli(verbose: bool) -> None:
    """Know where robot policies look, and whether it matters.

    `ingest` runs a policy once per keyframe and stores its attention; everything else reads the
    store and needs neither the policy nor torch.

    The store is named by --store, by the variable ATTNSTORE, or by `store = "PATH"` in
    attnstore.toml of the working directory or one above it.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 integrity, 5 partial, 130 interrupted.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        logging.getLogger("attnstore").setLevel(logging.DEBUG)


for command in (
    ingest, ls, tokens, sql, compare, export, objects, cnn, probe, render, report, pull, serve,
    verify, gc, remove, catalog, policies, demo,
):  # fmt: skip
    cli.add_command(command)
render.add_command(render_cnn)
objects.add_command(timeline)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; errors become one line on stderr and an exit code."""
    try:
        code = cli.main(args=arguments, prog_name="attnstore", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        click.echo("attnstore: interrupted", err=True)
        sys.exit(130)
    except AttnstoreError as error:
        if logging.getLogger("attnstore").isEnabledFor(logging.DEBUG):
            logging.getLogger("attnstore").debug("traceback", exc_info=True)
        click.echo(f"attnstore: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away (`attnstore ls | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)

"""Root of the command line: ``attnstore``."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, NoReturn

import click

from attnstore.commands.attention import attention
from attnstore.commands.cnn import cnn
from attnstore.commands.compare import compare
from attnstore.commands.demo import demo
from attnstore.commands.doctor import doctor
from attnstore.commands.export import export
from attnstore.commands.failure import failure
from attnstore.commands.hidden import linear_probe, similarity
from attnstore.commands.ingest import ingest
from attnstore.commands.listing import ls
from attnstore.commands.objects import objects
from attnstore.commands.options import StoreGroup
from attnstore.commands.outcomes import outcomes
from attnstore.commands.policies import policies
from attnstore.commands.probe import probe
from attnstore.commands.pull import pull, push
from attnstore.commands.record import record
from attnstore.commands.render import render
from attnstore.commands.render_cnn import render_cnn
from attnstore.commands.report import report
from attnstore.commands.serve import serve
from attnstore.commands.sql import sql
from attnstore.commands.timeline import timeline
from attnstore.commands.tokens import tokens
from attnstore.commands.upkeep import catalog, gc, remove, verify
from attnstore.commands.version import version_option
from attnstore.store.errors import AttnstoreError


class _OperatingSystem(Exception):
    """Carries an OSError past click, which would end the process at a closed pipe by itself."""

    def __init__(self, error: OSError) -> None:
        self.error = error


class _Root(StoreGroup):
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse, which prints what --help and --version ask for."""
        try:
            return super().make_context(*args, **kwargs)
        except OSError as error:
            raise _OperatingSystem(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and everything that it still has to print."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except OSError as error:
            raise _OperatingSystem(error) from error
        return result


@click.group(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@version_option
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, with tracebacks, on stderr.")
@click.option(
    "--endpoint-url",
    metavar="URL",
    help="Server of s3:// URLs, unless it is Amazon's; as AWS_ENDPOINT_URL_S3.",
)
def cli(verbose: bool, endpoint_url: str | None) -> None:
    """Know where robot policies look, and whether it matters.

    `ingest` runs a policy once per keyframe and stores its attention; everything else reads the
    store and needs neither the policy nor torch.

    STORE is a directory or an s3:// URL; for commands that only read, any URL. It may be left out
    where the variable ATTNSTORE names it, or `store = "PATH"` in attnstore.toml of the working
    directory or one above.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 integrity, 5 partial, 75 stopped by SIGTERM or
    SIGUSR1 (run it again), 130 interrupted.

    Examples
    --------
    attnstore ls lab.attn
    attnstore sql lab.attn "from episodes"
    attnstore serve lab.attn --open
    """
    if endpoint_url is not None:
        # For every process that the command starts, and for all that reads and writes buckets.
        os.environ.pop("FSSPEC_S3_ENDPOINT_URL", None)
        os.environ["AWS_ENDPOINT_URL_S3"] = endpoint_url
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        logging.getLogger("attnstore").setLevel(logging.DEBUG)


for command in (
    ingest, doctor, record, outcomes, ls, tokens, attention, sql, compare, export, objects, cnn, probe,
    linear_probe, similarity, failure, render, report, pull, push, serve,
    verify, gc, remove, catalog, policies, demo,
):  # fmt: skip
    cli.add_command(command)
render.add_command(render_cnn)
objects.add_command(timeline)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; errors become one line on stderr and an exit code."""
    _fill_streams()
    for stream in (sys.stdout, sys.stderr):
        # What a terminal or a file cannot spell is escaped; it ends nothing.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = cli.main(args=arguments, prog_name="attnstore", standalone_mode=False)
    except click.exceptions.Exit as stop:
        _end(stop.exit_code)
    except click.ClickException as error:
        error.show()
        _end(error.exit_code)
    except click.exceptions.Abort:
        click.echo("attnstore: interrupted", err=True)
        _end(130)
    except AttnstoreError as error:
        _say(str(error))
        _end(error.exit_code)
    except _OperatingSystem as caught:
        if isinstance(caught.error, BrokenPipeError):
            _end(0)
        _say(_spell(caught.error))
        _end(1)
    _end(code if isinstance(code, int) else 0)


def _fill_streams() -> None:
    """Have something in place of a closed stdin, stdout or stderr (`attnstore ls >&-`).

    Otherwise the next file that is opened gets its number, and what is printed goes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _say(message: str) -> None:
    if logging.getLogger("attnstore").isEnabledFor(logging.DEBUG):
        logging.getLogger("attnstore").debug("traceback", exc_info=True)
    click.echo(f"attnstore: {message}", err=True)


def _spell(error: OSError) -> str:
    """Return the operating system's reason with the file that it is about."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    return f"{' -> '.join(names)}: {reason}" if names else reason


def _end(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:
        # The reader of our output went away (`attnstore ls | head`), or the disk is full: nothing
        # more can be said there, and Python must not try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)

"""``attnstore report``: what a store says of a policy, as pages to be sent on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import UsageError

from .options import (
    StoreName,
    active_option,
    console,
    json_option,
    print_json,
    store_option,
    store_to_read,
)

if TYPE_CHECKING:
    from attnstore.render.report.write import Format
    from attnstore.store.rules import Active

FORMATS = ("html", "md", "both")


@click.command()
@click.argument("positional", metavar="[STORE]", required=False)
@store_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("report"),
              show_default=True, help="Directory of the pages.")  # fmt: skip
@click.option("--run", help="Only this run.  [default: each run in a directory of its own]")
@click.option(
    "--where",
    metavar="SQL",
    help="Only episodes for which this holds, e.g. \"date > '2025-12-10'\".",
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="both", show_default=True,
              help="One HTML file a page, or Markdown with its figures in a folder.")  # fmt: skip
@click.option("--check/--no-check", default=None,
              help="Compare every file of the run with its SHA-256.  [default: up to 1 GB]")  # fmt: skip
@active_option
@json_option
def report(
    positional: str | None,
    store: StoreName | None,
    out: Path,
    run: str | None,
    where: str | None,
    form: Format,
    check: bool | None,
    active: Active,
    as_json: bool,
) -> None:
    """Write what a store says of its policy: where it looks, and whether that matters.

    report.html needs no other file and no network; report.md has its figures beside it. Where mask
    fidelity was probed, fidelity.html and fidelity.md have it layer by layer, with the masked
    pictures. What the store does not have yet is named with the command that brings it.
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.chosen import choose
    from attnstore.render.labtree import component
    from attnstore.render.report.write import write_report

    opened = open_for_reading(store_to_read(_named(positional, store)))
    chosen = choose(opened, run, where)
    for each in chosen:
        folder = out / component(each.run) if len(chosen) > 1 else out
        with console().status("reading") as status:
            written = write_report(
                opened, each, folder, format=form, where=where, check=check, active=active,
                progress=status.update,
            )  # fmt: skip
        if as_json:
            print_json([{"run": each.run, "files": [str(path) for path in written]}])
        else:
            pages = [path for path in written if path.suffix in (".html", ".md")]
            console().print(
                f"{each.run}: " + ", ".join(map(str, pages)), markup=False, soft_wrap=True
            )


def _named(positional: str | None, store: StoreName | None) -> StoreName | None:
    if positional is None:
        return store
    if (
        click.get_current_context().get_parameter_source("store")
        is click.core.ParameterSource.COMMANDLINE
    ):
        raise UsageError(f"the store is named twice: {positional} and --store {store}")
    return positional if "://" in positional else Path(positional)

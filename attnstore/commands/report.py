"""``attnstore report``: what a store says of a policy, as pages to be sent on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import (
    EpisodeChoice,
    StoreCommand,
    StoreName,
    active_option,
    episode_options,
    json_option,
    out_directory,
    store_to_read,
)
from .output import print_json, progress_of, say_made

if TYPE_CHECKING:
    from attnstore.render.report.write import Format
    from attnstore.store.rules import Active

FORMATS = ("html", "md", "both")


@click.command(cls=StoreCommand)
@store_to_read
@out_directory("Directory of the pages.", default=Path("report"))
@episode_options
@click.option("--format", "form", type=click.Choice(FORMATS), default="both", show_default=True,
              help="One HTML file a page, or Markdown with its figures in a folder.")  # fmt: skip
@click.option("--check/--no-check", default=None,
              help="Compare every file of the run with its SHA-256.  [default: up to 1 GB]")  # fmt: skip
@active_option
@json_option
def report(
    store: StoreName,
    out: Path,
    episodes: EpisodeChoice,
    form: Format,
    check: bool | None,
    active: Active,
    as_json: bool,
) -> None:
    """Write what a store says of its policy: where it looks, and whether that matters.

    report.html needs no other file and no network; report.md has its figures beside it. Where mask
    fidelity was probed, fidelity.html and fidelity.md have it layer by layer, with the masked
    pictures. What the store does not have yet is named with the command that brings it. Each run
    of several gets a directory of its own.

    Examples
    --------
    attnstore report lab.attn --out report
    attnstore report lab.attn --where "date > '2025-12-10'" --format html
    """
    from attnstore.query import open as open_for_reading
    from attnstore.render.picture.drawing import component
    from attnstore.render.report.write import write_report

    opened = open_for_reading(store)
    chosen = episodes.by_run(opened)
    where = episodes.text
    for each in chosen:
        folder = out / component(each.run) if len(chosen) > 1 else out
        with progress_of("report") as advance:
            written = write_report(
                opened, each, folder, format=form, where=where, check=check, active=active,
                progress=advance,
            )  # fmt: skip
        if as_json:
            print_json([{"run": each.run, "files": [str(path) for path in written]}])
        else:
            pages = [path for path in written if path.suffix in (".html", ".md")]
            say_made(
                f"{each.run}: {', '.join(map(str, pages))}", "open it in a browser, or send it on"
            )

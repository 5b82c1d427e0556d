"""``attnstore outcomes``: how episodes ended, where that is known afterwards."""

from __future__ import annotations

from pathlib import Path

import click

from attnstore.store.errors import PartialError, UsageError

from .options import StoreCommand, StoreName, on_this_machine, store_to_write

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=StoreCommand)
@store_to_write
@click.option("--csv", "table", type=_FILE, help="CSV: episode, outcome or success, reward.")
@click.option(
    "--json", "file", type=_FILE, help="JSON: an object by name, a list, or a list as per_episode."
)
@click.option(
    "--by",
    type=click.Choice(["name", "seed"]),
    default="name",
    show_default=True,
    help="What tells the episodes: their name or its last part, or the environment's seed.",
)
@click.option("--run", help="Only episodes of this run.")
def outcomes(
    store: StoreName, table: Path | None, file: Path | None, by: str, run: str | None
) -> None:
    """Say how episodes ended, in the store and in its recordings.

    An episode is named by a column `episode`, `name` or `video_filename` (without its suffix), or by
    `seed`; how it ended by `outcome` (success, failure, unknown) or `success` (true, false, 1, 0);
    `reward` is kept too. Rows that name no episode are listed, and the exit code is then 5.

    Examples
    --------
    attnstore outcomes lab.attn --csv droid.csv
    attnstore outcomes lab.attn --json results.json --by seed
    """
    from attnstore.ingest.recording.outcomes import join_outcomes, read_said
    from attnstore.store.opening import open_store

    source = table or file
    if source is None or (table and file):
        raise UsageError("outcomes are in one file: --csv FILE or --json FILE")
    done = join_outcomes(open_store(on_this_machine(store)), read_said(source, by), by=by, run=run)
    absent = [str(each["name"]) for each in done if each["status"] == "absent"]
    changed = sum(each["status"] == "changed" for each in done)
    same = len(done) - changed - len(absent)
    where = "in runs and recordings"
    click.echo(f"outcomes {where}: {changed} changed, {same} were said already")
    if absent:
        named = ", ".join(absent[:5]) + (f", and {len(absent) - 5} more" if absent[5:] else "")
        raise PartialError(
            f"{source} names {len(absent)} episodes that are not in {store}: {named}"
        )

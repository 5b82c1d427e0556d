"""``attnstore sql``: the user's own questions, and ready-made ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from attnstore.store.errors import UsageError

from .listing import name_unreadable
from .options import StoreCommand, StoreName, out_file, store_to_read
from .output import say


class _Sql(StoreCommand):
    def expected_arguments(self, options: dict[str, Any], given: Sequence[str]) -> int:
        """QUERY is an argument only where it comes from nowhere else."""
        if options.get("list_named"):
            return 0
        if options.get("file") or options.get("named"):
            return 1
        # The command itself says what is missing behind a store.
        return 1 if len(given) == 1 and ("://" in given[0] or Path(given[0]).is_dir()) else 2


@click.command(cls=_Sql)
@store_to_read
@click.argument("query", required=False)
@click.option(
    "--file",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the query from a file.",
)
@click.option("--named", metavar="NAME", help="Ask a ready-made question; see --list.")
@click.option("--list", "list_named", is_flag=True, help="List the ready-made questions.")
@click.option("--json", "form", flag_value="ndjson", help="Print NDJSON.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@click.option("--arrow", "form", flag_value="arrow", help="Write an Arrow IPC stream.")
@click.option("--parquet", "form", flag_value="parquet", help="Write Parquet.")
@out_file("Write to a file.")
def sql(
    store: StoreName,
    query: str | None,
    file: Path | None,
    named: str | None,
    list_named: bool,
    form: str | None,
    out: Path | None,
) -> None:
    """Ask the store's tables in SQL; docs/schema.md describes every column.

    Examples
    --------
    attnstore sql lab.attn "select outcome, count(*) from episodes group by outcome"
    attnstore sql lab.attn --named camera-by-layer --csv
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.sql.chosen import unreadable_parts
    from attnstore.query.sql.named import NAMED, named_query
    from attnstore.query.sql.run import write_result

    if list_named:
        width = max(map(len, NAMED))
        for entry in NAMED.values():
            click.echo(f"{entry.name:<{width}} {entry.question}")
        return
    if sum(given is not None for given in (query, file, named)) != 1:
        raise UsageError(
            "give one query: as the argument after STORE, with --file, or with --named (see --list)"
        )
    text = query or ""
    if file is not None:
        text = file.read_text()
    elif named is not None:
        text = named_query(named).sql
    form = form or "table"
    if form in ("arrow", "parquet") and out is None and sys.stdout.isatty():
        raise UsageError(f"--{form} is binary: name a file with --out, or pipe it")
    opened = open_for_reading(store)
    relation = opened.sql(text)
    if out is None:
        write_result(relation, form, sys.stdout.buffer)  # type: ignore[arg-type]  # one of FORMATS
        sys.stdout.flush()
    else:
        from attnstore.render.picture.image_file import complete

        # A device or a pipe is written to; a file is there when it is whole.
        plain = out.is_file() or not out.exists()
        with complete(out) if plain else nullcontext(out) as file, file.open("wb") as stream:
            write_result(relation, form, stream)  # type: ignore[arg-type]  # one of FORMATS
    if (
        named is not None
        and (needs := named_query(named).needs)
        and not relation.limit(1).fetchall()
    ):
        say(f"{named}: no rows; it needs {needs}")
    for table in opened.both_weightings(text):
        say(
            f"{table} has rows of the attention as it is and weighted by value norms, and this query takes "
            "both: say where weighting = 'raw' or 'value'"
        )
    name_unreadable(unreadable_parts(opened))

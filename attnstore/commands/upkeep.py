"""``attnstore verify``, ``gc`` and ``catalog``: the store's health."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import click

from attnstore.store.errors import IntegrityError
from attnstore.store.paths import open_store

from .options import json_option, need_store, print_json, size_text, store_option


@click.command()
@store_option
@click.option("--run", help="Only this run.")
@click.option("--episode", help="Only this episode: its name, or its id.")
@json_option
def verify(store: Path | None, run: str | None, episode: str | None, as_json: bool) -> None:
    """Compare every committed file with the size and SHA-256 of its commit.

    Exit code 4 if anything is not as committed.
    """
    from attnstore.query import open as open_for_reading
    from attnstore.store.verify import verify as check

    opened = open_for_reading(need_store(store))
    if episode is not None:
        commit = opened.episode(episode, run=run).part.commit
        run, episode = commit.run, commit.episode
    found = 0
    for problem in check(opened.paths, run, episode):
        found += 1
        if as_json:
            print_json([asdict(problem)])
        else:
            click.echo(str(problem))
    if found:
        raise IntegrityError(
            f"{found} problems; an episode is repaired by deleting its folder under commits/ and "
            "ingesting it again"
        )
    if not as_json:
        click.echo("every committed file is as it was committed")


@click.command()
@store_option
@click.option(
    "--lease",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="Younger attempts may still be written and are kept.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@json_option
def gc(store: Path | None, lease: float, dry_run: bool, as_json: bool) -> None:
    """Remove what no commit refers to: broken-off attempts, replaced revisions, old catalogs."""
    from attnstore.store.garbage import collect

    collected = collect(open_store(need_store(store)), timedelta(hours=lease), dry_run=dry_run)
    if as_json:
        print_json([asdict(collected)])
        return
    verb = "would remove" if dry_run else "removed"
    click.echo(
        f"{verb} {len(collected.attempts)} attempts, "
        f"{len(collected.revisions)} replaced revisions, {len(collected.generations)} catalogs, "
        f"{len(collected.temporary)} temporary files: "
        f"{size_text(collected.bytes)}"
    )


@click.group()
def catalog() -> None:
    """Look after the DuckDB catalog, a cache that the commits can rebuild."""


@catalog.command()
@store_option
def rebuild(store: Path | None) -> None:
    """Build a new generation of the catalog from the commits alone."""
    from attnstore.store.catalog import rebuild as build

    generation = build(open_store(need_store(store)))
    click.echo(f"catalog generation {generation.number}")


@catalog.command()
@store_option
def refresh(store: Path | None) -> None:
    """Bring the catalog up to date; SQL does it by itself."""
    from attnstore.store.catalog import refresh as update

    generation = update(open_store(need_store(store)))
    click.echo(f"catalog generation {generation.number}")

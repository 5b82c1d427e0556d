"""``attnstore verify``, ``gc`` and ``catalog``: the store's health."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import click

from attnstore.store.errors import IntegrityError, NotFoundError, UsageError

from .options import (
    StoreName,
    json_option,
    need_store,
    print_json,
    size_text,
    store_option,
    store_to_read,
)


@click.command()
@store_option
@click.option("--run", help="Only this run.")
@click.option("--episode", help="Only this episode: its name, or its id.")
@json_option
def verify(store: StoreName | None, run: str | None, episode: str | None, as_json: bool) -> None:
    """Compare every committed file with the size and SHA-256 of its commit.

    Of a pulled copy, what was pulled; of a store at a URL, what is in its cache. Exit code 4 if
    anything is not as committed.
    """
    from attnstore.query import open as open_for_reading
    from attnstore.store.commits import all_commits
    from attnstore.store.commits.verify import verify as check
    from attnstore.store.remote.pull import absent

    opened = open_for_reading(store_to_read(store))
    if episode is not None:
        commit = opened.episode(episode, run=run).part.commit
        run, episode = commit.run, commit.episode
    paths = opened.paths.cached()
    found = 0
    for problem in check(paths, run, episode):
        found += 1
        if as_json:
            print_json([asdict(problem)])
        else:
            click.echo(str(problem))
    if found and paths.partial:
        raise IntegrityError(
            f"{found} problems in {paths.root}; a file is repaired by deleting it and "
            + ("reading it again" if opened.paths.remote else "pulling again")
        )
    if found:
        raise IntegrityError(
            f"{found} problems; an episode is repaired by `attnstore remove --episode NAME` and "
            "ingesting it again"
        )
    if as_json:
        return
    if not paths.partial:
        click.echo("every committed file is as it was committed")
        return
    chosen = (
        c for c in all_commits(paths) if run in (None, c.run) and episode in (None, c.episode)
    )
    files, size = absent(paths, chosen)
    click.echo(
        f"every file that is here is as it was committed; {files} files, {size_text(size)}, "
        + ("are not cached" if opened.paths.remote else "were not pulled")
    )


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
def gc(store: StoreName | None, lease: float, dry_run: bool, as_json: bool) -> None:
    """Remove what no commit refers to: broken-off attempts, replaced revisions, old catalogs."""
    from attnstore.store.commits.garbage import collect
    from attnstore.store.opening import open_store

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


@click.command()
@store_option
@click.option("--run", help="The run, if several have the episode.")
@click.option("--episode", help="Remove this episode: its name, or its id.")
@click.option("--part", help="Only this part of the episode; all by default.")
@click.option("--entry", type=click.IntRange(min=1), metavar="NUMBER",
              help="Give up an entry of the commit log that cannot be read: what it said is lost.")  # fmt: skip
def remove(
    store: StoreName | None, run: str | None, episode: str | None, part: str | None,
    entry: int | None,
) -> None:  # fmt: skip
    """Take an episode, or a part of it, out of the store.

    It may be ingested again. Its files stay until `attnstore gc` finds them older than its lease.
    """
    from attnstore.store.commits import committed_names, give_up_entry, remove_part, slug
    from attnstore.store.opening import open_store

    if (episode is None) == (entry is None):
        raise UsageError("name what to remove: --episode NAME, or --entry NUMBER")
    paths = open_store(need_store(store))
    if entry is not None:
        give_up_entry(paths, entry)
        click.echo(f"entry {entry} is given up")
        return
    assert episode is not None
    found = []
    for each in committed_names(paths) if run is None else [run]:
        known = committed_names(paths, each)
        exact = [e for e in known if e in (episode, slug(episode))]
        stem = slug(episode).rsplit("-", 1)[0]
        found += [(each, e) for e in exact or known if e in exact or e.rsplit("-", 1)[0] == stem]
    if not found:
        raise NotFoundError(
            f"{paths.name}: no episode {episode!r}" + (f" in run {run}" if run else "")
        )
    if len(found) > 1:
        choices = ", ".join(f"{e} in run {r}" for r, e in found)
        raise UsageError(f"{episode!r} is not one episode: {choices}; name the id, or --run")
    ((of, id),) = found
    for name in [part] if part is not None else committed_names(paths, of, id):
        remove_part(paths, (of, id, name))
        click.echo(f"removed {name} of {id} (run {of})")


@click.group()
def catalog() -> None:
    """Look after the DuckDB catalog, a cache that the commits can rebuild."""


@catalog.command()
@store_option
def rebuild(store: StoreName | None) -> None:
    """Build a new generation of the catalog from the commits alone."""
    from attnstore.store.catalog import rebuild as build
    from attnstore.store.opening import open_store

    generation = build(open_store(need_store(store)))
    click.echo(f"catalog generation {generation.number}")


@catalog.command()
@store_option
def refresh(store: StoreName | None) -> None:
    """Bring the catalog up to date; SQL does it by itself."""
    from attnstore.store.catalog import refresh as update
    from attnstore.store.opening import open_store

    generation = update(open_store(need_store(store)))
    click.echo(f"catalog generation {generation.number}")

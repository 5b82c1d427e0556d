"""``attnstore verify``, ``gc`` and ``catalog``: the store's health."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import IntegrityError, UsageError

from .options import (
    EpisodeChoice,
    FiniteNumber,
    StoreCommand,
    StoreGroup,
    StoreName,
    episode_options,
    json_option,
    store_to_read,
    store_to_write,
)
from .output import Advance, print_json, progress_of, size_text

if TYPE_CHECKING:
    from attnstore.store.commits import Commit, StorePaths
    from attnstore.store.commits.verify import Problem
    from attnstore.store.remote.mirror import MirrorPaths


@click.command(cls=StoreCommand)
@store_to_read
@episode_options
@click.option("--source", is_flag=True,
              help="Of a store at a URL, every file that is there: all is downloaded, and not kept.")  # fmt: skip
@click.option("--quick", is_flag=True,
              help="Only whether every file is there, of its size: seconds where reading all takes hours. "
                   "Changed bytes are not seen.")  # fmt: skip
@json_option
def verify(
    store: StoreName, episodes: EpisodeChoice, source: bool, quick: bool, as_json: bool
) -> None:
    """Compare every committed file with the size and SHA-256 of its commit.

    Of a pulled copy, what was pulled; of a store at a URL, what is in its cache, or with --source
    what is there. Exit code 4 if anything is not as committed.

    Examples
    --------
    attnstore verify lab.attn
    attnstore verify lab.attn --quick
    attnstore verify s3://lab/pi0.attn --source
    attnstore verify lab.attn --episode 2025-12-11_10-04-31 --json
    """
    from attnstore.store.commits.verify import verify as check
    from attnstore.store.opening import open_paths

    if source and quick:
        raise UsageError("--source reads every file that is there; --quick reads none")
    opened = open_paths(store)
    elsewhere = _at_its_url(opened) if source else None
    paths = opened.cached()
    chosen: list[tuple[str, str]] | None = None
    if episodes != EpisodeChoice():
        from attnstore.query import Store

        chosen = [(each.run, e) for each in episodes.by_run(Store(opened)) for e in each.episodes]

    commits: list[Commit] = []

    def problems(advance: Advance) -> Iterator[Problem]:
        if elsewhere is not None:
            from attnstore.store.remote.source import verify_source

            yield from verify_source(elsewhere, chosen, advance)
        elif chosen is None:
            yield from check(paths, quick=quick, progress=advance, looked_at=commits.append)
        else:
            for number, (run, episode) in enumerate(chosen):
                advance(number / len(chosen), episode)
                yield from check(paths, run, episode, quick=quick, looked_at=commits.append)

    count = 0
    with progress_of("verify") as advance:
        for problem in problems(advance):
            count += 1
            if as_json:
                print_json([asdict(problem)])
            else:
                click.echo(str(problem))
    if count and paths.partial and elsewhere is None:
        raise IntegrityError(
            f"{count} problems in {paths.root}; a file is repaired by deleting it and "
            + ("reading it again" if opened.remote else "pulling again")
        )
    if count:
        raise IntegrityError(
            f"{count} problems; an episode is repaired by `attnstore remove STORE --episode NAME` and "
            "ingesting it again"
        )
    if as_json:
        return
    said = "of its size, its bytes not read" if quick else "as it was committed"
    if elsewhere is not None:
        from attnstore.store.commits import all_commits

        commits += [
            each
            for each in all_commits(elsewhere)
            if chosen is None or (each.run, each.episode) in chosen
        ]
    if not paths.partial or elsewhere is not None:
        count = sum(len(each.files) for each in commits)
        size = sum(file.size for each in commits for file in each.files)
        then = f"attnstore verify {store}" if quick else f"attnstore ls {store}"
        click.echo(
            f"every committed file is {said}: {count} files, {size_text(size)}; next: {then}"
            + (" reads their bytes, too" if quick else "")
        )
        return
    from attnstore.store.remote.pull import absent

    files, size = absent(paths, commits)
    click.echo(
        f"every file that is here is {said}; {files} files, {size_text(size)}, "
        + ("are not cached" if opened.remote else "were not pulled")
        + f"; next: attnstore {'verify' if opened.remote else 'ls'} {store}"
        + (" --source reads them there" if opened.remote else "")
    )


def _at_its_url(opened: StorePaths) -> MirrorPaths:
    from attnstore.store.remote.mirror import MirrorPaths

    if not isinstance(opened, MirrorPaths):
        raise UsageError(f"--source is for a store at a URL; {opened.name} is here")
    return opened


@click.command(cls=StoreCommand)
@store_to_write
@click.option(
    "--lease",
    type=FiniteNumber(min=0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="Younger attempts may still be written and are kept.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@json_option
def gc(store: StoreName, lease: float, dry_run: bool, as_json: bool) -> None:
    """Remove what no commit refers to: broken-off attempts, replaced revisions, old catalogs.

    Examples
    --------
    attnstore gc lab.attn --dry-run
    """
    from attnstore.store.garbage import collect
    from attnstore.store.opening import open_store

    with progress_of("gc") as advance:
        collected = collect(
            open_store(store), timedelta(hours=lease), dry_run=dry_run, progress=advance
        )
    if as_json:
        print_json([asdict(collected)])
        return
    verb = "would remove" if dry_run else "removed"
    click.echo(
        f"{verb} {len(collected.attempts)} attempts, "
        f"{len(collected.revisions)} replaced revisions, {len(collected.generations)} catalogs, "
        f"{len(collected.temporary)} temporary files: "
        f"{size_text(collected.bytes)}"
        + (f"; {len(collected.uploads)} unfinished uploads" if collected.uploads else "")
        + f"; next: attnstore {'gc' if dry_run else 'verify'} {store}"
    )


@click.command(cls=StoreCommand)
@store_to_write
@episode_options
@click.option("--part", metavar="NAME", help="Only this part of the episodes; all by default.")
@click.option("--entry", type=click.IntRange(min=1), metavar="NUMBER",
              help="Give up an entry of the commit log that cannot be read: what it said is lost.")  # fmt: skip
def remove(store: StoreName, episodes: EpisodeChoice, part: str | None, entry: int | None) -> None:
    """Take episodes, or a part of them, out of the store.

    They may be ingested again. Their files stay until `attnstore gc` finds them older than its lease.

    Examples
    --------
    attnstore remove lab.attn --episode 2025-12-11_10-04-31
    attnstore remove lab.attn --episode '*' --part probe-1a2b3c4d5e
    """
    from attnstore.query import open as open_for_reading
    from attnstore.store.commits import committed_names, give_up_entry, remove_part
    from attnstore.store.opening import open_store

    named = bool(episodes.names) or episodes.where is not None
    if named == (entry is not None):
        raise UsageError("name what to remove: --episode NAME, --where SQL, or --entry NUMBER")
    paths = open_store(store)
    if entry is not None:
        give_up_entry(paths, entry)
        click.echo(f"entry {entry} is given up")
        return
    chosen = episodes.of_one_run(open_for_reading(store))
    for episode in chosen.episodes:
        for name in committed_names(paths, chosen.run, episode) if part is None else [part]:
            remove_part(paths, (chosen.run, episode, name))
            click.echo(f"removed {name} of {episode} (run {chosen.run})")


@click.group(cls=StoreGroup)
def catalog() -> None:
    """Look after the DuckDB catalog, a cache that the commits can rebuild."""


@catalog.command()
@store_to_write
def rebuild(store: StoreName) -> None:
    """Build a new generation of the catalog from the commits alone.

    Examples
    --------
    attnstore catalog rebuild lab.attn
    """
    from attnstore.store.catalog import rebuild as build
    from attnstore.store.opening import open_store

    with progress_of("catalog") as advance:
        generation = build(open_store(store), advance)
    click.echo(f"catalog generation {generation.number}; next: attnstore ls {store}")


@catalog.command()
@store_to_write
def refresh(store: StoreName) -> None:
    """Bring the catalog up to date; SQL does it by itself.

    Examples
    --------
    attnstore catalog refresh lab.attn
    """
    from attnstore.store.catalog import refresh as update
    from attnstore.store.opening import open_store

    generation = update(open_store(store))
    click.echo(f"catalog generation {generation.number}; next: attnstore ls {store}")

"""``attnstore pull`` and ``push``: a copy of a store on this machine, or in a bucket."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from attnstore.store.errors import PartialError

from .options import (
    EpisodeChoice,
    OutputPath,
    StoreCommand,
    StoreName,
    episode_options,
    json_option,
    store_to_read,
)
from .output import bar_of, print_json, size_text

if TYPE_CHECKING:
    from attnstore.query import Store
    from attnstore.store.commits import Commit
    from attnstore.store.remote.pull import Pulled, PullPlan

TIERS = ("catalog", "maps", "full")  # as store.tiers, which would import pyarrow for --help


@click.command(cls=StoreCommand)
@store_to_read
@click.argument("dest", type=OutputPath(directory=True))
@click.option("--tier", type=click.Choice(TIERS), default="maps", show_default=True,
              help="catalog: SQL over episodes; maps: also images, overview maps and statistics of "
                   "every keyframe; full: also all weights.")  # fmt: skip
@episode_options
@click.option("--dry-run", is_flag=True, help="Only say how much would be copied.")
@json_option
def pull(
    store: StoreName,
    dest: Path,
    tier: str,
    episodes: EpisodeChoice,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Copy a store, or a tier of some of its episodes, to DEST, which opens without the source.

    Every file is compared with the SHA-256 of its commit. What is there already is not copied
    again: the same command resumes after an interruption, brings what is new, and with a higher
    tier adds to what is there. Linear probes and predictions of failure come with all episodes of their
    run; where only some are chosen they stay, and are named. Exit code 5 if some episodes could not be had whole.

    Examples
    --------
    attnstore pull https://host/pi05.attn pi05.attn --tier maps --dry-run
    attnstore pull s3://bucket/pi05.attn pi05.attn --tier full --where "outcome = 'failure'"
    """
    from attnstore.query import open as open_for_reading
    from attnstore.store.catalog import refresh
    from attnstore.store.commits import unreadable_entries
    from attnstore.store.opening import open_store
    from attnstore.store.remote.mirror import transport_for
    from attnstore.store.remote.pull import plan_pull
    from attnstore.store.remote.pull import pull as carry_out

    opened = open_for_reading(store)
    chosen = None if episodes == EpisodeChoice() else chosen_ids(opened, episodes)
    plan = plan_pull(opened.paths, dest, tier, chosen)  # type: ignore[arg-type]  # click's choices
    for part in plan.left_out:
        click.echo(f"not taken: {part}", err=True)
    for conflict in plan.conflicts:
        click.echo(f"kept as it is in {dest}: {conflict} was committed there as well", err=True)
    if not as_json:
        click.echo(forecast(plan), err=not dry_run)
    if dry_run:
        if as_json:
            print_json([_json(plan, None)])
        return
    name = store if isinstance(store, str) else str(store.resolve())
    with _bar() as bar:
        task = bar.add_task("", total=plan.bytes)

        def advance(size: int, commit: Commit) -> None:
            shown = commit.summary.get("name", commit.episode)
            bar.update(task, advance=size, description=str(shown)[-40:])

        done = carry_out(plan, transport_for(opened.paths), name, advance)
    refresh(open_store(dest))
    if as_json:
        print_json([_json(plan, done)])
    else:
        click.echo(
            f"{dest}: {done.parts} new parts, {size_text(done.bytes)} copied; next: attnstore ls {dest}"
        )
    entries = [
        f"{file}: {reason}"
        for file, reason in unreadable_entries(opened.paths)
        if not any(file in line for line in plan.unreadable)
    ]
    failed = [*done.failed, *plan.unreadable, *entries]
    if failed:
        for line in failed:
            click.echo(f"not pulled: {line}", err=True)
        count = len(plan.parts) + len(plan.unreadable) + len(entries)
        others = f"the others are in {dest}, and " if len(failed) < count else ""
        raise PartialError(
            f"{len(failed)} of {count} parts were not pulled; {others}the same command tries these "
            "again"
        )


@click.command(cls=StoreCommand)
@store_to_read
@click.argument("url")
@episode_options
@click.option("--dry-run", is_flag=True, help="Only say how much would be copied.")
@json_option
def push(store: StoreName, url: str, episodes: EpisodeChoice, dry_run: bool, as_json: bool) -> None:
    """Copy a store, or some of its episodes, from this machine to a bucket: s3://BUCKET/PATH.

    Every file is compared with the SHA-256 of its commit, and the server compares what arrives. What
    is there already is not copied again: the same command resumes after an interruption, and brings
    what is new. Exit code 5 if some episodes could not be copied whole.

    Examples
    --------
    attnstore push lab.attn s3://lab/pi0.attn --dry-run
    attnstore push lab.attn s3://lab/pi0.attn --where "outcome = 'failure'"
    """
    from attnstore.query import open as open_for_reading
    from attnstore.store.remote.push import plan_push
    from attnstore.store.remote.push import push as carry_out

    opened = open_for_reading(store)
    chosen = None if episodes == EpisodeChoice() else chosen_ids(opened, episodes)
    plan = plan_push(opened.paths, url, chosen)
    for part in plan.left_out:
        click.echo(f"not taken: {part}", err=True)
    for conflict in plan.conflicts:
        click.echo(f"kept as it is at {url}: {conflict} was committed there as well", err=True)
    if not as_json:
        there = plan.total - plan.bytes
        click.echo(
            f"{plan.episodes} episode{'' if plan.episodes == 1 else 's'}: {size_text(plan.bytes)} in "
            f"{plan.files} files to copy to {url}"
            + (f"; {size_text(there)} are there already" if there else ""),
            err=not dry_run,
        )
    row: dict[str, Any] = {
        "target": url, "episodes": plan.episodes, "files": plan.files, "bytes": plan.bytes,
        "total_bytes": plan.total, "conflicts": list(plan.conflicts), "left_out": list(plan.left_out),
    }  # fmt: skip
    if dry_run:
        if as_json:
            print_json([row])
        return
    with _bar() as bar:
        task = bar.add_task("", total=plan.bytes)

        def advance(size: int, commit: Commit) -> None:
            shown = commit.summary.get("name", commit.episode)
            bar.update(task, advance=size, description=str(shown)[-40:])

        done = carry_out(plan, advance)
    if as_json:
        told = {"new_parts": done.parts, "copied_bytes": done.bytes, "failed": list(done.failed)}
        print_json([row | told])
    else:
        click.echo(
            f"{url}: {done.parts} new parts, {size_text(done.bytes)} copied; next: attnstore verify {url} --source"
        )
    failed = [*done.failed, *plan.unreadable]
    if failed:
        for line in failed:
            click.echo(f"not pushed: {line}", err=True)
        raise PartialError(
            f"{len(failed)} of {len(plan.parts) + len(plan.unreadable)} parts were not pushed; the "
            "same command tries these again"
        )


def chosen_ids(store: Store, episodes: EpisodeChoice) -> list[tuple[str, str]]:
    """Return the chosen episodes as (run, episode)."""
    return [(each.run, id) for each in episodes.by_run(store) for id in each.episodes]


def forecast(plan: PullPlan) -> str:
    """Say what a pull copies."""
    here = plan.total - plan.bytes
    return (
        f"{plan.episodes} episode{'' if plan.episodes == 1 else 's'}, tier {plan.tier}: "
        f"{size_text(plan.bytes)} in {plan.files} files "
        f"to copy to {plan.target}" + (f"; {size_text(here)} are there already" if here else "")
    )


def _json(plan: PullPlan, done: Pulled | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "target": str(plan.target), "tier": plan.tier, "episodes": plan.episodes,
        "files": plan.files, "bytes": plan.bytes, "total_bytes": plan.total,
        "conflicts": list(plan.conflicts), "left_out": list(plan.left_out),
    }  # fmt: skip
    if done is not None:
        row |= {"new_parts": done.parts, "copied_bytes": done.bytes, "failed": list(done.failed)}
    return row


def _bar() -> AbstractContextManager[Progress]:
    return bar_of(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(), transient=True,
    )  # fmt: skip

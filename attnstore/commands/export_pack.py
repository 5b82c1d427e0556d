"""``attnstore export pack``: a small store, and a page of it that opens without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import MissingExtraError, PartialError, UsageError

from .options import (
    EpisodeChoice,
    StoreCommand,
    StoreName,
    episode_options,
    json_option,
    layers_option,
    out_directory,
    store_to_read,
)
from .output import print_json, progress_of, say_made, size_text
from .pull import chosen_ids, forecast

if TYPE_CHECKING:
    from attnstore.store.commits import Commit

MEGABYTES = 150
"""Largest page: browsers open it in seconds."""


@click.command(cls=StoreCommand)
@store_to_read
@out_directory("Directory to write: index.html and the store.")
@episode_options
@layers_option
@click.option("--phase", "phases", metavar="NAME", multiple=True,
              help="Of the page: only this phase; repeatable.")  # fmt: skip
@click.option("--all-steps", is_flag=True, help="In the page every step, and not only the last.")
@click.option("--max-size", type=click.IntRange(min=1), default=MEGABYTES, show_default=True,
              metavar="MB", help="Largest page.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say how large it would be.")
@json_option
def pack(
    store: StoreName, out: Path, episodes: EpisodeChoice, layers: tuple[int, ...] | None,
    phases: tuple[str, ...], all_steps: bool, max_size: int, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write some episodes as a directory to hand on: a small store and index.html.

    The page is the viewer with its answers in it. It opens in a browser from the disk, needs no
    server and asks none. The store beside it is the tier `maps`, as `attnstore pull` copies it.

    Examples
    --------
    attnstore export pack lab.attn --out failures --where "outcome = 'failure'" --layers 5,10 --dry-run
    """
    from attnstore.query import open as open_for_reading
    from attnstore.store.catalog import refresh
    from attnstore.store.opening import open_store
    from attnstore.store.remote.mirror import transport_for
    from attnstore.store.remote.pull import plan_pull, pull

    try:
        from attnstore.render.export.pack.questions import Chosen
        from attnstore.render.export.pack.write import estimate, write_pack
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("attnstore"):
            raise
        raise MissingExtraError(
            f"export pack needs {error.name}: pip install 'attnstore[serve]'"
        ) from None
    opened = open_for_reading(store)
    rows = chosen_ids(opened, episodes)
    target = out / Path(str(store).rstrip("/")).name
    plan = plan_pull(opened.paths, target, "maps", rows)
    if plan.conflicts:
        raise UsageError(
            f"{target} has commits of its own ({plan.conflicts[0]}); choose another --out"
        )
    chosen = Chosen(phases or None, None if layers is None else list(layers), all_steps)
    packed_episodes = [opened.episode(name, run=own) for own, name in rows]
    for episode in packed_episodes:
        for phase in phases:
            episode.layers(phase)
    about = estimate(packed_episodes, chosen)
    if as_json:
        print_json([{"event": "forecast", "episodes": len(rows), "store_bytes": plan.total,
                     "page_bytes_about": about}])  # fmt: skip
    else:
        click.echo(f"{forecast(plan)}; page about {size_text(about)}")
    if dry_run:
        return
    if about > 2 * (max_size << 20):
        from attnstore.render.export.pack.answers import too_large

        raise UsageError(too_large(about, max_size << 20))
    name = store if isinstance(store, str) else str(store.resolve())
    with progress_of("store") as advance:
        copied = 0

        def count(size: int, commit: Commit) -> None:
            nonlocal copied
            copied += size
            advance(copied / max(1, plan.bytes), str(commit.summary.get("name", commit.episode)))

        done = pull(plan, transport_for(opened.paths), name, count)
    if done.failed:
        raise PartialError(f"{done.failed[0]}; no page was written, the same command tries again")
    refresh(open_store(target))
    with progress_of("page") as advance:
        packed = write_pack(target, out, chosen, max_size << 20, advance)
    if as_json:
        print_json([{"event": "written", "path": str(packed.page), "bytes": packed.size,
                     "store": str(target)}])  # fmt: skip
        return
    say_made(
        f"{packed.page}: {size_text(packed.size)}; the store beside it opens with "
        f"attnstore.open({str(target)!r})",
        f"open it in a browser, or send {out} on",
    )

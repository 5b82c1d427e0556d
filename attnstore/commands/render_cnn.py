"""``attnstore render cnn``: pictures of what ``attnstore cnn`` computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import StoreCommand, StoreName, json_option, out_directory, store_to_read
from .output import print_json, progress_of, say_made


@click.command("cnn", cls=StoreCommand)
@store_to_read
@out_directory("Directory to write below.")
@click.option("--kind", "kinds", type=click.Choice(["filters", "activations", "guided"]),
              multiple=True, help="Only these results; repeatable.")  # fmt: skip
@click.option("--network", help="Only this network.")
@click.option("--layer", "layers", multiple=True, help="Only this layer; repeatable.")
@click.option("--run", help="Only this run.")
@click.option("--episode", help="Only this episode, or picture file's name.")
@click.option("--columns", type=click.IntRange(1, 64), default=8, show_default=True,
              help="Pictures in a row.")  # fmt: skip
@click.option("--height", type=click.IntRange(32, 1024), default=160, show_default=True,
              metavar="PIXELS", help="Of a small picture.")  # fmt: skip
@click.option("--cmap", default="inferno", show_default=True, help="Of feature maps.")
@click.option("--singles/--no-singles", default=True, show_default=True,
              help="Draw every filter on its own, too.")  # fmt: skip
@click.option("--videos/--no-videos", default=True, show_default=True,
              help="Of the ascent, and over keyframes.")  # fmt: skip
@click.option("--codec", type=click.Choice(["vp9", "av1", "h264", "mjpeg"]), default="vp9",
              show_default=True, help="Of the videos.")  # fmt: skip
@json_option
def render_cnn(
    store: StoreName, out: Path, kinds: tuple[str, ...], network: str | None,
    layers: tuple[str, ...], run: str | None, episode: str | None, as_json: bool, **look: Any,
) -> None:  # fmt: skip
    """Draw the results of `attnstore cnn`: grids, single filters, videos.

    Examples
    --------
    attnstore render cnn lab.attn --out filters --kind filters
    """
    from attnstore.query import open as open_for_reading
    from attnstore.query.cnn import cnn_results
    from attnstore.render.cnn.results import write_results

    opened = open_for_reading(store)
    found = cnn_results(
        opened, run=run, episode=episode, kinds=kinds, network=network, layers=layers
    )
    count = 0
    with progress_of("render cnn") as advance:
        for path in write_results(found, out, progress=advance, **look):
            count += 1
            if as_json:
                print_json([{"event": "written", "path": str(path)}])
    if not as_json:
        say_made(f"{count} files below {out}", "open the folder, or send it on")

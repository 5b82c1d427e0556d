"""``attnstore export``: numbers of the store in the formats of others."""

from __future__ import annotations

from pathlib import Path

import click

from attnstore.store.errors import UsageError

from .options import console, need_store, store_option


@click.group()
def export() -> None:
    """Write what the store knows into datasets of other formats."""


@export.command()
@click.argument("dataset")
@click.argument("target", type=click.Path(path_type=Path))
@store_option
@click.option("--sql", "query", help="Query that gives episode, frame and numbers.")
@click.option(
    "--file",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the query from a file.",
)
@click.option(
    "--prefix", default="attention.", show_default=True, help="Put before the columns' names."
)
@click.option(
    "--fill",
    type=click.Choice(["nan", "hold"]),
    default="nan",
    show_default=True,
    help="Between keyframes: NaN, or the last keyframe's number.",
)
@click.option("--link-videos", is_flag=True, help="Link to the original's videos, not copy them.")
def lerobot(
    dataset: str,
    target: Path,
    store: Path | None,
    query: str | None,
    file: Path | None,
    prefix: str,
    fill: str,
    link_videos: bool,
) -> None:
    r"""Copy the LeRobotDataset DATASET to TARGET, with numbers per frame as further columns.

    The original is only read. The query gives one row a frame: `episode` (episodes.name), `frame`
    (keyframes.frame) and the numbers, which become float32 features named PREFIX + column.

    \b
    attnstore export lerobot my-dataset my-dataset-attention --sql "
      select e.name as episode, k.frame, avg(s.entropy) as entropy
      from head_stats s join keyframes k using (run, episode, variant, keyframe)
      join episodes e using (run, episode)
      where s.phase = 'suffix' and s.layer = 5 and s.camera = 'top' group by all"
    """
    from attnstore.ingest.datasets.lerobot_export import export_copy
    from attnstore.query import open as open_for_reading

    if (query is None) == (file is None):
        raise UsageError("give one query: with --sql or with --file")
    text = query if file is None else file.read_text()
    relation = open_for_reading(need_store(store)).sql(text or "")
    added = export_copy(
        dataset, target, relation.columns, relation.fetchall(),
        prefix=prefix, fill=fill, link_videos=link_videos,
    )  # fmt: skip
    console().print(f"{target}: {', '.join(added)}", markup=False, soft_wrap=True)

"""``attnstore export``: what the store knows in the formats of others."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import UsageError

from .export_pack import pack
from .hidden import export_hidden_command
from .options import (
    EpisodeChoice,
    OutputPath,
    StoreGroup,
    StoreName,
    active_option,
    cameras_option,
    episode_options,
    json_option,
    layers_option,
    out_file,
    phases_option,
    store_to_read,
    weighting_option,
)
from .output import print_json, progress_of, say_made, size_text

if TYPE_CHECKING:
    from attnstore.store.format.weighting import Weighting
    from attnstore.store.rules import Active


@click.group(cls=StoreGroup)
def export() -> None:
    """Write what the store knows in the formats of others."""


export.add_command(pack)
export.add_command(export_hidden_command)


@export.command()
@store_to_read
@click.argument("dataset")
@click.argument("target", type=OutputPath(directory=True))
@click.option("--sql", "query", metavar="SQL", help="Query that gives episode, frame and numbers.")
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
    store: StoreName,
    dataset: str,
    target: Path,
    query: str | None,
    file: Path | None,
    prefix: str,
    fill: str,
    link_videos: bool,
) -> None:
    """Copy the LeRobotDataset DATASET to TARGET, with numbers per frame as further columns.

    The original is only read. The query gives one row a frame: `episode` (episodes.name), `frame`
    (keyframes.frame) and the numbers, which become float32 features named PREFIX + column.

    Examples
    --------
    attnstore export lerobot lab.attn my-dataset my-dataset-attention --sql "
      select e.name as episode, k.frame, avg(s.entropy) as entropy
      from head_stats s join keyframes k using (run, episode, variant, keyframe)
      join episodes e using (run, episode)
      where s.weighting = 'raw' and s.phase = 'suffix' and s.layer = 5 and s.camera = 'top' group by all"
    """
    from attnstore.ingest.datasets.lerobot.export import export_copy
    from attnstore.query import open as open_for_reading

    if (query is None) == (file is None):
        raise UsageError("give one query: with --sql or with --file")
    text = query if file is None else file.read_text()
    relation = open_for_reading(store).sql(text or "")
    rows = relation.fetchall()
    with progress_of("copy") as advance:
        added = export_copy(
            dataset, target, relation.columns, rows,
            prefix=prefix, fill=fill, link_videos=link_videos, progress=advance,
        )  # fmt: skip
    say_made(
        f"{target}: {', '.join(added)}, of {len(rows)} rows",
        f'LeRobotDataset("{target.name}", root="{target}")',
    )


@export.command()
@store_to_read
@out_file("File to write, *.rrd.", ".rrd", required=True)
@episode_options
@layers_option
@phases_option
@cameras_option
@click.option("--metric", "metrics", multiple=True, default=("entropy", "camera_mass"),
              show_default=True, help="Column of head_stats to plot; repeatable.")  # fmt: skip
@click.option("--reduce", type=click.Choice(["max", "mean"]), default="max", show_default=True,
              help="Of maps, over the query tokens.")  # fmt: skip
@click.option("--all-steps", is_flag=True,
              help="Heat and maps of every step, and not only of the one that pictures show.")  # fmt: skip
@active_option
@click.option("--cmap", default="inferno", show_default=True, help="Colour map of the heat.")
@click.option("--scale", metavar="frame|video|LOW:HIGH", default="video", show_default=True,
              help="Ends of the colours: per keyframe, one for all, or fixed.")  # fmt: skip
@json_option
def rerun(
    store: StoreName, out: Path, episodes: EpisodeChoice, layers: tuple[int, ...] | None,
    phases: tuple[str, ...], cameras: tuple[str, ...], metrics: tuple[str, ...], reduce: str,
    all_steps: bool, active: Active, cmap: str, scale: str, as_json: bool,
) -> None:  # fmt: skip
    """Write an episode as a recording for Rerun: images, heat, maps, metrics and actions.

    Of one episode, the first of those chosen. Timelines are keyframe, frame, time, and one for the
    steps of each phase that has any.

    Examples
    --------
    attnstore export rerun lab.attn --episode 2025-12-11_10-04-31 --out one.rrd --layers 5,10
    rerun one.rrd
    """
    from attnstore.query import open as open_for_reading
    from attnstore.render.export.rerun import Recorded, write_recording
    from attnstore.render.picture.scale import ColorScale

    what = Recorded(
        phases or None, cameras or None, None if layers is None else list(layers), metrics,
        reduce,  # type: ignore[arg-type]  # click checked it
        all_steps, cmap, ColorScale.parse(scale), active,
    )  # fmt: skip
    episode = episodes.open_one(open_for_reading(store))
    with progress_of("rerun") as advance:
        write_recording(episode, out, what, advance)
    size = out.stat().st_size
    if as_json:
        print_json([{"event": "written", "path": str(out), "bytes": size}])
        return
    say_made(
        f"{out}: {episode.name}, {len(episode.frames)} keyframes, {size_text(size)}",
        f"rerun {shlex.quote(str(out))}",
    )


@export.command()
@store_to_read
@click.argument("target", type=OutputPath(directory=True))
@episode_options
@layers_option
@phases_option
@cameras_option
@click.option("--reduce", type=click.Choice(["max", "mean"]), default="max", show_default=True,
              help="Of maps, over the query tokens.")  # fmt: skip
@active_option
@weighting_option
@click.option("--scale", metavar="frame|video|LOW:HIGH", default="video", show_default=True,
              help="What 255 of the heat is: the maximum per keyframe, of the episode, or fixed.")  # fmt: skip
@json_option
def fiftyone(
    store: StoreName, target: Path, episodes: EpisodeChoice, layers: tuple[int, ...] | None,
    phases: tuple[str, ...], cameras: tuple[str, ...], reduce: str, active: Active,
    weighting: Weighting, scale: str, as_json: bool,
) -> None:  # fmt: skip
    """Write episodes to the folder TARGET as a dataset of FiftyOne: images, heat, objects.

    A sample is a camera's image at a keyframe; field heat_PHASE_L05 is the heat of layer 5's most active
    head, with its number, camera_mass and entropy; field objects has the boxes of masks that the store
    knows. Images are copied. FiftyOne need not be installed here.

    Examples
    --------
    attnstore export fiftyone lab.attn lab-fiftyone --layers 5,10 --where "outcome = 'failure'"
    """
    from attnstore.query import open as open_for_reading
    from attnstore.render.export.fiftyone import Shown, write_dataset
    from attnstore.render.picture.scale import ColorScale

    opened = open_for_reading(store)
    shown = Shown(
        phases or None, cameras or None, None if layers is None else list(layers),
        reduce,  # type: ignore[arg-type]  # click checked it
        ColorScale.parse(scale), active, weighting,
    )  # fmt: skip
    chosen = episodes.open(opened)
    with progress_of("fiftyone") as advance:
        written = write_dataset(chosen, target, shown, opened.paths.name, advance)
    if as_json:
        print_json([{"event": "written", "path": str(target), "samples": written.samples,
                     "fields": list(written.fields)}])  # fmt: skip
        return
    say_made(
        f"{target}: {written.samples} samples of {len(chosen)} episodes, {len(written.fields)} fields of heat",
        f'fiftyone.Dataset.from_dir(dataset_dir="{target}", dataset_type=fiftyone.types.FiftyOneDataset)',
    )

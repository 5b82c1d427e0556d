"""``attnstore ingest`` and ``attnstore policies``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import UsageError

from .ingest_options import episode_options, policy_options, run_options
from .ingest_run import load_and_ingest
from .options import json_option, print_json

if TYPE_CHECKING:
    from attnstore.ingest.datasets.base import VideoFrames


@click.group()
def ingest() -> None:
    """Run a policy on a dataset's keyframes and store its attention."""


@ingest.command()
@click.argument("path", type=click.Path(path_type=Path))
@policy_options
@click.option("--side", type=click.Choice(["left", "right"]), default="left", show_default=True,
              help="Side camera: left is varied_camera_1, right is varied_camera_2.")  # fmt: skip
@episode_options
@click.option(
    "--frames",
    "frames_rule",
    type=click.Choice(["strict", "shortest"]),
    default="strict",
    show_default=True,
    help="When cameras and trajectory differ in length.",
)
@run_options
def droid(
    path: Path,
    side: str,
    outcome: str | None,
    episodes: str | None,
    limit: int | None,
    video_frames: VideoFrames,
    frames_rule: str,
    dataset_name: str | None,
    **run: Any,
) -> None:
    """Ingest episodes in the DROID layout: outcome/date/episode below PATH.

    Episodes that the run has already are skipped, so the same command resumes after a crash.
    Broken episodes are named and the others go on; the exit code is then 5.
    """
    from attnstore.ingest.datasets.droid import DroidDataset

    dataset = DroidDataset(
        path,
        side=side,
        outcome=outcome,
        episodes=episodes,
        limit=limit,
        frames=frames_rule,
        video_frames=video_frames,
        name=dataset_name,
    )
    load_and_ingest(dataset, **run)


@ingest.command()
@click.argument("source", metavar="PATH|HUB_ID")
@policy_options
@click.option("--dataset-revision", help="Hub revision of the dataset.")
@click.option(
    "--camera",
    "cameras",
    multiple=True,
    help="Camera, in the order in which the policy gets them; repeatable.  [default: all]",
)
@click.option(
    "--state-column",
    "state",
    multiple=True,
    default=("observation.state",),
    show_default=True,
    help="Column of the robot state; several are joined.",
)
@click.option(
    "--action-column",
    "action",
    multiple=True,
    help="Column of the recorded action; several are joined.  [default: action, if there is one]",
)
@click.option(
    "--outcome-column", help="Column of frames or episodes with the outcome: next.success."
)
@click.option(
    "--outcome-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV or JSON with the outcome by episode_index.",
)
@episode_options
@click.option(
    "--tolerance",
    type=float,
    default=1e-4,
    show_default=True,
    help="Seconds that a video frame may be off its row's time.",
)
@run_options
def lerobot(
    source: str,
    dataset_revision: str | None,
    cameras: tuple[str, ...],
    state: tuple[str, ...],
    action: tuple[str, ...],
    outcome_column: str | None,
    outcome_file: Path | None,
    outcome: str | None,
    episodes: str | None,
    limit: int | None,
    video_frames: VideoFrames,
    tolerance: float,
    dataset_name: str | None,
    **run: Any,
) -> None:
    """Ingest a LeRobotDataset, v2.0 to v3.0: a folder with meta/info.json, or a hub id.

    Episodes are called episode_000000; --episodes also takes numbers: '1?'. Of a hub dataset only
    the files of the asked episodes are fetched. Otherwise as `attnstore ingest droid`.
    """
    from attnstore.ingest.datasets.lerobot import LeRobotDataset

    dataset = LeRobotDataset(
        source,
        revision=dataset_revision,
        cameras=cameras,
        state=state,
        action=action or None,
        outcome_column=outcome_column,
        outcome_file=outcome_file,
        outcome=outcome,
        episodes=episodes,
        limit=limit,
        tolerance=tolerance,
        video_frames=video_frames,
        name=dataset_name,
    )
    load_and_ingest(dataset, **run)


@click.command()
@json_option
def policies(as_json: bool) -> None:
    """List the policy adapters that are installed."""
    from importlib.metadata import entry_points

    from attnstore.ingest.policies.registry import ENTRY_POINTS

    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name)
    if not points:
        raise UsageError("no policy adapter is installed")
    rows = [{"name": p.name, "adapter": p.value} for p in points]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            click.echo(f"{row['name']:<12} {row['adapter']}")

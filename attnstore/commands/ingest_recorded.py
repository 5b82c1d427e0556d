"""``attnstore ingest recording`` and ``openpi-records``: what a recorder kept while a policy drove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from attnstore.store.errors import PartialError, UsageError

from .ingest_choices import (
    PolicyChoice,
    RecordingChoice,
    RunChoice,
    force_option,
    hidden_options,
    policy_options,
    precision_option,
    recording_options,
    token_stats_option,
    values_option,
    vision_option,
)
from .ingest_run import load_and_ingest, run_ingest
from .options import (
    FiniteNumber,
    StoreCommand,
    StoreName,
    WorkersChoice,
    add_options,
    dry_run_option,
    grouped,
    json_option,
    limit_option,
    names_option,
    store_to_write,
    workers_options,
)
from .progress import interrupts


class _SourceCommand(StoreCommand):
    """A command whose second argument may be left out: then it is the first."""

    def expected_arguments(self, options: dict[str, Any], given: Sequence[str]) -> int:
        """One or two; one alone is STORE."""
        return max(1, len(given))


@click.command(cls=_SourceCommand)
@store_to_write
@click.argument("source", required=False, type=click.Path(path_type=Path))
@add_options(policy_options)
@names_option("episodes")
@click.option(
    "--outcome",
    type=click.Choice(["success", "failure", "unknown"]),
    help="Only episodes of this outcome.",
)
@limit_option
@click.option("--name", metavar="RECORDING", help="Which of a store's recordings.  [default: all]")
@click.option(
    "--tolerance",
    type=FiniteNumber(min=0),
    default=0.0,
    show_default=True,
    help="How far an action may be from the recorded one, normalised; 0: the same bits.",
)
@add_options(
    grouped(
        "run",
        RunChoice,
        precision_option,
        vision_option,
        token_stats_option,
        values_option,
        *hidden_options,
        dry_run_option,
        force_option,
    )
)
@add_options(workers_options, json_option)
def recording(
    store: StoreName,
    source: Path | None,
    policy: PolicyChoice,
    episodes: tuple[str, ...],
    outcome: str | None,
    limit: int | None,
    name: str | None,
    tolerance: float,
    run: RunChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    """Capture from what `attnstore.record` kept while a policy drove.

    SOURCE is a store with recordings, by default STORE itself, or a directory with journals. The
    policy acts again from the very same inputs, and its actions are held to the recorded ones; an
    episode in which they differ is quarantined with both. Otherwise as `attnstore ingest droid`.

    Examples
    --------
    attnstore ingest recording lab.attn --policy pi0 --checkpoint CHECKPOINT --device cuda
    attnstore ingest recording lab.attn robot.attn --policy pi0 --checkpoint CHECKPOINT
    """
    from attnstore.ingest.recording.dataset import RecordingDataset, recording_directories
    from attnstore.ingest.threads import limit_threads

    if source is None and not isinstance(store, Path):
        raise UsageError(
            f"recordings are local: name the store or the directory that has them; got {store}"
        )
    sources = [
        RecordingDataset(directory, outcome=outcome, episodes=episodes, limit=limit)
        for directory in recording_directories(Path(source or store), name)
    ]
    limit_threads(workers.workers)
    doers = workers.on(policy.device)
    failed: list[PartialError] = []
    with interrupts(finishing=None):
        loaded, spec = policy.load()
        for each in sources:
            each.check_policy(loaded, tolerance)
            try:
                run_ingest(
                    store, each, loaded, spec, replace(run, stride=1),
                    names=workers.share(each.episode_names(), each.file_of),
                    workers=doers, tolerance=tolerance, as_json=as_json,
                )  # fmt: skip
            except PartialError as error:
                failed.append(error)
    if failed:
        raise PartialError("; ".join(str(error) for error in failed))


@click.command("openpi-records", cls=StoreCommand)
@store_to_write
@click.argument("directory", type=click.Path(path_type=Path))
@add_options(policy_options)
@click.option(
    "--begin",
    "begins",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="STEP",
    help="Step at which an episode begins, too; repeatable.",
)
@click.option(
    "--pause",
    type=FiniteNumber(),
    metavar="SECONDS",
    help="A file so much younger than the one before begins an episode.",
)
@add_options(recording_options)
@add_options(
    grouped(
        "run",
        RunChoice,
        precision_option,
        click.option("--seed", type=int, default=0, show_default=True, help="Base of the noise seeds."),
        vision_option,
        token_stats_option,
        values_option,
        *hidden_options,
        dry_run_option,
        force_option,
    )
)  # fmt: skip
@add_options(workers_options, json_option)
def openpi_records(
    store: StoreName,
    directory: Path,
    policy: PolicyChoice,
    begins: tuple[int, ...],
    pause: float | None,
    recordings: RecordingChoice,
    run: RunChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    """Ingest what `serve_policy.py --record` of openpi wrote: step_N.npy below DIRECTORY.

    Every file is a keyframe. The files have no mark of an episode: one begins where the prompt or the
    cameras change, and where --begin or --pause say. They do not have the noise either, so the actions
    are not those that were given; `attnstore record openpi` keeps both. Otherwise as
    `attnstore ingest droid`. Nothing that a file's pickle asks for is run.

    Examples
    --------
    attnstore ingest openpi-records lab.attn policy_records --policy openpi:pi05_droid --checkpoint CHECKPOINT
    """
    from attnstore.ingest.datasets.openpi.records import RecordsDataset

    source = RecordsDataset(
        directory,
        begins=begins,
        pause=pause,
        outcome=recordings.outcome,
        episodes=recordings.episodes,
        limit=recordings.limit,
        video_frames=recordings.video_frames,
        name=recordings.dataset_name,
    )
    once = replace(run, stride=1)
    load_and_ingest(store, recordings.turned(source), policy, once, workers, as_json)

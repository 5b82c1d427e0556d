"""``attnstore ingest``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import UsageError

from .ingest_choices import (
    ColumnChoice,
    PolicyChoice,
    RecordingChoice,
    RunChoice,
    column_options,
    env_processor_option,
    instruction_option,
    outcome_file_option,
    policy_options,
    recording_options,
    run_options,
    still_recording_options,
)
from .ingest_recorded import openpi_records, recording
from .ingest_run import load_and_ingest
from .options import (
    FiniteNumber,
    StoreCommand,
    StoreGroup,
    StoreName,
    WorkersChoice,
    add_options,
    json_option,
    store_to_write,
    workers_options,
)
from .output import say

if TYPE_CHECKING:
    from attnstore.ingest.datasets.base import Dataset


class _Readers(StoreGroup):
    """The commands of attnstore's own readers, and one for each that another package announces."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all of them."""
        from attnstore.ingest.datasets.registry import reader_names

        return sorted({*super().list_commands(ctx), *reader_names()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name; attnstore's own come first."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        from attnstore.ingest.datasets.registry import reader_names

        return _command_of(cmd_name) if cmd_name in reader_names() else None


@click.group(cls=_Readers)
def ingest() -> None:
    """Run a policy on a dataset's keyframes and store its attention."""


@ingest.command()
@store_to_write
@click.argument("dataset", type=click.Path(path_type=Path))
@add_options(policy_options)
@click.option(
    "--side",
    type=click.Choice(["left", "right", "ext1", "ext2"]),
    help="Outer camera: left or ext1 is varied_camera_1, right or ext2 varied_camera_2; DROID's release has "
    "ext1 and ext2.  [default: the first]",
)
@click.option(
    "--frames",
    "frames_rule",
    type=click.Choice(["strict", "shortest"]),
    default="strict",
    show_default=True,
    help="When cameras and trajectory differ in length.",
)
@click.option(
    "--annotations",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="DROID's aggregated-annotations-*.json.  [default: the one in DATASET or above it]",
)
@click.option(
    "--instruction-column",
    "instruction",
    help="Of DROID's release: language_instruction2, current_task.  [default: language_instruction1, or its "
    "next that is not empty]",
)
@add_options(recording_options, run_options, workers_options, json_option)
def droid(
    store: StoreName,
    dataset: Path,
    policy: PolicyChoice,
    side: str | None,
    frames_rule: str,
    annotations: Path | None,
    instruction: str | None,
    recordings: RecordingChoice,
    run: RunChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    """Ingest episodes in the DROID layout: outcome/date/episode below DATASET.

    DROID's own release (droid_raw), with metadata_*.json and recordings/MP4, is recognised by that.
    Episodes that the run has already are skipped, so the same command resumes after a crash.
    Broken episodes are named and the others go on; the exit code is then 5.

    Examples
    --------
    attnstore ingest droid lab.attn EPISODES --policy pi0 --checkpoint CHECKPOINT --dry-run
    attnstore ingest droid lab.attn EPISODES --policy pi0 --checkpoint CHECKPOINT --device cuda
    """
    from attnstore.ingest.datasets.droid.dataset import DroidDataset

    source = DroidDataset(
        dataset,
        side=side,
        outcome=recordings.outcome,
        episodes=recordings.episodes,
        limit=recordings.limit,
        frames=frames_rule,
        video_frames=recordings.video_frames,
        annotations=annotations,
        instruction=instruction,
        name=recordings.dataset_name,
    )
    load_and_ingest(store, recordings.turned(source), policy, run, workers, as_json)


@ingest.command()
@store_to_write
@click.argument("dataset", metavar="PATH|HUB_ID")
@add_options(policy_options)
@click.option("--dataset-revision", help="Hub revision of the dataset.")
@add_options(column_options("all", "observation.state", "action, if there is one"))
@click.option(
    "--outcome-column", help="Column of frames or episodes with the outcome: next.success."
)
@outcome_file_option
@click.option(
    "--tolerance",
    type=FiniteNumber(),
    default=1e-4,
    show_default=True,
    help="Seconds that a video frame may be off its row's time.",
)
@env_processor_option
@add_options(recording_options, run_options, workers_options, json_option)
def lerobot(
    store: StoreName,
    dataset: str,
    policy: PolicyChoice,
    dataset_revision: str | None,
    columns: ColumnChoice,
    outcome_column: str | None,
    outcome_file: Path | None,
    tolerance: float,
    env_processor: str | None,
    recordings: RecordingChoice,
    run: RunChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    """Ingest a LeRobotDataset, v2.0 to v3.0: a folder with meta/info.json, or a hub id.

    Episodes are called episode_000000; --episode also takes numbers: '1?'. Of a hub dataset only
    the files of the asked episodes are fetched. Otherwise as `attnstore ingest droid`.

    Examples
    --------
    attnstore ingest lerobot lab.attn my-dataset --policy lerobot --checkpoint CHECKPOINT --dry-run
    attnstore ingest lerobot lab.attn user/dataset --policy lerobot --checkpoint user/policy
    """
    from attnstore.ingest.datasets.lerobot.dataset import LeRobotDataset

    source = LeRobotDataset(
        dataset,
        revision=dataset_revision,
        cameras=columns.cameras,
        state=columns.state or ("observation.state",),
        action=columns.action or None,
        outcome_column=outcome_column,
        outcome_file=outcome_file,
        outcome=recordings.outcome,
        episodes=recordings.episodes,
        limit=recordings.limit,
        tolerance=tolerance,
        video_frames=recordings.video_frames,
        name=recordings.dataset_name,
    )
    undecided = (
        "lerobot-eval --eval.recording wrote this dataset: its frames are raw, and the environment's "
        "processor may have turned them before the policy saw them (LIBERO's by 180); say what it did by "
        "--env-processor libero, --env-processor none, or --turn CAMERA=180"
    )
    recordings = _as_driven(
        source, recordings, env_processor, undecided if source.of_an_evaluation else None
    )
    if outcome_column is not None:
        _say_if_failures_are_missing(source.outcomes(), outcome_column)
    load_and_ingest(store, recordings.turned(source), policy, run, workers, as_json)


def _as_driven(
    source: Dataset, recordings: RecordingChoice, processor: str | None, undecided: str | None
) -> RecordingChoice:
    """Return the choice with every camera as the policy saw it while it drove.

    Parameters
    ----------
    undecided
        Why that has to be said; None if it has not.

    Raises
    ------
    UsageError
        If frames are raw, and it is not said what was done with them.
    """
    turned = recordings.turns or recordings.flips
    if undecided is not None and processor is None and not turned:
        raise UsageError(undecided)
    if processor != "libero":
        return recordings
    if turned:
        raise UsageError("--env-processor libero turns every camera; leave --turn and --flip out")
    return replace(recordings, turns=tuple(f"{camera}=180" for camera in source.cameras))


def _say_if_failures_are_missing(found: Mapping[str, int], column: str) -> None:
    if found["success"] > 1 and not found["failure"]:
        say(
            f"{column}: all {found['success']} episodes are successes; lerobot-eval --eval.recording saves no "
            "failed episode of an environment that does not end by itself, so there may be no failures to "
            "compare with"
        )


@ingest.command()
@store_to_write
@click.argument("dataset", type=click.Path(path_type=Path))
@add_options(policy_options)
@click.option("--split", help="Only this split: train.  [default: all]")
@add_options(
    column_options(
        "all with colour",
        "observation/state, or DROID's joints and gripper",
        "action, if that is numbers",
    )
)
@click.option(
    "--instruction-column",
    "instruction",
    help="Column of the instruction.  [default: language_instruction, or its next that is not empty]",
)
@click.option(
    "--outcome-column",
    help="Of the steps or the episode: reward.  [default: episode_metadata/success, or DROID's folder]",
)
@add_options(still_recording_options, run_options, workers_options, json_option)
def rlds(
    store: StoreName,
    dataset: Path,
    policy: PolicyChoice,
    split: str | None,
    columns: ColumnChoice,
    instruction: str | None,
    outcome_column: str | None,
    recordings: RecordingChoice,
    run: RunChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    """Ingest an RLDS dataset: DATASET has features.json and TFRecord files; no TensorFlow is needed.

    Episodes are called train/000042 after their split and place in it. Files that are not here are
    left out, and their number is said. Otherwise as `attnstore ingest droid`.

    Examples
    --------
    attnstore ingest rlds lab.attn droid/1.0.0 --policy pi0 --checkpoint CHECKPOINT --dry-run
    attnstore ingest rlds lab.attn bridge_dataset/1.0.0 --policy octo --checkpoint octo-small-1.5
    """
    from attnstore.ingest.datasets.rlds.dataset import RldsDataset
    from attnstore.ingest.datasets.selection import Selection

    source = RldsDataset(
        dataset,
        split=split,
        cameras=columns.cameras,
        state=columns.state,
        action=columns.action,
        instruction=instruction,
        outcome_column=outcome_column,
        selection=Selection(recordings.episodes, recordings.outcome, recordings.limit),
        name=recordings.dataset_name,
    )
    if absent := source.absent_files:
        say(
            f"{len(absent)} of its files are not here, the first {absent[0]}: their episodes are left out"
        )
    load_and_ingest(store, recordings.turned(source), policy, run, workers, as_json)


@ingest.command()
@store_to_write
@click.argument("dataset", type=click.Path(path_type=Path))
@add_options(policy_options)
@add_options(
    column_options(
        "all pictures in obs",
        "obs/ee_states and obs/gripper_states, or robomimic's robot0_*",
        "actions",
    )
)
@instruction_option
@click.option(
    "--outcome-column",
    help="Column or attribute of a demonstration: dones.  [default: rewards, if they are 0 and 1]",
)
@click.option("--filter-key", metavar="NAME", help="Only demonstrations of mask/NAME: valid.")
@env_processor_option
@add_options(still_recording_options, run_options, workers_options, json_option)
def robomimic(
    store: StoreName,
    dataset: Path,
    policy: PolicyChoice,
    columns: ColumnChoice,
    instruction: str | None,
    outcome_column: str | None,
    filter_key: str | None,
    env_processor: str | None,
    recordings: RecordingChoice,
    run: RunChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    """Ingest HDF5 demonstrations of LIBERO, MimicGen, RoboCasa or robomimic: a file, or a folder.

    Episodes are called open_the_drawer_demo/demo_12 after their file. LIBERO's pictures are stored
    upside down: --env-processor says how the policy saw them. Otherwise as `attnstore ingest droid`.

    Examples
    --------
    attnstore ingest robomimic lab.attn libero_goal --policy lerobot --checkpoint DIR --env-processor libero
    attnstore ingest robomimic lab.attn can_ph.hdf5 --policy pi0 --checkpoint DIR --instruction 'lift the can'
    """
    from attnstore.ingest.datasets.robomimic import RobomimicDataset
    from attnstore.ingest.datasets.selection import Selection

    source = RobomimicDataset(
        dataset,
        cameras=columns.cameras,
        state=columns.state,
        action=columns.action,
        instruction=instruction,
        outcome_column=outcome_column,
        filter_key=filter_key,
        selection=Selection(recordings.episodes, recordings.outcome, recordings.limit),
        name=recordings.dataset_name,
    )
    undecided = (
        "LIBERO stored these pictures upside down, and policies differ in how they saw them: pass "
        "--env-processor libero for openpi's, OpenVLA's and LeRobot's, which turn every camera by 180, "
        "--env-processor none for those that were trained on the files as they are, or --turn and --flip"
    )
    recordings = _as_driven(
        source, recordings, env_processor, undecided if source.upside_down else None
    )
    load_and_ingest(store, recordings.turned(source), policy, run, workers, as_json)


@ingest.command()
@store_to_write
@click.argument("dataset", type=click.Path(path_type=Path))
@add_options(policy_options)
@add_options(column_options("all but depth", "observations/qpos", "action"))
@instruction_option
@click.option(
    "--jpeg-colours",
    type=click.Choice(["rgb", "bgr"]),
    help="First channel of compressed pictures: bgr if ALOHA's or ACT's scripts compressed them. Asked for where "
    "pictures are compressed.",
)
@outcome_file_option
@add_options(still_recording_options, run_options, workers_options, json_option)
def aloha(
    store: StoreName,
    dataset: Path,
    policy: PolicyChoice,
    columns: ColumnChoice,
    instruction: str | None,
    jpeg_colours: str | None,
    outcome_file: Path | None,
    recordings: RecordingChoice,
    run: RunChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    """Ingest ALOHA's episodes: DATASET has episode_0.hdf5, episode_1.hdf5, ..., or is one.

    Outcomes come from folders called success and failure, or from --outcome-file. Otherwise as
    `attnstore ingest droid`.

    Examples
    --------
    attnstore ingest aloha lab.attn aloha_sim --policy lerobot --checkpoint DIR --instruction 'transfer the cube'
    """
    from attnstore.ingest.datasets.aloha import AlohaDataset
    from attnstore.ingest.datasets.selection import Selection

    source = AlohaDataset(
        dataset,
        cameras=columns.cameras,
        state=columns.state,
        action=columns.action,
        instruction=instruction,
        jpeg_colours=jpeg_colours,  # type: ignore[arg-type]  # click checked it
        outcome_file=outcome_file,
        selection=Selection(recordings.episodes, recordings.outcome, recordings.limit),
        name=recordings.dataset_name,
    )
    load_and_ingest(store, recordings.turned(source), policy, run, workers, as_json)


def _command_of(reader: str) -> click.Command:
    """Return the command of a reader that another package brings."""

    @click.command(reader, cls=StoreCommand)
    @store_to_write
    @click.argument("dataset")
    @add_options(policy_options)
    @click.option(
        "--dataset-option",
        "dataset_pairs",
        multiple=True,
        metavar="KEY=VALUE",
        help="Option of the reader.",
    )
    @add_options(still_recording_options, run_options, workers_options, json_option)
    def command(
        store: StoreName,
        dataset: str,
        policy: PolicyChoice,
        dataset_pairs: tuple[str, ...],
        recordings: RecordingChoice,
        run: RunChoice,
        workers: WorkersChoice,
        as_json: bool,
    ) -> None:
        from attnstore.ingest.datasets.registry import load_reader
        from attnstore.ingest.datasets.selection import Selection
        from attnstore.ingest.policies.registry import parse_options

        source = load_reader(reader)(
            dataset,
            selection=Selection(recordings.episodes, recordings.outcome, recordings.limit),
            name=recordings.dataset_name,
            options=parse_options(dataset_pairs, "a dataset option"),
        )
        load_and_ingest(store, recordings.turned(source), policy, run, workers, as_json)

    command.help = f"Ingest a dataset that the installed reader {reader!r} reads; see its own page."
    return command


ingest.add_command(recording)
ingest.add_command(openpi_records)

"""``attnstore ingest`` and ``attnstore policies``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import AttnstoreError, NotFoundError, PartialError, UsageError

from .options import (
    FiniteNumber,
    StoreCommand,
    StoreGroup,
    StoreName,
    WorkersChoice,
    adapter_options,
    add_options,
    dry_run_option,
    grouped,
    json_option,
    limit_option,
    names_option,
    revision_option,
    store_to_write,
    workers_options,
)
from .output import console, print_json, say, size_text
from .progress import (
    check_plan,
    conclude,
    interrupts,
    progress_bar,
    said_once,
)

if TYPE_CHECKING:
    from attnstore.ingest.datasets.base import Dataset, VideoFrames
    from attnstore.ingest.datasets.lerobot.dataset import LeRobotDataset
    from attnstore.ingest.plan import Plan
    from attnstore.ingest.policies.base import Policy
    from attnstore.ingest.policies.registry import PolicySpec
    from attnstore.ingest.work import Workers
    from attnstore.store.commits import StorePaths


@click.group(cls=StoreGroup)
def ingest() -> None:
    """Run a policy on a dataset's keyframes and store its attention."""


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """Which policy, from which checkpoint, on which device."""

    policy: str
    checkpoint: str
    revision: str | None
    dtype: str | None
    device: str
    pairs: tuple[str, ...]

    def load(self) -> tuple[Policy, PolicySpec]:
        """Load it, and say how a worker loads it again."""
        from attnstore.ingest.policies.registry import PolicySpec, parse_options

        spec = PolicySpec(
            self.policy, self.checkpoint, self.dtype, self.revision, parse_options(self.pairs)
        )
        loaded = spec.load("cuda:0" if self.device == "cuda" else self.device)
        # An adapter of several families says in its name which one the checkpoint is.
        return loaded, spec if ":" in self.policy else replace(spec, name=loaded.name)


@dataclass(frozen=True, slots=True)
class RunChoice:
    """What a run is made with, and how the work is done."""

    stride: int = 8
    precision: str = "float16"
    seed: int = 0
    batch_size: int = 1
    vision: bool = False
    token_stats: bool = False
    values: bool | None = None
    dry_run: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class RecordingChoice:
    """Which of a dataset's recordings, and what is kept of their videos."""

    outcome: str | None
    episodes: tuple[str, ...]
    limit: int | None
    dataset_name: str | None
    video_frames: VideoFrames = "jpeg"
    turns: tuple[str, ...] = ()
    flips: tuple[str, ...] = ()

    def turned(self, dataset: Dataset) -> Dataset:
        """Return the dataset with its cameras turned and flipped as asked."""
        from attnstore.ingest.datasets.oriented import OrientedDataset
        from attnstore.store.format.orientation import read_orientations

        orientations = read_orientations(self.turns, self.flips)
        return OrientedDataset(dataset, orientations) if orientations else dataset


_POLICY = grouped(
    "policy",
    PolicyChoice,
    click.option(
        "--policy",
        metavar="NAME",
        required=True,
        help="Adapter, or adapter:variant; see `attnstore policies`.",
    ),
    click.option(
        "--checkpoint",
        metavar="PATH|HUB_ID",
        required=True,
        help="Local checkpoint directory, or hub id.",
    ),
    revision_option,
    click.option("--dtype", help="Data type of the weights.  [default: the checkpoint's]"),
    click.option(
        "--device", default="cpu", show_default=True, help="Torch device; cuda: one per worker."
    ),
    adapter_options,
)
_STILLS = (
    names_option("episodes"),
    click.option(
        "--outcome",
        type=click.Choice(["success", "failure", "unknown"]),
        help="Only episodes of this outcome.",
    ),
    limit_option,
    click.option(
        "--dataset-name", help="Name of the dataset in the run.  [default: the directory's]"
    ),
    click.option(
        "--turn",
        "turns",
        metavar="CAMERA=90|180|270",
        multiple=True,
        help="Turn a camera's images clockwise, as the policy was trained to see them; repeatable.",
    ),
    click.option(
        "--flip",
        "flips",
        metavar="CAMERA=horizontal|vertical",
        multiple=True,
        help="Mirror a camera's images, after --turn; repeatable.",
    ),
)
_STILL_RECORDINGS = grouped("recordings", RecordingChoice, *_STILLS)
_RECORDINGS = grouped(
    "recordings",
    RecordingChoice,
    *_STILLS,
    click.option(
        "--video-frames",
        type=click.Choice(["jpeg", "png"]),
        default="jpeg",
        show_default=True,
        help="What is kept of the frames of videos; png is larger, and exactly what the policy saw: "
        "`attnstore probe` does the same again.",
    ),
)
_PRECISION = click.option(
    "--precision",
    type=click.Choice(["float16", "log8"]),
    default="float16",
    show_default=True,
    help="log8: one byte a weight, within 2.3 % down to 2^-16, below 2^-17 zero.",
)
_VISION = click.option(
    "--vision",
    is_flag=True,
    help="Also store the attention inside each camera's image encoder.",
)
_TOKEN_STATS = click.option(
    "--token-stats",
    is_flag=True,
    help="Also keep every token's norm and cosines, layer by layer.",
)
_VALUES = click.option(
    "--values/--no-values",
    default=None,
    help="Keep what each key token would add through each head, to weight attention with.  "
    "[default: where the policy shows it]",
)
_FORCE = click.option(
    "--force", is_flag=True, help="Go on although the forecast exceeds the free disk."
)
_RUN = grouped(
    "run",
    RunChoice,
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Frames between keyframes.",
    ),
    _PRECISION,
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Base of the keyframes' noise seeds.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Keyframes a forward; does not change the results.",
    ),
    _VISION,
    _TOKEN_STATS,
    _VALUES,
    dry_run_option,
    _FORCE,
)


@ingest.command()
@store_to_write
@click.argument("dataset", type=click.Path(path_type=Path))
@add_options(_POLICY)
@click.option("--side", type=click.Choice(["left", "right"]), default="left", show_default=True,
              help="Side camera: left is varied_camera_1, right is varied_camera_2.")  # fmt: skip
@click.option(
    "--frames",
    "frames_rule",
    type=click.Choice(["strict", "shortest"]),
    default="strict",
    show_default=True,
    help="When cameras and trajectory differ in length.",
)
@add_options(_RECORDINGS, _RUN, workers_options, json_option)
def droid(
    store: StoreName,
    dataset: Path,
    policy: PolicyChoice,
    side: str,
    frames_rule: str,
    recordings: RecordingChoice,
    run: RunChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    """Ingest episodes in the DROID layout: outcome/date/episode below DATASET.

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
        name=recordings.dataset_name,
    )
    _load_and_ingest(store, recordings.turned(source), policy, run, workers, as_json)


@ingest.command()
@store_to_write
@click.argument("dataset", metavar="PATH|HUB_ID")
@add_options(_POLICY)
@click.option("--dataset-revision", help="Hub revision of the dataset.")
@click.option(
    "--camera",
    "cameras",
    metavar="NAME",
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
@click.option(
    "--tolerance",
    type=FiniteNumber(),
    default=1e-4,
    show_default=True,
    help="Seconds that a video frame may be off its row's time.",
)
@click.option(
    "--env-processor",
    type=click.Choice(["libero", "none"]),
    help="What lerobot-eval did with an environment's frames before the policy saw them: libero turns "
    "every camera by 180. For datasets of --eval.recording.",
)
@add_options(_RECORDINGS, _RUN, workers_options, json_option)
def lerobot(
    store: StoreName,
    dataset: str,
    policy: PolicyChoice,
    dataset_revision: str | None,
    cameras: tuple[str, ...],
    state: tuple[str, ...],
    action: tuple[str, ...],
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
        cameras=cameras,
        state=state,
        action=action or None,
        outcome_column=outcome_column,
        outcome_file=outcome_file,
        outcome=recordings.outcome,
        episodes=recordings.episodes,
        limit=recordings.limit,
        tolerance=tolerance,
        video_frames=recordings.video_frames,
        name=recordings.dataset_name,
    )
    recordings = _as_driven(source, recordings, env_processor)
    if outcome_column is not None:
        _say_if_failures_are_missing(source, outcome_column)
    _load_and_ingest(store, recordings.turned(source), policy, run, workers, as_json)


def _as_driven(
    source: LeRobotDataset, recordings: RecordingChoice, processor: str | None
) -> RecordingChoice:
    """Return the choice with every camera as the policy saw it while it drove.

    Raises
    ------
    UsageError
        If an evaluation's frames are raw, and it is not said what was done with them.
    """
    turned = recordings.turns or recordings.flips
    if source.of_an_evaluation and processor is None and not turned:
        raise UsageError(
            "lerobot-eval --eval.recording wrote this dataset: its frames are raw, and the environment's "
            "processor may have turned them before the policy saw them (LIBERO's by 180); say what it did by "
            "--env-processor libero, --env-processor none, or --turn CAMERA=180"
        )
    if processor != "libero":
        return recordings
    if turned:
        raise UsageError("--env-processor libero turns every camera; leave --turn and --flip out")
    return replace(recordings, turns=tuple(f"{camera}=180" for camera in source.cameras))


def _say_if_failures_are_missing(source: LeRobotDataset, column: str) -> None:
    found = source.outcomes()
    if found["success"] > 1 and not found["failure"]:
        say(
            f"{column}: all {found['success']} episodes are successes; lerobot-eval --eval.recording saves no "
            "failed episode of an environment that does not end by itself, so there may be no failures to "
            "compare with"
        )


@ingest.command()
@store_to_write
@click.argument("dataset", type=click.Path(path_type=Path))
@add_options(_POLICY)
@click.option("--split", help="Only this split: train.  [default: all]")
@click.option(
    "--camera",
    "cameras",
    metavar="NAME",
    multiple=True,
    help="Camera, in the order in which the policy gets them; repeatable.  [default: all with colour]",
)
@click.option(
    "--state-column",
    "state",
    multiple=True,
    help="Column of the robot state; several are joined.  [default: observation/state, or DROID's "
    "joints and gripper]",
)
@click.option(
    "--action-column",
    "action",
    multiple=True,
    help="Column of the recorded action; several are joined.  [default: action, if that is numbers]",
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
@add_options(_STILL_RECORDINGS, _RUN, workers_options, json_option)
def rlds(
    store: StoreName,
    dataset: Path,
    policy: PolicyChoice,
    split: str | None,
    cameras: tuple[str, ...],
    state: tuple[str, ...],
    action: tuple[str, ...],
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
        cameras=cameras,
        state=state,
        action=action,
        instruction=instruction,
        outcome_column=outcome_column,
        selection=Selection(recordings.episodes, recordings.outcome, recordings.limit),
        name=recordings.dataset_name,
    )
    if absent := source.absent_files:
        say(
            f"{len(absent)} of its files are not here, the first {absent[0]}: their episodes are left out"
        )
    _load_and_ingest(store, recordings.turned(source), policy, run, workers, as_json)


class _SourceCommand(StoreCommand):
    """A command whose second argument may be left out: then it is the first."""

    def expected_arguments(self, options: dict[str, Any], given: Sequence[str]) -> int:
        """One or two; one alone is STORE."""
        return max(1, len(given))


@ingest.command(cls=_SourceCommand)
@store_to_write
@click.argument("source", required=False, type=click.Path(path_type=Path))
@add_options(_POLICY)
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
    grouped("run", RunChoice, _PRECISION, _VISION, _TOKEN_STATS, _VALUES, dry_run_option, _FORCE)
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

    if source is None and not isinstance(store, Path):
        raise UsageError(
            f"recordings are local: name the store or the directory that has them; got {store}"
        )
    sources = [
        RecordingDataset(directory, outcome=outcome, episodes=episodes, limit=limit)
        for directory in recording_directories(Path(source or store), name)
    ]
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


@ingest.command("openpi-records")
@store_to_write
@click.argument("directory", type=click.Path(path_type=Path))
@add_options(_POLICY)
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
@add_options(_RECORDINGS)
@add_options(
    grouped(
        "run",
        RunChoice,
        _PRECISION,
        click.option("--seed", type=int, default=0, show_default=True, help="Base of the noise seeds."),
        _VISION,
        _TOKEN_STATS,
        dry_run_option,
        _FORCE,
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
    _load_and_ingest(store, recordings.turned(source), policy, once, workers, as_json)


def _load_and_ingest(
    store: StoreName,
    dataset: Dataset,
    policy: PolicyChoice,
    run: RunChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    doers = workers.on(policy.device)
    with interrupts(finishing=None):
        names = workers.share(dataset.episode_names(), dataset.file_of)
        loaded, spec = policy.load()
        run_ingest(
            store, dataset, loaded, spec, run, names=names, workers=doers, as_json=as_json,
        )  # fmt: skip


def run_ingest(
    target: StoreName,
    dataset: Dataset,
    policy: Policy,
    spec: PolicySpec,
    choice: RunChoice,
    *,
    names: Sequence[str] | None = None,
    workers: Workers | None = None,
    tolerance: float = 0.0,
    as_json: bool = False,
) -> None:
    """Forecast, ingest, and say what became of every episode.

    Parameters
    ----------
    target
        The store; made if there is none.
    policy, spec
        The loaded policy, and how a worker loads it.
    names
        Episodes; by default all.
    workers
        Who does it; by default this process.
    tolerance
        How far actions may be from those recorded when the policy drove.

    Raises
    ------
    PartialError
        If an episode was not committed, or, in a dry run, is broken.
    AttnstoreError
        If the store cannot be written, or the forecast exceeds the free disk.
    """
    from attnstore.ingest.episode import EpisodeJob
    from attnstore.ingest.pipeline import ingest_all, provenance
    from attnstore.ingest.plan import describe_run, make_plan
    from attnstore.ingest.policies.base import Watch, shows_values
    from attnstore.ingest.work import HERE
    from attnstore.store.commits.run import save_run
    from attnstore.store.opening import create_store

    values = shows_values(policy) if choice.values is None else choice.values
    watch = Watch(choice.vision, choice.token_stats, values)
    run = describe_run(
        policy, spec.name, dataset, stride=choice.stride, precision=choice.precision,
        seed=choice.seed, watch=watch,
    )  # fmt: skip
    if choice.dry_run:
        paths = _store_or_none(target)
    else:
        with _writable(target):
            paths = create_store(target)
    job = EpisodeJob(paths, run, choice.batch_size, watch=watch, tolerance=tolerance)
    plan = make_plan(job, policy, dataset, names)
    _show_plan(plan, run.id, target, as_json)
    if not plan.fits and not choice.dry_run and not choice.force:
        raise AttnstoreError(
            f"the forecast needs {size_text(plan.needed_bytes)}, {paths.root} has "
            f"{size_text(plan.free_bytes)} free: use --precision log8, a larger --stride, "
            "another STORE, or --force"
        )
    if choice.dry_run:
        check_plan(plan)
        return
    with _writable(target):
        save_run(paths, run, provenance(policy))
    with interrupts() as stopped, progress_bar(plan) as observer:
        report = ingest_all(
            job, policy, dataset, plan.pending, observer, spec=spec, workers=workers or HERE,
            stopped=stopped,
        )  # fmt: skip
    conclude(plan, report, target, as_json, stopped)


def _store_or_none(target: StoreName) -> StorePaths:
    """Open a store for a forecast; where there is none, return one that holds nothing."""
    from attnstore.store.commits import StorePaths
    from attnstore.store.opening import open_paths
    from attnstore.store.remote.mirror import cache_root
    from attnstore.store.remote.transport import is_url

    try:
        return open_paths(target)
    except NotFoundError:
        if isinstance(target, str) and is_url(target):
            return StorePaths(cache_root() / "nothing")
        path = Path(target)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(
                f"{target} exists, is not empty and is no store; name a new directory"
            ) from None
        return StorePaths(path)


def _show_plan(plan: Plan, run: str, target: StoreName, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "event": "forecast", "run": run, "episodes": len(plan.pending),
                    "keyframes": plan.total_keyframes, "bytes": plan.stored_bytes,
                    "keyframe_bytes": plan.keyframe_bytes, "free_bytes": plan.free_bytes,
                    "committed": len(plan.committed), "broken": dict(plan.broken),
                }
            ]
        )  # fmt: skip
        return
    out = console()
    out.print(f"run {run} into {target}", markup=False, soft_wrap=True)
    tokens = ", ".join(f"{p} {q} x {k} tokens" for p, (q, k) in plan.tokens.items())
    out.print(
        f"{len(plan.pending)} episodes to do, {plan.total_keyframes} keyframes; "
        f"{len(plan.committed)} committed already, {len(plan.broken)} broken",
        markup=False,
    )
    if plan.pending:
        out.print(
            f"about {size_text(plan.stored_bytes)} to write "
            f"({size_text(plan.keyframe_bytes)} a keyframe before compression; {tokens}); "
            f"{size_text(plan.free_bytes)} free; "
            "the time is known after the first keyframes",
            markup=False,
            soft_wrap=True,
        )
    for line in said_once([(name, "broken", reason) for name, reason in plan.broken.items()]):
        out.print(line, markup=False, style="yellow", soft_wrap=True)


@contextlib.contextmanager
def _writable(target: StoreName) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AttnstoreError(f"{target} cannot be written: {error.strerror or error}") from error


@click.command(cls=StoreCommand)
@json_option
def policies(as_json: bool) -> None:
    """List the policy adapters that are installed, and whether they show value norms.

    Examples
    --------
    attnstore policies
    """
    from importlib.metadata import entry_points

    from attnstore.ingest.policies.registry import ENTRY_POINTS, shown_values

    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name)
    if not points:
        raise UsageError("no policy adapter is installed")
    rows = [{"name": p.name, "adapter": p.value, "values": shown_values(p)} for p in points]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            shown = f"value norms: {row['values']}"
            click.echo(f"{row['name']:<12} {row['adapter']:<60} {shown}")

"""``attnstore ingest`` and ``attnstore policies``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import AttnstoreError, PartialError, UsageError

from .ingest_options import episode_options, policy_options, run_options
from .options import console, json_option, need_store, print_json, size_text, span_text

if TYPE_CHECKING:
    from attnstore.ingest.pipeline import Report
    from attnstore.ingest.plan import Plan
    from attnstore.ingest.probing.pipeline import ProbePlan


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
        name=dataset_name,
    )
    load_and_ingest(dataset, **run)


def load_and_ingest(
    dataset: Any,
    *,
    policy: str,
    checkpoint: str,
    store: Path | None,
    revision: str | None,
    dtype: str | None,
    device: str,
    pairs: tuple[str, ...],
    **run: Any,
) -> None:
    """Load a policy and ingest a dataset with it; `run` are further arguments of `run_ingest`."""
    from attnstore.ingest.policies.base import load_policy, parse_options
    from attnstore.ingest.workers import PolicySpec

    target = need_store(store)
    dataset.episode_names()
    options = parse_options(pairs)
    quiet_libraries()
    first_device = "cuda:0" if device == "cuda" else device
    loaded = load_policy(
        policy, checkpoint, dtype=dtype, device=first_device, revision=revision, options=options
    )
    # An adapter of several families says in its name which one the checkpoint is.
    name = policy if ":" in policy else loaded.name
    spec = PolicySpec(name, checkpoint, dtype, revision, options)
    run_ingest(target, loaded, spec, dataset, device=device, **run)


def run_ingest(
    target: Path,
    policy: Any,
    spec: Any,
    dataset: Any,
    *,
    stride: int,
    precision: str,
    seed: int,
    batch_size: int,
    workers: int,
    device: str,
    dry_run: bool = False,
    force: bool = False,
    as_json: bool = False,
    vision: bool = False,
    token_stats: bool = False,
) -> None:
    """Forecast, ingest, and say what became of every episode.

    Raises
    ------
    PartialError
        If an episode was not committed.
    AttnstoreError
        If the store cannot be written, or the forecast exceeds the free disk.
    """
    from attnstore.ingest.episode import EpisodeJob
    from attnstore.ingest.pipeline import ingest_all, provenance
    from attnstore.ingest.plan import describe_run, make_plan
    from attnstore.ingest.policies.base import Watch
    from attnstore.ingest.workers import ingest_with_workers
    from attnstore.store.paths import MARKER, StorePaths, create_store
    from attnstore.store.run import save_run

    watch = Watch(vision, token_stats)
    run = describe_run(
        policy, spec.name, dataset, stride=stride, precision=precision, seed=seed, watch=watch
    )
    if dry_run and not (target / MARKER).exists():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} exists, is not empty and is no store; name a new directory")
        paths = StorePaths(target)
    else:
        with _writable(target):
            paths = create_store(target)
    job = EpisodeJob(paths, run, batch_size, watch=watch)
    plan = make_plan(job, policy, dataset)
    _show_plan(plan, run.id, target, as_json)
    if not plan.fits and not dry_run and not force:
        raise AttnstoreError(
            f"the forecast needs {size_text(plan.stored_bytes)}, {target} has "
            f"{size_text(plan.free_bytes)} free: use --precision log8, a larger --stride, "
            "another --store, or --force"
        )
    if dry_run:
        return
    with _writable(target):
        save_run(paths, run, provenance(policy))
    with interrupts() as stopped, progress_bar(plan) as observer:
        if workers == 1:
            report = ingest_all(job, policy, dataset, plan.pending, observer, stopped=stopped)
        else:
            report = ingest_with_workers(
                job, spec, dataset, plan.pending, observer,
                device=device, workers=workers, stopped=stopped,
            )  # fmt: skip
    conclude(plan, report, target, as_json)


def _show_plan(plan: Plan, run: str, target: Path, as_json: bool) -> None:
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
    for name, reason in plan.broken.items():
        out.print(f"broken: {name}: {reason}", markup=False, style="yellow")


def conclude(plan: Plan | ProbePlan, report: Report, target: Path, as_json: bool) -> None:
    """Say what became of every episode, and set the exit code.

    Raises
    ------
    PartialError
        If an episode was not committed.
    """
    done = [o for o in report.outcomes if o.status == "committed"]
    failed = [(o.name, o.status, o.reason) for o in report.failed]
    failed += [(name, "broken", reason) for name, reason in plan.broken.items()]
    if as_json:
        print_json(
            {
                "event": "episode", "name": o.name, "status": o.status, "reason": o.reason,
                "keyframes": o.keyframes, "bytes": o.bytes, "seconds": o.seconds,
            }
            for o in report.outcomes
        )  # fmt: skip
    else:
        total = sum(o.bytes for o in done)
        seconds = sum(o.seconds for o in done)
        console().print(
            f"committed {len(done)} episodes, {sum(o.keyframes for o in done)} keyframes, "
            f"{size_text(total)} in {span_text(seconds)}",
            markup=False,
            soft_wrap=True,
        )
    if report.interrupted:
        click.echo(
            "attnstore: interrupted; committed episodes are kept, the same command resumes",
            err=True,
        )
        raise click.exceptions.Exit(130)
    if failed:
        lines = "".join(f"\n  {name}: {status}: {reason}" for name, status, reason in failed)
        raise PartialError(f"{len(failed)} episodes are not in {target}:{lines}")


@contextlib.contextmanager
def _writable(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AttnstoreError(f"{target} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """First Ctrl-C or SIGTERM: stop after the keyframe in flight; the second one: at once."""
    seen = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            raise KeyboardInterrupt
        click.echo("attnstore: stopping after this keyframe; once more stops at once", err=True)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: seen > 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress_bar(plan: Plan | ProbePlan, what: str = "ingest") -> Iterator[Any]:
    """Show how far the keyframes are, on a terminal; yields the observer of a pipeline."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    out = console()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("keyframes"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, disable=not out.is_terminal) as bar:
        yield _Bar(bar, bar.add_task(what, total=plan.total_keyframes))


class _Bar:
    """Shows an ingest as one progress bar, and names what went wrong as it happens."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def started(self, name: str) -> None:
        self._bar.update(self._task, description=name.rsplit("/", 1)[-1])

    def advanced(self, name: str, keyframes: int) -> None:
        self._bar.advance(self._task, keyframes)

    def ended(self, outcome: Any) -> None:
        if outcome.status not in ("committed", "present"):
            click.echo(f"{outcome.status}: {outcome.name}: {outcome.reason}", err=True)


def quiet_libraries() -> None:
    """Keep transformers' own progress bars off the terminal; ours says how it goes."""
    try:
        from transformers.utils import logging
    except ImportError:
        return
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is untyped here


@click.command()
@json_option
def policies(as_json: bool) -> None:
    """List the policy adapters that are installed."""
    from importlib.metadata import entry_points

    from attnstore.ingest.policies.base import ENTRY_POINTS

    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name)
    if not points:
        raise UsageError("no policy adapter is installed")
    rows = [{"name": p.name, "adapter": p.value} for p in points]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            click.echo(f"{row['name']:<12} {row['adapter']}")

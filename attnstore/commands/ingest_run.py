"""An ingest on the command line: its forecast, its progress, and what became of every episode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnstore.store.errors import AttnstoreError, NotFoundError, UsageError

from .ingest_choices import Examination, PolicyChoice, RunChoice
from .options import StoreName, WorkersChoice
from .output import console, print_json, size_text
from .progress import (
    check_plan,
    conclude,
    interrupts,
    progress_bar,
    said_once,
)

if TYPE_CHECKING:
    from attnstore.ingest.datasets.base import Dataset
    from attnstore.ingest.plan import Plan
    from attnstore.ingest.policies.base import Policy
    from attnstore.ingest.policies.registry import PolicySpec
    from attnstore.ingest.work import Workers
    from attnstore.store.commits import StorePaths


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
) -> Plan:
    """Forecast, ingest, and say what became of every episode; return the forecast.

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
    from attnstore.ingest.policies.base import watch_where_shown
    from attnstore.ingest.work import HERE
    from attnstore.store.commits.run import save_run
    from attnstore.store.opening import create_store

    watch = watch_where_shown(
        policy, vision=choice.vision, token_stats=choice.token_stats, values=choice.values,
        hidden=choice.asked_hidden(),
    )  # fmt: skip
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
        return plan
    with _writable(target):
        save_run(paths, run, provenance(policy))
    with interrupts() as stopped, progress_bar(plan) as observer:
        report = ingest_all(
            job, policy, dataset, plan.pending, observer, spec=spec, workers=workers or HERE,
            stopped=stopped,
        )  # fmt: skip
    conclude(plan, report, target, as_json, stopped, "ls")
    return plan


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


def load_and_ingest(
    store: StoreName,
    dataset: Dataset,
    policy: PolicyChoice,
    run: RunChoice,
    workers: WorkersChoice,
    as_json: bool,
) -> None:
    """Load the policy and run it on a dataset's episodes; or let ``attnstore doctor`` look at both.

    Raises
    ------
    UsageError
        If the policy cannot be loaded as asked.
    PartialError
        If an episode is not in the store afterwards.
    """
    examination = click.get_current_context().find_object(Examination)
    if examination is not None:
        examination.of(dataset, policy, run)
        return
    from attnstore.ingest.threads import limit_threads

    limit_threads(workers.workers)
    doers = workers.on(policy.device)
    with interrupts(finishing=None):
        names = workers.share(dataset.episode_names(), dataset.file_of)
        loaded, spec = policy.load()
        run_ingest(
            store, dataset, loaded, spec, run, names=names, workers=doers, as_json=as_json,
        )  # fmt: skip

"""An ingest from the command line: forecast, run, and what became of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnstore.store.errors import AttnstoreError, UsageError

from .options import console, need_store, print_json, size_text
from .progress import (
    check_plan,
    conclude,
    interrupts,
    progress_bar,
    quiet_libraries,
    said_once,
)

if TYPE_CHECKING:
    from attnstore.ingest.plan import Plan


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
    from attnstore.ingest.policies.registry import load_policy, parse_options
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
        If an episode was not committed, or, in a dry run, is broken.
    AttnstoreError
        If the store cannot be written, or the forecast exceeds the free disk.
    """
    from attnstore.ingest.episode import EpisodeJob
    from attnstore.ingest.pipeline import ingest_all, provenance
    from attnstore.ingest.plan import describe_run, make_plan
    from attnstore.ingest.policies.base import Watch
    from attnstore.ingest.workers import ingest_with_workers
    from attnstore.store.commits import MARKER, StorePaths
    from attnstore.store.opening import create_store
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
        check_plan(plan)
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
    for line in said_once([(name, "broken", reason) for name, reason in plan.broken.items()]):
        out.print(line, markup=False, style="yellow", soft_wrap=True)


@contextlib.contextmanager
def _writable(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AttnstoreError(f"{target} cannot be written: {error.strerror or error}") from error

"""One pass of ``attnstore probe``: the run, the policy, the forecast, and the episodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import console, need_store, print_json
from .progress import check_plan, conclude, interrupts, progress_bar, quiet_libraries

if TYPE_CHECKING:
    from attnstore.ingest.probing.pipeline import ProbePlan


def shown_map(spec: Any, phase: str | None, group: str | None) -> tuple[str, str]:
    """Phase and query group of the maps; by default the last phase's: that of the actions."""
    with_maps = [p for p, s in spec.phases.items() if s.camera is None and s.cameras]
    chosen = phase or with_maps[-1]
    groups = spec.phases[chosen].query_groups if chosen in spec.phases else ("",)
    return chosen, group or groups[0]


def run_probe(
    make: Any,
    names_of_options: tuple[str, ...],
    *,
    store: Path | None,
    checkpoint: str,
    policy: str | None,
    revision: str | None,
    device: str,
    pairs: tuple[str, ...],
    run_id: str | None,
    names: tuple[str, ...],
    limit: int | None,
    every: int,
    dof: int | None,
    batch_size: int,
    tolerance: float | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Forecast, probe, and say what became of every episode."""
    from attnstore.ingest.policies.registry import load_policy, parse_options
    from attnstore.ingest.probing.episode import ProbeJob
    from attnstore.ingest.probing.pipeline import (
        check_policy,
        choose_episodes,
        choose_run,
        make_plan,
        probe_all,
        real_dof,
    )
    from attnstore.store.opening import open_store

    target = need_store(store)
    paths = open_store(target)
    paths.check_writable()
    run = choose_run(paths, run_id)
    episodes = choose_episodes(paths, run, names, limit=limit)
    asked = make(episodes[0].spec, every, **{name: options[name] for name in names_of_options})
    quiet_libraries()
    loaded = load_policy(
        policy or run.policy, checkpoint, dtype=run.dtype, device=device, revision=revision,
        options=parse_options(pairs),
    )  # fmt: skip
    check_policy(loaded, run)
    job = ProbeJob(paths, run, asked, real_dof(loaded, episodes[0], dof), batch_size, tolerance)
    plan = make_plan(job, episodes)
    show_plan(plan, job, target, as_json)
    if dry_run:
        check_plan(plan)
        return
    with interrupts() as stopped, progress_bar(plan, "probe") as observer:
        report = probe_all(job, loaded, plan.pending, observer, stopped=stopped)
    conclude(plan, report, target, as_json)


def show_plan(plan: ProbePlan, job: Any, target: Path, as_json: bool) -> None:
    """Print the forecast."""
    if as_json:
        print_json(
            [
                {
                    "event": "forecast", "run": job.run.id, "part": job.probe.part,
                    "episodes": len(plan.pending), "keyframes": plan.total_keyframes,
                    "forwards": plan.forwards, "dof": job.dof, "committed": len(plan.present),
                    "broken": dict(plan.broken),
                }
            ]
        )  # fmt: skip
        return
    broken = f", {len(plan.broken)} broken" if plan.broken else ""
    console().print(
        f"{job.probe.kind} of run {job.run.id} in {target}, part {job.probe.part}\n"
        f"{len(plan.pending)} episodes to do, {plan.total_keyframes} keyframes, "
        f"{plan.forwards} action chunks of {job.dof} degrees of freedom; "
        f"{len(plan.present)} committed already{broken}; the time is known after the first "
        "keyframes",
        markup=False,
        soft_wrap=True,
    )

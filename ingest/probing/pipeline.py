"""Probing a store: which episodes are pending, how many forwards it takes, and one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from attnstore.store.commits import Commit, StorePaths, committed_names, latest_commit
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import RunConfig, load_run, run_ids
from attnstore.store.errors import EpisodeError, NotFoundError, SelectionError, UsageError
from attnstore.store.reader import Episode

from ..episode import StoppedError
from ..pipeline import Observer, Outcome, Report, SharedFailureError, settle
from ..plan import claimed_by_other
from ..policies.base import Policy, WindowPolicy
from .episode import ProbeJob, probe_episode
from .variant import Probe


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """The forecast of a probe."""

    pending: tuple[Episode, ...]
    """Episodes to do, in order."""
    present: tuple[str, ...]
    """Names of those that have the part already, from the same inputs."""
    total_keyframes: int
    """To do."""
    forwards: int
    """Observations that the policy will be run on, bases included; objects are not counted."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Episodes that have not what the probe asks for, such as a word in their prompt, and why."""


def choose_run(paths: StorePaths, run: str | None) -> RunConfig:
    """Return the run to probe: the one that is named, else the only one.

    Raises
    ------
    SelectionError
        If the store has several runs and none is named.
    NotFoundError
        If it has none, or no such one.
    """
    known = run_ids(paths)
    if run is None and len(known) > 1:
        raise SelectionError(f"the store has several runs; name one with --run: {', '.join(known)}")
    if not known:
        raise NotFoundError(f"{paths.root} has no runs to probe; `attnstore ingest` makes one")
    return load_run(paths, run or known[0])[0]


def choose_episodes(
    paths: StorePaths, run: RunConfig, names: Sequence[str], *, limit: int | None = None
) -> list[Episode]:
    """Open a run's episodes, in order of their names; by default all.

    Parameters
    ----------
    names
        The dataset's own names, their last components, or ids.

    Raises
    ------
    NotFoundError
        If there is none, or one of the names is not there.
    """
    commits = [latest_commit(paths, run.id, episode) for episode in committed_names(paths, run.id)]
    found = sorted((c for c in commits if c is not None), key=_name)
    if not found:
        raise NotFoundError(f"run {run.id} has no episodes")
    if names:
        chosen = []
        for name in names:
            same = [c for c in found if name in (_name(c), _name(c).rsplit("/", 1)[-1], c.episode)]
            if len(same) != 1:
                known = ", ".join(_name(c) for c in found[:5])
                what = "no episode" if not same else f"{len(same)} episodes"
                raise NotFoundError(f"{what} {name!r} in run {run.id}; there are: {known}")
            chosen += same
        found = list({c.episode: c for c in chosen}.values())
    return [Episode(Part(paths, commit)) for commit in found[:limit]]


def check_policy(policy: Policy, run: RunConfig) -> None:
    """Check that a policy is the one that a run was made with.

    Raises
    ------
    UsageError
        If checkpoint, data type, or the phases' shapes differ, or if the policy sees what the store
        has not.
    """
    if isinstance(policy, WindowPolicy) and policy.sees_goal:
        raise UsageError(
            f"policy {policy.name} is shown the episode's last frame as its goal, which the store "
            "does not keep: what it did cannot be done again; only runs without a goal are probed"
        )
    if policy.digest != run.checkpoint_digest:
        raise UsageError(
            f"run {run.id} was made with checkpoint {run.checkpoint} (digest "
            f"{run.checkpoint_digest[:12]}), this is {policy.checkpoint} ({policy.digest[:12]}): "
            "its numbers could not be held against the stored ones"
        )
    shape = {name: [s.layers, s.heads, s.steps] for name, s in policy.phases.items()}
    if (known := run.options.get("phases", shape)) != shape:
        raise UsageError(
            f"run {run.id} has layers, heads and steps {known}, this policy {shape}: pass the "
            "--policy-option values that the run was made with"
        )
    if policy.dtype != run.dtype:
        raise UsageError(
            f"run {run.id} was made in {run.dtype}, this policy is {policy.dtype}: pass "
            f"--dtype {run.dtype}"
        )


def real_dof(policy: Policy, episode: Episode, asked: int | None) -> int:
    """Real degrees of freedom of an action: as asked, else the policy's, else the recording's.

    Raises
    ------
    UsageError
        If an action has fewer components.
    """
    found = asked or getattr(policy, "real_dof", None)
    recorded = int(episode.part.block("policy/actions_recorded").shape[-1])
    found = int(found or min(recorded, policy.action_dof))
    if not 1 <= found <= policy.action_dof:
        raise UsageError(f"--dof {found}: the policy's actions have {policy.action_dof} components")
    return found


def make_plan(job: ProbeJob, episodes: Sequence[Episode]) -> ProbePlan:
    """Check every episode and forecast the probe.

    Raises
    ------
    SelectionError
        If an episode has not what the probe asks for, and another prompt would not help; or if no
        episode has it.
    """
    probe: Probe = job.probe
    pending, present = [], []
    broken: dict[str, str] = {}
    keyframes = forwards = 0
    for episode in episodes:
        if job.done(episode) is not None:
            present.append(episode.spec.name)
            continue
        try:
            probe.check(episode.spec)
        except EpisodeError as error:
            broken[episode.spec.name] = error.reason
            continue
        pending.append(episode)
        count = len(range(0, len(episode.spec.frames), probe.every))
        keyframes += count
        forwards += count * (1 + probe.forwards(episode.spec))
    if broken and not (pending or present):
        name, reason = next(iter(broken.items()))
        others = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise SelectionError(f"{name}{others}: {reason}")
    return ProbePlan(tuple(pending), tuple(present), keyframes, forwards, broken)


def probe_all(
    job: ProbeJob,
    policy: Policy,
    episodes: Sequence[Episode],
    observer: Observer,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> Report:
    """Probe episodes in this process, in order; those that are done are left out.

    An episode that another live process of this host is probing is waited for; if that process
    dies, it is done here.

    Raises
    ------
    SharedFailureError
        If the first episodes fail alike: the others would, too.
    DiskFullError
        If there is no space left.
    AttnstoreError
        What concerns every episode.
    """
    report = Report()
    for episode in episodes:
        name = episode.spec.name
        part = job.part(episode)
        while claimed_by_other(job.paths, *part) and not stopped():
            if job.done(episode) is not None:
                break
            time.sleep(0.2)
        if stopped():
            report.interrupted = True
            break
        observer.started(name)
        if job.done(episode) is not None:
            outcome = Outcome(name, "present")
        else:
            work = partial(
                probe_episode, job, policy, episode,
                progress=partial(observer.advanced, name), stopped=stopped,
            )  # fmt: skip
            try:
                outcome = settle(job.paths, part, name, work)
            except StoppedError:
                report.interrupted = True
                break
        report.outcomes.append(outcome)
        if (shared := report.shared_failure()) is not None:
            raise SharedFailureError(shared)
        observer.ended(outcome)
    return report


def _name(commit: Commit) -> str:
    summary: Mapping[str, object] = commit.summary
    return str(summary.get("name", commit.episode))

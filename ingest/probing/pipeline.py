"""Probing a store: which episodes are pending, how many forwards it takes, and doing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from attnstore.store.commits import Commit, StorePaths, committed_names, latest_commit, slug
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import RunConfig, load_run, run_ids
from attnstore.store.errors import EpisodeError, NotFoundError, SelectionError, UsageError
from attnstore.store.reader import Episode

from ..executor import execute
from ..pipeline import settle
from ..plan import claimed_by_other
from ..policies.base import Policy, WindowPolicy
from ..policies.registry import PolicySpec
from ..work import HERE, Observer, Outcome, Progress, Report, Stopped, Workers
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


@dataclass(frozen=True, slots=True)
class ProbeWork:
    """Probing episodes of a run, as `attnstore.ingest.executor` does it."""

    job: ProbeJob
    spec: PolicySpec | None = None
    """How the policy is loaded; None where only the process that has it does the work."""

    @property
    def paths(self) -> StorePaths:
        """The store."""
        return self.job.paths

    def open(self, device: str) -> Policy:
        """Load the policy."""
        if self.spec is None:
            raise UsageError("a policy in memory is not another process's: name its checkpoint")
        policy = self.spec.load(device, digest=self.job.run.checkpoint_digest)
        check_policy(policy, self.job.run)
        return policy

    def reach(self, name: str) -> None:
        """Check that the episode is here."""
        self._episode(name)

    def claimed(self, name: str) -> bool:
        """Whether another live process of this host probes an episode."""
        episode = self._episode(name)
        claimed = claimed_by_other(self.paths, *self.job.part(episode))
        return claimed and self.job.done(episode) is None

    def do(self, state: Policy, name: str, *, progress: Progress, stopped: Stopped) -> Outcome:
        """Probe an episode, unless that was done."""
        episode = self._episode(name)
        if self.job.done(episode) is not None:
            return Outcome(name, "present")
        work = partial(probe_episode, self.job, state, episode, progress=progress, stopped=stopped)
        return settle(self.paths, self.job.part(episode), name, work)

    def _episode(self, name: str) -> Episode:
        commit = latest_commit(self.paths, self.job.run.id, slug(name))
        if commit is None:
            raise NotFoundError(f"no episode {name!r} in run {self.job.run.id}")
        return Episode(Part(self.paths, commit))


def probe_all(
    job: ProbeJob,
    policy: Policy,
    episodes: Sequence[Episode],
    observer: Observer,
    *,
    spec: PolicySpec | None = None,
    workers: Workers = HERE,
    stopped: Stopped = lambda: False,
) -> Report:
    """Probe episodes, by default in this process and in order; those that are done are left out.

    An episode that another live process of this host is probing is waited for; if that process
    dies, it is done here.

    Parameters
    ----------
    spec
        How a worker loads the policy.

    Raises
    ------
    AttnstoreError
        As `attnstore.ingest.executor.execute`.
    """
    work, names = ProbeWork(job, spec), [episode.spec.name for episode in episodes]
    return execute(work, names, observer, state=policy, workers=workers, stopped=stopped)


def _name(commit: Commit) -> str:
    summary: Mapping[str, object] = commit.summary
    return str(summary.get("name", commit.episode))

"""Probing one committed episode: run the variants of its keyframes and commit what they did."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from attnstore.store.commits import Attempt, Commit, StorePaths, latest_commit
from attnstore.store.commits.run import RunConfig
from attnstore.store.errors import EpisodeError, HealthError
from attnstore.store.format.action_metrics import action_metrics
from attnstore.store.reader import Episode

from ..policies.base import Policy, Watch
from ..work import Progress, Stopped, StoppedError
from .forward import Forward, Ran
from .keyframe import StoredKeyframe, stored_keyframes
from .rows import ProbeRows
from .shifts import shift_rows
from .variant import BASE, Probe, Variant

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""How far the base's actions may be from the stored ones, relative to their length."""


@dataclass(frozen=True, slots=True)
class ProbeJob:
    """What is common to all episodes of one probe."""

    paths: StorePaths
    run: RunConfig
    probe: Probe
    dof: int
    """Real degrees of freedom of an action."""
    batch_size: int = 1
    """Variants a forward."""
    tolerance: float | None = None
    """Instead of `TOLERANCE` of the run's data type."""

    @property
    def watch(self) -> Watch:
        """What the run was captured with, where it changes the actions' last bits."""
        return Watch(vision="vision" in self.run.options)

    @property
    def allowed(self) -> float:
        """Largest relative difference of the base's actions from the stored ones."""
        default = TOLERANCE.get(self.run.dtype, TOLERANCE["bfloat16"])
        return default if self.tolerance is None else self.tolerance

    def part(self, episode: Episode) -> tuple[str, str, str]:
        """Return (run, episode, part) ids of an episode."""
        return episode.run, episode.id, self.probe.part

    def inputs(self, episode: Episode) -> str:
        """SHA-256 of what an episode's numbers come from: its base part and its object masks."""
        objects = episode.object_parts() if self.probe.needs_objects else ()
        attempts = [c.attempt for c in (episode.part.commit, *objects)]
        text = json.dumps([self.probe.digest(), self.dof, attempts])
        return hashlib.sha256(text.encode()).hexdigest()

    def done(self, episode: Episode) -> Commit | None:
        """Return the part if it is there, made from the same inputs."""
        commit = latest_commit(self.paths, *self.part(episode))
        if commit is None or commit.summary.get("inputs") != self.inputs(episode):
            return None
        return commit


def probe_episode(
    job: ProbeJob,
    policy: Policy,
    episode: Episode,
    *,
    progress: Progress = lambda count: None,
    stopped: Stopped = lambda: False,
) -> Commit:
    """Run a probe on an episode's keyframes and commit its rows.

    Whatever goes wrong, the attempt is removed and nothing that is committed is touched.

    Parameters
    ----------
    progress
        Called after each keyframe with 1.
    stopped
        Asked between forwards; True gives the episode up.

    Raises
    ------
    SelectionError
        If the episode has not what the probe asks for.
    EpisodeError
        If it needs object masks and has none.
    HealthError
        If a capture fails a check of the health gate, or the policy does not do again what is
        stored.
    ConflictError
        If another process committed the part meanwhile.
    StoppedError
        If `stopped` said so.
    """
    started = time.monotonic()
    probe = job.probe
    probe.check(episode.spec)
    if probe.needs_objects and not episode.object_parts():
        raise EpisodeError(
            _name(episode), "it has no object masks; `attnstore objects add` brings them"
        )
    before = latest_commit(job.paths, *job.part(episode))
    inputs = job.inputs(episode)
    attempt = Attempt(job.paths, *job.part(episode))
    try:
        forward = Forward(policy, job.watch, maps=probe.shifts)
        rows = ProbeRows(attempt, probe.kind)
        forwards = keyframes = 0
        for keyframe in stored_keyframes(episode, probe.every):
            if stopped():
                raise StoppedError(f"interrupted at keyframe {keyframe.index} of {_name(episode)}")
            base = forward.run_base(keyframe.index, keyframe.observation)
            forwards += 1
            _add_base(job, rows, keyframe, base)
            here = replace(keyframe, layouts=base.layouts)
            variants = probe.variants(here)
            while group := list(islice(variants, job.batch_size)):
                if stopped():
                    raise StoppedError(f"interrupted at {keyframe.index} of {_name(episode)}")
                forwards += _run(job, forward, rows, here, base, group)
            rows.flush()
            keyframes += 1
            progress(1)
        counts = rows.write()
    except BaseException:
        attempt.discard()
        raise
    summary = {
        "name": episode.spec.name,
        "outcome": episode.spec.outcome,
        "probe": probe.kind,
        "options": asdict(probe),
        "dof": job.dof,
        "keyframes": keyframes,
        "forwards": forwards,
        "rows": counts["interventions"],
        "seconds": round(time.monotonic() - started, 3),
        "inputs": inputs,
    }
    try:
        # Not within the block above: an interrupt may arrive when the commit is visible already.
        return attempt.publish(summary, after=before.revision if before else 0)
    except Exception:
        attempt.discard()
        raise


def _run(
    job: ProbeJob,
    forward: Forward,
    rows: ProbeRows,
    keyframe: StoredKeyframe,
    base: Ran,
    variants: Sequence[Variant],
) -> int:
    """Act on some variants, add their rows, and return the number of forwards."""
    running = [v for v in variants if not v.unchanged]
    ran = iter(
        forward.run(keyframe.index, [v.observation for v in running], [v.blocked for v in running])
        if running
        else ()
    )
    for variant in variants:
        result = base if variant.unchanged else next(ran)
        found = action_metrics(base.actions, result.actions, job.dof)
        metrics = {name: float(value) for name, value in found.items()}
        columns: dict[str, Any] = {"dof": job.dof, **metrics, **variant.columns}
        if variant.table == "interventions":
            columns.setdefault("instruction", keyframe.observation.instruction)
        for row in variant.rows:
            rows.add(variant.table, keyframe, variant.name, **{**columns, **row})
        if variant.keep_masks:
            rows.add_masks(keyframe, variant)
        if job.probe.regions:
            rows.add_regions(keyframe, variant)
        if job.probe.shifts:
            geometry = {c: keyframe.geometry(c) for c in keyframe.cameras}
            for row in shift_rows(base, result, geometry):
                rows.add("map_shifts", keyframe, variant.name, **row)
    return len(running)


def _add_base(job: ProbeJob, rows: ProbeRows, keyframe: StoredKeyframe, base: Ran) -> None:
    """Hold the policy to what it did at ingest, and add the row that says how close it came."""
    stored = keyframe.actions
    if stored.shape != base.actions.shape:
        raise HealthError(
            f"keyframe {keyframe.index}: the policy's actions are {base.actions.shape}, the stored "
            f"ones {stored.shape}"
        )
    ours, theirs = base.actions[:, : job.dof], stored[:, : job.dof]
    length = float(np.linalg.norm(theirs))
    difference = float(np.linalg.norm(ours - theirs)) / (length or 1.0)
    if not difference <= job.allowed:
        raise HealthError(
            f"keyframe {keyframe.index}: from the stored frames and noise the policy's actions "
            f"differ from the stored ones by {difference:.3g} of their length, {job.allowed:g} is "
            "allowed; frames of videos are stored as JPEG, and other libraries or devices round "
            "differently: if that is it, pass --tolerance"
        )
    found = action_metrics(stored, base.actions, job.dof)
    rows.add(
        "interventions", keyframe, BASE, target=BASE, dof=job.dof,
        instruction=keyframe.observation.instruction,
        **{name: float(value) for name, value in found.items()},
    )  # fmt: skip


def _name(episode: Episode) -> str:
    return episode.spec.name

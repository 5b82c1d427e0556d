"""What an ingest will do: which episodes, how many keyframes, how many bytes."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from attnstore.store.chunking import EXPECTED_RATIO, attention_bytes
from attnstore.store.commit import ATTEMPT_FILE, latest_commit
from attnstore.store.errors import EpisodeError, IntegrityError
from attnstore.store.paths import StorePaths, read_json
from attnstore.store.precision import dtype
from attnstore.store.run import RunConfig
from attnstore.store.tokens import TokenLayout

from .datasets.base import Dataset, EpisodeInfo
from .episode import EpisodeJob
from .keyframes import keyframe_indices, observation
from .optional import require
from .policies.base import ObservationError, PhaseShape, Policy

CLOCK_SLACK = 2.0
"""Seconds that a process's start time may be off: the kernel counts it in ticks since boot."""
SAMPLES = 3
"""Episodes whose first frame is prepared to learn the token counts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The forecast of an ingest."""

    pending: tuple[str, ...]
    """Episodes to do, in order."""
    committed: tuple[str, ...]
    """Episodes that the run has already."""
    broken: Mapping[str, str]
    """Reason per broken episode."""
    keyframes: Mapping[str, int]
    """Per pending episode."""
    keyframe_bytes: int
    """Raw stored bytes of one keyframe's attention, padding stripped."""
    stored_bytes: int
    """Forecast for all pending keyframes, compressed."""
    free_bytes: int
    """Free space where the store is."""
    tokens: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(query, key) tokens per phase, of the first episode."""

    @property
    def total_keyframes(self) -> int:
        """Keyframes to do."""
        return sum(self.keyframes.values())

    @property
    def fits(self) -> bool:
        """Whether the forecast leaves free space."""
        return self.stored_bytes < self.free_bytes


def make_plan(job: EpisodeJob, policy: Policy, dataset: Dataset) -> Plan:
    """Check every episode and forecast the run, without loading the policy's weights.

    The size comes from the token layouts of some first frames and the compression ratio that
    trained attention had at least; images and tables are small beside it.

    Raises
    ------
    ObservationError
        If the policy can take none of the samples.
    """
    pending: list[EpisodeInfo] = []
    committed, broken = [], {}
    for name in dataset.episode_names():
        if latest_commit(job.paths, *job.commit_folder(name)) is not None:
            committed.append(name)
            continue
        try:
            pending.append(dataset.info(name))
        except EpisodeError as error:
            broken[name] = error.reason
    keyframes = {i.name: len(keyframe_indices(i.frames, job.run.stride)) for i in pending}
    largest = 0
    tokens: dict[str, tuple[int, int]] = {}
    refused: ObservationError | None = None
    for info in pending[:SAMPLES]:
        try:
            frame = next(iter(dataset.frames(info.name, [0])))
        except EpisodeError as error:
            broken[info.name] = error.reason
            continue
        try:
            sample = policy.prepare([observation(frame, info, job.run.seed)]).samples[0]
        except ObservationError as error:
            refused, broken[info.name] = error, str(error)
            continue
        largest = max(largest, raw_bytes(policy.phases, sample.layouts, job.run.precision))
        tokens = tokens or {p: (len(x.query), len(x.key)) for p, x in sample.layouts.items()}
    if refused is not None and not tokens:
        # No sample fits: it is the dataset or the checkpoint that is wrong, not an episode.
        raise refused
    pending = [i for i in pending if i.name not in broken]
    keyframes = {i.name: keyframes[i.name] for i in pending}
    total = sum(keyframes.values())
    stored = round(largest * total / EXPECTED_RATIO[job.run.precision])
    return Plan(
        tuple(_others_last(job, [i.name for i in pending])),
        tuple(committed),
        broken,
        keyframes,
        largest,
        stored,
        shutil.disk_usage(_existing(job.paths.root)).free,
        tokens,
    )


def raw_bytes(
    phases: Mapping[str, PhaseShape], layouts: Mapping[str, TokenLayout], precision: str
) -> int:
    """Raw stored bytes of one keyframe: attention, and its overview maps (mean and max, log8)."""
    total = 0
    for name, shape in phases.items():
        layout = layouts[name]
        steps = shape.steps
        total += attention_bytes(
            shape.layers, shape.heads, len(layout.query), len(layout.key), steps, precision
        )
        patches = sum(len(span) for span in layout.key if span.camera is not None)
        maps = shape.layers * shape.heads * (steps or 1) * patches * len(shape.query_groups)
        total += 2 * maps * dtype("log8").itemsize
    return total


def claimed_by_other(paths: StorePaths, run: str, episode: str, part: str) -> bool:
    """Whether another live process of this host is writing the part.

    A hint that spares double work; what decides is the commit.
    """
    folder = paths.data / run / episode
    if not folder.is_dir():
        return False
    return any(_owned_elsewhere(a) for a in folder.glob(f"{part}.*"))


def _owned_elsewhere(attempt: Path) -> bool:
    try:
        owner = read_json(attempt / ATTEMPT_FILE)
        host, pid = str(owner["host"]), int(owner["pid"])
        began = datetime.fromisoformat(str(owner["created"])).timestamp()
    except (OSError, IntegrityError, KeyError, ValueError):
        return False
    if host != socket.gethostname() or pid == os.getpid():
        return False
    psutil = require("psutil", "ingest", "ingesting")
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # After a reboot, or in a new container, the number may be another process's.
        return bool(process.create_time() <= began + CLOCK_SLACK)
    except psutil.NoSuchProcess:
        return False


def _others_last(job: EpisodeJob, names: list[str]) -> list[str]:
    return sorted(names, key=lambda n: claimed_by_other(job.paths, *job.commit_folder(n)))


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def describe_run(
    policy: Policy, policy_name: str, dataset: Dataset, *, stride: int, precision: str, seed: int
) -> RunConfig:
    """Return the run's configuration: what changes its numbers."""
    shape = {name: [s.layers, s.heads, s.steps] for name, s in policy.phases.items()}
    return RunConfig(
        policy=policy_name,
        checkpoint=policy.checkpoint,
        checkpoint_digest=policy.digest,
        dtype=policy.dtype,
        dataset=f"{dataset.kind}:{dataset.name}",
        cameras=tuple(dataset.cameras),
        stride=stride,
        precision=precision,
        seed=seed,
        options={"phases": shape},
    )

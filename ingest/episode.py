"""Ingesting one episode: describe, act, record, commit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attnstore.store.commits import Attempt, Commit, StorePaths, slug
from attnstore.store.commits.run import RunConfig
from attnstore.store.commits.writer import EpisodeWriter

from .datasets.base import Dataset, EpisodeInfo, Frame
from .episode_capture import EpisodeCapture
from .keyframes import describe_episode, keyframes_of, observation
from .policies.base import ATTENTION_ONLY, Policy, Watch
from .reading import prepare, read_info
from .views import keyframe_views
from .work import Progress, Stopped, StoppedError
from .writing import WriteQueue


@dataclass(frozen=True, slots=True)
class EpisodeJob:
    """What is common to all episodes of one ingest."""

    paths: StorePaths
    run: RunConfig
    batch_size: int = 1
    variant: str = "base"
    watch: Watch = ATTENTION_ONLY
    """What is captured beside the attention of the policy's own phases; the run says so too."""
    tolerance: float = 0.0
    """How far actions may be from those recorded when the policy drove; see `EpisodeCapture`."""

    @property
    def part(self) -> str:
        """Part that a commit adds."""
        return self.variant

    def commit_folder(self, name: str) -> tuple[str, str, str]:
        """Return (run, episode, part) ids of an episode."""
        return self.run.id, slug(name), self.part


def ingest_episode(
    job: EpisodeJob,
    policy: Policy,
    dataset: Dataset,
    name: str,
    *,
    progress: Progress = lambda count: None,
    stopped: Stopped = lambda: False,
) -> Commit:
    """Run the policy on every keyframe of an episode and commit what it attended to.

    Whatever goes wrong, the attempt is removed and nothing that is committed is touched.

    Parameters
    ----------
    progress
        Called after each batch with the number of keyframes.
    stopped
        Asked between batches; True gives the episode up.

    Raises
    ------
    EpisodeError
        If the episode is broken.
    HealthError
        If the capture fails a check of the health gate.
    ConflictError
        If another process committed the episode meanwhile.
    StoppedError
        If `stopped` said so.
    """
    started = time.monotonic()
    info = read_info(dataset, name)
    indices = keyframes_of(info, job.run.stride)
    spec, shapes = describe_episode(
        info,
        keyframe_views(dataset, info, indices, policy),
        policy,
        indices=indices,
        seed=job.run.seed,
        precision=job.run.precision,
        watch=job.watch,
    )
    attempt = Attempt(job.paths, *job.commit_folder(name))
    try:
        with WriteQueue() as queue:
            writer = EpisodeWriter(attempt, spec, shapes)
            capture = EpisodeCapture(policy, writer, queue, job.watch, job.tolerance)
            keyframe = 0
            held: list[Frame] = []
            for frame in keyframe_views(dataset, info, indices, policy):
                held.append(frame)
                if len(held) == job.batch_size or keyframe + len(held) == len(indices):
                    if stopped():
                        raise StoppedError(f"interrupted at keyframe {keyframe} of {name}")
                    _capture(capture, policy, held, job, info, keyframe)
                    progress(len(held))
                    keyframe += len(held)
                    held = []
            capture.finish()
        seconds = round(time.monotonic() - started, 3)
        summary: dict[str, Any] = {"seconds": seconds, "dataset": job.run.dataset}
        if capture.replay is not None:
            summary["replay"] = capture.replay
        return writer.commit(summary, after=0)
    except BaseException:
        attempt.discard()
        raise


def _capture(
    capture: EpisodeCapture,
    policy: Policy,
    frames: Sequence[Frame],
    job: EpisodeJob,
    info: EpisodeInfo,
    first: int,
) -> None:
    observations = [observation(frame, info, job.run.seed) for frame in frames]
    batch = prepare(policy, observations)
    capture.run(range(first, first + len(frames)), frames, batch)

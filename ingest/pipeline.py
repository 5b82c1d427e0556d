"""Ingesting a dataset: every pending episode, and what is made of what goes wrong with one."""

from __future__ import annotations

import errno
import logging
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from attnstore.store.boundary import told
from attnstore.store.commits import (
    Commit,
    Key,
    StorePaths,
    latest_commit,
    now,
    slug,
)
from attnstore.store.errors import (
    AttnstoreError,
    ConflictError,
    EpisodeError,
    HealthError,
    IntegrityError,
    ReplayError,
    UnsupportedFormatError,
    UsageError,
)

from .datasets.base import Dataset
from .episode import EpisodeJob, ingest_episode
from .executor import execute
from .plan import claimed_by_other
from .policies.base import ObservationError, Policy
from .policies.registry import PolicySpec
from .reading import read_info
from .work import HERE, DiskFullError, Observer, Outcome, Progress, Report, Stopped, Workers

_log = logging.getLogger(__name__)


def ingest_one(
    job: EpisodeJob,
    policy: Policy,
    dataset: Dataset,
    name: str,
    *,
    progress: Progress,
    stopped: Stopped,
) -> Outcome:
    """Ingest an episode and turn what can go wrong with *it* into an outcome.

    Raises
    ------
    StoppedError
        If `stopped` said so.
    DiskFullError
        If there is no space left.
    AttnstoreError
        What concerns every episode, such as weights that cannot be loaded.
    """
    if latest_commit(job.paths, *job.commit_folder(name)) is not None:
        return Outcome(name, "present")

    def work() -> Commit:
        return ingest_episode(job, policy, dataset, name, progress=progress, stopped=stopped)

    return settle(job.paths, job.commit_folder(name), name, work)


def settle(paths: StorePaths, part: Key, name: str, work: Callable[[], Commit]) -> Outcome:
    """Make a part of an episode and turn what can go wrong with *it* into an outcome.

    Parameters
    ----------
    part
        (run, episode, part) ids of what `work` commits.
    name
        The dataset's own name of the episode.

    Raises
    ------
    StoppedError
        If `work` was stopped.
    DiskFullError
        If there is no space left.
    AttnstoreError
        What concerns every episode, such as weights that cannot be loaded.
    """
    try:
        commit = work()
    except ConflictError as error:
        if latest_commit(paths, *part) is not None:
            return Outcome(name, "present")
        return Outcome(name, "failed", str(error))
    except ObservationError as error:
        return Outcome(name, "broken", str(error))
    except EpisodeError as error:
        return Outcome(name, "broken", error.reason)
    except UnsupportedFormatError:
        raise
    except IntegrityError as error:
        # a stored episode's bytes are wrong, which says nothing of the others
        return Outcome(name, "broken", str(error))
    except HealthError as error:
        try:
            evidence = error.evidence if isinstance(error, ReplayError) else {}
            _quarantine(paths, part, name, str(error), evidence)
        except OSError as full:
            raise _disk_error(paths, name, full) from error
        return Outcome(name, "quarantined", str(error))
    except Exception as error:
        if _is_disk_full(error):
            raise _disk_error(paths, name, error) from error
        if isinstance(error, AttnstoreError):
            raise
        # One episode's surprise must not end a night's run; its type and text name the cause.
        _log.debug("episode %s", name, exc_info=True)
        return Outcome(name, "failed", told(error))
    return _committed(name, commit)


@dataclass(frozen=True, slots=True)
class IngestWork:
    """Ingesting episodes of a dataset, as `attnstore.ingest.executor` does it."""

    job: EpisodeJob
    dataset: Dataset
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
        return self.spec.load(device, digest=self.job.run.checkpoint_digest)

    def reach(self, name: str) -> None:
        """Check that the dataset is here."""
        read_info(self.dataset, name)

    def claimed(self, name: str) -> bool:
        """Whether another live process of this host ingests an episode."""
        folder = self.job.commit_folder(name)
        return claimed_by_other(self.paths, *folder) and latest_commit(self.paths, *folder) is None

    def do(self, state: Policy, name: str, *, progress: Progress, stopped: Stopped) -> Outcome:
        """Ingest an episode."""
        return ingest_one(self.job, state, self.dataset, name, progress=progress, stopped=stopped)


def ingest_all(
    job: EpisodeJob,
    policy: Policy,
    dataset: Dataset,
    names: Sequence[str],
    observer: Observer,
    *,
    spec: PolicySpec | None = None,
    workers: Workers = HERE,
    stopped: Stopped = lambda: False,
) -> Report:
    """Ingest episodes, by default in this process and in order.

    An episode that another live process of this host is writing is waited for; if that process
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
    work = IngestWork(job, dataset, spec)
    return execute(work, names, observer, state=policy, workers=workers, stopped=stopped)


def provenance(policy: Policy) -> dict[str, Any]:
    """Return what is known of how a run was made; does not change its id."""
    names = ("attnstore", "torch", "transformers", "zarr", "tensorstore", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "device": str(getattr(policy, "device", "unknown")),
    }


def _committed(name: str, commit: Commit) -> Outcome:
    size = sum(f.size for f in commit.files)
    summary = commit.summary
    return Outcome(
        name,
        "committed",
        keyframes=int(summary["keyframes"]),
        bytes=size,
        seconds=float(summary.get("seconds", 0)),
    )


def _quarantine(
    paths: StorePaths, part: Key, name: str, reason: str, evidence: Mapping[str, Any]
) -> None:
    folder = paths.quarantine / part[0] / slug(name)
    entry: dict[str, Any] = {
        "run": part[0],
        "part": part[2],
        "name": name,
        "reason": reason,
        "created": now(),
    }
    if evidence:
        entry["actions"] = dict(evidence)
    for number in range(1, 1_000_000):
        if paths.create(folder / f"{number:06d}.json", entry):
            return


def _disk_error(paths: StorePaths, name: str, error: Exception) -> AttnstoreError:
    if not _is_disk_full(error):
        return AttnstoreError(f"{paths.name} cannot be written while at {name}: {error}")
    return DiskFullError(
        f"no space left for {paths.root} while writing {name}; committed episodes are kept: "
        "free space and run the same command again"
    )


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # TensorStore reports the system's error as text.
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False

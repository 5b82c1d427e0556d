"""Ingesting a dataset: every pending episode, one after the other or by several workers."""

from __future__ import annotations

import errno
import logging
import platform
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol

from attnstore.store.boundary import told
from attnstore.store.commits import (
    Commit,
    Key,
    StorePaths,
    create_exclusive,
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
    UnsupportedFormatError,
)

from .datasets.base import Dataset
from .episode import EpisodeJob, StoppedError, ingest_episode
from .plan import claimed_by_other
from .policies.base import ObservationError, Policy

_log = logging.getLogger(__name__)

Status = Literal["committed", "present", "broken", "quarantined", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one episode."""

    name: str
    status: Status
    reason: str = ""
    keyframes: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Observer(Protocol):
    """Is told how an ingest goes; called in the thread that called the pipeline."""

    def started(self, name: str) -> None:
        """Take note that an episode was begun."""
        ...

    def advanced(self, name: str, keyframes: int) -> None:
        """Take note that keyframes of it were recorded."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """Take note of what became of it."""
        ...


class DiskFullError(AttnstoreError):
    """There is no space left for the store; nothing that is committed is touched."""


class SharedFailureError(AttnstoreError):
    """The first episodes fail by the same unexpected error, and so would the others."""


@dataclass(slots=True)
class Report:
    """Outcomes of all episodes, and whether the user interrupted."""

    outcomes: list[Outcome] = field(default_factory=list)
    interrupted: bool = False

    def shared_failure(self) -> str | None:
        """Say what every episode will fail by, None if there is no sign of it.

        The sign: nothing was committed, and the last two episodes ended with the same unexpected
        error. Such an error is not of an episode's data but of the policy or the machine.
        """
        last = [o for o in self.outcomes if o.status != "present"][-2:]
        if len(last) < 2 or any(o.status == "committed" for o in self.outcomes):
            return None
        one, two = ((o.status, o.reason.replace(o.name, "it")) for o in last)
        if one != two or one[0] != "failed":
            return None
        return (
            f"{last[0].name} and {last[1].name} fail alike, and no episode was committed, so the "
            f"others are not tried: {last[1].reason}"
        )

    @property
    def failed(self) -> list[Outcome]:
        """Episodes that are not in the store afterwards."""
        return [o for o in self.outcomes if o.status not in ("committed", "present")]


def ingest_one(
    job: EpisodeJob,
    policy: Policy,
    dataset: Dataset,
    name: str,
    *,
    progress: Callable[[int], None],
    stopped: Callable[[], bool],
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
            _quarantine(paths, part, name, str(error))
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


def ingest_all(
    job: EpisodeJob,
    policy: Policy,
    dataset: Dataset,
    names: Sequence[str],
    observer: Observer,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> Report:
    """Ingest episodes in this process, in order.

    An episode that another live process of this host is writing is waited for; if that process
    dies, it is done here.

    Raises
    ------
    SharedFailureError
        If the first episodes fail alike: the others would, too.
    DiskFullError
        If there is no space left.
    AttnstoreError
        What concerns every episode, such as weights that cannot be loaded.
    """
    report = Report()
    for name in names:
        while claimed_by_other(job.paths, *job.commit_folder(name)) and not stopped():
            if latest_commit(job.paths, *job.commit_folder(name)) is not None:
                break
            time.sleep(0.2)
        if stopped():
            report.interrupted = True
            break
        observer.started(name)
        try:
            outcome = ingest_one(
                job, policy, dataset, name,
                progress=lambda count, name=name: observer.advanced(name, count),  # type: ignore[misc]
                stopped=stopped,
            )  # fmt: skip
        except StoppedError:
            report.interrupted = True
            break
        report.outcomes.append(outcome)
        if (shared := report.shared_failure()) is not None:
            raise SharedFailureError(shared)
        observer.ended(outcome)
    return report


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


def _quarantine(paths: StorePaths, part: Key, name: str, reason: str) -> None:
    folder = paths.quarantine / part[0] / slug(name)
    entry = {"run": part[0], "part": part[2], "name": name, "reason": reason, "created": now()}
    for number in range(1, 1_000_000):
        if create_exclusive(folder / f"{number:06d}.json", entry):
            return


def _disk_error(paths: StorePaths, name: str, error: Exception) -> AttnstoreError:
    if not _is_disk_full(error):
        return AttnstoreError(f"{paths.root} cannot be written while at {name}: {error}")
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

"""Doing one work on many episodes: here, one after the other, or by the workers of a Dask cluster.

An episode is a task, and its commit makes it idempotent: whoever does it again finds it there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .work import HERE, Observer, Report, SharedFailureError, Stopped, StoppedError, Work, Workers


def execute(
    work: Work,
    names: Sequence[str],
    observer: Observer,
    *,
    state: Any = None,
    workers: Workers = HERE,
    stopped: Stopped = lambda: False,
) -> Report:
    """Do a work on episodes, each once.

    Parameters
    ----------
    state
        What `Work.open` would give, if this process has it already.

    Raises
    ------
    SharedFailureError
        If the first episodes fail alike: the others would, too.
    DiskFullError
        If there is no space left.
    MissingExtraError
        If a cluster is asked for and Dask is not installed.
    AttnstoreError
        What concerns every episode.
    """
    if not names:
        return Report()
    if workers.here:
        opened = work.open(workers.device) if state is None else state
        return _one_by_one(work, opened, names, observer, stopped)
    workers.check()
    from .cluster import execute_on_cluster

    return execute_on_cluster(work, names, observer, workers, stopped)


def _one_by_one(
    work: Work, state: Any, names: Sequence[str], observer: Observer, stopped: Stopped
) -> Report:
    """Do the episodes in this process, in order.

    One that another live process of this host is at is waited for; if that process dies, it is done
    here.
    """
    report = Report()
    for name in names:
        while work.claimed(name) and not stopped():
            time.sleep(0.2)
        if stopped():
            report.interrupted = True
            break
        observer.started(name)
        try:
            outcome = work.do(
                state, name, stopped=stopped,
                progress=lambda count, name=name: observer.advanced(name, count),  # type: ignore[misc]
            )  # fmt: skip
        except StoppedError:
            report.interrupted = True
            break
        report.outcomes.append(outcome)
        if (shared := report.shared_failure()) is not None:
            raise SharedFailureError(shared)
        observer.ended(outcome)
    return report

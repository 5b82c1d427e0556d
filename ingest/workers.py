"""Several local processes that share one ingest, each with its own copy of the policy.

The parent hands out one episode at a time through a pipe per worker, so a worker that dies loses
the episode in its hands and nothing else.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from attnstore.store.errors import AttnstoreError

from .datasets.base import Dataset
from .episode import EpisodeJob, StoppedError
from .pipeline import DiskFullError, Observer, Outcome, Report, ingest_one
from .policies.registry import load_policy

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """How a worker loads the policy."""

    name: str
    checkpoint: str
    dtype: str | None
    revision: str | None
    options: Mapping[str, str]


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    device: str
    episode: str | None = None


@dataclass(slots=True)
class _Pool:
    workers: list[_Worker]
    pending: deque[str]
    report: Report
    fatal: str | None = field(default=None)


def devices(device: str, workers: int) -> list[str]:
    """Return one device per worker: ``cuda`` becomes ``cuda:0``, ``cuda:1``, ...

    Examples
    --------
    >>> devices("cuda", 2), devices("cpu", 2)
    (['cuda:0', 'cuda:1'], ['cpu', 'cpu'])
    """
    if device == "cuda":
        return [f"cuda:{i}" for i in range(workers)]
    return [device] * workers


def ingest_with_workers(
    job: EpisodeJob,
    policy: PolicySpec,
    dataset: Dataset,
    names: Sequence[str],
    observer: Observer,
    *,
    device: str,
    workers: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Report:
    """Ingest episodes by `workers` processes.

    A worker that dies is reported with its episode; the others go on with the rest.

    Raises
    ------
    DiskFullError
        If there is no space left.
    AttnstoreError
        If no worker could load the policy, or the first episodes fail alike.
    """
    if not names:
        return Report()
    # "spawn": a forked child would share CUDA's and the thread pools' broken state.
    context = multiprocessing.get_context("spawn")
    pool = _Pool([], deque(names), Report())
    try:
        for place in devices(device, min(workers, max(1, len(names)))):
            parent, child = context.Pipe()
            process = context.Process(
                target=_work, args=(child, job, policy, dataset, place), daemon=True
            )
            process.start()
            child.close()
            pool.workers.append(_Worker(process, parent, place))
        _serve(pool, observer, stopped)
    finally:
        for worker in pool.workers:
            worker.pipe.close()
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.terminate()
    if pool.fatal is not None:
        kind = DiskFullError if pool.fatal.startswith("no space left") else AttnstoreError
        raise kind(pool.fatal)
    return pool.report


def _serve(pool: _Pool, observer: Observer, stopped: Callable[[], bool]) -> None:
    while pool.workers:
        if stopped():
            pool.report.interrupted = True
            pool.pending.clear()
        ready = wait(
            [w.pipe for w in pool.workers] + [w.process.sentinel for w in pool.workers], 0.2
        )
        for worker in list(pool.workers):
            if worker.pipe in ready:
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    _buried(pool, worker, observer)
                    continue
                _heard(pool, worker, message, observer, stopped)
            elif worker.process.sentinel in ready and not worker.pipe.poll():
                _buried(pool, worker, observer)


def _heard(
    pool: _Pool,
    worker: _Worker,
    message: tuple[str, Any],
    observer: Observer,
    stopped: Callable[[], bool],
) -> None:
    kind, value = message
    if kind == "advanced":
        observer.advanced(worker.episode or "", value)
        _tell(worker, "go", not stopped())
        return
    if kind == "ended":
        pool.report.outcomes.append(value)
        shared = pool.report.shared_failure()
        if shared is None:
            observer.ended(value)
        elif pool.fatal is None:
            pool.fatal = shared
            pool.pending.clear()
    elif kind == "stopped":
        pool.report.interrupted = True
    elif kind == "fatal":
        pool.fatal = value
        pool.pending.clear()
    worker.episode = None
    if kind != "fatal" and pool.pending and not stopped():
        worker.episode = pool.pending.popleft()
        observer.started(worker.episode)
        _tell(worker, "episode", worker.episode)
    else:
        _tell(worker, "end", None)
        worker.process.join(timeout=10)
        worker.pipe.close()
        pool.workers.remove(worker)


def _tell(worker: _Worker, kind: str, value: Any) -> None:
    try:
        worker.pipe.send((kind, value))
    except OSError:
        # It died after its last message; its sentinel says so, and `_buried` names the episode.
        _log.debug("worker on %s is gone", worker.device)


def _buried(pool: _Pool, worker: _Worker, observer: Observer) -> None:
    worker.process.join(timeout=10)
    code = worker.process.exitcode
    how = (
        f"killed by {signal.Signals(-code).name}"
        if code is not None and code < 0
        else f"exit code {code}"
    )
    worker.pipe.close()
    pool.workers.remove(worker)
    if worker.episode is not None:
        reason = f"its worker on {worker.device} died ({how}); run the same command again"
        outcome = Outcome(worker.episode, "failed", reason)
        pool.report.outcomes.append(outcome)
        observer.ended(outcome)
    if not pool.workers and pool.pending:
        for name in pool.pending:
            outcome = Outcome(name, "failed", "no worker is left; run the same command again")
            pool.report.outcomes.append(outcome)
            observer.ended(outcome)
        pool.pending.clear()


class _Leash:
    """A worker's side of one episode: tells of progress, is told whether to go on."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._go = pipe, True

    def progress(self, count: int) -> None:
        self._pipe.send(("advanced", count))
        self._go = bool(self._pipe.recv()[1])

    def stopped(self) -> bool:
        return not self._go


def _work(
    pipe: Connection, job: EpisodeJob, spec: PolicySpec, dataset: Dataset, device: str
) -> None:
    # The parent decides; a Ctrl-C of the terminal reaches the children too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        policy = load_policy(
            spec.name,
            spec.checkpoint,
            dtype=spec.dtype,
            device=device,
            revision=spec.revision,
            options=spec.options,
        )
        pipe.send(("ready", None))
        while True:
            kind, name = pipe.recv()
            if kind == "end":
                return
            leash = _Leash(pipe)
            try:
                outcome = ingest_one(
                    job,
                    policy,
                    dataset,
                    name,
                    progress=leash.progress,
                    stopped=leash.stopped,
                )
                pipe.send(("ended", outcome))
            except StoppedError as error:
                pipe.send(("stopped", str(error)))
    except AttnstoreError as error:
        pipe.send(("fatal", str(error)))
    except (EOFError, BrokenPipeError):
        # The parent is gone; what was in flight is garbage, which gc removes.
        return

"""The workers of a Dask cluster: what each of them keeps, and who does which episode.

The work goes to every worker once, as a plugin, also to one that comes later. A task is the name of
an episode; what comes back is its `Outcome`, and a message a keyframe. Nothing else travels.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import dask
from distributed import Client, Future, LocalCluster, Worker, WorkerPlugin, get_worker
from distributed.protocol.pickle import dumps, loads
from distributed.scheduler import KilledWorker
from distributed.utils import silence_logging_cmgr

from attnstore.store.boundary import told
from attnstore.store.commits import check_marker
from attnstore.store.errors import AttnstoreError, EpisodeError, NotFoundError
from attnstore.store.remote.access import Access, access_to, borrow
from attnstore.store.remote.spool import SpooledPaths

from .threads import thread_environment
from .work import (
    Observer,
    Outcome,
    Report,
    SharedFailureError,
    Stopped,
    StoppedError,
    Work,
    Workers,
)

DEATHS = 3
"""Workers that an episode may take with it before it is given up."""
PATIENCE = 10.0
"""Seconds in which a scheduler must answer, and a worker be there before the user is told."""

_AGAIN = "run the same command again"
_busy = threading.Lock()  # one episode at a time in a process, however many threads it has
_opened: tuple[str, Work, Any] | None = None
"""The station that loaded something last, its work, and what; an older one's policy makes room."""


@dataclass(frozen=True, slots=True)
class _Fatal:
    """An error that concerns every episode; as text, since not every exception can be sent."""

    kind: type[AttnstoreError]
    reason: str

    def error(self) -> AttnstoreError:
        """Return it as an exception."""
        plain = not issubclass(self.kind, EpisodeError)  # which takes an episode, too
        return (self.kind if plain else AttnstoreError)(self.reason)


class _Station(WorkerPlugin):
    """What a worker keeps of one command: the work, and whether it goes on."""

    def __init__(self, work: Work, workers: Workers, store_id: str, access: Access | None) -> None:
        self.name = f"attnstore-{uuid.uuid4().hex[:12]}"
        self.halted = False
        # As bytes: a worker that cannot have it, a bucket's store without its keys, says so as a task.
        self._packed, self._device, self._store_id = dumps(work), workers.device, store_id
        self._access = access
        self._own = workers.scheduler is None
        self._directory = str(Path.cwd())

    def setup(self, worker: Worker) -> None:
        """Take up the work on a worker; nothing is loaded yet."""
        self._worker = worker
        if self._own and threading.current_thread() is threading.main_thread():
            # A terminal's or a batch system's signal reaches every process: the parent decides.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)

    def check(self, name: str) -> _Fatal | None:
        """Find out whether an episode could be done here."""
        with _busy:
            try:
                work, _ = self._open()
                work.reach(name)
            except AttnstoreError as error:
                return _Fatal(type(error), str(error))
            except ModuleNotFoundError as error:
                return _Fatal(
                    AttnstoreError,
                    f"{error.name or 'a module'} is not installed there, or its version has no such "
                    "module; all workers need the extras and the plug-ins that this command has",
                )
            except Exception as error:
                return _Fatal(AttnstoreError, told(error))
        return None

    def do(self, name: str) -> Outcome | _Fatal | None:
        """Do an episode; None if the command is to stop."""
        with _busy:
            if self.halted:
                return None
            self._tell("started", name, 0)
            try:
                work, state = self._open()
                return work.do(
                    state, name,
                    progress=lambda count: self._tell("advanced", name, count),
                    stopped=lambda: self.halted,
                )  # fmt: skip
            except StoppedError:
                return None
            except AttnstoreError as error:
                return _Fatal(type(error), str(error))

    def _tell(self, kind: str, name: str, count: int) -> None:
        self._worker.log_event(self.name, {"kind": kind, "name": name, "count": count})

    def _open(self) -> tuple[Work, Any]:
        global _opened
        if _opened is None or _opened[0] != self.name:
            _opened = None
            if Path(self._directory).is_dir():
                os.chdir(self._directory)  # the command's paths may be relative
            borrow(self._access)
            work: Work = loads(self._packed)
            root = work.paths.root
            try:
                found = check_marker(root)["store_id"]
            except NotFoundError as error:
                raise NotFoundError(f"{error}; {_SHARE}") from error
            if found != self._store_id:
                raise NotFoundError(f"{root.absolute()} is another store there; {_SHARE}")
            if not os.access(root, os.W_OK):
                raise AttnstoreError(f"{root.absolute()} cannot be written there")
            device = device_of_worker(self._device, self._worker.name)
            _opened = self.name, work, work.open(device)
        return _opened[1:]


_SHARE = "all workers need the store, in a directory that they share"


def device_of_worker(device: str, name: object) -> str:
    """Return a worker's own device: of ``cuda`` the one with the number that its name ends with.

    Parameters
    ----------
    name
        A worker's name: 0, 1, ... of `LocalCluster`, ``NAME-0``, ... of ``dask worker --nworkers``.

    Examples
    --------
    >>> device_of_worker("cpu", 1), device_of_worker("cuda:1", 0)
    ('cpu', 'cuda:1')
    """
    if device != "cuda":
        return device
    import torch

    last = str(name).rpartition("-")[2]
    number = int(last) if last.isascii() and last.isdecimal() else 0
    return f"cuda:{number % max(1, torch.cuda.device_count())}"


def execute_on_cluster(
    work: Work, names: Sequence[str], observer: Observer, workers: Workers, stopped: Stopped
) -> Report:
    """Do a work on episodes by the workers of a cluster.

    An episode whose worker dies is done by another; one that takes `DEATHS` workers with it is given
    up, and the rest goes on.

    Raises
    ------
    AttnstoreError
        As `attnstore.ingest.executor.execute`; and if there is no scheduler, if a worker cannot do the
        work, or if the scheduler goes away.
    """
    # Three deaths, not four, as Dask has it; an address that nobody answers is known in seconds.
    config = {
        "distributed.scheduler.allowed-failures": DEATHS - 1,
        "distributed.comm.timeouts.connect": PATIENCE,
        **{
            f"distributed.nanny.pre-spawn-environ.{name}": value
            for name, value in thread_environment(workers.count).items()
        },
    }
    with dask.config.set(config), _client(workers, len(names)) as client:
        return _Dealer(client, work, names, observer, workers, stopped).run()


@contextlib.contextmanager
def _client(workers: Workers, episodes: int) -> Iterator[Client]:
    """Connect to a cluster: the user's, or one that lasts as long as this."""
    if workers.scheduler is None:
        cluster = LocalCluster(
            n_workers=min(workers.count, episodes), threads_per_worker=1, processes=True,
            dashboard_address="127.0.0.1:0", memory_limit=0, silence_logs=50,
        )  # fmt: skip
        with cluster, Client(cluster) as client:
            yield client
        return
    where, named = workers.scheduler, {"address": workers.scheduler}
    if "://" not in where:
        if not Path(where).is_file():
            raise NotFoundError(
                f"--scheduler {where}: neither an address such as tcp://host:8786 nor a scheduler file"
            )
        named = {"scheduler_file": where}
    # What befalls the scheduler is said in a line of ours; distributed would log its traceback, too.
    with silence_logging_cmgr(logging.CRITICAL):
        try:
            client = Client(**named, timeout=PATIENCE)
        except (OSError, TimeoutError, ValueError) as error:
            raise AttnstoreError(
                f"--scheduler {where}: no Dask scheduler answers there ({told(error)}); start one "
                "with `dask scheduler`, or look whether it still runs"
            ) from error
        with client:
            yield client


class _Dealer:
    """Gives episodes to workers and hears from them; everything in the caller's thread."""

    def __init__(
        self, client: Client, work: Work, names: Sequence[str], observer: Observer,
        workers: Workers, stopped: Stopped,
    ) -> None:  # fmt: skip
        self._client, self._observer, self._stopped = client, observer, stopped
        self._where = workers.scheduler or "of this command"
        paths, elsewhere = work.paths, workers.scheduler is not None
        access = access_to(paths) if elsewhere and isinstance(paths, SpooledPaths) else None
        self._station = _Station(work, workers, check_marker(paths.root)["store_id"], access)
        self._pending = deque(names)
        self._running: dict[Future[Any], str] = {}
        self._started: Counter[str] = Counter()
        self._blamed: Counter[str] = Counter()
        self._news: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._report = Report()
        self._fatal: AttnstoreError | None = None

    def run(self) -> Report:
        """Do all episodes."""
        try:
            self._prepare()
            while self._pending or self._running:
                self._deal()
                self._hear()
        except (OSError, TimeoutError) as error:
            raise self._lost(told(error)) from error
        finally:
            # Also after a second Ctrl-C: workers that go on would do so for nobody.
            with contextlib.suppress(Exception):
                self._halt()
                self._client.unregister_worker_plugin(self._station.name)
        if self._fatal is not None:
            raise self._fatal
        return self._report

    def _prepare(self) -> None:
        """Hand out the work, and find out whether every worker can do it, before the first task."""
        self._wait_for_workers()
        self._check_versions()
        self._client.subscribe_topic(self._station.name, lambda event: self._news.put(event))
        self._client.register_plugin(self._station)
        tasks = {
            address: self._client.submit(
                _check, self._station.name, self._pending[0], workers=[address], pure=False
            )
            for address in self._addresses()
        }
        while tasks and not self._stopped():
            here = self._addresses()
            for address, task in list(tasks.items()):
                # A worker that died of it is another's turn: the episode's own will tell.
                if task.done() or address not in here:
                    del tasks[address]
                    problem = task.result() if task.status == "finished" else None
                    if problem is not None:
                        raise _Fatal(problem.kind, f"worker {address}: {problem.reason}").error()
            time.sleep(0.05)

    def _wait_for_workers(self) -> None:
        """Wait until a worker is there; say so if that takes long."""
        told_user = False
        while not self._stopped() and not self._addresses():
            try:
                self._client.wait_for_workers(1, timeout=PATIENCE if not told_user else 1)
            except TimeoutError:
                if not told_user:
                    self._observer.noted(
                        f"the scheduler {self._where} has no worker; waiting for one"
                    )
                told_user = True

    def _check_versions(self) -> None:
        own = version("attnstore")
        workers: dict[str, Any] = self._client.get_versions(packages=["attnstore"])["workers"]  # type: ignore[index]  # not asynchronous
        for address, found in workers.items():
            there = found["packages"]["attnstore"]
            if there != own:
                has = f"attnstore {there}" if there else "no attnstore"
                raise AttnstoreError(
                    f"worker {address} has {has}, this command is of {own}: install the same "
                    "version where the workers run, and start them again"
                )

    def _addresses(self) -> set[str]:
        return set(self._client.nthreads())

    def _deal(self) -> None:
        if self._stopped():
            self._report.interrupted = True
            self._pending.clear()
            self._halt()  # every time: a worker may have come since
        # One more than there are workers: a cluster that adapts then knows that there is more to do.
        while self._pending and len(self._running) <= len(self._addresses()):
            name = self._pending.popleft()
            task = self._client.submit(
                _do, self._station.name, name, pure=False, key=f"{name}-{uuid.uuid4().hex[:8]}"
            )
            self._running[task] = name
            task.add_done_callback(lambda future: self._news.put(("done", future)))

    def _hear(self) -> None:
        with contextlib.suppress(Empty):
            kind, value = self._news.get(timeout=0.2)
            if kind == "done":
                self._ended(value, self._running.pop(value))
            elif value["kind"] == "started":
                self._started[value["name"]] += 1
                if self._started[value["name"]] > 1:
                    self._observer.noted(
                        f"{value['name']}: its worker died, and it is begun again by another"
                    )
                self._observer.started(value["name"])
            else:
                self._observer.advanced(value["name"], value["count"])

    def _ended(self, task: Future[Any], name: str) -> None:
        if task.status == "cancelled":
            raise self._lost("the connection broke")
        try:
            outcome = task.result()
        except KilledWorker as error:
            # Dask also blames a task that only waited for the worker that died.
            self._blamed[name] += 1
            if self._started[name] < DEATHS and self._blamed[name] < DEATHS:
                self._pending.appendleft(name)
                return
            died = max(self._started[name], self._blamed[name])
            outcome = Outcome(
                name, "failed",
                f"{died} workers died at it, the last one on {error.last_worker.host}; is there too "
                f"little memory? {_AGAIN}",
            )  # fmt: skip
        except Exception as error:
            outcome = Outcome(name, "failed", told(error))
        if outcome is None:
            self._report.interrupted = True
        elif isinstance(outcome, _Fatal):
            self._give_up(outcome.error())
        else:
            self._report.outcomes.append(outcome)
            shared = self._report.shared_failure()
            if shared is not None:
                self._give_up(SharedFailureError(shared))
            else:
                self._observer.ended(outcome)

    def _give_up(self, error: AttnstoreError) -> None:
        """Begin no other episode; those that are in the making are waited for."""
        self._fatal = self._fatal or error
        self._pending.clear()

    def _halt(self) -> None:
        self._client.run(_halt, self._station.name, on_error="ignore")

    def _lost(self, why: str) -> AttnstoreError:
        return AttnstoreError(
            f"the scheduler {self._where} is gone ({why}); committed episodes are kept: {_AGAIN}"
        )


def _station(name: str) -> _Station:
    station = get_worker().plugins[name]
    assert isinstance(station, _Station)
    return station


def _check(station: str, name: str) -> _Fatal | None:
    return _station(station).check(name)


def _do(station: str, name: str) -> Outcome | _Fatal | None:
    return _station(station).do(name)


def _halt(station: str, dask_worker: Worker) -> None:
    plugin = dask_worker.plugins.get(station)
    if isinstance(plugin, _Station):
        plugin.halted = True

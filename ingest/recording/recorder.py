"""``attnstore.record``: a policy's calls while it drives, each a keyframe of the episode it belongs to."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from attnstore.store.boundary import told
from attnstore.store.commits import StorePaths, now, slug
from attnstore.store.commits.run import save_run
from attnstore.store.errors import AttnstoreError, UsageError
from attnstore.store.format.precision import PRECISIONS
from attnstore.store.json_text import json_value
from attnstore.store.opening import create_store
from attnstore.store.recordings.journal import SUFFIX

from ..datasets.base import VideoFrames
from ..datasets.video import check_kept
from ..episode import EpisodeJob
from ..pipeline import ingest_one, provenance
from ..plan import describe_run
from ..policies.base import (
    Batch,
    Observation,
    Policy,
    Watch,
    check_stored_hidden,
    watch_where_shown,
)
from ..threads import torch_threads
from ..work import Outcome
from .call import Call, pack_call
from .dataset import RecordingDataset
from .episode import UNFINISHED, Episode
from .inputs import Copied, copy_inputs
from .memory import Memory
from .onlooker import Onlooker, check_rerun
from .outbox import Outbox
from .spool import Row, Shown, SpooledPolicy, Spooler

_log = logging.getLogger(__name__)

Mode = Literal["live", "replay"]
QUEUE_BYTES = {"live": 512 << 20, "replay": 64 << 20}
"""What may wait to be written."""
KEPT_BYTES = 32 << 20
"""Of memory that calls were copied to, what is kept for the next ones: two calls with three cameras of 480 x 640."""
LONGEST_WAIT = 30.0
"""Seconds that a policy may wait for room in the queue, where it may wait."""
HEAD_START = 0.002
"""Seconds after which a thread copies what a policy sees: by then the policy computes, and needs Python's lock no more
than the thread. Before that, each small step would wait for the other."""
_CAPTURING = threading.RLock()
"""Hooks and attention implementations are the process's: live captures take turns."""


def record(
    policy: Policy,
    store: str | os.PathLike[str],
    *,
    mode: Mode = "live",
    name: str = "recording",
    precision: str = "float16",
    watch: Watch | None = None,
    pictures: VideoFrames = "jpeg",
    rate: float | None = None,
    wait: bool | None = None,
    queue_bytes: int | None = None,
    rerun: bool | str | os.PathLike[str] | None = None,
) -> Recorder:
    """Record what a policy sees and does while it drives, and its attention at once or later.

    Inside the ``with``, `policy.act` records every call of a thread that is in an episode. The actions are
    those of the policy, and nothing that the recorder does is raised into the caller.

    Parameters
    ----------
    policy
        Loaded by an adapter: `attnstore.ingest.policies.registry.load_policy`.
    store
        Local path of the store; made if there is none.
    mode
        ``live``: attention is captured in the forward, eager and uncompiled, and committed when the
        episode ends. ``replay``: what the policy saw is kept, and ``attnstore ingest recording`` captures
        from it later.
    name
        Of the recording; with the policy it says which run the episodes are of.
    precision
        Stored precision of a live run: ``float16`` or ``log8``.
    watch
        What a live run captures beside the attention of the policy's own phases; None: value norms and
        hidden states, if the policy shows them, as an ingest does.
    pictures
        How camera images are kept, for looking at: ``jpeg``, or ``png`` exactly. The policy's inputs are
        kept exactly in any case.
    rate
        Environment steps a second, if it is known.
    wait
        Whether a call waits, at most half a minute, while the queue is full; else it is dropped and
        counted. None: live waits, replay does not.
    queue_bytes
        What may wait to be written. None: 512 MiB live, 64 MiB for replay.
    rerun
        Show it in a Rerun viewer while it goes on: True or ``spawn`` starts one,
        ``rerun+http://HOST:9876/proxy`` is one, a directory takes an ``.rrd`` file an episode. Another process does
        that (``attnstore record watch``), so that no call waits for a viewer; calls that it is too slow for are left
        out there, and counted. In ``replay`` there is no attention to show yet.

    Returns
    -------
    A context manager; inside it, `Recorder.episode` opens an episode.

    Raises
    ------
    UsageError
        If an argument breaks a rule, or the policy is being recorded already.
    MissingExtraError
        If `rerun` is asked for, and rerun-sdk is not installed.
    AttnstoreError
        If the store cannot be made.

    Examples
    --------
    ::

        with attnstore.record(policy, "lab.attn", mode="replay") as recorder:
            with recorder.episode("cube-0001", instruction="lift the cube", seed=1) as episode:
                while not done:
                    actions = policy.act(policy.prepare([observation]))
                    ...  # carry out 8 of them
                    episode.advance(8)
                episode.finish(outcome="success", reward=1.0)
    """
    if mode not in get_args(Mode):
        raise UsageError(f"mode is one of {', '.join(get_args(Mode))}; got {mode!r}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision is one of {', '.join(PRECISIONS)}; got {precision!r}")
    check_kept(pictures)
    if rate is not None and not 0 < rate < float("inf"):
        raise UsageError(f"rate is a positive number of steps a second; got {rate!r}")
    if queue_bytes is not None and queue_bytes < 1:
        raise UsageError(f"queue_bytes is positive; got {queue_bytes}")
    if not name.strip():
        raise UsageError("a recording needs a name")
    if "://" in os.fspath(store):
        raise UsageError(f"a policy is recorded into a local store; got {os.fspath(store)}")
    if watch is None:
        watch = watch_where_shown(policy)
    if watch.vision:
        policy.encoder_shape()
    if watch.token_stats:
        policy.check_hidden()
    if watch.values:
        policy.check_values()
    if watch.hidden is not None:
        check_stored_hidden(policy)
    seconds = LONGEST_WAIT if (mode == "live" if wait is None else wait) else 0.0
    settings = _Settings(
        mode, name, precision, watch, pictures, rate, seconds, queue_bytes or QUEUE_BYTES[mode],
        check_rerun(rerun),
    )  # fmt: skip
    try:
        return Recorder(policy, Path(store), settings)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AttnstoreError(f"{os.fspath(store)} cannot be written: {reason}") from error


@dataclass(frozen=True, slots=True)
class _Settings:
    mode: Mode
    name: str
    precision: str
    watch: Watch
    pictures: VideoFrames
    rate: float | None
    wait: float
    queue_bytes: int
    rerun: str | None


@dataclass(frozen=True, slots=True)
class _Pending:
    """A row of a call that is under way."""

    row: int
    episode: Episode
    number: int
    step: int
    at: float
    observation: Observation
    inputs: Copied


class Recorder:
    """Records the calls of one policy; made by `record`."""

    def __init__(self, policy: Policy, store: Path, settings: _Settings) -> None:
        self.policy = policy
        self.mode = settings.mode
        self.outcomes: list[Outcome] = []
        """What became of the episodes of a live recording that were committed, or could not be."""
        self.faults: Counter[str] = Counter()
        """What went wrong in the recorder, each logged once."""
        self.memory = Memory(KEPT_BYTES)
        """Where what a policy sees is copied to."""
        self._settings = settings
        self._paths: StorePaths = create_store(store)
        self._paths.check_writable()
        self._folder = self._paths.recordings / slug(settings.name)
        self._identity = {
            "policy": policy.name,
            "checkpoint": policy.checkpoint,
            "checkpoint_digest": policy.digest,
            "dtype": policy.dtype,
        }
        self._rows: ContextVar[Sequence[Episode | None] | None] = ContextVar("rows", default=None)
        self._inside = threading.local()
        self._prepared: dict[
            int, tuple[weakref.ref[Batch], tuple[Observation, ...], Callable[[], None] | None]
        ] = {}
        self._lock = threading.Lock()
        self._open: list[Episode] = []
        self._names: set[str] = set()
        self._outbox: Outbox | None = None
        self._commits: ThreadPoolExecutor | None = None
        self._job: EpisodeJob | None = None
        self._onlooker: Onlooker | None = None
        self._own: dict[str, Any] = {}
        self._act: Callable[[Batch], Any] = policy.act
        self._prepare: Callable[[Sequence[Observation]], Batch] = policy.prepare

    @property
    def directory(self) -> Path:
        """Where the journals are."""
        return self._folder

    @property
    def dropped(self) -> int:
        """Calls of episodes that are still open and were dropped."""
        with self._lock:
            return sum(e.dropped.total() for e in self._open)

    def __enter__(self) -> Recorder:
        own = vars(self.policy) if hasattr(self.policy, "__dict__") else {}
        if getattr(own.get("act"), "attnstore_recorder", None) is not None:
            raise UsageError(f"policy {self.policy.name} is being recorded already")
        self._act, self._prepare = self.policy.act, self.policy.prepare
        # What somebody else put on the object is put there again.
        self._own = {name: own[name] for name in ("act", "prepare") if name in own}

        def act(batch: Batch) -> Any:
            return self._acting(batch)

        def prepare(observations: Sequence[Observation]) -> Batch:
            return self._preparing(observations)

        vars(act)["attnstore_recorder"] = self
        try:
            self.policy.act, self.policy.prepare = act, prepare  # type: ignore[method-assign]
        except AttributeError as error:
            raise UsageError(
                f"policy {self.policy.name} cannot be recorded: its methods cannot be replaced "
                f"on the object ({error})"
            ) from None
        self._outbox = Outbox(self._settings.queue_bytes)
        self._copier = ThreadPoolExecutor(1, "attnstore-copier")
        if self.mode == "live":
            self._commits = ThreadPoolExecutor(1, "attnstore-committer")
        if self._settings.rerun is not None:
            try:
                self._onlooker = Onlooker(
                    self._paths.root, self._settings.name, self._settings.rerun
                )
            except OSError as error:
                self._fault(f"nothing is shown in Rerun: {told(error)}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self.policy.act, self.policy.prepare
        reason = UNFINISHED if kind is None else f"{kind.__name__}: {error}"[:300]
        with self._lock:
            still = list(self._open)
        for episode in still:
            episode._end(None, None, {}, reason)
        assert self._outbox is not None
        self._copier.shutdown()
        self._outbox.close()
        if self._commits is not None:
            self._commits.shutdown(wait=True)
        if self._onlooker is not None:
            self._onlooker.close(self._fault)

    def episode(
        self,
        name: str,
        *,
        instruction: str | None = None,
        task: str | None = None,
        seed: int | None = None,
        **attributes: Any,
    ) -> Episode:
        """Open an episode.

        Parameters
        ----------
        name
            Unique in the recording; of a name that is there already, the next one is called ``name~2``.
        instruction
            None: that of the first call.
        task, seed
            Of the environment.
        attributes
            Whatever else is to be kept of it; JSON values.
        """
        text = str(name)
        with self._lock:
            unique, count = text, 1
            while unique in self._names or self._path(unique).exists():
                count += 1
                unique = f"{text}~{count}"
            self._names.add(unique)
        if unique != text:
            self._fault(f"an episode {text} is recorded already; this one is called {unique}")
        try:
            kept = json_value({str(k): v for k, v in attributes.items()})
        except Exception as error:
            self._fault(f"attributes of an episode: {told(error)}")
            kept = {}
        head = {
            "kind": "episode",
            "format": 1,
            "name": unique,
            "instruction": instruction,
            "task": task,
            "seed": None if seed is None else int(seed),
            "rate": self._settings.rate,
            "mode": self.mode,
            "policy": self._identity,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "created": now(),
            "attributes": kept,
        }
        episode = Episode(self, unique, head, self._path(unique))
        with self._lock:
            self._open.append(episode)
        self._send(episode, lambda: episode._append(head), 0)
        return episode

    @contextmanager
    def rows(self, episodes: Sequence[Episode | None]) -> Iterator[None]:
        """Say whose the rows of this thread's batches are, in a batched environment.

        A row whose episode is None, or has ended, is not recorded. Put the row's next episode in the
        same list, and the next call is its.
        """
        token = self._enter(episodes)
        try:
            yield
        finally:
            self._leave(token)

    @property
    def inside(self) -> bool:
        """Whether this thread is in an episode, or has said whose the rows of its batches are."""
        return self._rows.get() is not None

    def saw(
        self,
        batch: Batch,
        observations: Sequence[Observation],
        fill: Callable[[], None] | None = None,
    ) -> None:
        """Say of which observations a batch is that something else than the policy's `prepare` made.

        Parameters
        ----------
        fill
            Makes the images of the observations, in memory that nobody else writes to. It is then called by a
            thread that also copies the large inputs, while the policy acts: it must not write to them.
        """
        key = id(batch)

        def forget(_: weakref.ref[Batch], key: int = key) -> None:
            self._prepared.pop(key, None)

        self._prepared[key] = weakref.ref(batch, forget), tuple(observations), fill

    def missed(self, error: Exception) -> None:
        """Count a call of this thread's episodes that could not be made a batch of."""
        for episode in self._rows.get() or ():
            if episode is not None and not episode.ended:
                episode._number()
                self._lost(episode, told(error))

    def flush(self) -> None:
        """Wait until every call so far is written, and every ended episode committed."""
        if self._outbox is not None:
            self._outbox.flush()
        if self._commits is not None:
            self._commits.submit(lambda: None).result()

    def _path(self, name: str) -> Path:
        return self._folder / f"{slug(name)}{SUFFIX}"

    def _enter(self, rows: Sequence[Episode | None]) -> Token[Sequence[Episode | None] | None]:
        return self._rows.set(rows)

    def _leave(self, token: Token[Sequence[Episode | None] | None]) -> None:
        self._rows.reset(token)

    def _fault(self, text: str) -> None:
        """Log a fault, each once."""
        with self._lock:
            self.faults[text] += 1
            first = self.faults[text] == 1
        if first:
            _log.warning("recording goes on without it: %s", text)

    # The policy's two methods, while it is recorded.

    def _preparing(self, observations: Sequence[Observation]) -> Batch:
        batch = self._prepare(observations)
        try:
            self.saw(batch, observations)
        except Exception as error:
            self._fault(f"a batch: {told(error)}")
        return batch

    def _acting(self, batch: Batch) -> Any:
        if getattr(self._inside, "acting", False):
            return self._act(batch)
        rows = self._rows.get()
        if rows is None:
            if self.mode == "replay":
                return self._act(batch)
            with _CAPTURING:  # hooks of another thread's call would see this one's weights
                return self._act(batch)
        self._inside.acting = True
        try:
            pending, copied = self._begin(batch, tuple(rows))
            started = time.monotonic()
            if self.mode == "live" and pending:
                actions, spooled = self._capture(batch, pending)
            else:
                actions, spooled = self._act(batch), {}
            self._record(batch, pending, actions, time.monotonic() - started, spooled, copied)
            return actions
        finally:
            self._inside.acting = False

    def _begin(
        self, batch: Batch, rows: tuple[Episode | None, ...]
    ) -> tuple[list[_Pending], Callable[[], None] | None]:
        """Copy what the policy is given, before it is.

        Returns
        -------
        The rows that are recorded; and what waits for the large copies that a thread makes while the policy acts.
        """
        pending: list[_Pending] = []
        later: list[Callable[[], None]] = []
        fill = None
        for row, episode in enumerate(rows):
            if episode is None or episode.ended:
                continue
            number = episode._number()
            try:
                if len(rows) != len(batch):
                    raise UsageError(
                        f"a batch of {len(batch)} observations for {len(rows)} episodes: "
                        "say whose the rows are by recorder.rows"
                    )
                known = self._prepared.get(id(batch))
                if known is None or known[0]() is not batch:
                    raise UsageError("a batch that this policy's prepare did not make")
                seen, fill = known[1][row], known[2]
                images = dict(seen.images)
                if fill is None:
                    images = {camera: np.array(image) for camera, image in images.items()}
                seen = replace(
                    seen, images=images, state=np.array(seen.state, np.float32), recorded=None
                )
                inputs = self._row(batch, row, None if fill is None else later)
                pending.append(
                    _Pending(row, episode, number, episode.step, episode._seconds(), seen, inputs)
                )
            except Exception as error:
                self._lost(episode, told(error))
        if fill is None or not pending:
            return pending, None

        def copy() -> None:
            for each in (*later, fill):
                each()

        begun = threading.Lock()

        def meanwhile() -> None:
            time.sleep(HEAD_START)
            if begun.acquire(blocking=False):
                copy()

        try:
            copying = self._copier.submit(meanwhile)
        except RuntimeError:  # there can be no more threads
            return pending, copy

        def copied() -> None:
            if begun.acquire(blocking=False):  # a short call, or its thread had no processor yet
                copy()
            else:
                copying.result()

        return pending, copied

    def _row(self, batch: Batch, row: int, later: list[Callable[[], None]] | None) -> Copied:
        """Copy the inputs of a row of a batch; a policy that acts row by row says what each acts on."""
        alone = getattr(self.policy, "alone", None)
        empty = self.memory.empty
        if len(batch) > 1 and alone is not None:
            return copy_inputs(alone(batch.inputs, row), later=later, empty=empty)
        own = row if len(batch) > 1 else None
        return copy_inputs(batch.inputs, own, len(batch), later, empty)

    def _capture(self, batch: Batch, pending: Sequence[_Pending]) -> tuple[Any, dict[int, Row]]:
        """Act with the policy watched; without, if watching it fails."""
        spooled = {p.row: Row(p.row, p.episode.spool, Shown()) for p in pending}
        spooler = Spooler(batch, list(spooled.values()), self._settings.watch, self._room)
        with _CAPTURING:
            try:
                with self.policy.instrument(spooler):
                    actions = self._act(batch)
            except Exception as error:
                # The policy's own error comes again; the capture's does not.
                actions = self._act(batch)
                spooler.fault = spooler.fault or told(error)
        if spooler.fault is not None:
            self._fault(f"a call was not captured while it drove: {spooler.fault}")
            return actions, {}
        return actions, spooled

    def _room(self, task: Callable[[], object], size: int) -> bool:
        assert self._outbox is not None
        return self._outbox.put(task, size, self._settings.wait)

    def _record(
        self,
        batch: Batch,
        pending: Sequence[_Pending],
        actions: Any,
        seconds: float,
        spooled: Mapping[int, Row],
        copied: Callable[[], None] | None,
    ) -> None:
        if not pending:
            return
        try:
            chunks = _numpy(actions)
        except Exception as error:
            for each in pending:
                self._lost(each.episode, f"the actions: {told(error)}")
            return
        try:
            if copied is not None:
                copied()  # from here on the caller may write to what was copied
        except Exception as error:
            for each in pending:
                self._lost(each.episode, told(error))
            return
        for each in pending:
            try:
                encoded = tuple(
                    None if (place := batch.encoded[i]) is None else (0, place[1])
                    for i in batch.images_of(each.row)
                )
                call = Call(
                    each.number, each.step, each.at, seconds, len(batch), each.observation,
                    batch.samples, each.row, encoded, each.inputs, chunks[each.row].copy(),
                    torch_threads(),
                )  # fmt: skip
                if each.row in spooled:
                    # An episode may have ended in another thread meanwhile.
                    each.episode.spool.calls[each.number] = spooled[each.row].shown
                    each.episode.chunks[each.number] = (
                        actions[each.row : each.row + 1].detach().cpu()
                    )
                shown = spooled[each.row].shown if each.row in spooled else None
                write = partial(self._write, each.episode, call, shown)
                self._send(each.episode, write, call.nbytes)
            except Exception as error:
                self._lost(each.episode, told(error))

    def _write(self, episode: Episode, call: Call, shown: Shown | None) -> None:
        head, pieces = pack_call(call, episode.dropped.total(), self._settings.pictures)
        if shown is not None:
            head["shown"] = shown.places(self.policy.phases)
        episode._append(head, pieces)

    def _send(self, episode: Episode, task: Callable[[], None], size: int) -> None:
        """Have the outbox's thread do something with an episode's journal."""

        def guarded() -> None:
            try:
                task()
            except Exception as error:
                if size:
                    self._lost(episode, told(error))
                else:
                    self._fault(f"{episode.name}: {told(error)}")

        assert self._outbox is not None
        if not self._outbox.put(guarded, size, self._settings.wait if size else 0.0):
            self._lost(episode, "the queue is full")

    def _lost(self, episode: Episode, reason: str) -> None:
        episode._drop(reason)
        self._fault(f"a policy call was dropped: {reason}")

    def _ended(self, episode: Episode, end: dict[str, Any]) -> None:
        with self._lock:
            if episode in self._open:
                self._open.remove(episode)

        def close() -> None:
            end["dropped"] = episode.dropped.total()
            if episode.dropped:
                end["attributes"]["dropped_because"] = dict(episode.dropped)
            try:
                episode._append(end)
            finally:
                episode._close()
            if self._commits is not None:
                self._commits.submit(self._commit, episode)

        self._send(episode, close, 0)

    def _commit(self, episode: Episode) -> None:
        """Put a live episode into the store, from its journal and its spool."""
        try:
            self.outcomes.append(self._committed(episode))
        except Exception as error:
            outcome = Outcome(episode.name, "failed", told(error))
            self.outcomes.append(outcome)
        finally:
            episode.spool.close()
            episode.spool.calls.clear()
            episode.chunks.clear()
        last = self.outcomes[-1]
        if last.status not in ("committed", "present"):
            self._fault(
                f"{last.name} is not in {self._paths.root} ({last.status}: {last.reason}); "
                f"`attnstore ingest recording {self._paths.root}` captures it from {self._folder}"
            )

    def _committed(self, episode: Episode) -> Outcome:
        # Named as the recording is, not as its directory.
        dataset = RecordingDataset(self._folder, episodes=[episode.name])
        numbers = dataset.numbers(episode.name)
        spool = episode.spool
        if spool.fault is not None:
            return Outcome(episode.name, "failed", spool.fault)
        missing = [n for n in numbers if n not in spool.calls]
        if missing:
            return Outcome(
                episode.name, "failed",
                f"{len(missing)} of {len(numbers)} calls were not captured while it drove",
            )  # fmt: skip
        spooled = SpooledPolicy(self.policy, spool, numbers, episode.chunks)
        if self._job is None:
            settings = self._settings
            run = describe_run(
                spooled, self.policy.name, dataset, stride=1, precision=settings.precision,
                seed=0, watch=settings.watch,
            )  # fmt: skip
            save_run(self._paths, run, provenance(self.policy))
            self._job = EpisodeJob(self._paths, run, watch=settings.watch)
        return ingest_one(
            self._job, spooled, dataset, episode.name,
            progress=lambda count: None, stopped=lambda: False,
        )  # fmt: skip


def _numpy(actions: Any) -> NDArray[np.float32]:
    """Copy a chunk to the CPU, as float32, which holds every smaller type exactly."""
    values = actions.detach().float().cpu().numpy() if hasattr(actions, "detach") else actions
    return np.array(values, np.float32)

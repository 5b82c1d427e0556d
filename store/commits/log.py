"""The commit log, ``commits/log/<number>.json``: the one place that says what is committed.

An entry is created if its number is free, complete, by a hard link; so writers need no lock, and the
entries have an order. A writer whose number is taken reads what came and takes the next, unless what
came is the very thing that it was about to say. Whoever knows the log up to N looks at what is above
N, on a disk, over NFS, in a bucket or at a web server: catalogs, mirrors, the service and every
process learn of commits here and nowhere else. No entry is ever changed or deleted.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

from ..errors import AttnstoreError, IntegrityError, NotFoundError
from ..format.version import check_version
from .entry import PLACE, Commit, Fact, check_seal, commit_of, facts, ids, previous_of, sealed
from .files import parse_json, read_bounded, sync_directory
from .holding import StorePaths
from .layout import ENTRY, Key

MOST_RECHECKED = 64
"""Entries that could not be read and are looked at again each time."""
SETTLED = 2.0
"""Seconds that a writer waits for an entry of which only the name is there."""
VISIBLE = 60.0
"""Seconds after which NFS shows every client a name that another one made."""
BATCH = 256
"""Entries that are read at a time, and are in memory at once."""
QUICK = 5e-4
"""Seconds; an entry that is read sooner came from memory."""
_KEPT_COMMITS = 64
_KEPT_LOGS = 64
_READERS = 16
_EACH = BATCH // _READERS
_log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An entry, or several, that should be there and say nothing."""

    number: int
    last: int
    """The same, but for entries that are missing one after the other."""
    reason: str
    digest: str
    """SHA-256 of what is in its place; empty if nothing can be read there."""
    key: Key | None = None
    """The part that it is of, if that much can be read."""


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision of a part, as the log has it."""

    number: int
    """Of the entry."""
    revision: int
    attempt: str | None
    """None if the part was removed, or nobody can read."""
    reason: str | None = None
    """Why the entry cannot be used."""

    @property
    def is_there(self) -> bool:
        """Whether it is a commit, and not a removal."""
        return self.attempt is not None or self.reason is not None


@dataclass(slots=True)
class History:
    """What the log said up to an entry."""

    head: int = 0
    """Number of that entry; 0 if the log is empty."""
    tip: str = ""
    """SHA-256 of that entry."""
    facts: list[Fact] = field(default_factory=list)
    tree: dict[str, dict[str, dict[str, dict[int, Revision]]]] = field(default_factory=dict)
    """Run, episode, part and revision to what the log has of it."""
    runs: dict[str, int] = field(default_factory=dict)
    """Recorded runs, to their entry."""
    attempts: dict[str, Fact] = field(default_factory=dict)
    """Attempts that were committed, by their id."""
    discarded: set[str] = field(default_factory=set)
    """Attempts that never will be."""
    unreadable: dict[int, Unreadable] = field(default_factory=dict)

    def add(self, fact: Fact) -> None:
        """Take in what an entry says; in the order of the log."""
        self.facts.append(fact)
        match fact.kind:
            case "commit" | "removal":
                self._put(fact.key, Revision(fact.number, fact.revision or 0, fact.attempt))
                if fact.attempt is not None:
                    self.attempts[fact.attempt] = fact
            case "run":
                self.runs.setdefault(str(fact.run), fact.number)
            case "discard" if fact.attempt is not None:
                self.discarded.add(fact.attempt)
            case "discard" if fact.target is not None:
                gone = self.unreadable.pop(fact.target, None)
                if gone is not None and gone.key is not None:
                    revisions = self.revisions(*gone.key)
                    for each in [r for r in revisions.values() if r.number == fact.target]:
                        del revisions[each.revision]

    def miss(self, entry: Unreadable) -> None:
        """Take in that an entry cannot be read."""
        self.unreadable[entry.number] = entry
        if entry.key is not None:
            # Above all that is known: rather an error than the revision before.
            latest = max(self.revisions(*entry.key), default=0)
            self._put(entry.key, Revision(entry.number, latest + 1, None, entry.reason))

    def _put(self, key: Key, revision: Revision) -> None:
        run, episode, part = key
        parts = self.tree.setdefault(run, {}).setdefault(episode, {})
        parts.setdefault(part, {})[revision.revision] = revision

    def revisions(self, run: str, episode: str, part: str) -> dict[int, Revision]:
        """Every revision of a part."""
        return self.tree.get(run, {}).get(episode, {}).get(part, {})

    def latest(self, run: str, episode: str, part: str) -> Revision | None:
        """The revision of a part that counts; None if it was never committed, or was removed."""
        revisions = self.revisions(run, episode, part)
        latest = revisions[max(revisions)] if revisions else None
        return latest if latest is not None and latest.is_there else None

    def parts(self) -> Iterator[tuple[Key, Revision]]:
        """Yield every part and its latest revision, in order of run, episode and part."""
        for run in sorted(self.tree):
            for episode in sorted(self.tree[run]):
                for part in sorted(self.tree[run][episode]):
                    latest = self.latest(run, episode, part)
                    if latest is not None:
                        yield (run, episode, part), latest

    def names(self, *below: str) -> list[str]:
        """Names of runs, of a run's episodes, or of an episode's parts, that have commits."""
        if len(below) == 2:
            parts = self.tree.get(below[0], {}).get(below[1], {})
            return sorted(part for part in parts if self.latest(*below, part) is not None)
        level = self.tree.get(below[0], {}) if below else self.tree
        return sorted(name for name in level if self.names(*below, name))

    @property
    def version(self) -> str:
        """What tells this state of the log from every other one."""
        return version(self.head, self.tip, self.unreadable.values())

    def concealed(self) -> bool:
        """Whether an entry cannot be read of which nobody knows what part it is of."""
        return any(entry.key is None for entry in self.unreadable.values())


@dataclass(frozen=True, slots=True)
class _Read:
    """One entry, read but not yet taken in."""

    number: int
    digest: str
    previous: str | None = None
    facts: tuple[Fact, ...] = ()
    reason: str | None = None
    key: Key | None = None
    commit: Commit | None = None
    """With its files, if they are kept."""


class Log:
    """The log of one open store; safe to use from many threads. `log_of` makes it.

    Parameters
    ----------
    keep
        Files of commits that are remembered while the log is read, for whoever asks for all of them:
        their entries are not read again.
    """

    def __init__(self, paths: StorePaths, *, keep: int = 0) -> None:
        self._paths = paths
        self._keeps, self._room = keep > 0, keep
        self._history = History()
        self._commits: OrderedDict[int, Commit] = OrderedDict()
        self._lock = threading.RLock()
        self.seeder: Callable[[], object] | None = None
        """Is called before the log is read for the first time, and may `seed` it."""

    @property
    def head(self) -> int:
        """Number of the last entry that was read here."""
        return self._history.head

    @property
    def tip(self) -> str:
        """SHA-256 of that entry."""
        return self._history.tip

    def update(self, *, thorough: bool = False) -> History:
        """Read what came since the last call.

        Parameters
        ----------
        thorough
            List the directory even if the next numbers are free: entries that are missing in
            between are noticed then.

        Raises
        ------
        AttnstoreError
            If the log cannot be listed or read.
        """
        self._paths.look()
        with self._lock:
            if self.seeder is not None and not self._history.head:
                seeder, self.seeder = self.seeder, None
                seeder()
            known = self._history
            if known.head and not self._is_as_known(known):
                _log.warning("%s is another log than before: read anew", self._paths.log)
                self._forget()
            numbers = self._numbers(thorough)
            if numbers and not self._take(numbers):
                self._forget()
                self._take(self._numbers(True))
            return self._history

    def seed(self, head: int, tip: str, facts: Iterable[Fact], bad: Iterable[Unreadable]) -> None:
        """Take over what somebody read before, unless as much is known here."""
        with self._lock:
            if self._history.head >= head:
                return
            self._forget()
            known: list[Fact | Unreadable] = [*facts, *bad]
            later = sorted(known, key=lambda each: each.number)
            for each in later:
                if isinstance(each, Fact):
                    self._history.add(each)
                else:
                    self._history.miss(each)
            self._history.head, self._history.tip = head, tip

    def shows(self, head: int, tip: str, bad: Iterable[Unreadable] = ()) -> bool:
        """Whether a reader who knows the log up to `head` knows all of it.

        Needs no history: this is asked before anything is read.
        """
        if self._paths.head is not None:
            return head >= self._paths.head  # another process may have opened it later
        if head and self._digest(head) != tip:
            return False
        if any(self._digest(each.number) != each.digest for each in _first(bad)):
            return False
        return not self._list(above=head)

    def holds(self, head: int, tip: str) -> bool:
        """Whether the log begins with what a reader knew up to `head`."""
        if self._paths.head is not None:
            return True
        return not head or self._digest(head) == tip

    def commit(self, revision: Revision) -> Commit:
        """Read a commit.

        Raises
        ------
        IntegrityError
            If its entry cannot be read, or is not what the history says.
        """
        with self._lock:
            if (kept := self._commits.get(revision.number)) is not None:
                self._commits.move_to_end(revision.number)
                return kept
        file = self._paths.entry(revision.number)
        if revision.reason is not None:
            raise IntegrityError(f"{file}: {revision.reason}")
        try:
            commit = commit_of(self._sealed(revision.number))
        except IntegrityError as error:
            raise IntegrityError(_named(file, error)) from None
        known = self._history.attempts.get(commit.attempt)
        if (commit.revision, commit.attempt) != (revision.revision, revision.attempt) or (
            known is not None and known.key != commit.key
        ):
            raise IntegrityError(f"{file}: names {commit.key} revision {commit.revision}")
        with self._lock:
            if not self._keeps:
                self._commits[revision.number] = commit
                while len(self._commits) > _KEPT_COMMITS:
                    self._commits.popitem(last=False)
        return commit

    def commits(self, revisions: Sequence[Revision]) -> Iterator[Commit | IntegrityError]:
        """Read commits, several at a time; what cannot be read is an error in its place."""

        def read(revision: Revision) -> Commit | IntegrityError:
            try:
                return self.commit(revision)
            except IntegrityError as error:
                return error

        yield from _in_batches(read, revisions)

    def content(self, number: int) -> dict[str, Any]:
        """Read what an entry says, for another log to say: what is not known here included.

        Returns
        -------
        The entry without `number`, `previous` and `sha256`, which are its place in this log.

        Raises
        ------
        IntegrityError
            If it cannot be read.
        """
        try:
            raw = self._sealed(number)
        except IntegrityError as error:
            raise IntegrityError(_named(self._paths.entry(number), error)) from None
        return {key: said for key, said in raw.items() if key not in PLACE}

    def _sealed(self, number: int) -> dict[str, Any]:
        file = self._paths.entry(number)
        try:
            self._paths.need_entry(number)
            data = read_bounded(file)
        except (FileNotFoundError, NotFoundError):
            raise IntegrityError("missing") from None
        raw = parse_json(data, file)
        check_seal(data)
        return raw

    def append(self, make: Callable[[History], dict[str, Any] | None]) -> int | None:
        """Add an entry; return its number.

        Parameters
        ----------
        make
            Gets all that is in the log and returns the entry (`attnstore.store.commits.entry`), or
            None if none is needed any more. It is called anew whenever another writer was first,
            and may raise.
        """
        self._paths.check_writable()
        while True:
            history = self.update()
            content = make(history)
            if content is None:
                return None
            number = history.head + 1
            # Of what cannot be read nobody knows what it will be when somebody repairs it.
            previous = None if history.head in history.unreadable else history.tip or None
            value = {"number": number, "previous": previous, **content}
            if self._paths.create(self._paths.entry(number), sealed(value)):
                sync_directory(self._paths.log.parent)
                return number
            self._paths.look(anew=True)
            self._wait_for(number)

    def _forget(self) -> None:
        self._history = History()
        self._commits.clear()

    def _is_as_known(self, known: History) -> bool:
        if self._paths.head is not None or self._paths.sparse:
            return True
        if self._digest(known.head) != known.tip:
            return False
        return all(self._digest(u.number) == u.digest for u in _first(known.unreadable.values()))

    def _digest(self, number: int) -> str:
        try:
            return hashlib.sha256(read_bounded(self._paths.entry(number))).hexdigest()
        except (OSError, IntegrityError):
            return ""

    def _numbers(self, thorough: bool) -> list[int]:
        """Numbers of the entries that were not read."""
        head = self._history.head
        if self._paths.head is not None:
            return list(range(head + 1, self._paths.head + 1))
        # Two, so that one that was lost does not hide the others.
        following = (self._paths.entry(head + i) for i in (1, 2))
        if head and not thorough and not any(map(os.path.lexists, following)):
            return []
        return self._list(above=head)

    def _list(self, above: int) -> list[int]:
        try:
            names = os.listdir(self._paths.log)  # noqa: PTH208  names alone, of 10,000 files
        except FileNotFoundError:
            return []
        except OSError as error:
            raise AttnstoreError(
                f"{self._paths.log} cannot be listed, so nobody knows what is committed: "
                f"{error.strerror}"
            ) from None
        found = (int(match[1]) for name in names if (match := ENTRY.fullmatch(name)))
        return sorted(number for number in found if number > max(above, 0))

    def _take(self, numbers: Sequence[int]) -> bool:
        """Read entries and take them in; False if they do not continue what is known."""
        history = self._history
        before: _Read | None = None
        for read in _in_batches(self._read, numbers):
            if before is None:
                follows = read.number == history.head + 1
                known = history.tip if history.head not in history.unreadable else None
                if follows and history.head and known and read.previous not in (None, known):
                    return False
            else:
                self._add(before, read)
            before = read
        if before is not None:
            self._add(before, None)
        return True

    def _add(self, read: _Read, after: _Read | None) -> None:
        history = self._history
        first = history.head + 1
        if read.number > first and not self._paths.sparse:
            last = read.number - 1
            of = f"{self._paths.entry(first).name}" + (
                f" to {self._paths.entry(last).name} are" if last > first else " is"
            )
            reason = f"{of} missing, though later ones are there: lost, or not copied yet"
            history.miss(Unreadable(first, last, reason, ""))
        said = read.reason
        if (
            said is None
            and after is not None
            and after.number == read.number + 1
            and after.previous not in (None, read.digest)
        ):
            follows = self._paths.entry(after.number).name
            said = f"its bytes are not those that {follows} was written after"
        if said is None:
            for fact in read.facts:
                history.add(fact)
            if read.commit is not None and self._room >= len(read.commit.files):
                self._room -= len(read.commit.files)
                self._commits[read.number] = read.commit
        else:
            history.miss(Unreadable(read.number, read.number, said, read.digest, read.key))
        history.head, history.tip = read.number, read.digest

    def _read(self, number: int) -> _Read:
        file = self._paths.entry(number)
        try:
            self._paths.need_entry(number)
            data = read_bounded(file)
        except (FileNotFoundError, NotFoundError):
            return _Read(number, "", reason="missing")
        except IntegrityError as error:
            return _Read(number, "", reason=_reason(file, error))
        except OSError as error:
            return _Read(number, "", reason=f"cannot be read: {error.strerror}")
        digest = hashlib.sha256(data).hexdigest()
        if not data:
            reason = "empty: a writer claimed the number and died, or is still writing"
            return _Read(number, digest, reason=reason)
        key = None
        try:
            raw = parse_json(data, file)
            key = _key(raw)
            # What a newer version sealed otherwise is newer, and changed bytes are no wrong spelling.
            check_version(raw, "it")
            check_seal(data)
            found = facts(raw, number)
        except IntegrityError as error:
            return _Read(number, digest, reason=_reason(file, error), key=key)
        commit = None
        if self._room and raw["kind"] == "commit":
            # What is wrong with its files is said when they are asked for.
            with suppress(IntegrityError):
                commit = commit_of(raw)
        return _Read(number, digest, previous_of(raw), tuple(found), None, key, commit)

    def _wait_for(self, number: int) -> None:
        """Wait until an entry that exists can be seen, and is more than its name."""
        start = time.monotonic()
        file = self._paths.entry(number)
        while True:
            waited = time.monotonic() - start
            try:
                if file.stat().st_size or waited > SETTLED:
                    return
            except OSError:
                if waited > VISIBLE:
                    raise AttnstoreError(f"{file} exists but cannot be seen") from None
                # NFS remembers for a while that it was not there; a listing asks the server.
                self._list(above=number)
            time.sleep(0.01)


_logs: OrderedDict[StorePaths, Log] = OrderedDict()
_registry = threading.Lock()


def log_of(paths: StorePaths) -> Log:
    """Return this process's log of a store: what was read once is not read again."""
    with _registry:
        log = _logs.get(paths)
        if log is None:
            log = _logs[paths] = Log(paths)
            while len(_logs) > _KEPT_LOGS:
                _logs.popitem(last=False)
        else:
            _logs.move_to_end(paths)
        return log


def _forget_after_fork() -> None:
    # A lock that another thread held at the fork would stay locked for ever.
    global _registry
    _registry = threading.Lock()
    _logs.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def unreadable_entries(paths: StorePaths) -> list[tuple[str, str]]:
    """Return (file relative to the store, reason) of every entry of the log that says nothing."""
    found = log_of(paths).update(thorough=True).unreadable
    return [
        (paths.entry(n).relative_to(paths.root).as_posix(), found[n].reason) for n in sorted(found)
    ]


def committed_names(paths: StorePaths, *below: str) -> list[str]:
    """Names of runs, of a run's episodes, or of an episode's parts, that have commits."""
    return log_of(paths).update().names(*below)


def latest_commit(paths: StorePaths, run: str, episode: str, part: str = "base") -> Commit | None:
    """Highest revision of a part; None if it was never committed, or was removed.

    Raises
    ------
    IntegrityError
        If it cannot be read, or an entry that cannot be read may be a newer one.
    """
    log = log_of(paths)
    history = log.update()
    latest = history.latest(run, episode, part)
    if latest is None:
        return None
    check_known(paths, history, (run, episode, part))
    return log.commit(latest)


def check_known(paths: StorePaths, history: History, key: Key) -> None:
    """Check that no entry that cannot be read may be a newer revision of a part.

    Such an entry is of an attempt that no other entry names, and that lies in the part's episode.

    Raises
    ------
    IntegrityError
        If there is such an attempt.
    """
    if not history.concealed() or paths.partial:
        return
    run, episode, part = key
    try:
        names = os.listdir(paths.data / run / episode)  # noqa: PTH208
    except OSError:
        return
    for name in names:
        of, _, attempt = name.rpartition(".")
        if of == part and attempt not in history.attempts and attempt not in history.discarded:
            first = next(u for u in history.unreadable.values() if u.key is None)
            raise IntegrityError(
                f"{paths.entry(first.number)}: {first.reason}; it may be a newer revision of "
                f"{episode} {part}, for no entry names data/{run}/{episode}/{name}. Put the entry "
                f"back, or give it up: attnstore remove --entry {first.number}"
            )


def read_commits(paths: StorePaths) -> Iterator[tuple[Key, Commit | IntegrityError]]:
    """Yield every part and its latest commit, or why that cannot be read, in order of the parts."""
    log = log_of(paths)
    history = log.update(thorough=True)
    latest = list(history.parts())
    for (key, _), commit in zip(latest, log.commits([r for _, r in latest]), strict=True):
        try:
            check_known(paths, history, key)
        except IntegrityError as error:
            yield key, error
        else:
            yield key, commit


def all_commits(paths: StorePaths) -> Iterator[Commit]:
    """Latest commit of every part of every episode, in order of run, episode and part.

    What cannot be read is left out; `read_commits` names it.
    """
    for _, commit in read_commits(paths):
        if isinstance(commit, Commit):
            yield commit


def version(head: int, tip: str, bad: Iterable[Unreadable]) -> str:
    """Say a state of the log in a word; see `History.version`."""
    holes = ",".join(f"{each.number}:{each.digest}" for each in sorted(bad, key=lambda b: b.number))
    return f"{head}-{tip}-{hashlib.sha256(holes.encode()).hexdigest()[:16]}"


def _first(entries: Iterable[Unreadable]) -> list[Unreadable]:
    return sorted(entries, key=lambda each: each.number)[:MOST_RECHECKED]


def _reason(file: Any, error: IntegrityError) -> str:
    """Say an error of a file whose name is said elsewhere."""
    return str(error).removeprefix(str(file)).lstrip(": ")


def _key(raw: Mapping[str, Any]) -> Key | None:
    """Part that an entry is of, whatever else is wrong with it."""
    try:
        return ids(raw) if raw.get("kind") in ("commit", "removal") else None
    except IntegrityError:
        return None


def _named(file: Any, error: IntegrityError) -> str:
    return f"{file}: {_reason(file, error)}"


def _in_batches(function: Callable[[T], R], arguments: Sequence[T]) -> Iterator[R]:
    """Call a function with each argument; several at a time if there are many and each takes a while.

    What is in memory is read sooner than a thread can be told to; what comes over a network is not.
    """
    quickest = math.inf
    for each in arguments[:_READERS]:
        began = time.perf_counter()
        result = function(each)
        quickest = min(quickest, time.perf_counter() - began)
        yield result
    if quickest < QUICK:
        yield from map(function, arguments[_READERS:])
        return

    def call(some: Sequence[T]) -> list[R]:
        return [function(each) for each in some]

    # A call takes less time than handing it to a thread: each gets several.
    with ThreadPoolExecutor(_READERS) as threads:
        for start in range(_READERS, len(arguments), BATCH):
            stop = min(start + BATCH, len(arguments))
            pieces = [arguments[i : min(i + _EACH, stop)] for i in range(start, stop, _EACH)]
            yield from chain.from_iterable(threads.map(call, pieces))

"""Episodes that are being recorded, or whose recorder died: what their journals say so far.

Readers look at a journal while it grows. `Tail` follows one; `UnderWay` finds those of a store that have no end.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ..commits import open_regular
from ..commits.layout import SAFE
from ..errors import IntegrityError, NotFoundError
from ..processes import lives
from .call import SeenCall, read_call
from .journal import SPOOL, SUFFIX, Mark, marks_after, read_entry
from .spool import CallMaps, read_maps

State = Literal["recording", "committing", "elsewhere", "dead"]
"""``recording``: its process lives. ``committing``: it has ended, and its process is putting it into the store.
``elsewhere``: its process is another host's, of which nothing is known but when it wrote last. ``dead``: its
process is gone, and left it without an end: `attnstore record recover`."""


def being_recorded(head: Mapping[str, Any]) -> bool:
    """Whether the process that records an episode lives, on this host."""
    try:
        return lives(head["host"], head["pid"], head["created"])
    except (KeyError, ValueError):
        return False


@dataclass(slots=True)
class Tail:
    """What of one journal is there; `follow` looks again. Not safe to share between threads."""

    path: Path
    head: Mapping[str, Any] | None = None
    """The first entry; None while it is not whole."""
    calls: list[Mark] = field(default_factory=list)
    end: Mapping[str, Any] | None = None
    """The entry that ended it; None before."""
    written: float = 0.0
    """When something was written last, seconds since 1970."""
    _at: int = 0

    def follow(self) -> list[Mark]:
        """Look for what was appended; return the calls among it.

        Raises
        ------
        OSError
            If the file cannot be opened.
        """
        status = self.path.stat()
        if status.st_size == self._at:
            return []
        self.written = status.st_mtime
        came: list[Mark] = []
        with self.opened() as file:
            for mark in marks_after(file, self._at):
                try:
                    if self.head is None:
                        self.head = read_entry(file, mark).head
                    elif mark.kind != "call":
                        said = read_entry(file, mark)
                        self.end = said.head if said.kind == "end" else self.end
                except IntegrityError:
                    break  # it is being written
                if mark.kind == "call":
                    came.append(mark)
                self._at = mark.stop
        self.calls += came
        return came

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open the journal."""
        with open_regular(self.path) as file:
            yield file

    def call(self, index: int) -> SeenCall:
        """Read a call by its place among those that are there; -1 is the newest.

        Raises
        ------
        NotFoundError
            If there is no such call.
        IntegrityError
            If it is damaged.
        """
        try:
            mark = self.calls[index]
        except IndexError:
            raise NotFoundError(
                f"{self.path.stem} has {len(self.calls)} calls so far; got {index}"
            ) from None
        with self.opened() as file:
            return read_call(read_entry(file, mark))

    def maps(self, call: SeenCall) -> list[CallMaps]:
        """Where a call looked; empty in replay mode, and when the spool is gone.

        Raises
        ------
        IntegrityError
            As of `attnstore.store.recordings.spool.read_maps`.
        """
        if call.shown is None:
            return []
        try:
            spool = os.open(
                self.path.with_suffix(SPOOL), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            )
        except OSError:
            return []
        try:
            return read_maps(spool, call)
        finally:
            os.close(spool)

    def state(self, here: bool) -> State | None:
        """Say what becomes of it; None if it has ended, and nothing more will come.

        Parameters
        ----------
        here
            Whether its process lives on this host, as of `being_recorded`.
        """
        if self.head is None:
            return None
        if self.end is not None:
            return "committing" if here and self.path.with_suffix(SPOOL).exists() else None
        if here:
            return "recording"
        return "dead" if self.head.get("host") == socket.gethostname() else "elsewhere"


@dataclass(frozen=True, slots=True)
class Progress:
    """An episode that is not in the store, and will be, or might have been."""

    recording: str
    """Its directory below ``recordings``."""
    episode: str
    """Its file, without the suffix."""
    name: str
    mode: str
    instruction: str
    task: str | None
    host: str
    pid: int
    created: str
    state: State
    calls: int
    """Policy calls that can be read."""
    dropped: int
    step: int
    """Environment step of the newest call."""
    idle: float
    """Seconds since something was written."""
    cameras: tuple[str, ...]
    phases: tuple[str, ...]
    """Whose attention can be read already; none in replay mode."""


class UnderWay:
    """The episodes of a store that have no end. Safe to share between threads.

    Parameters
    ----------
    folder
        ``recordings`` of a store; it need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tails: dict[Path, Tail] = {}
        self._lock = threading.Lock()

    def episodes(self) -> list[Progress]:
        """Look at every journal, as far as it grew since; return those without an end, the newest first."""
        with self._lock:
            paths = sorted(self._folder.glob(f"*/*{SUFFIX}"))
            self._tails = {p: self._tails.get(p) or Tail(p) for p in paths}
            found = [self._progress(tail) for tail in self._tails.values()]
        return sorted((p for p in found if p is not None), key=lambda p: p.idle)

    def call(self, recording: str, episode: str, index: int) -> tuple[SeenCall, list[CallMaps]]:
        """Read a call of an episode that is under way, and where it looked.

        Raises
        ------
        NotFoundError
            If there is no such recording, episode or call.
        IntegrityError
            If it is damaged.
        """
        if not SAFE.fullmatch(recording) or not SAFE.fullmatch(episode):
            raise NotFoundError("a recording and its episode are among those that are listed")
        path = self._folder / recording / f"{episode}{SUFFIX}"
        with self._lock:
            tail = self._tails.get(path) or Tail(path)
            try:
                tail.follow()
            except OSError:
                raise NotFoundError(f"no episode {episode} is being recorded") from None
            call = tail.call(index)
            return call, tail.maps(call)

    def _progress(self, tail: Tail) -> Progress | None:
        try:
            tail.follow()
            head = tail.head
            if head is None or (tail.end is not None and not tail.path.with_suffix(SPOOL).exists()):
                return None
            state = tail.state(being_recorded(head))
            if state is None:
                return None
            newest = tail.call(-1) if tail.calls else None
            return Progress(
                recording=tail.path.parent.name, episode=tail.path.stem, name=str(head["name"]),
                mode=str(head["mode"]), task=head.get("task"), host=str(head["host"]),
                instruction=str(head.get("instruction") or (newest.instruction if newest else "")),
                pid=int(head["pid"]), created=str(head["created"]), state=state,
                calls=len(tail.calls), dropped=newest.dropped if newest else 0,
                step=newest.step if newest else 0, idle=max(0.0, time.time() - tail.written),
                cameras=tuple(p.camera for p in newest.pictures) if newest else (),
                phases=tuple(newest.shown["groups"]) if newest and newest.shown else (),
            )  # fmt: skip
        except (OSError, IntegrityError, KeyError, ValueError, TypeError):
            return None  # it vanished, or is damaged: `attnstore record recover` says how

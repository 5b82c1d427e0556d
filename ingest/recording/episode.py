"""An episode that is being recorded: its calls, its journal, and how it ends."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import Token
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from attnstore.store.boundary import told
from attnstore.store.commits import now
from attnstore.store.json_text import json_value
from attnstore.store.recordings.journal import SPOOL, Journal

from ..datasets.base import OUTCOMES
from .spool import Spool

if TYPE_CHECKING:
    from .recorder import Recorder

SYNC_EVERY = 1.0
"""Seconds after which what was written is made durable: what a power cut may cost."""
UNFINISHED = "the episode ended without finish"


class Episode:
    """One episode that is being recorded; made by `Recorder.episode`.

    As a context manager it is the episode of every policy call of this thread, and ends with the ``with``.
    """

    def __init__(self, recorder: Recorder, name: str, head: dict[str, Any], path: Path) -> None:
        self.name = name
        self.step = 0
        """Environment steps so far."""
        self.calls = 0
        """Policy calls so far, dropped ones included."""
        self.dropped: Counter[str] = Counter()
        """Calls that are not in the recording, by reason."""
        self.ended = False
        self._recorder, self._head, self._path = recorder, head, path
        self._began = time.monotonic()
        self._reward: float | None = None
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._synced = self._began
        self._token: Token[Sequence[Episode | None] | None] | None = None
        self.spool = Spool(path.with_suffix(SPOOL))
        self.chunks: dict[int, Any] = {}

    def advance(self, steps: int = 1, reward: float | None = None) -> None:
        """Say that so many actions were carried out; a reward is added to the episode's."""
        with self._lock:
            self.step += steps
            if reward is not None:
                self._reward = (self._reward or 0.0) + float(reward)

    def finish(
        self,
        outcome: str | bool | None = None,
        reward: float | None = None,
        **attributes: Any,
    ) -> None:
        """End the episode; it is committed in the background.

        Parameters
        ----------
        outcome
            ``success``, ``failure`` or ``unknown``; a truth value is one of the first two.
        reward
            Of the whole episode. None: the sum of those that `advance` was given.
        attributes
            Whatever else is to be kept of it; JSON values.
        """
        self._end(outcome, reward, attributes, None)

    def __enter__(self) -> Episode:
        self._token = self._recorder._enter([self])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._token is not None:
            self._recorder._leave(self._token)
            self._token = None
        reason = UNFINISHED
        if kind is not None:
            reason = f"{kind.__name__}: {error}"[:300] if str(error) else kind.__name__
        self._end(None, None, {}, reason)

    def _end(
        self,
        outcome: str | bool | None,
        reward: float | None,
        attributes: Mapping[str, Any],
        reason: str | None,
    ) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = True
        try:
            given = {str(k): v for k, v in attributes.items()}
            if isinstance(outcome, bool | np.bool_):
                outcome = "success" if outcome else "failure"
            if outcome is not None and outcome not in OUTCOMES:
                self._recorder._fault(
                    f"an outcome is one of {', '.join(OUTCOMES)}; got {outcome!r}, kept as unknown"
                )
                given["outcome_given"], outcome = str(outcome), None
            reward = self._reward if reward is None else float(reward)
            if reward is not None and not np.isfinite(reward):
                given["reward_given"], reward = str(reward), None
            end = {
                "kind": "end",
                "outcome": outcome or "unknown",
                "reward": reward,
                "reason": reason,
                "step": self.step,
                "created": now(),
                "attributes": json_value(given),
            }
            self._recorder._ended(self, end)
        except Exception as error:
            self._recorder._fault(f"the end of an episode: {told(error)}")

    # What follows is called by the recorder.

    def _number(self) -> int:
        with self._lock:
            self.calls += 1
            return self.calls - 1

    def _drop(self, reason: str) -> None:
        with self._lock:
            self.dropped[reason] += 1

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _append(self, head: Mapping[str, Any], pieces: Sequence[bytes] = ()) -> None:
        """Append in the outbox's thread; the file is made at the first entry."""
        if self._journal is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(self._path, self._head)
        if head is not self._head:
            self._journal.append(head, pieces)
        if time.monotonic() - self._synced > SYNC_EVERY:
            self._journal.sync()
            self._synced = time.monotonic()

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.sync()
            self._journal.close()
            self._journal = None

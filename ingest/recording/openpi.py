"""openpi's server with a recorder around its policy: `RecordingPolicy` stands where openpi's ``Policy`` does.

The server calls ``infer`` and nothing else. Which episode a call belongs to is said by keys that the client
adds to its message, all of which begin with ``attnstore/``; they are taken out before the policy sees it.
"""

from __future__ import annotations

import asyncio
import copy
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from attnstore.store.boundary import told
from attnstore.store.errors import UsageError

from ..datasets.outcome import outcome_value
from ..policies.base import Observation
from ..policies.openpi.observation import Slot
from ..policies.openpi.policy import OpenpiPolicy
from .episode import Episode
from .recorder import Recorder

MARK = "attnstore/"
"""What the keys begin with that a client adds."""
KNOWN = ("episode", "task", "seed", "step", "outcome", "reward")
"""Keys with a meaning; what else begins with ``attnstore/`` becomes an attribute of the episode."""
OWN_NOISE = -1
"""Seed of a call whose noise the caller gave."""


@dataclass(slots=True)
class _Connection:
    """One client: where it is in its episodes."""

    episode: Episode | None = None
    named: str | None = None
    """What the client calls the episode; None if it does not say."""
    prompt: str = ""
    last: float = 0.0


class RecordingPolicy:
    """openpi's policy, recorded: the same ``infer`` and ``metadata``, the same actions.

    The noise of every call is drawn from a seed, which is recorded; a caller may give its own, as to openpi.
    Nothing that goes wrong in the recording is raised into ``infer``.

    Parameters
    ----------
    recorder
        Of an `OpenpiPolicy`, inside its ``with``.
    prompt
        For messages without one, as ``serve_policy.py --default_prompt``.
    pause
        Seconds after which a call begins a new episode; None: a pause does not.
    by_prompt
        Whether another prompt begins a new episode.
    steps_per_call
        Environment steps that a client carries out between two calls, where it does not say
        ``attnstore/step``: 8 in openpi's DROID client, 5 in its LIBERO client. None: not known.
    seed
        Of the calls' seeds; None: another one each time.

    Raises
    ------
    UsageError
        If it is the recorder of another policy.
    PolicyError
        If there is no openpi policy around the model.

    Examples
    --------
    ::

        policy = OpenpiPolicy(CHECKPOINT, variant="pi05_droid", compiled=True)
        with attnstore.record(policy, "robot.attn", mode="replay") as recorder:
            served = RecordingPolicy(recorder)
            WebsocketPolicyServer(served, port=8000, metadata=served.metadata).serve_forever()
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        prompt: str | None = None,
        pause: float | None = None,
        by_prompt: bool = False,
        steps_per_call: int | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(recorder.policy, OpenpiPolicy):
            raise UsageError(
                f"RecordingPolicy records openpi's policies; this recorder is of {recorder.policy.name}"
            )
        if pause is not None and not 0 < pause < float("inf"):
            raise UsageError(f"pause is a positive number of seconds; got {pause!r}")
        if steps_per_call is not None and steps_per_call < 1:
            raise UsageError(f"steps_per_call is at least 1; got {steps_per_call}")
        self.recorder, self.policy = recorder, recorder.policy
        self._theirs = self.policy.theirs
        self._prompt, self._pause, self._by_prompt = prompt, pause, by_prompt
        self._steps_per_call = steps_per_call
        self._seeds = np.random.default_rng(seed)
        self._connections: weakref.WeakKeyDictionary[Any, _Connection] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    @property
    def metadata(self) -> dict[str, Any]:
        """openpi's, of the configuration."""
        metadata: dict[str, Any] = self._theirs.metadata
        return metadata

    def reset(self) -> None:
        """End the caller's episode, its outcome unknown."""
        self._finish(self._connection(), None, None)

    def infer(self, obs: Mapping[str, Any], *, noise: Any = None) -> dict[str, Any]:
        """Answer as openpi's ``Policy.infer`` does, and record the call.

        Parameters
        ----------
        obs
            The client's message. One that holds nothing but keys of `MARK` is not shown to the policy; its
            answer is empty.
        noise
            Array (horizon, action_dim) or (1, horizon, action_dim); None: drawn from a seed.
        """
        content = {k: v for k, v in obs.items() if not str(k).startswith(MARK)}
        marks = {str(k)[len(MARK) :]: _item(v) for k, v in obs.items() if str(k).startswith(MARK)}
        connection = self._connection()
        if content and self._prompt is not None and "prompt" not in content:
            content["prompt"] = self._prompt
        episode = self._follow(connection, content, marks)
        if not content:
            answer: dict[str, Any] = {}
        elif episode is None:
            answer = self._theirs.infer(content, noise=noise)
        else:
            with self.recorder.rows([episode]):
                answer = self._recorded(episode, content, noise)
            if self._steps_per_call is not None and "step" not in marks:
                episode.advance(self._steps_per_call)
        if "outcome" in marks or "reward" in marks:
            self._finish(connection, marks.get("outcome"), marks.get("reward"))
        return answer

    # Whose a call is.

    def _connection(self) -> _Connection:
        """The connection that asks: openpi's server runs each in a task of its own."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        key: Any = threading.current_thread() if task is None else task
        with self._lock:
            found = self._connections.get(key)
            if found is None:
                found = self._connections[key] = _Connection()
                if task is not None:
                    task.add_done_callback(lambda _: self._finish(found, None, None))
        return found

    def _follow(
        self, connection: _Connection, content: Mapping[str, Any], marks: Mapping[str, Any]
    ) -> Episode | None:
        """Return the episode that a message belongs to; a new one where one begins."""
        try:
            now, prompt = time.monotonic(), str(_item(content.get("prompt", connection.prompt)))
            named = str(marks["episode"]) if "episode" in marks else None
            current = connection.episode
            over = current is not None and (
                (named is not None and named != connection.named)
                or (
                    named is None
                    and self._pause is not None
                    and now - connection.last > self._pause
                )
                or (named is None and self._by_prompt and prompt != connection.prompt)
            )
            if over:
                self._finish(connection, None, None)
            connection.last = now
            if connection.episode is None and (content or named is not None):
                self._begin(connection, named, marks)
            if content:
                connection.prompt = prompt
            if connection.episode is not None and "step" in marks:
                ahead = int(marks["step"]) - connection.episode.step
                if ahead < 0:
                    self.recorder._fault(f"attnstore/step went back by {-ahead}; it is left out")
                else:
                    connection.episode.advance(ahead)
        except Exception as error:
            self.recorder._fault(f"a client's keys: {told(error)}")
        return connection.episode

    def _begin(self, connection: _Connection, named: str | None, marks: Mapping[str, Any]) -> None:
        seed = marks.get("seed")
        connection.named = named
        connection.episode = self.recorder.episode(
            named or f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"[:-3],
            task=None if marks.get("task") is None else str(marks["task"]),
            seed=None if seed is None else int(seed),
            **{key: value for key, value in marks.items() if key not in KNOWN},
        )

    def _finish(self, connection: _Connection, outcome: Any, reward: Any) -> None:
        episode, connection.episode, connection.named = connection.episode, None, None
        if episode is None:
            return
        try:
            outcome = None if outcome is None else outcome_value(outcome)
        except ValueError:
            pass  # the recorder says so, and keeps what was given
        episode.finish(outcome=outcome, reward=reward)

    # One call.

    def _recorded(self, episode: Episode, content: Mapping[str, Any], noise: Any) -> dict[str, Any]:
        """Let openpi's own ``infer`` run, its model called through the recorder."""
        seed = OWN_NOISE if noise is not None else int(self._seeds.integers(2**53))
        if noise is None:
            noise = self.policy.noise(seed).numpy()
        seen: tuple[Observation, tuple[Slot, ...]] | None = None
        try:
            seen = self.policy.sent(content, seed)
        except Exception as error:
            self.recorder.missed(error)
        if seen is None:
            answer: dict[str, Any] = self._theirs.infer(content, noise=noise)
            return answer
        observation, slots = seen
        made: list[Mapping[str, Any]] = []
        transform, sample = self._theirs._input_transform, self._theirs._sample_actions

        def transforming(inputs: Any) -> Any:
            made.append(transform(inputs))
            return made[-1]

        def sampling(device: Any, given: Any, **kwargs: Any) -> Any:
            try:
                batch = self.policy.batch_of(made[-1], slots, kwargs["noise"])
                self.recorder.saw(batch, [observation])
            except Exception as error:
                self.recorder.missed(error)
                return sample(device, given, **kwargs)
            return self.policy.act(batch)

        theirs = copy.copy(self._theirs)
        theirs._input_transform, theirs._sample_actions = transforming, sampling
        recorded: dict[str, Any] = theirs.infer(content, noise=noise)
        return recorded


def _item(value: Any) -> Any:
    """Return NumPy's scalars and single values as Python's."""
    single = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1)
    return value.item() if single else value


def serve(policy: RecordingPolicy, host: str, port: int) -> None:
    """Serve a recorded policy by openpi's ``WebsocketPolicyServer``, until the process is told to stop."""
    from ..policies.openpi.checkpoint import openpi

    server = openpi("serving.websocket_policy_server").WebsocketPolicyServer(
        policy=policy, host=host, port=port, metadata=policy.metadata
    )
    server.serve_forever()

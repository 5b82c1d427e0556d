"""LeRobot's own loops, recorded: ``lerobot-eval`` as it is, and whatever else asks a policy for chunks.

LeRobot calls its policy and not an adapter, so the recorder stands around three methods of that one object:
``predict_action_chunk`` (of smolvla, whose ``select_action`` does not go through it, also ``_get_action_chunk``),
``select_action`` and ``reset``; and a hook of the preprocessor's shows what the policy's inputs were made of. The
chunk is made by the adapter's `act` from the very same inputs and the noise that the policy would have drawn itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from attnstore.store.errors import UsageError

from ..policies.base import watch_where_shown
from ..policies.checkpoint import directory_name, locate
from ..policies.hooks import instead
from ..policies.lerobot.base import LeRobotPolicy, driven_keywords
from ..policies.lerobot.policy import adapt_lerobot
from .episode import Episode
from .recorder import Recorder, record

FIRST = "observation"
"""Where a transition of LeRobot's has its observation; its complementary data have the task."""


def record_lerobot(
    policy: Any,
    preprocessor: Any,
    store: Any,
    *,
    vision: bool = False,
    token_stats: bool = False,
    **settings: Any,
) -> LeRobotRecorder:
    """Record a LeRobot policy wherever its chunks are asked for: its own loops, RTC's thread, yours.

    Parameters
    ----------
    policy
        ``PI05Policy``, ``ACTPolicy``, ...; its weights are a checkpoint's where ``config.pretrained_path``
        says so, which a replay needs.
    preprocessor
        The one through which its observations go, as ``make_pre_post_processors`` returns it.
    vision, token_stats
        What a live recording captures beside attention: of the image encoder, of every token.
    store, settings
        As of `attnstore.record`.

    Returns
    -------
    A context manager. Episodes are opened by ``recorder.episode(...)`` as of `attnstore.record`; calls outside
    of any open one by themselves, which `reset` ends.

    Raises
    ------
    PolicyError
        If the policy's type is not supported.
    UsageError
        As of `attnstore.record`; and in ``replay`` for a policy that no checkpoint has.
    """
    named = getattr(policy.config, "pretrained_path", None)
    directory = None
    if named is not None:
        directory = Path(locate(str(named), getattr(policy.config, "pretrained_revision", None)))
    elif settings.get("mode") == "replay":
        raise UsageError(
            "a replay needs the checkpoint that drove, and this policy has none: give --policy.path, or "
            "record live"
        )
    checkpoint = "in memory" if named is None else directory_name(str(named))
    adapter = adapt_lerobot(policy, preprocessor, checkpoint=checkpoint, directory=directory)
    if vision or token_stats:
        settings["watch"] = watch_where_shown(adapter, vision=vision, token_stats=token_stats)
    return LeRobotRecorder(adapter, record(adapter, store, **settings))


class LeRobotRecorder:
    """Records a LeRobot policy's chunks; made by `record_lerobot`."""

    def __init__(self, adapter: LeRobotPolicy, recorder: Recorder) -> None:
        self.adapter, self.recorder = adapter, recorder
        self._here = threading.local()
        self._alone: list[Episode] = []
        self._lock = threading.Lock()
        self._undo = ExitStack()

    def __enter__(self) -> LeRobotRecorder:
        policy, pipeline = self.adapter.policy, self.adapter.preprocessor
        with ExitStack() as stack:
            stack.enter_context(self.recorder)
            pipeline.register_before_step_hook(self._looked_at)
            stack.callback(pipeline.unregister_before_step_hook, self._looked_at)
            calls: dict[str, Callable[..., Any]] = {
                "predict_action_chunk": self._asked, "reset": self._reset,
            }  # fmt: skip
            if hasattr(policy, "_get_action_chunk"):
                calls |= {"select_action": self._selecting, "_get_action_chunk": self._got}
            for name, call in calls.items():
                stack.enter_context(instead(policy, name, call))
            stack.callback(self._end_alone)
            self._undo = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    def episode(self, name: str, **given: Any) -> Episode:
        """Open an episode; see `Recorder.episode`."""
        return self.recorder.episode(name, **given)

    def _looked_at(self, index: int, transition: Mapping[Any, Any]) -> None:
        """Keep what the preprocessor was given; LeRobot's pipeline calls this before each step."""
        if index == 0:
            self._here.raw = transition

    def _asked(self, original: Callable[..., Any], batch: Any, **keywords: Any) -> Any:
        if getattr(self._here, "inside", False):
            return original(batch, **keywords)
        return self._chunk(original, batch, batch, keywords)

    def _selecting(self, original: Callable[..., Any], batch: Any, *args: Any, **more: Any) -> Any:
        # smolvla decodes ALOHA's state in place on its way to the chunk
        state = batch.get("observation.state")
        self._here.given = (
            dict(batch) if state is None else {**batch, "observation.state": state.clone()}
        )
        return original(batch, *args, **more)

    def _got(self, original: Callable[..., Any], batch: Any, *args: Any, **keywords: Any) -> Any:
        # X-VLA's takes nothing else; the others' the noise, and more by keyword.
        if getattr(self._here, "inside", False):
            return original(batch, *args, **keywords)
        given = dict(zip(("noise",), args, strict=False)) | keywords
        # Not there where its caller did not come through ours: what was kept of the method from before.
        return self._chunk(original, batch, getattr(self._here, "given", batch), given)

    def _chunk(
        self, original: Callable[..., Any], batch: Any, given: Any, keywords: dict[str, Any]
    ) -> Any:
        """Act through the adapter; as LeRobot would if what it needs cannot be made."""
        adapter, recorder = self.adapter, self.recorder
        try:
            raw = self._here.raw
            seen, more = _part(raw, FIRST), _part(raw, "complementary_data")
            tasks = _tasks(more.get("task"), seen)
            observations, fill = adapter.observations(seen, tasks, recorder.memory.empty)
            rows: Sequence[Episode] = ()
            if not recorder.inside:
                rows = self._opened(len(observations))
            if keywords.get("noise") is None and adapter.noisy:
                keywords["noise"] = adapter.draw_noise(len(observations))
            made = adapter.batch(
                given, observations, keywords.get("noise"),
                driven_keywords(adapter.policy, keywords),
                # The writing thread asks for it, once the call is over.
                late=recorder.mode == "replay" and not adapter.acts_by_layout,
            )  # fmt: skip
            recorder.saw(made, observations, fill)
        except Exception as error:
            recorder.missed(error)
            if not adapter.takes_noise:
                keywords.pop("noise", None)
            return original(batch, **keywords)
        self._here.inside = True
        try:
            if not rows:
                return adapter.act(made)
            with recorder.rows(rows):
                return adapter.act(made)
        finally:
            self._here.inside = False

    def _opened(self, rows: int) -> Sequence[Episode]:
        """Return the episodes of calls that nobody opened one for."""
        with self._lock:
            if len(self._alone) != rows:
                for episode in self._alone:
                    episode.finish()
                self._alone = [self.recorder.episode("episode") for _ in range(rows)]
            return tuple(self._alone)

    def _reset(self, original: Callable[..., Any], *args: Any, **more: Any) -> Any:
        self._end_alone()
        return original(*args, **more)

    def _end_alone(self) -> None:
        with self._lock:
            for episode in self._alone:
                episode.finish()
            self._alone = []


class EvalRecorder:
    """Records what ``lerobot-eval`` does; its module's functions go through this object meanwhile.

    Parameters
    ----------
    store, settings
        As of `record_lerobot`.
    """

    def __init__(self, store: Any, settings: Mapping[str, Any]) -> None:
        self._store, self._settings = store, dict(settings)
        self._stack = ExitStack()
        self._made: LeRobotRecorder | None = None
        self._lock = threading.Lock()
        self._place: ContextVar[tuple[str, int | None]] = ContextVar(
            "place", default=("eval", None)
        )
        self._counts: dict[str, int] = {}
        self.checkpoint = ""
        """As the policy's configuration names it."""
        self.ended: list[str] = []
        """Outcome of every episode."""

    @contextmanager
    def around(self, module: Any) -> Iterator[None]:
        """Record what a module like ``lerobot.scripts.lerobot_eval`` runs."""
        with (
            self._stack,
            instead(module, "rollout", self._rollout),
            instead(module, "run_one", self._run),
        ):
            yield

    @property
    def recorder(self) -> Recorder | None:
        """The recorder; None before the first rollout."""
        return None if self._made is None else self._made.recorder

    def _run(
        self, original: Callable[..., Any], group: str, task: int, *args: Any, **more: Any
    ) -> Any:
        """Keep which task the rollouts of this thread are of, and how many episodes count."""
        token = self._place.set((f"{group}_{task}", more.get("n_episodes")))
        try:
            return original(group, task, *args, **more)
        finally:
            self._place.reset(token)

    def _recorder(self, policy: Any, preprocessor: Any, env: Any) -> LeRobotRecorder:
        with self._lock:
            if self._made is None:
                self.checkpoint = str(
                    getattr(policy.config, "pretrained_path", None) or "in memory"
                )
                rate = _metadata(env).get("render_fps")
                made = record_lerobot(
                    policy, preprocessor, self._store,
                    **{"rate": None if rate is None else float(rate), **self._settings},
                )  # fmt: skip
                self._made = self._stack.enter_context(made)
            return self._made

    def _rollout(self, original: Callable[..., Any], **given: Any) -> Any:
        env, seeds = given["env"], given.get("seeds")
        made = self._recorder(given["policy"], given["preprocessor"], env)
        place, counted = self._place.get()
        with self._lock:
            first = self._counts.get(place, 0)
            self._counts[place] = first + env.num_envs
        episodes = [
            made.recorder.episode(
                f"{place}/episode_{first + row:04d}", task=place,
                seed=None if seeds is None else seeds[row],
                # It runs whole batches, and leaves out what is more than it was asked for.
                counted=counted is None or first + row < counted,
            )
            for row in range(env.num_envs)
        ]  # fmt: skip
        rows: list[Episode | None] = list(episodes)

        def step(original: Callable[..., Any], actions: Any) -> Any:
            found = original(actions)
            _, rewards, terminated, truncated, _ = found
            for row, episode in enumerate(rows):
                if episode is not None:
                    episode.advance(1, float(rewards[row]))
                    if terminated[row] or truncated[row]:
                        rows[row] = None  # it is stepped on until the last row ends
            return found

        try:
            with made.recorder.rows(rows), instead(env, "step", step):
                found = original(**given)
        except BaseException as error:
            for episode in episodes:
                episode.finish(ended=f"{type(error).__name__}: {error}"[:300])
            raise
        for episode, (success, reward) in zip(episodes, results_of(found), strict=True):
            episode.finish(outcome=success, reward=reward)
            self.ended.append("success" if success else "failure")
        return found


def results_of(found: Mapping[str, Any]) -> list[tuple[bool, float]]:
    """Whether each row of a rollout succeeded, and its reward, as ``eval_policy`` counts them.

    Parameters
    ----------
    found
        ``reward``, ``success`` and ``done``, each (batch, step); ``done`` stays true from the end on. Like
        LeRobot's, the step after the end counts, which repeats the last one without a reward.
    """
    rewards, successes, done = (np.asarray(found[k]) for k in ("reward", "success", "done"))
    last = done.argmax(1)
    counts = np.arange(done.shape[1]) <= last[:, None] + 1
    return [
        (
            bool((successes[row].astype(bool) & counts[row]).any()),
            float(rewards[row, counts[row]].sum()),
        )
        for row in range(len(done))
    ]


def _part(transition: Mapping[Any, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a transition, whose keys are an enumeration's or their texts."""
    for key, value in transition.items():
        if getattr(key, "value", key) == name:
            return dict(value or {})
    return {}


def _tasks(said: Any, seen: Mapping[str, Any]) -> list[str]:
    """Instruction of every row; as many as the images or the state have, where nothing is said."""
    if isinstance(said, str):
        return [said]
    if said:
        return [str(text) for text in said]
    for name, value in seen.items():
        if getattr(value, "ndim", 0) == (4 if "image" in name else 2):
            return [""] * len(value)
    return [""]


def _metadata(env: Any) -> Mapping[str, Any]:
    found = getattr(getattr(env, "unwrapped", env), "metadata", None)
    return found if isinstance(found, Mapping) else {}

"""vla-eval's model servers, recorded: one integration for every benchmark that its harness runs.

The harness tells its server when an episode starts, every observation, and the result at the end. `RecordedServer`
is mixed into a ``PredictModelServer`` whose policy is being recorded, and says whose each call is.
Source: vla-eval 0.8.0, ``model_servers/base.py`` and ``runners/sync_runner.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any

from .episode import Episode
from .recorder import Recorder

if TYPE_CHECKING:
    _Server = Any
else:
    _Server = object


class RecordedServer(_Server):  # type: ignore[misc]
    """A mixin of ``vla_eval.model_servers.predict.PredictModelServer``; stands before it.

    Set `recorder` inside the ``with attnstore.record(...)`` of the policy that ``predict`` calls. An observation is a
    step of the environment, a policy call a keyframe; an episode whose client disconnects is ``unknown``.

    Examples
    --------
    ::

        class Server(RecordedServer, PredictModelServer):
            def predict(self, obs, ctx): ...


        with attnstore.record(policy, "lab.attn", name="libero") as recorder:
            server = Server(chunk_size=8)
            server.recorder = recorder
            serve(server)
    """

    recorder: Recorder | None = None

    async def on_episode_start(self, config: dict[str, Any], ctx: Any) -> None:
        """Open an episode, named by its task."""
        await super().on_episode_start(config, ctx)
        if self.recorder is None:
            return
        task = config.get("task") or {}
        said = {k: v for k, v in task.items() if k not in ("name", "seed")}
        name = str(task.get("name") or ctx.episode_id)
        seed = task.get("seed")
        self.__dict__.setdefault("_episodes", {})[ctx.episode_id] = self.recorder.episode(
            name, task=name, seed=seed if isinstance(seed, int) else None,
            session=ctx.session_id, eval=ctx.eval_id, given=said,
        )  # fmt: skip

    async def on_observation(self, obs: Any, ctx: Any) -> None:
        """Count the action before it as carried out."""
        _advance(self._episode(ctx), ctx.step)
        await super().on_observation(obs, ctx)

    async def on_episode_end(self, result: dict[str, Any], ctx: Any) -> None:
        """End the episode with the benchmark's result."""
        episode = self.__dict__.get("_episodes", {}).pop(ctx.episode_id, None)
        if episode is not None:
            metrics = result.get("metrics") or {}
            _advance(episode, ctx.step)
            ended = {} if result else {"ended": "the client disconnected"}
            episode.finish(outcome=success_of(metrics), metrics=dict(metrics), **ended)
        await super().on_episode_end(result, ctx)

    def __init_subclass__(cls, **given: Any) -> None:
        """Have the class's own ``predict`` and ``predict_batch`` act as the episodes of those who ask."""
        super().__init_subclass__(**given)
        for name, one in (("predict", True), ("predict_batch", False)):
            if name in vars(cls):
                setattr(cls, name, _as_episodes(vars(cls)[name], one))

    def predict(self, obs: Any, ctx: Any) -> Any:
        """Predict as the episode of this session."""
        with self._rows([ctx]):
            return super().predict(obs, ctx)

    def predict_batch(self, obs_batch: list[Any], ctx_batch: list[Any]) -> Any:
        """Predict as the episodes of these sessions, a row each."""
        with self._rows(ctx_batch):
            return super().predict_batch(obs_batch, ctx_batch)

    def _rows(self, sessions: Sequence[Any]) -> AbstractContextManager[None]:
        if self.recorder is None:
            return nullcontext()
        return self.recorder.rows([self._episode(ctx) for ctx in sessions])

    def _episode(self, ctx: Any) -> Episode | None:
        found: Episode | None = self.__dict__.get("_episodes", {}).get(ctx.episode_id)
        return found


def _as_episodes(predict: Callable[..., Any], one: bool) -> Callable[..., Any]:
    """Wrap a method that is given observations and sessions, one of each or lists."""

    @wraps(predict)
    def recorded(self: RecordedServer, obs: Any, ctx: Any) -> Any:
        with self._rows([ctx] if one else ctx):
            return predict(self, obs, ctx)

    return recorded


def _advance(episode: Episode | None, steps: int) -> None:
    if episode is not None and steps > episode.step:
        episode.advance(steps - episode.step)


def success_of(metrics: Mapping[str, Any]) -> bool | None:
    """Read whether an episode succeeded; None if its benchmark does not say so in one word.

    Examples
    --------
    >>> success_of({"success": True}), success_of({"success": 0.0}), success_of({"progress": 0.4})
    (True, False, None)
    """
    said = metrics.get("success")
    return bool(said) if said in (True, False, 0, 1) else None

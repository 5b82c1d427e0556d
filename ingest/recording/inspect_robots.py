"""inspect-robots' evaluations, recorded: a log sink that says whose each policy call is, and how a trial ended.

A trial runs in one thread: the sink hears of its start before the policy is reset, of every step, and of its end.
Source: inspect-robots 0.60.0, ``logging/sink.py``, ``rollout.py`` and ``eval.py``.
"""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from typing import Any

from .episode import Episode
from .recorder import Recorder


class RecordedTrials:
    """A ``LogSink`` of inspect-robots; give it to ``eval(..., sinks=[...])`` inside the recorder's ``with``.

    An episode is called ``<task>/<scene>-e<epoch>``; its seed, how it ended, and an operator's note are attributes.
    Its outcome is an operator's verdict, else whether the trial ended with ``success``; a trial that failed with an
    error or was cancelled is ``unknown``, as inspect-robots does not score it.

    Parameters
    ----------
    recorder
        Of the policy that the evaluated one calls.

    Examples
    --------
    ::

        with attnstore.record(policy, "lab.attn") as recorder:
            inspect_robots.eval(task, MyPolicy(policy), robot, sinks=[RecordedTrials(recorder)])
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._task = ""
        self._episode: Episode | None = None
        self._rows = ExitStack()

    def on_eval_start(self, spec: Any) -> None:
        """Keep the task's name."""
        self._task = str(spec.task)

    def on_trial_start(self, scene_id: str, epoch: int) -> None:
        """Open an episode: calls of this thread are its."""
        self._leave()
        self._episode = self._recorder.episode(
            f"{self._task}/{scene_id}-e{epoch}", task=self._task, scene=scene_id, epoch=epoch
        )
        self._rows.enter_context(self._recorder.rows([self._episode]))

    def log_step(self, t: int, observation: Any, action: Any, result: Any) -> None:
        """Count an action that was carried out."""
        if self._episode is not None:
            self._episode.advance(1, result.reward)

    def on_trial_end(self, record: Any) -> None:
        """End the episode."""
        episode = self._episode
        self._leave()
        if episode is None:
            return
        said = {
            "seed": record.seed,
            "termination": record.termination_reason,
            "note": record.operator_note,
            "ended": record.error,
        }
        kept = {name: value for name, value in said.items() if value is not None}
        episode.finish(outcome=outcome_of(record), **kept)

    def on_eval_end(self, log: Any) -> None:
        """Nothing: every trial has ended."""

    def _leave(self) -> None:
        self._episode = None
        self._rows.close()


def outcome_of(record: Any) -> bool | None:
    """Whether a trial succeeded; None if it did not run to its end."""
    if record.status != "success":
        return None
    if record.operator_judgement is not None:
        affirmative = import_module("inspect_robots.scorer").is_affirmative_verdict
        return bool(affirmative(record.operator_judgement))
    return bool(record.terminated and record.termination_reason == "success")

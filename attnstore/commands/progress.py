"""How far a pass over episodes is, what became of them, and how to stop it."""

from __future__ import annotations

import contextlib
import re
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from attnstore.store.errors import PartialError

from .output import bar_of, print_json, say_made, size_text, span_text

if TYPE_CHECKING:
    from attnstore.ingest.plan import Plan
    from attnstore.ingest.probing.pipeline import ProbePlan
    from attnstore.ingest.work import Report


REQUEUE = 75
"""Exit code where the machine and not the user stops a command: ``EX_TEMPFAIL``, try again."""


class Interrupts:
    """Whether a signal asked to stop; asked between keyframes."""

    def __init__(self, finishing: str | None) -> None:
        self._seen: list[int] = []
        self._finishing = finishing

    def __call__(self) -> bool:
        """Whether to stop."""
        return bool(self._seen)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else `REQUEUE`."""
        return 130 if signal.SIGINT in self._seen else REQUEUE

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal."""
        self._seen.append(number)
        if self._finishing and len(self._seen) == 1:
            click.echo(
                f"attnstore: stopping after this {self._finishing}; once more stops at once",
                err=True,
            )
            return
        # Of an array's write that is cut off here Python would say so after the last line.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        if self.exit_code == REQUEUE:
            name = signal.Signals(number).name
            click.echo(f"attnstore: stopped by {name}; the same command resumes", err=True)
            raise SystemExit(REQUEUE)
        raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts(*, finishing: str | None = "keyframe") -> Iterator[Interrupts]:
    """Stop at Ctrl-C, and at what a batch system sends before it kills: SIGTERM, SIGUSR1.

    Parameters
    ----------
    finishing
        What the first signal waits for; None stops at once.
    """
    found = Interrupts(finishing)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, found.handle) for number in numbers}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress_bar(plan: Plan | ProbePlan, what: str = "ingest") -> Iterator[Any]:
    """Show how far the keyframes are, on a terminal; yields the observer of a pipeline."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("keyframes"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with bar_of(*columns) as bar:
        yield _Bar(bar, bar.add_task(what, total=plan.total_keyframes))


class _Bar:
    """Shows an ingest as one progress bar, and says what went wrong as it happens, each thing once."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task
        self._said: set[tuple[str, str]] = set()
        self._done: dict[str, int] = {}

    def started(self, name: str) -> None:
        # what a worker that died had done of it is done again
        self._bar.advance(self._task, -self._done.pop(name, 0))
        self._bar.update(self._task, description=name.rsplit("/", 1)[-1])

    def advanced(self, name: str, keyframes: int) -> None:
        self._done[name] = self._done.get(name, 0) + keyframes
        self._bar.advance(self._task, keyframes)

    def noted(self, message: str) -> None:
        click.echo(f"attnstore: {message}", err=True)

    def ended(self, outcome: Any) -> None:
        what = (outcome.status, _without(outcome.name, outcome.reason))
        if outcome.status not in ("committed", "present") and what not in self._said:
            self._said.add(what)
            click.echo(f"{outcome.status}: {outcome.name}: {outcome.reason}", err=True)


def check_plan(plan: Plan | ProbePlan) -> None:
    """Set the exit code of a dry run, whose broken episodes are named already.

    Raises
    ------
    PartialError
        If an episode is broken.
    """
    if plan.broken:
        raise PartialError(
            f"{len(plan.broken)} of {len(plan.broken) + len(plan.pending)} episodes to do are broken"
        )


def _without(name: str, reason: str) -> str:
    """Return what episodes that fail alike have in common: a reason without the episode's name."""
    return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<episode>", reason)


def said_once(failed: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines for episodes of (name, status, reason): what several share is said once.

    Examples
    --------
    >>> said_once([("a", "broken", "no camera in a"), ("b", "broken", "no camera in b")])
    ['2 episodes (a, b): broken: no camera in <episode>']
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, status, reason in failed:
        groups.setdefault((status, _without(name, reason)), []).append((name, reason))
    lines = []
    for (status, alike), members in groups.items():
        names, (first, own) = [name for name, _ in members], members[0]
        reason = alike if names[1:] else own
        more = f", and {len(names) - 5} more" if len(names) > 5 else ""
        who = f"{len(names)} episodes ({', '.join(names[:5])}{more})" if names[1:] else first
        lines.append(f"{who}: {status}: {reason}")
    return lines


def end_if_interrupted(report: Report, stopped: Interrupts) -> None:
    """Say that a command was interrupted, and end it with the code that says by what."""
    if report.interrupted:
        click.echo(
            "attnstore: interrupted; committed episodes are kept, the same command resumes",
            err=True,
        )
        raise click.exceptions.Exit(stopped.exit_code)


def conclude(
    plan: Plan | ProbePlan, report: Report, target: Path | str, as_json: bool, stopped: Interrupts,
    then: str,
) -> None:  # fmt: skip
    """Say what became of every episode and which command is `then` of use, and set the exit code.

    Raises
    ------
    PartialError
        If an episode was not committed.
    """
    done = [o for o in report.outcomes if o.status == "committed"]
    failed = [(o.name, o.status, o.reason) for o in report.failed]
    failed += [(name, "broken", reason) for name, reason in plan.broken.items()]
    if as_json:
        print_json(
            {
                "event": "episode", "name": o.name, "status": o.status, "reason": o.reason,
                "keyframes": o.keyframes, "bytes": o.bytes, "seconds": o.seconds,
            }
            for o in report.outcomes
        )  # fmt: skip
    else:
        total = sum(o.bytes for o in done)
        seconds = sum(o.seconds for o in done)
        say_made(
            f"committed {len(done)} episodes, {sum(o.keyframes for o in done)} keyframes, "
            f"{size_text(total)} in {span_text(seconds)}",
            f"attnstore {then} {target}" if done and not stopped() else "",
        )
    end_if_interrupted(report, stopped)
    if failed:
        lines = "".join(f"\n  {line}" for line in said_once(failed))
        many = "1 episode is" if len(failed) == 1 else f"{len(failed)} episodes are"
        raise PartialError(f"{many} not in {target}:{lines}")

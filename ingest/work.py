"""A work on many episodes: what is done to each, who does it, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from attnstore.store.commits import StorePaths
from attnstore.store.errors import AttnstoreError, UsageError

from .optional import require

Status = Literal["committed", "present", "broken", "quarantined", "failed"]
Progress = Callable[[int], None]
"""Told how many keyframes were done since the last call."""
Stopped = Callable[[], bool]
"""Whether the user has asked to stop."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one episode."""

    name: str
    status: Status
    reason: str = ""
    keyframes: int = 0
    bytes: int = 0
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else the work has to say of it; small, since it travels."""


class Observer(Protocol):
    """Is told how the work goes; called in the thread that called `execute`."""

    def started(self, name: str) -> None:
        """Take note that an episode was begun; once more if its worker died at it."""
        ...

    def advanced(self, name: str, keyframes: int) -> None:
        """Take note that keyframes of it were done."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """Take note of what became of it."""
        ...

    def noted(self, message: str) -> None:
        """Take note of something that the user should know while it goes on."""
        ...


class StoppedError(AttnstoreError):
    """The user interrupted; the episode in flight was given up, committed ones are kept."""

    exit_code = 130


class DiskFullError(AttnstoreError):
    """There is no space left for the store; nothing that is committed is touched."""


class SharedFailureError(AttnstoreError):
    """The first episodes fail by the same unexpected error, and so would the others."""


@dataclass(slots=True)
class Report:
    """Outcomes of all episodes, and whether the user interrupted."""

    outcomes: list[Outcome] = field(default_factory=list)
    interrupted: bool = False

    def shared_failure(self) -> str | None:
        """Say what every episode will fail by, None if there is no sign of it.

        The sign: nothing was committed, and the last two episodes ended with the same unexpected
        error. Such an error is not of an episode's data but of the policy or the machine.
        """
        last = [o for o in self.outcomes if o.status != "present"][-2:]
        if len(last) < 2 or any(o.status == "committed" for o in self.outcomes):
            return None
        one, two = ((o.status, o.reason.replace(o.name, "it")) for o in last)
        if one != two or one[0] != "failed":
            return None
        return (
            f"{last[0].name} and {last[1].name} fail alike, and no episode was committed, so the "
            f"others are not tried: {last[1].reason}"
        )

    @property
    def failed(self) -> list[Outcome]:
        """Episodes that are not in the store afterwards."""
        return [o for o in self.outcomes if o.status not in ("committed", "present")]


class Work(Protocol):
    """What is done to every episode. Picklable and small: each worker gets it once."""

    @property
    def paths(self) -> StorePaths:
        """The store that it writes to."""
        ...

    def open(self, device: str) -> Any:
        """Load what all episodes share, such as the policy; once a process.

        Raises
        ------
        AttnstoreError
            If it cannot be had here, or is not what the command was called with.
        """
        ...

    def reach(self, name: str) -> None:
        """Check that an episode's input can be read here.

        Raises
        ------
        AttnstoreError
            If not.
        """
        ...

    def claimed(self, name: str) -> bool:
        """Whether another live process of this host is at an episode that is not yet there."""
        ...

    def do(self, state: Any, name: str, *, progress: Progress, stopped: Stopped) -> Outcome:
        """Do an episode with what `open` gave; what is wrong with *it* is an outcome.

        Raises
        ------
        StoppedError
            If `stopped` said so.
        DiskFullError
            If there is no space left.
        AttnstoreError
            What concerns every episode.
        """
        ...


@dataclass(frozen=True, slots=True)
class Workers:
    """Who does the work: this process, workers of its own, or those of a cluster that exists."""

    count: int = 1
    """Processes on this machine; 1 is this process."""
    scheduler: str | None = None
    """Address of a Dask scheduler, ``tcp://host:8786``, or the path of its scheduler file."""
    device: str = "cpu"
    """Torch device; ``cuda`` gives each worker one of its own."""

    def __post_init__(self) -> None:
        if self.scheduler is not None and self.count > 1:
            raise UsageError(
                "--scheduler names a cluster that has its workers, --workers starts new ones: "
                "give one of them"
            )

    @property
    def here(self) -> bool:
        """Whether this process does it all."""
        return self.count == 1 and self.scheduler is None

    def check(self) -> None:
        """Find out before the work that what it takes is installed.

        Raises
        ------
        MissingExtraError
            If it is not.
        """
        if not self.here:
            option = "--workers" if self.scheduler is None else "--scheduler"
            require("distributed", "dask", option)


HERE = Workers()

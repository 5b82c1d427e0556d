"""Shards: which of the episodes one of many jobs does, so that each file is opened by few of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from attnstore.store.errors import UsageError

T = TypeVar("T")
REACH = 0.25
"""How far a boundary may move to that of a file, in shards; no shard is larger than 1.5 shares."""
_RANKS = (("SLURM_PROCID", "SLURM_NTASKS"), ("RANK", "WORLD_SIZE"))
_ARRAY = "SLURM_ARRAY_TASK_ID"


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several equal shares of the episodes.

    Examples
    --------
    >>> Shard(1, 2).of(["a", "b", "c", "d"])
    ['c', 'd']
    """

    index: int
    """From 0."""
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            last = f" to {self.count - 1}/{self.count}" if self.count > 0 else ""
            raise UsageError(
                f"shard {self.index}/{self.count}: shards are numbered from 0, I/N is 0/N{last}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(
        self, names: Sequence[T], file_of: Callable[[T], str | None] = lambda name: None
    ) -> list[T]:
        """Return this shard's episodes: the same, whoever asks and whatever is done already.

        Episodes are laid out file by file and cut into runs of equal length; a cut moves to the
        nearest boundary of a file, if that is less than `REACH` of a shard away.

        Parameters
        ----------
        names
            All episodes, in the dataset's order.
        file_of
            The file in which an episode lies beside others; None if it has files of its own.
        """
        files = [file_of(name) for name in names]
        first: dict[str, int] = {}
        for place, file in enumerate(files):
            if file is not None:
                first.setdefault(file, place)
        order = sorted(
            range(len(names)), key=lambda i: (i if files[i] is None else first[str(files[i])], i)
        )
        start, stop = (
            self._cut([files[i] for i in order], k) for k in (self.index, self.index + 1)
        )
        return [names[i] for i in order[start:stop]]

    def _cut(self, files: Sequence[str | None], number: int) -> int:
        """Return where the shard of a number begins, in episodes laid out file by file."""
        share = len(files) / self.count
        ideal = round(number * share)
        if number in (0, self.count):
            return ideal
        bounds = (
            i
            for i, (before, after) in enumerate(pairwise(files), 1)
            if before is None or before != after
        )
        nearest = min(bounds, key=lambda bound: abs(bound - number * share), default=ideal)
        return nearest if abs(nearest - number * share) < max(0.5, REACH * share) else ideal


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Parse ``I/N``, or find out with ``auto`` which of a launcher's processes this is.

    Looks for SLURM's array, SLURM's tasks, and the variables of torchrun and others, in this order.

    Raises
    ------
    UsageError
        If it is neither, or nothing is found.

    Examples
    --------
    >>> parse_shard("2/8", {})
    Shard(index=2, count=8)
    >>> parse_shard("auto", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "3",
    ...                      "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "3"})
    Shard(index=2, count=3)
    """
    if text != "auto":
        given = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if given is None:
            raise UsageError(f"--shard is I/N, as 0/8, or auto; got {text!r}")
        return Shard(int(given[1]), int(given[2]))
    if _ARRAY in environment:
        return _of_array(environment)
    for rank, size in _RANKS:
        if rank in environment and size in environment:
            return Shard(_number(environment, rank), _number(environment, size))
    looked = ", ".join(f"{a} and {b}" for a, b in ((_ARRAY, f"{_ARRAY[:-2]}COUNT"), *_RANKS))
    raise UsageError(f"--shard auto finds none of {looked}: pass --shard I/N, as 0/8")


def _of_array(environment: Mapping[str, str]) -> Shard:
    number, count, low = (
        _number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN")
    )
    high = _number(environment, "SLURM_ARRAY_TASK_MAX")
    step = int(environment.get("SLURM_ARRAY_TASK_STEP") or 1)
    if (high - low) != (count - 1) * step:
        raise UsageError(
            f"--shard auto takes an array of consecutive numbers; this one has {count} tasks from "
            f"{low} to {high}: pass --shard I/N with the N of the first submission"
        )
    shard = Shard((number - low) // step, count)
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:  # each of them by srun -n
        tasks, rank = (_number(environment, f"SLURM_{n}") for n in ("STEP_NUM_TASKS", "PROCID"))
        shard = Shard(shard.index * tasks + rank, count * tasks)
    return shard


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        found = environment.get(name)
        raise UsageError(
            f"--shard auto: {name} is {'not set' if found is None else repr(found)}, and should be a "
            "number"
        ) from None

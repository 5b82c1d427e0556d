"""Which object an instruction is about: the target, the goal, and those that it does not name.

An object is named if the words of its category stand next to each other in the instruction,
whatever their case, and whether singular or plural. What is only part of a longer name does not
count: in "the red cube" the category ``red cube`` is named, and ``cube`` is not. The first object
that is named is the target, the last other one the goal: *place the red cube into the pink bowl*.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from attnstore.store.errors import SelectionError


@dataclass(frozen=True, slots=True)
class Roles:
    """What objects are to an instruction."""

    target: str | None
    goal: str | None
    others: tuple[str, ...]
    """Neither: distractors, in the order of their names."""

    def role(self, name: str) -> str:
        """Return ``target``, ``goal`` or ``other``."""
        return {self.target: "target", self.goal: "goal"}.get(name, "other")


def find_roles(
    instruction: str,
    objects: Iterable[str],
    *,
    target: str | None = None,
    goal: str | None = None,
) -> Roles:
    """Find target and goal among objects.

    Parameters
    ----------
    objects
        Categories of the object masks, without the gripper.
    target, goal
        Names that are known; they need not be in the instruction.

    Raises
    ------
    SelectionError
        If target and goal are the same, or a name that is given is no object's.

    Examples
    --------
    >>> find_roles("place the red cube into the Pink Bowls", ["pink bowl", "cube", "red cube"])
    Roles(target='red cube', goal='pink bowl', others=('cube',))
    """
    known = sorted(set(objects))
    for given in (target, goal):
        if given is not None and given not in known:
            raise SelectionError(f"no object {given!r}; there are: {', '.join(known) or 'none'}")
    if target is not None and target == goal:
        raise SelectionError(f"{target!r} cannot be both target and goal")
    words = _words(instruction)
    places = {name: _place(_words(name), words) for name in known}
    found = {name: place for name, place in places.items() if place is not None}
    named = [
        name
        for name, (start, stop) in sorted(found.items(), key=lambda item: item[1])
        if not any(a <= start and stop <= b and b - a > stop - start for a, b in found.values())
    ]
    if target is None:
        target = next((name for name in named if name != goal), None)
    if goal is None:
        goal = next((name for name in reversed(named) if name != target), None)
    return Roles(target, goal, tuple(name for name in known if name not in (target, goal)))


def _words(text: str) -> list[str]:
    found = re.findall(r"[^\W_]+", text.lower())
    return [w[:-1] if w.endswith("s") and len(w) > 3 else w for w in found if not w.isdigit()]


def _place(name: list[str], words: list[str]) -> tuple[int, int] | None:
    """First place of a name in the instruction: [start, stop)."""
    for start in range(len(words) - len(name) + 1):
        if name and words[start : start + len(name)] == name:
            return start, start + len(name)
    return None

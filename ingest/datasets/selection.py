"""Which episodes of a dataset are asked for: by name, by outcome, and at most how many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attnstore.store.episode_names import names_episode
from attnstore.store.errors import EpisodeError, NotFoundError, UsageError

from .base import OUTCOMES


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice of episodes.

    Parameters
    ----------
    episodes
        Names, their last parts, numbers, or globs of these; all if empty.
    outcome
        Only episodes with this outcome; all if None.
    limit
        At most this many, in the dataset's order.

    Raises
    ------
    UsageError
        If an outcome is none, or the limit is below 1.
    """

    episodes: tuple[str, ...] = ()
    outcome: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.outcome is not None and self.outcome not in OUTCOMES:
            raise UsageError(f"outcome is one of {', '.join(OUTCOMES)}; got {self.outcome!r}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit is at least 1; got {self.limit}")

    def of(
        self,
        source: object,
        names: Sequence[str],
        outcome_of: Callable[[str], str],
        *,
        number_of: Callable[[str], str] | None = None,
        hint: str = "",
    ) -> list[str]:
        """Return the chosen ones of a dataset's episodes, in their order.

        Parameters
        ----------
        source
            What the dataset is called in an error.
        names
            Of all its episodes.
        outcome_of
            Asked only if an outcome is wanted. An episode of which it raises `EpisodeError` stays,
            so that whoever reads it learns why.
        number_of
            Returns what an episode is called beside its name.
        hint
            Ends the error when there is none of the outcome.

        Raises
        ------
        NotFoundError
            If there is no episode, or none is chosen.
        """
        if not names:
            raise NotFoundError(f"{source}: no episode found")
        chosen: list[str] = []
        for name in names:
            if self.limit is not None and len(chosen) == self.limit:
                break
            called = (name,) if number_of is None else (name, number_of(name))
            if self._named(*called) and self._ended(name, outcome_of):
                chosen.append(name)
        if not chosen:
            filters = {"outcome": self.outcome, "episode": ", ".join(self.episodes)}
            asked = ", ".join(f"{key} {value!r}" for key, value in filters.items() if value)
            raise NotFoundError(
                f"{source}: none of {len(names)} episodes matches {asked}; the first is {names[0]}"
                + (hint if self.outcome else "")
            )
        return chosen

    def _named(self, *called: str) -> bool:
        return not self.episodes or any(
            names_episode(pattern, *called) for pattern in self.episodes
        )

    def _ended(self, name: str, outcome_of: Callable[[str], str]) -> bool:
        if self.outcome is None:
            return True
        try:
            return outcome_of(name) == self.outcome
        except EpisodeError:
            return True

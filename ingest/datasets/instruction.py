"""Which of an episode's instructions the policy gets: the first that is not empty."""

from __future__ import annotations

from collections.abc import Mapping

from attnstore.store.errors import EpisodeError, UsageError


def given_instructions(episode: str, texts: Mapping[str, str], repair: str) -> list[str]:
    """Return an episode's instructions in their order; the policy gets the first.

    Parameters
    ----------
    texts
        By column, in the order in which they are preferred; white space around them is left out.
    repair
        Ends the error: what can be done.

    Raises
    ------
    EpisodeError
        If all are empty, or there is none.
    """
    found = [stripped for text in texts.values() if (stripped := text.strip())]
    if not found:
        empty = f"{' and '.join(texts)} {'is' if len(texts) == 1 else 'are'} empty"
        raise EpisodeError(
            episode,
            f"an episode has an instruction: {empty if texts else 'none is there'}; {repair}",
        )
    return found


def check_instruction(instruction: str | None) -> None:
    """Check the instruction that all episodes get, if one is given.

    Raises
    ------
    UsageError
        If it has no words.
    """
    if instruction is not None and not instruction.strip():
        raise UsageError("an instruction has words; --instruction is empty")

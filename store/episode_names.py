"""Naming episodes: which ones ``2025-12-11_10-04-31``, an id or ``success/*`` is."""

from __future__ import annotations

from fnmatch import fnmatchcase


def names_episode(pattern: str, *names: str) -> bool:
    """Whether a name or a glob names an episode.

    Parameters
    ----------
    pattern
        A name or the last part of one, letter by letter, or a glob of one: ``*``, ``?``, ``[ab]``.
    names
        What the episode is called: the dataset's own name, its id, its number.

    Examples
    --------
    >>> name = "success/2025-12-11/2025-12-11_10-04-31"
    >>> [names_episode(p, name) for p in (name, "2025-12-11_10-04-31", "success/*", "10-04-31")]
    [True, True, True, False]
    """
    called = [text for name in names for text in (name, name.rpartition("/")[2])]
    return pattern in called or any(fnmatchcase(text, pattern) for text in called)

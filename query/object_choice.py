"""Which object parts an answer reads, where an episode has several."""

from __future__ import annotations

from collections.abc import Iterable

from attnstore.store.catalog.rows import quoted
from attnstore.store.commits import Commit

from .chosen import Chosen
from .store import Store

Place = tuple[str, str, str]
"""(episode, camera, source)"""


def latest_object_parts(store: Store, chosen: Chosen) -> dict[Place, Commit]:
    """Find one part per episode, camera and kind of mask: the one that was committed last.

    Parts of different options (threshold, within, tier) stay beside each other; averaging over
    them would count keyframes twice.
    """
    mine = set(chosen.episodes)
    found: dict[Place, Commit] = {}
    for commit in store.commits():
        if commit.run != chosen.run or commit.episode not in mine:
            continue
        if commit.part.startswith("objects-"):
            place = commit.episode, str(commit.summary["camera"]), str(commit.summary["source"])
            before = found.get(place)
            if before is None or (commit.created, commit.part) > (before.created, before.part):
                found[place] = commit
    return found


def of_parts(commits: Iterable[Commit]) -> str:
    """SQL condition for the rows of these parts, on a table with run, episode and part."""
    listed = sorted({(c.run, c.episode, c.part) for c in commits})
    if not listed:
        return "false"
    # Named apart from the triples, because the view skips files by them.
    episodes = ", ".join(sorted({quoted(episode) for _, episode, _ in listed}))
    triples = ", ".join(f"({', '.join(map(quoted, key))})" for key in listed)
    return f"episode IN ({episodes}) AND (run, episode, part) IN ({triples})"

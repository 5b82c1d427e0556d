"""Which object parts an answer reads, where an episode has several."""

from __future__ import annotations

from collections.abc import Iterable

from attnstore.store.catalog.rows import quoted
from attnstore.store.commits import Commit
from attnstore.store.rules import Place, counting_object_parts

from ..sql.chosen import Chosen
from ..sql.store import Store


def latest_object_parts(store: Store, chosen: Chosen) -> dict[Place, Commit]:
    """Find one part per episode, camera and source; see `attnstore.store.rules`."""
    mine = set(chosen.episodes)
    return counting_object_parts(
        c for c in store.commits() if c.run == chosen.run and c.episode in mine
    )


def of_parts(commits: Iterable[Commit]) -> str:
    """SQL condition for the rows of these parts, on a table with run, episode and part."""
    listed = sorted({(c.run, c.episode, c.part) for c in commits})
    if not listed:
        return "false"
    # Named apart from the triples, because the view skips files by them.
    episodes = ", ".join(sorted({quoted(episode) for _, episode, _ in listed}))
    triples = ", ".join(f"({', '.join(map(quoted, key))})" for key in listed)
    return f"episode IN ({episodes}) AND (run, episode, part) IN ({triples})"

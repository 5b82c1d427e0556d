"""What a reader should know of a run before its numbers: what it is, and whether it is sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attnstore.store.catalog.rows import quoted
from attnstore.store.commits.quarantine import quarantined
from attnstore.store.commits.run import RunConfig
from attnstore.store.commits.verify import verify

from .sql.chosen import Chosen
from .sql.store import Store

CHEAP = 1 << 30
"""Bytes that are read within seconds to compare every file's SHA-256."""


@dataclass(frozen=True, slots=True)
class PartSize:
    """The committed parts of one kind: ``base``, ``objects``, ``probe``, ``cnn``."""

    kind: str
    parts: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Health:
    """One run's provenance and soundness."""

    config: RunConfig
    provenance: dict[str, Any]
    keyframes: int
    frames: int
    sizes: tuple[PartSize, ...]
    """Of the chosen episodes."""
    row_sums: tuple[float, float]
    """Smallest and largest sum of an attention row, over all phases and keyframes."""
    quarantined: tuple[tuple[str, str], ...]
    """(name, reason) of the run's episodes that the health gate kept out."""
    unreadable: tuple[tuple[str, str], ...]
    """(part, reason) of commits that the catalog had to leave out."""
    problems: tuple[str, ...] | None
    """What `attnstore verify` says of the run; None if it was not asked."""


def health(store: Store, chosen: Chosen, *, check: bool | None = None) -> Health:
    """Gather what a run is and whether it is sound.

    Parameters
    ----------
    check
        Read every committed file of the run and compare its SHA-256; by default if that is
        `CHEAP` and all files are here.
    """
    config, provenance = store.run(chosen.run)
    mine = chosen.condition
    ((keyframes, frames),) = store.sql(
        f"SELECT sum(keyframes)::BIGINT, sum(frames)::BIGINT FROM episodes WHERE {mine}"
    ).fetchall()
    sizes = store.sql(
        "SELECT split_part(part, '-', 1) AS kind, count(*), sum(bytes)::BIGINT FROM commits "
        f"WHERE {mine} GROUP BY kind ORDER BY kind"
    ).fetchall()
    ((low, high),) = store.sql(
        f"SELECT min(row_sum_min), max(row_sum_max) FROM keyframes WHERE {mine}"
    ).fetchall()
    unreadable = store.sql(
        "SELECT coalesce(part, 'run'), reason FROM unreadable "
        f"WHERE run = {quoted(chosen.run)} ORDER BY ALL"
    ).fetchall()
    whole = sum(row[2] for row in sizes)
    if check is None:
        check = whole <= CHEAP and not store.paths.partial
    problems = tuple(str(p) for p in verify(store.paths.cached(), chosen.run)) if check else None
    return Health(
        config=config,
        provenance=provenance,
        keyframes=int(keyframes or 0),
        frames=int(frames or 0),
        sizes=tuple(PartSize(*row) for row in sizes),
        row_sums=(float(low), float(high)),
        quarantined=tuple(
            (str(e.get("name")), str(e.get("reason")))
            for e in quarantined(store.paths)
            if e.get("run") == chosen.run
        ),
        unreadable=tuple(unreadable),
        problems=problems,
    )

"""What separates a catalog generation from the commits, and how it is brought up to date."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from .catalog_rows import (
    CatalogPart,
    append,
    catalog_part,
    delete_parts,
    delete_runs,
    insert_parts,
    run_row,
)
from .catalog_tables import DATABASE
from .commit import Key, commit_keys, latest_commit
from .errors import AttnstoreError
from .paths import StorePaths
from .run import run_ids

BATCH = 500
"""Parts whose files one statement reads."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a generation includes."""

    parts: dict[Key, str] = field(default_factory=dict)
    """Key to listing."""
    runs: frozenset[str] = frozenset()


@dataclass(slots=True)
class Changes:
    """The difference between the commits and a generation."""

    gone: list[Key] = field(default_factory=list)
    """Vanished, or about to be replaced."""
    parts: list[CatalogPart] = field(default_factory=list)
    runs_gone: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.gone or self.parts or self.runs_gone or self.runs or self.unreadable)


def read_known(connection: duckdb.DuckDBPyConnection) -> Known:
    """Read what the attached generation includes."""
    main = f"{DATABASE}.main"
    parts = connection.execute(
        f"SELECT run, episode, part, listing FROM {main}.commits UNION ALL "
        f"SELECT run, episode, part, listing FROM {main}.unreadable WHERE part IS NOT NULL"
    ).fetchall()
    runs = connection.execute(
        f"SELECT run FROM {main}.runs UNION ALL "
        f"SELECT run FROM {main}.unreadable WHERE part IS NULL"
    ).fetchall()
    return Known({(r, e, p): listing for r, e, p, listing in parts}, frozenset(r for (r,) in runs))


def _listings(paths: StorePaths) -> Iterator[tuple[Key, str]]:
    """Yield what tells a part's latest commit from another one, without reading it.

    The revision alone would not: an episode may be removed by hand and ingested again.
    """
    if (listed := paths.listings()) is not None:
        yield from listed
        return
    for run, episode, part, revision in commit_keys(paths):
        name = f"{revision:06d}.json"
        try:
            # A string and no path: see commit_keys.
            status = os.stat(f"{paths.commits}/{run}/{episode}/{part}/{name}")  # noqa: PTH116
            yield (run, episode, part), f"{name} {status.st_mtime_ns}"
        except FileNotFoundError:
            continue


def changes_since(paths: StorePaths, known: Known) -> Changes:
    """Compare the store's commits with what a generation includes; only new commits are read."""
    listed = dict(_listings(paths))
    changes = Changes(gone=[key for key in known.parts if key not in listed])
    for key, listing in listed.items():
        if known.parts.get(key) == listing:
            continue
        if key in known.parts:
            changes.gone.append(key)
        try:
            commit = latest_commit(paths, *key)
            if commit is not None:
                changes.parts.append(catalog_part(paths, commit, listing))
                continue
            reason = "its only commit file is empty"
        except AttnstoreError as error:
            reason = str(error)
        run, episode, part = key
        changes.unreadable.append(
            {"run": run, "episode": episode, "part": part, "listing": listing, "reason": reason}
        )
    runs = run_ids(paths)
    changes.runs_gone = sorted(known.runs.difference(runs))
    for run in runs:
        if run not in known.runs:
            try:
                changes.runs.append(run_row(paths, run))
            except AttnstoreError as error:
                changes.unreadable.append({"run": run, "reason": str(error)})
    return changes


def apply(connection: duckdb.DuckDBPyConnection, root: Path, changes: Changes) -> None:
    """Bring the attached generation up to date."""
    delete_parts(connection, changes.gone)
    delete_runs(connection, changes.runs_gone)
    for start in range(0, len(changes.parts), BATCH):
        insert_parts(connection, root, changes.parts[start : start + BATCH])
    append(connection, "runs", changes.runs)
    append(connection, "unreadable", changes.unreadable)

"""Opening a store and finding episodes in it, without a catalog."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attnstore.store.commits import (
    Commit,
    StorePaths,
    all_commits,
    committed_names,
    latest_commit,
    slug,
)
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import RunConfig, load_run, run_ids
from attnstore.store.errors import NotFoundError, SelectionError
from attnstore.store.opening import open_paths
from attnstore.store.reader.episode import Episode

if TYPE_CHECKING:
    import duckdb


def open(path: str | os.PathLike[str], *, engine: str | None = None) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path
        Directory of the store, or its URL: ``s3://``, ``gs://``, ``http(s)://``, ``file://``. What is
        read from a URL is kept in a cache; what was committed is asked once, here.
    engine
        ``tensorstore`` or ``zarr``; by default the faster one that is installed.

    Raises
    ------
    NotFoundError
        If there is no store.
    UnsupportedFormatError
        If a newer major format version wrote it.
    UsageError
        If the URL is of no known kind, or the extra that reads it is not installed.
    """
    from attnstore.store.catalog import seed_log

    paths = open_paths(path)
    seed_log(paths)
    return Store(paths, engine=engine)


class Store:
    """A store, read only; made by `attnstore.open`."""

    def __init__(self, paths: StorePaths, *, engine: str | None = None) -> None:
        self.paths = paths
        self._engine = engine
        self._catalog: duckdb.DuckDBPyConnection | None = None

    def __repr__(self) -> str:
        return f"<attnstore {self.paths.name!r}: {len(self.runs)} runs>"

    @property
    def runs(self) -> list[str]:
        """Ids of all runs."""
        return run_ids(self.paths)

    def run(self, run: str) -> tuple[RunConfig, dict[str, Any]]:
        """Return a run's configuration and provenance."""
        return load_run(self.paths, run)

    def commits(self) -> Iterator[Commit]:
        """Latest commit of every part of every episode."""
        return all_commits(self.paths)

    def episodes(self, run: str | None = None) -> list[Commit]:
        """Return the commits of all episodes' base parts, in order of run and name."""
        found = [c for c in self.commits() if c.part == "base" and run in (None, c.run)]
        return sorted(found, key=lambda c: (c.run, str(c.summary.get("name"))))

    def episode(self, name: str, *, run: str | None = None) -> Episode:
        """Open an episode.

        Parameters
        ----------
        name
            The dataset's own name, its last component, or the episode's id.
        run
            Needed only when several runs have the episode.

        Raises
        ------
        NotFoundError
            If no committed episode has this name.
        SelectionError
            If several have it; the message lists them.
        """
        found = [(r, e) for r in ([run] if run else self.runs) for e in self._ids(r, name)]
        commits = [c for r, e in found if (c := latest_commit(self.paths, r, e)) is not None]
        if not commits:
            known = [str(c.summary.get("name")) for c in self.episodes(run)]
            shown = ", ".join(known[:5]) + (
                f", ... ({len(known)} in all)" if len(known) > 5 else ""
            )
            raise NotFoundError(f"no episode {name!r}; there are: {shown or 'none'}")
        if len(commits) > 1:
            choices = ", ".join(sorted(f"{c.summary.get('name')} in run {c.run}" for c in commits))
            raise SelectionError(
                f"{name!r} is not one episode: {choices}; name the run or the whole name"
            )
        return self.from_commit(commits[0])

    def from_commit(self, commit: Commit) -> Episode:
        """Open the episode of a commit."""
        return Episode(Part(self.paths, commit, engine=self._engine))

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Ask the catalog and the tables; it is brought up to date first.

        Returns
        -------
        A DuckDB relation, lazily evaluated: ``.df()``, ``.to_arrow_table()``, ``.fetchall()``.

        Raises
        ------
        UsageError
            If the query fails.
        """
        from attnstore.store.catalog import connect

        from .run import run_query

        # A new connection each time: an older relation keeps the generation that it was made on.
        self._catalog = connect(self.paths)
        return run_query(self._catalog, query)

    def _ids(self, run: str, name: str) -> list[str]:
        known = committed_names(self.paths, run)
        if slug(name) in known:
            return [slug(name)]
        readable = slug(name).rsplit("-", 1)[0]
        return [e for e in known if e == name or e.rsplit("-", 1)[0] == readable]

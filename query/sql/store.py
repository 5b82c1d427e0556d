"""Opening a store and finding episodes in it, without a catalog."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from attnstore.store.commits import (
    Commit,
    StorePaths,
    all_commits,
    committed_names,
    latest_commit,
    log_of,
    slug,
)
from attnstore.store.commits.part import Part
from attnstore.store.commits.run import RunConfig, load_run, run_ids
from attnstore.store.errors import SelectionError, UnknownEpisodeError, UsageError
from attnstore.store.format.weighting import WEIGHTINGS, Weighting
from attnstore.store.opening import open_paths

from .episodes import Episodes

if TYPE_CHECKING:
    import duckdb
    import xarray as xr

    from attnstore.store.reader.episode import Episode, Steps
    from attnstore.store.reader.hidden import Layers, Spans, Tokens
    from attnstore.store.reader.reads import Reduction

    from .relation import Relation


def open(path: str | os.PathLike[str], *, engine: str | None = None) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path
        Directory of the store, or its URL: ``s3://``, ``gs://``, ``hf://``, ``http(s)://``, ``file://``. What
        is read from a URL is kept in a cache; what was committed is asked once, here.
    engine
        ``tensorstore`` or ``zarr``; by default the faster one that is installed.

    Returns
    -------
    The store; a context manager.

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
    # Not now: a question in SQL asks the catalog alone.
    log_of(paths).seeder = partial(seed_log, paths)
    return Store(paths, engine=engine)


class Store:
    """A store, read only; made by `attnstore.open`.

    A context manager: ``with attnstore.open("lab.attn") as store``. Episodes and arrays that were read
    from it open their own files and outlive it.

    Parameters
    ----------
    paths
        The store's files.
    engine
        ``tensorstore`` or ``zarr``; None is the faster one that is installed.
    """

    def __init__(self, paths: StorePaths, *, engine: str | None = None) -> None:
        self._paths = paths
        self._engine = engine
        self._connections: WeakSet[duckdb.DuckDBPyConnection] = WeakSet()
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.runs)} runs"
        return f"<attnstore {self._paths.name!r}: {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store: its catalog, and with it the relations that `sql` returned.

        Asking it anything afterwards raises `UsageError`. Closing again does nothing.
        """
        self._closed = True
        for connection in list(self._connections):
            connection.close()

    @property
    def paths(self) -> StorePaths:
        """The store's files."""
        if self._closed:
            raise UsageError(f"the store {self._paths.name} is closed; open it again")
        return self._paths

    @property
    def runs(self) -> list[str]:
        """Ids of all runs."""
        return run_ids(self.paths)

    def run(self, run: str) -> tuple[RunConfig, dict[str, Any]]:
        """Return a run's configuration and provenance.

        Parameters
        ----------
        run
            Its id, of `runs`.

        Returns
        -------
        The configuration, which decides its id, and by whom, when and with which versions it was
        made.

        Raises
        ------
        NotFoundError
            If there is no such run.
        """
        return load_run(self.paths, run)

    def commits(self) -> Iterator[Commit]:
        """Yield the latest commit of every part of every episode, in order of run, episode, part.

        What cannot be read is left out; ``attnstore verify`` names it.
        """
        return all_commits(self.paths)

    def base_commits(self, run: str | None = None) -> list[Commit]:
        """Return the commits of all episodes' base parts, in order of run and name.

        Parameters
        ----------
        run
            Only of this run.

        Returns
        -------
        One an episode, as of now; what cannot be read is left out.
        """
        commits = [c for c in self.commits() if c.part == "base" and run in (None, c.run)]
        return sorted(commits, key=lambda c: (c.run, str(c.summary.get("name"))))

    @property
    def episodes(self) -> Episodes:
        """All episodes: a mapping from names to `Episode`, shown as a table."""
        return Episodes(self)

    def episode(self, name: str, *, run: str | None = None) -> Episode:
        """Open an episode.

        Parameters
        ----------
        name
            The dataset's own name, its last component, or the episode's id; or ``run/name``.
        run
            Needed only when several runs have the episode.

        Returns
        -------
        The episode; nothing of its arrays is read yet.

        Raises
        ------
        UnknownEpisodeError
            If no committed episode has this name.
        SelectionError
            If several have it; the message lists them.
        """
        commits = self._named(name, run)
        of_run, _, rest = name.partition("/")
        if not commits and run is None and rest and of_run in self.runs:
            commits = self._named(rest, of_run)
        if not commits:
            known = [str(c.summary.get("name")) for c in self.base_commits(run)]
            shown = ", ".join(known[:5]) + (
                f", ... ({len(known)} in all)" if len(known) > 5 else ""
            )
            raise UnknownEpisodeError(f"no episode {name!r}; there are: {shown or 'none'}")
        if len(commits) > 1:
            choices = ", ".join(sorted(f"{c.summary.get('name')} in run {c.run}" for c in commits))
            raise SelectionError(
                f"{name!r} is not one episode: {choices}; name the run or the whole name"
            )
        return self.from_commit(commits[0])

    def from_commit(self, commit: Commit) -> Episode:
        """Open the episode of a commit.

        Parameters
        ----------
        commit
            Of its base part, from `base_commits`.

        Returns
        -------
        The episode as it was then.
        """
        from attnstore.store.reader.episode import Episode

        return Episode(Part(self.paths, commit, engine=self._engine))

    def dataset(
        self,
        *,
        phase: str,
        maps: str | None = None,
        query: str | None = None,
        key: str | None = None,
        reduce: Reduction = "mean",
        step: Steps = None,
        weighting: Weighting = "raw",
        episodes: Sequence[str] = (),
        where: str | None = None,
        run: str | None = None,
        limit: int | None = None,
    ) -> xr.Dataset:
        """Return many episodes as one lazy dataset over dask, for reductions of one's own.

        Nothing is read before something is computed; then each chunk, a whole shard (a keyframe of
        attention, up to 32 of maps), is read by whichever thread or worker of a Dask cluster needs it.
        Episodes lie behind one another along ``keyframe``. Tokens are aligned by the names of their
        spans, each span as long as its longest; what an episode lacks is NaN.

        Parameters
        ----------
        phase
            ``prefix``, ``suffix``, ...
        maps
            Camera whose maps are wanted; None is the full attention.
        query
            Of maps, the query group that they are of, by default the phase's own; it may be a word,
            which is each episode's own tokens. Of attention, the tokens to keep: a group that is named alike in
            all episodes, such as ``task``.
        key
            Tokens to keep of attention, as `query`.
        reduce
            Of maps: ``mean`` or ``max`` over the query tokens.
        step
            Of maps, as for `Episode.maps`: a number, ``first``, ``last``, ``all``; None is the one that
            stands for the phase.
        weighting
            ``raw``, or ``value``: times the norm of what each key would add through the head, rows summing
            to 1 again. Such maps are made of whole rows, a keyframe at a time.
        episodes, where, run, limit
            Which episodes: names, an SQL condition on table ``episodes``, a run's, the first so many; by
            default all of the store.

        Returns
        -------
        Dataset of ``attention`` (keyframe, [step], layer, head, query, key) or ``map`` (keyframe, [step],
        layer, head, row, col), float32 weights, 0..1. Coordinates along ``keyframe``: ``episode``, ``run``,
        ``outcome``, ``number`` (of the keyframe in its episode) and ``frame``; of attention also
        ``query_label``, ``query_span``, ``key_label``, ``key_span``, where words that differ between episodes
        are numbered; of maps ``coverage`` (row, col), which lies along ``keyframe``, too, if the cameras'
        images are not all of one size.

        Raises
        ------
        MissingExtraError
            If dask is not installed.
        SelectionError
            If a name matches nothing, or the episodes' shapes differ, as those of two policies do.
        NotFoundError
            If an episode has no value norms to weight with.
        UsageError
            If something is asked of attention that maps have, or the other way round.
        """
        from attnstore.store.reader.dataset import attention_dataset, map_dataset

        if maps is None and (step is not None or reduce != "mean"):
            raise UsageError("reduce and step are of maps: name a camera with maps=")
        if maps is not None and key is not None:
            raise UsageError("the keys of maps are a camera's patches: give maps= or key=")
        chosen = self.chosen(episodes, where, run, limit)
        if maps is None:
            return attention_dataset(chosen, phase, query, key, weighting)
        return map_dataset(chosen, phase, maps, query, reduce, step, weighting)

    def hidden(
        self,
        *,
        phase: str,
        layer: Layers = None,
        span: Spans = None,
        tokens: Tokens = "mean",
        step: Steps = None,
        episodes: Sequence[str] = (),
        where: str | None = None,
        run: str | None = None,
        limit: int | None = None,
        max_bytes: int = 2 << 30,
        progress: Callable[[float, str], None] = lambda share, name: None,
    ) -> xr.DataArray:
        """Load hidden states of many episodes, which lie behind one another along ``keyframe``.

        Parameters
        ----------
        phase, layer, span, tokens, step
            As for `Episode.hidden`. Tokens are aligned by the names of their spans; what an episode lacks is
            NaN.
        episodes, where, run, limit
            Which episodes: names, an SQL condition on table ``episodes``, a run's, the first so many; by
            default all of the store.
        max_bytes
            A larger result is refused before anything is read.
        progress
            Called with the share of the episodes that are read, and the next one's name.

        Returns
        -------
        DataArray float32, as of `Episode.hidden`. Coordinates along ``keyframe``: ``episode``, ``run``,
        ``outcome``, ``task``, ``instruction``, ``number`` (of the keyframe in its episode) and ``frame``;
        along tokens ``query_span`` and ``offset`` (of the token in its span).

        Raises
        ------
        SelectionError
            If a name matches nothing, the episodes' layers or features differ, as those of two policies
            do, or the result is too large.
        NotFoundError
            If an episode was captured without them.
        """
        from attnstore.store.reader.hidden import hidden_over

        def read(episode: Episode, *, lazy: bool) -> xr.DataArray:
            return episode.hidden(
                phase,
                layer=layer,
                span=span,
                tokens=tokens,
                step=step,
                lazy=lazy,
                max_bytes=max_bytes,
            )

        return hidden_over(self.chosen(episodes, where, run, limit), read, max_bytes, progress)

    def chosen(
        self,
        episodes: Sequence[str] = (),
        where: str | None = None,
        run: str | None = None,
        limit: int | None = None,
    ) -> list[Episode]:
        """Open the episodes that a question is about.

        Parameters
        ----------
        episodes, where, run, limit
            Names, an SQL condition on table ``episodes``, a run's, the first so many; by default all.

        Returns
        -------
        In order of run and name.

        Raises
        ------
        SelectionError
            If a name matches nothing.
        """
        from .chosen import choose

        return [
            self.episode(name, run=each.run)
            for each in choose(self, run, where, tuple(episodes), limit)
            for name in each.episodes
        ]

    def sql(self, query: str) -> Relation:
        """Ask the catalog and the tables in SQL; it is brought up to date first.

        Parameters
        ----------
        query
            DuckDB's SQL over the tables of docs/schema.md.

        Returns
        -------
        DuckDB's relation, lazily evaluated: ``.df()``, ``.to_arrow_table()``, ``.fetchall()``. What
        fails then, fails with one of the errors below as well.

        Raises
        ------
        UsageError
            If the query fails.
        IntegrityError
            If a table that it reads is not what was committed.
        """
        from attnstore.store.catalog import connect

        from .relation import Relation
        from .run import run_query

        # A new connection each time: an older relation keeps the generation that it was made on,
        # and its connection.
        connection = connect(self.paths)
        self._connections.add(connection)
        return Relation(run_query(connection, query))

    def both_weightings(self, query: str) -> tuple[str, ...]:
        """Return the tables of which a query takes rows of both weightings without saying so.

        Statistics are stored of the attention as it is and weighted by value norms; a mean over such a
        table is over both, unless the query names ``weighting``.

        Parameters
        ----------
        query
            As for `sql`.

        Returns
        -------
        Names of tables, sorted; none if the query names the column or answers with it, or if the store
        has no value norms.

        Raises
        ------
        UsageError
            If the query fails.
        """
        from attnstore.store.tables.inventory import ALL_TABLES

        words = set(re.findall(r"\w+", query.lower()))
        asked = sorted(
            name
            for name, table in ALL_TABLES.items()
            if name in words and any(column.name == "weighting" for column in table.columns)
        )
        if not asked or "weighting" in words or "weighting" in self.sql(query).columns:
            return ()
        return tuple(name for name in asked if "value" in self.weightings(name))

    def weightings(
        self, table: str = "episode_stats", condition: str = "true"
    ) -> tuple[Weighting, ...]:
        """Return the weightings that a table of statistics has rows of.

        Parameters
        ----------
        table
            One with a column ``weighting``.
        condition
            SQL condition on its rows.

        Returns
        -------
        Some of `attnstore.store.format.weighting.WEIGHTINGS`, in their order.

        Raises
        ------
        UsageError
            If there is no such table, or the condition is not SQL.
        """
        there = "select 1 from {} where weighting = '{}' and ({}) limit 1"
        return tuple(
            w for w in WEIGHTINGS if self.sql(there.format(table, w, condition)).fetchall()
        )

    def _named(self, name: str, run: str | None) -> list[Commit]:
        """Commits of the episodes with this name, last part of a name, or id."""
        runs = [run] if run else self.runs
        places = [(r, e) for r in runs for e in self._candidates(r, name)]
        commits = [c for r, e in places if (c := latest_commit(self.paths, r, e)) is not None]
        # Directory names are alike for other names, too: of `a/x` and `b/x`, of `x y` and `x_y`.
        return [
            c
            for c in commits
            if c.episode == name or f"/{c.summary.get('name')}".endswith(f"/{name.strip('/')}")
        ]

    def _candidates(self, run: str, name: str) -> list[str]:
        known = committed_names(self.paths, run)
        if slug(name) in known:
            return [slug(name)]
        readable = slug(name).rsplit("-", 1)[0]
        return [e for e in known if e == name or e.rsplit("-", 1)[0] == readable]

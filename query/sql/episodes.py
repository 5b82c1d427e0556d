"""The episodes of a store as a mapping, with a table as its picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from attnstore.store.commits import latest_commit
from attnstore.store.errors import UnknownEpisodeError

from .run import shown_value, text_table

if TYPE_CHECKING:
    from attnstore.store.reader import Episode

    from .store import Store

_COLUMNS = ("outcome", "date", "keyframes", "instruction")
_MOST = 24
"""Rows of a table; of more episodes the first and the last are shown."""


class Episodes(Mapping[str, "Episode"]):
    """The episodes of a store, read only; made by `Store.episodes`.

    Keys are the dataset's own names, in order of run and name; where several runs have a name they
    are ``run/name``. A look-up also takes what `Store.episode` takes: a name's last component, or an
    id. Episodes are opened when they are looked up. Iterating sees the episodes that there were when
    it began; a new ``store.episodes`` sees those of its own moment.

    Examples
    --------
    ::

        store.episodes  # a table
        store.episodes["2025-12-11_09-44-16"]
        {name: e.outcome for name, e in store.episodes.items()}
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, name: str) -> Episode:
        """Open an episode; the errors are those of `Store.episode`."""
        if not isinstance(name, str):
            raise UnknownEpisodeError(f"episodes are found by name; got {name!r}")
        # Not cached for this alone: a look-up needs no list of all.
        row = self.__dict__.get("_rows", {}).get(name)
        if row is not None:
            commit = latest_commit(self._store.paths, row["run"], row["id"])
            if commit is not None:
                return self._store.from_commit(commit)
        return self._store.episode(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        count = len(self)
        title = f"<attnstore episodes: {count}>"
        if not count:
            return title
        names, rows = self._table()
        lines = text_table(names, [row for row in rows if row is not None])
        if None in rows:
            lines.insert(2 + rows.index(None), f"... {count - _MOST} more")
        return "\n".join([title, *lines])

    def _repr_html_(self) -> str:
        names, rows = self._table()
        head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in names)
        body = "".join(
            f"<tr><td colspan='{len(names)}'>… {len(self) - _MOST} more</td></tr>"
            if row is None
            else "<tr>"
            + "".join(f"<td style='text-align:left'>{escape(shown_value(v))}</td>" for v in row)
            + "</tr>"
            for row in rows
        )
        return (
            f"<div><b>{len(self)} episodes</b><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )

    def _table(self) -> tuple[list[str], list[tuple[Any, ...] | None]]:
        """Names of columns, and rows; None stands for those that are left out."""
        several = len({row["run"] for row in self._rows.values()}) > 1
        columns = ("run", *_COLUMNS) if several else _COLUMNS
        rows: list[tuple[Any, ...] | None] = [
            (name, *(row[column] for column in columns)) for name, row in self._rows.items()
        ]
        if len(rows) > _MOST:
            rows[_MOST // 2 : -_MOST // 2] = [None]
        return ["name", *columns], rows

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        """What commits say of each episode, by key; a commit itself lists hundreds of files."""
        commits = self._store.base_commits()
        names = [str(commit.summary.get("name")) for commit in commits]
        rows = [
            {
                "run": commit.run,
                "id": commit.episode,
                **{column: commit.summary.get(column) for column in _COLUMNS},
            }
            for commit in commits
        ]
        counts = Counter(names)
        long = [f"{commit.run}/{name}" for commit, name in zip(commits, names, strict=True)]
        keys = [n if counts[n] == 1 else key for n, key in zip(names, long, strict=True)]
        return dict(zip(keys if len(set(keys)) == len(keys) else long, rows, strict=True))

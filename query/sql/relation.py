"""The rows of a query: DuckDB's relation, with attnstore's errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import duckdb

from .run import sql_errors


class Relation:
    """The rows of a query, computed when they are asked for.

    Has everything that `duckdb.DuckDBPyRelation` has, and gives what that gives: ``df()``,
    ``pl()``, ``fetchall()``, ``to_arrow_table()``, ``filter(...)``, ``columns``; Arrow and the
    libraries that know Arrow take it as well. Where DuckDB raises an error of its own, with a
    traceback in its text where a file was refused, this raises one of attnstore, of one line.

    Parameters
    ----------
    relation
        DuckDB's.
    """

    __slots__ = ("__weakref__", "_relation")

    def __init__(self, relation: duckdb.DuckDBPyRelation) -> None:
        self._relation = relation

    def __getattr__(self, name: str) -> Any:
        if name == "_relation":  # of an instance that `copy` has not filled yet
            raise AttributeError(name)
        # A property such as `shape` computes the rows, too.
        with sql_errors():
            value = getattr(self._relation, name)
        return _guarded(value) if callable(value) else _wrapped(value)

    def __dir__(self) -> list[str]:
        return dir(self._relation)

    def __len__(self) -> int:
        with sql_errors():
            return len(self._relation)

    def __contains__(self, name: str) -> bool:
        return name in self._relation

    def __getitem__(self, name: str) -> Any:
        with sql_errors():
            return _wrapped(self._relation[name])

    def __repr__(self) -> str:
        with sql_errors():
            return repr(self._relation)

    def __str__(self) -> str:
        with sql_errors():
            return str(self._relation)


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with sql_errors():
            return _wrapped(
                method(*map(_plain, args), **{name: _plain(v) for name, v in kwargs.items()})
            )

    return call


def _wrapped(value: Any) -> Any:
    return Relation(value) if isinstance(value, duckdb.DuckDBPyRelation) else value


def _plain(value: Any) -> Any:
    return value._relation if isinstance(value, Relation) else value

"""The catalog: DuckDB files made from the commits, and the SQL views over what they do not hold."""

from .generations import (
    NAME,
    NEWEST,
    Generation,
    connect,
    generations,
    made_from,
    rebuild,
    refresh,
    seed_log,
    take_over,
)

__all__ = [
    "NAME",
    "NEWEST",
    "Generation",
    "connect",
    "generations",
    "made_from",
    "rebuild",
    "refresh",
    "seed_log",
    "take_over",
]

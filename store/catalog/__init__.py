"""The catalog: DuckDB files made from the commits, and the SQL views over what they do not hold."""

from .generations import (
    NEWEST,
    Generation,
    connect,
    generations,
    is_long,
    made_from,
    rebuild,
    refresh,
    seed_log,
    take_over,
)
from .tables import NAME

__all__ = [
    "NAME",
    "NEWEST",
    "Generation",
    "connect",
    "generations",
    "is_long",
    "made_from",
    "rebuild",
    "refresh",
    "seed_log",
    "take_over",
]

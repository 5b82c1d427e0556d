"""Every Parquet table of a store, by the parts that bring it.

docs/schema.md is generated from this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .base import OPTIONAL_TABLES, TABLES
from .cnn import CNN_TABLES
from .columns import Table
from .failure import FAILURE_TABLES
from .linear_probes import LINEAR_PROBE_TABLES
from .objects import OBJECT_TABLES
from .probes import PROBE_TABLES

__all__ = ["ALL_TABLES", "OPTIONAL_TABLES", "PART_TABLES", "TABLES"]

PART_TABLES: Mapping[str, Table] = MappingProxyType(
    {**OBJECT_TABLES, **PROBE_TABLES, **LINEAR_PROBE_TABLES, **FAILURE_TABLES, **CNN_TABLES}
)
"""Tables that other parts bring, by name: object_stats and object_masks of objects-..., those of
probe-..., of linear-probe-..., of failure-... and of cnn-..."""

ALL_TABLES: Mapping[str, Table] = MappingProxyType({**TABLES, **OPTIONAL_TABLES, **PART_TABLES})

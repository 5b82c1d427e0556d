"""A column, a table, and the columns that tables share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    type: pa.DataType
    definition: str
    unit: str = ""
    optional: bool = False
    """Rows may be added without it: NULL."""

    @property
    def nullable(self) -> bool:
        """Whether it may be NULL: its definition says when."""
        return self.optional or "NULL" in self.definition


@dataclass(frozen=True)
class Table:
    """One table: what a row is, and its columns."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema; definitions and units are field metadata."""
        return pa.schema(
            [
                pa.field(
                    c.name,
                    c.type,
                    metadata={"definition": c.definition, **({"unit": c.unit} if c.unit else {})},
                )
                for c in self.columns
            ],
            metadata={"row": self.row},
        )


STRING, INT16, INT32, INT64, FLOAT32, FLOAT64 = (
    pa.string(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(),
)  # fmt: skip

ACROSS = "across-episodes"
"""Id that stands for an episode where a row is of many."""

RUN = Column("run", STRING, "id of the run")
EPISODE = Column("episode", STRING, "id of the episode; its own name is in table episodes")
VARIANT = Column("variant", STRING, "'base', or the intervention on the observation")
KEYFRAME = Column("keyframe", INT32, "ordinal of the keyframe in the episode")
FRAME = Column("frame", INT32, "frame index in the recording")
PHASE = Column("phase", STRING, "prefix, suffix, joint, decode or vision")
STEP = Column(
    "step",
    INT16,
    "denoising step, 0 = noisiest, or generated token (phase decode), 0 = first; NULL in one-pass phases",
)
LAYER = Column("layer", INT16, "0-based layer")
HEAD = Column("head", INT16, "0-based head")
QUERY_GROUP = Column(
    "query_group", STRING, "query tokens that are averaged: task (the instruction), action, image"
)
SPLIT = Column(
    "split",
    STRING,
    "what test episodes are unseen of: episodes (themselves) or tasks (their whole task)",
)
WEIGHTING = Column(
    "weighting",
    STRING,
    "raw: the attention; value: times the norm of what each key would add through the head, rows summing to "
    "1 again. Not both in one mean",
)
CAMERA = Column(
    "camera",
    STRING,
    "the dataset's camera name; hand_camera@-1 is what it showed one frame earlier, to a policy with a window",
)
TOKEN_CAMERA = Column(
    "camera",
    STRING,
    "of image tokens, and of every token of a camera's encoder (phase vision): the dataset's camera name; else NULL",
)

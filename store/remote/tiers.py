"""The three tiers of a store, and which file is of which.

``catalog`` answers SQL over episodes, keyframes, tokens and per-episode statistics; ``maps`` adds
the camera images, statistics per keyframe and overview maps, which pictures and videos are drawn
from; ``full`` adds the weights, the value norms that they are weighted with, and the hidden states.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from ..arrays.groups import VALUE_NORM
from ..catalog.tables import COPIED
from ..commits import ARRAYS

Tier = Literal["catalog", "maps", "full"]
TIERS: tuple[Tier, ...] = get_args(Tier)
"""From the cheapest on; each includes those before it."""

_CATALOG = {f"{ARRAYS}/zarr.json", *(f"{name}.parquet" for name in COPIED)}
_WEIGHTS = re.compile(
    rf"{re.escape(ARRAYS)}/((.+/)?(attention|{VALUE_NORM})|hidden/.+/(mean|last)|hidden_tokens/.+/state)"
    r"/c(/.*)?"
)


def tier_of(path: str) -> Tier:
    """Return the cheapest tier that has a file of a part, by its path in the part.

    Examples
    --------
    >>> tier_of("keyframes.parquet"), tier_of("head_stats.parquet")
    ('catalog', 'maps')
    >>> tier_of("attention.zarr/prefix/attention/c/0/0/0/0/0")
    'full'
    """
    if path in _CATALOG:
        return "catalog"
    return "full" if _WEIGHTS.fullmatch(path) else "maps"


def includes(tier: Tier, path: str) -> bool:
    """Whether a tier has a file of a part."""
    return TIERS.index(tier_of(path)) <= TIERS.index(tier)

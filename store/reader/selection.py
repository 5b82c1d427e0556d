"""Selecting tokens by name, and indices by number, with errors that say what would match.

What a token group may be called says `attnstore.store.format.naming`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import SelectionError
from ..format.naming import find_tokens, not_found
from ..format.tokens import AlignedAxis, Span

Group = str | int | slice | Sequence[int]


@dataclass(frozen=True, slots=True)
class TokenSelection:
    """Indices of the selected tokens on a stored axis."""

    indices: NDArray[np.intp]
    """Ascending, without repeats."""
    scalar: bool = False
    """A single index was asked for: the dimension is dropped."""

    @property
    def block(self) -> slice:
        """Smallest slice that holds all of them."""
        return slice(int(self.indices[0]), int(self.indices[-1]) + 1)

    @property
    def contiguous(self) -> bool:
        """Whether the block holds nothing else."""
        return int(self.indices[-1]) - int(self.indices[0]) + 1 == len(self.indices)


def select_tokens(axis: AlignedAxis, group: Group | None, *, where: str) -> TokenSelection:
    """Find a group's tokens on an axis.

    Parameters
    ----------
    axis
        Aligned axis of the episode.
    group
        Name, index, slice or indices; None selects all.
    where
        The axis, for messages: ``suffix query``.

    Raises
    ------
    SelectionError
        If nothing matches; the message lists what would.
    """
    if group is None:
        return TokenSelection(np.arange(len(axis)))
    if isinstance(group, str):
        named = find_tokens(axis, group)
        if not len(named):
            raise not_found(axis, group, where)
        return TokenSelection(named)
    length = len(axis)
    if isinstance(group, (int, np.integer)):
        return TokenSelection(np.array([check_index(int(group), length, where)]), scalar=True)
    if isinstance(group, slice):
        indices = np.arange(length)[group]
    else:
        indices = np.unique([check_index(int(i), length, where) for i in group]).astype(np.intp)
    if not len(indices):
        raise SelectionError(f"{where}: {group} selects none of the {length} tokens")
    return TokenSelection(indices)


def check_index(index: int, length: int, what: str) -> int:
    """Return a literal index, negative ones counted from the end; never clamped."""
    if not -length <= index < length:
        raise SelectionError(
            f"{what} {index} is out of range: there are {length}, 0 to {length - 1}"
        )
    return index % length


def token_labels(spans: Sequence[Span], length: int) -> NDArray[np.str_]:
    """One label per index: a text token's string, ``hand_camera[3,4]``, ``action[0]``."""
    labels = np.full(length, "", dtype=object)
    for span in spans:
        for offset in range(len(span)):
            if span.tokens:
                label = span.tokens[offset].text
            elif span.grid is not None:
                label = f"{span.camera}[{offset // span.grid[1]},{offset % span.grid[1]}]"
            elif len(span) == 1:
                label = span.name
            else:
                label = f"{span.name}[{offset}]"
            labels[span.start + offset] = label
    return labels.astype(np.str_)


def span_labels(spans: Sequence[Span], length: int) -> NDArray[np.str_]:
    """Return the name of the span that each index is in."""
    labels = np.full(length, "", dtype=object)
    for span in spans:
        labels[span.start : span.stop] = span.name
    return labels.astype(np.str_)

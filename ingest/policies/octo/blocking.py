"""What is blocked of Octo's one phase: closed masks, as an array for its traced function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from ..blocking import Blocked, Bools, Samples, by_layer, forbidden
from .layout import PHASE


class OctoBlocks:
    """Holds what must not be attended to while a context is open."""

    def __init__(self) -> None:
        self._wanted: Mapping[tuple[str, int], Samples] = {}

    @contextmanager
    def over(self, layers: int, blocked: Sequence[Sequence[Blocked]]) -> Iterator[None]:
        """Hold it inside the context.

        Raises
        ------
        UsageError
            If there is no such layer.
        """
        before = self._wanted
        self._wanted = by_layer(blocked, {(PHASE, layer) for layer in range(layers)})
        try:
            yield
        finally:
            self._wanted = before

    def forbidden(self, layers: int, batch: int, length: int) -> Bools | None:
        """Return where attention must not be, (layer, batch, query, key); None if nowhere.

        Raises
        ------
        HealthError
            If there is no such query or key.
        """
        if not self._wanted:
            return None
        shape = (batch, length, length)
        wanted = [self._wanted.get((PHASE, layer), {}) for layer in range(layers)]
        return np.stack([forbidden(samples, shape) for samples in wanted])

"""A policy that takes one observation at a time, shown as a batch.

OpenVLA and OpenVLA-OFT refuse a batch, and GR00T lets the padding of one be attended to. Their samples run one
after another; what they show is kept until the last one has run, and shown layer by layer as if they had run
together. A batch of one is shown as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .base import Generated, Observer, SpanStates, Watch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class _Shown:
    """One layer's attention or hidden states, or a step's noisy actions, of one sample."""

    what: Literal["attention", "hidden", "actions"]
    phase: str
    layer: int
    values: torch.Tensor = field(repr=False)
    norms: torch.Tensor | None = field(default=None, repr=False)

    @property
    def place(self) -> tuple[str, str, int]:
        return self.what, self.phase, self.layer


class Turns:
    """An observer that gathers what samples show one after another.

    Parameters
    ----------
    observer
        Gets everything, as of one batch.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.watch: Watch = observer.watch
        self._kept: list[list[_Shown]] = []
        self._alone = True

    def begin(self, samples: int) -> None:
        """Expect a batch of so many samples."""
        self._alone, self._kept = samples == 1, []

    def next(self) -> None:
        """Expect the next sample."""
        self._kept.append([])

    def end(self) -> None:
        """Show what was gathered; a sample that has ended earlier is absent from later steps."""
        if self._alone:
            return
        kept, self._kept = self._kept, []
        present: list[int] | None = None
        for n in range(max(len(shown) for shown in kept)):
            there = [i for i, shown in enumerate(kept) if n < len(shown)]
            if there != present:
                self._observer.continuing(there)
                present = there
            self._show([shown[n] if n < len(shown) else None for shown in kept])

    def _show(self, shown: Sequence[_Shown | None]) -> None:
        first = next(s for s in shown if s is not None)
        assert all(s is None or s.place == first.place for s in shown)
        values = _stacked([None if s is None else s.values for s in shown])
        if first.what == "hidden":
            self._observer.hidden(first.phase, first.layer, values)
            return
        if first.what == "actions":
            self._observer.noisy_actions(values)
            return
        norms = None
        if first.norms is not None:
            norms = _stacked([None if s is None else s.norms for s in shown])
        self._observer.attention(first.phase, first.layer, values, norms)

    def attention(
        self, phase: str, layer: int, weights: torch.Tensor, norms: torch.Tensor | None = None
    ) -> None:
        """Hand on, or keep."""
        if self._alone:
            self._observer.attention(phase, layer, weights, norms)
        else:
            self._kept[-1].append(_Shown("attention", phase, layer, weights, norms))

    def hidden(self, phase: str, layer: int, states: torch.Tensor | SpanStates) -> None:
        """Hand on, or keep."""
        assert not isinstance(states, SpanStates)
        if self._alone:
            self._observer.hidden(phase, layer, states)
        else:
            self._kept[-1].append(_Shown("hidden", phase, layer, states))

    def continuing(self, samples: Sequence[int]) -> None:
        """Hand on of a batch of one; of others `end` says it."""
        if self._alone:
            self._observer.continuing(samples)

    def encoded(self, images: int) -> None:
        """Hand on."""
        self._observer.encoded(images)

    def noisy_actions(self, actions: torch.Tensor) -> None:
        """Hand on, or keep."""
        if self._alone:
            self._observer.noisy_actions(actions)
        else:
            self._kept[-1].append(_Shown("actions", "", 0, actions))

    def generated(self, texts: Sequence[Generated]) -> None:
        """Hand on."""
        self._observer.generated(texts)


def _stacked(parts: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Make one batch of tensors of one sample each, filled up with zeros behind their own tokens."""
    import torch

    there = [p for p in parts if p is not None]
    sizes = [max(p.shape[d] for p in there) for d in range(1, there[0].ndim)]
    whole = torch.zeros((len(parts), *sizes), dtype=there[0].dtype, device=there[0].device)
    for row, part in enumerate(parts):
        if part is not None:
            whole[row][tuple(slice(n) for n in part.shape[1:])] = part[0]
    return whole

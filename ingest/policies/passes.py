"""Telling a generating model's forward passes apart: the prompt's, then one for each token.

The same modules run in all of them. The first pass is phase ``prefix``; its last row chooses the
first generated token, so that row is step 0 of phase ``decode`` as well. Every later pass has one
query, the token before, and chooses the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from attnstore.store.errors import HealthError
from attnstore.store.format.axes import VISION
from attnstore.store.format.generated import DECODE

from .base import LAST, Batch, Generated, Observer, SpanStates, Watch
from .blocking import Blocked, Samples, additive_mask, by_layer, closed_mask
from .hooks import Watched

if TYPE_CHECKING:
    import torch

PREFIX = "prefix"


class Passes:
    """An observer that names the phase of what it is shown, and hands it on.

    Parameters
    ----------
    observer
        Gets everything.
    causal
        The attention is known to be causal, which is checked.
    """

    def __init__(self, observer: Observer, *, causal: bool) -> None:
        self._observer, self._causal = observer, causal
        self.watch: Watch = observer.watch
        self._rows, self._images = 0, 0
        self._starts: list[int] = []

    def begin(self, batch: Batch, rows: int) -> None:
        """Expect a batch, whose images are `rows` of the encoder's input."""
        self._rows = rows
        self._images = sum(len(sample.geometry) for sample in batch.samples)
        # Padding stands on the left.
        self._starts = [s.layouts[PREFIX].key.spans[0].model_start for s in batch.samples]
        self._observer.continuing(range(len(batch)))

    def attention(
        self, phase: str, layer: int, weights: torch.Tensor, norms: torch.Tensor | None = None
    ) -> None:
        """Hand on one layer's weights; the norms of its keys are the same in both phases."""
        if phase == VISION:
            self._observer.attention(phase, layer, weights, norms)
            return
        if weights.shape[2] > 1:
            if self._causal and layer == 0:
                _check_causal(weights, self._starts)
            self._observer.attention(PREFIX, layer, weights, norms)
        self._observer.attention(DECODE, layer, weights[:, :, -1:], norms)

    def hidden(self, phase: str, layer: int, states: torch.Tensor | SpanStates) -> None:
        """Hand on hidden states."""
        assert not isinstance(states, SpanStates)
        if phase == VISION:
            self._observer.hidden(phase, layer, states)
            return
        if states.shape[1] > 1 and layer != LAST:
            self._observer.hidden(PREFIX, layer, states)
        self._observer.hidden(DECODE, layer, states[:, -1:])

    def encoded(self, images: int) -> None:
        """Hand on a number of images; an encoder may get the patches of all in one row each."""
        self._observer.encoded(self._images if images == self._rows else images)

    def noisy_actions(self, actions: torch.Tensor) -> None:
        """Hand on."""
        self._observer.noisy_actions(actions)

    def continuing(self, samples: Sequence[int]) -> None:
        """Hand on."""
        self._observer.continuing(samples)

    def generated(self, texts: Sequence[Generated]) -> None:
        """Hand on."""
        self._observer.generated(texts)


@contextmanager
def block_passes(
    watched: Sequence[Watched], blocked: Sequence[Sequence[Blocked]]
) -> Iterator[None]:
    """Block attention of the phases that `Passes` names, through the masks of the decoder's layers.

    What is blocked in ``decode`` is blocked in the last row of the prompt's pass too, which is its
    step 0. Generated keys are blocked from the step on at which they are there.

    Parameters
    ----------
    watched
        The decoder's attention, a module a layer.

    Raises
    ------
    UsageError
        If there is no such phase or layer.
    """
    modules = {w.layer: w.module for w in watched}
    wanted = by_layer(blocked, {(p, n) for p in (PREFIX, DECODE) for n in modules})
    with ExitStack() as stack:
        for layer, module in modules.items():
            phases = {p: wanted[p, layer] for p in (PREFIX, DECODE) if (p, layer) in wanted}
            if phases:
                hook = partial(_block, phases)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _block(phases: Mapping[str, Samples], module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    mask, batch = additive_mask(module, args, kwargs)
    queries, keys = mask.shape[2:]
    if queries > 1 and PREFIX in phases:
        mask = closed_mask(mask, batch, phases[PREFIX])
    if own := _last_row(phases.get(DECODE, {}), queries, keys):
        mask = closed_mask(mask, batch, own)
    return args, {**kwargs, "attention_mask": mask}


def _last_row(samples: Samples, queries: int, keys: int) -> Samples:
    """Move what is blocked in a step to the pass' last row, of the keys that are there already."""
    found: dict[int, list[Blocked]] = {}
    for sample, blocks in samples.items():
        for block in blocks:
            if there := tuple(k for k in block.key if k < keys):
                moved = replace(block, query=(queries - 1,), key=there)
                found.setdefault(sample, []).append(moved)
    return found


def _check_causal(weights: torch.Tensor, starts: Sequence[int]) -> None:
    import torch

    for own, start in zip(weights, starts, strict=True):
        if bool(torch.triu(own[:, start:, start:].amax(0), 1).any()):
            raise HealthError(
                "prefix layer 0: tokens attend to tokens behind them, but this family's language "
                "model is causal; transformers masks it otherwise than this adapter knows"
            )

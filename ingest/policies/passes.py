"""Telling a generating model's forward passes apart: the prompt's, then one for each token.

The same modules run in all of them. The first pass is phase ``prefix``; its last row chooses the
first generated token, so that row is step 0 of phase ``decode`` as well. Every later pass has one
query, the token before, and chooses the next; without a key-value cache it computes all tokens before
it again, and its last row is the one that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
        self._prompt: int | None = None
        self._over = False

    def begin(self, batch: Batch, rows: int) -> None:
        """Expect a batch, whose images are `rows` of the encoder's input; 0 if it gets them one by one."""
        self._rows, self._prompt, self._over = rows, None, False
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
        if self._over:
            return
        if self._prompts(weights.shape[2]):
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
        if self._over:
            return
        if layer != LAST and self._prompts(states.shape[1]):
            self._observer.hidden(PREFIX, layer, states)
        self._observer.hidden(DECODE, layer, states[:, -1:])

    def encoded(self, images: int) -> None:
        """Hand on a number of images; an encoder may get the patches of all in one row each."""
        self._observer.encoded(self._images if images == self._rows else images)

    def noisy_actions(self, actions: torch.Tensor) -> None:
        """Hand on."""
        self._observer.noisy_actions(actions)

    def continuing(self, samples: Sequence[int]) -> None:
        """Hand on; once no sample takes part, nothing more is shown of what the model still computes."""
        self._over = not samples
        self._observer.continuing(samples)

    def generated(self, texts: Sequence[Generated]) -> None:
        """Hand on."""
        self._observer.generated(texts)

    def _prompts(self, tokens: int) -> bool:
        """Whether a pass over so many tokens is the prompt's: the first, and no longer one after it."""
        if self._prompt is None:
            self._prompt = tokens
        return tokens == self._prompt > 1


@contextmanager
def block_passes(
    watched: Sequence[Watched],
    blocked: Sequence[Sequence[Blocked]],
    prompt: Callable[[], int] | None = None,
) -> Iterator[None]:
    """Block attention of the phases that `Passes` names, through the masks of the decoder's layers.

    What is blocked in ``decode`` is blocked in the last row of the prompt's pass too, which is its
    step 0. Generated keys are blocked from the step on at which they are there.

    Parameters
    ----------
    watched
        The decoder's attention, a module a layer.
    prompt
        Tokens of the prompt's pass, asked for at every pass: of a model without key-value cache, which
        computes earlier steps again, each with what is blocked. None: a pass' last row is its one step.

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
                hook = partial(_block, phases, prompt)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _block(
    phases: Mapping[str, Samples],
    prompt: Callable[[], int] | None,
    module: Any,
    args: Any,
    kwargs: Any,
) -> tuple[Any, Any]:
    mask, batch = additive_mask(module, args, kwargs)
    queries, keys = mask.shape[2:]
    if queries > 1 and PREFIX in phases:
        mask = closed_mask(mask, batch, phases[PREFIX])
    first = queries - 1 if prompt is None or queries == 1 else prompt() - 1
    if own := _steps(phases.get(DECODE, {}), range(first, queries), keys):
        mask = closed_mask(mask, batch, own)
    return args, {**kwargs, "attention_mask": mask}


def _steps(samples: Samples, rows: range, keys: int) -> Samples:
    """Move what is blocked in a step to the rows of a pass that are steps, of the keys that are there."""
    found: dict[int, list[Blocked]] = {}
    for sample, blocks in samples.items():
        for block in blocks:
            if there := tuple(k for k in block.key if k < keys):
                moved = replace(block, query=tuple(rows), key=there)
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

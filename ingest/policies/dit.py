"""Action heads made of diffusers' ``Attention``: weights, value norms and blocking of a diffusion transformer.

Each block of such a head has one ``Attention``. It attends to the head's own tokens (a state, learnt
queries, actions), or across to the *context*: what a vision-language model made of images and prompt.
Which block does what is said by a `DitLayout`, and checked at every call; masks (a block that sees the
text alone) are the policy's own and show as zeros. So an adapter needs six lines::

    self._head = DitHead(DitLayout("suffix", blocks), [b.attn1 for b in dit.transformer_blocks], norms)
    # watched():        [..., *self._head.watched()]
    # eager():          stack.enter_context(self._head.eager())
    # values(watched):  [..., *self._head.values()]
    # blocking(each):   stack.enter_context(self._head.blocking(each))
    # before it runs:   self._head.expect(context_tokens)

An ``Attention`` returns no weights, and how it computes them is its processor's business. They are what
its call of ``scaled_dot_product_attention`` multiplies with (`SdpaTap`), or what its
``get_attention_scores`` returned; where it uses another kernel (xFormers), they are computed of what
``to_q`` and ``to_k`` returned, and it is checked that they give the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from attnstore.store.errors import HealthError, UsageError
from attnstore.store.format.tokens import Axis, TokenLayout

from .blocking import Blocked, Samples, by_layer, check_left, forbidden, place_of
from .checkpoint import unwrap
from .hooks import Watched, instead
from .sdpa import SdpaTap, sdpa_weights
from .values import (
    LEAVE_OUT,
    LayerValues,
    SeenValues,
    ValueNorms,
    check_mixing,
    mixed_last,
    mixing_error,
    plain_linear,
)

if TYPE_CHECKING:
    import torch

Sight = Literal["own", "context"]
_ARGUMENTS = ("hidden_states", "encoder_hidden_states", "attention_mask")


@dataclass(frozen=True, slots=True)
class DitLayout:
    """What the blocks of a head attend to, and so the keys of its phase.

    Examples
    --------
    Every second block attends to the head's own tokens:

    >>> from attnstore.store.format.tokens import Span
    >>> layout = DitLayout("suffix", ("context", "own"))
    >>> words = Axis((Span("words", "other", 0, 3, 2),))
    >>> found = layout.tokens(Axis((Span("action", "action", 0, 4, 0),)), words, length=6)
    >>> [(span.name, span.start, span.model_start) for span in found.key]
    [('words', 0, 2), ('action', 3, 6)]
    """

    phase: str
    blocks: tuple[Sight, ...]
    """Of each block, in order."""

    def tokens(self, own: Axis, context: Axis | None = None, *, length: int = 0) -> TokenLayout:
        """Lay out the phase: queries are the head's own tokens, keys the context and then these.

        Parameters
        ----------
        own
            The head's own tokens.
        context
            Valid tokens of the context; needed if a block attends to it.
        length
            Tokens of the context in the model's own sequence, padding included.
        """
        if "context" not in self.blocks:
            return TokenLayout(self.phase, own, own)
        assert context is not None
        seen = context.followed_by(own, model_offset=length) if "own" in self.blocks else context
        return TokenLayout(self.phase, own, seen)


class DitHead:
    """A head's blocks as the layers of a phase.

    Parameters
    ----------
    layout
        What its blocks attend to.
    attention
        Their modules, one a block.
    norms
        The policy's value norms.
    """

    def __init__(
        self, layout: DitLayout, attention: Sequence[torch.nn.Module], norms: ValueNorms
    ) -> None:
        if len(layout.blocks) != len(attention):
            raise UsageError(
                f"{layout.phase}: the layout has {len(layout.blocks)} blocks, the head {len(attention)}"
            )
        self.layout, self._attention, self._norms = layout, list(attention), norms
        self._tap, self._context = AttentionTap(), 0

    def expect(self, context: int) -> None:
        """Expect calls with so many tokens of the context, padding included."""
        self._context = context

    def watched(self) -> list[Watched]:
        """The blocks' attention."""
        return [
            Watched(
                self.layout.phase, i, module, partial(self._weights, i, self._tap.weights(module))
            )
            for i, module in enumerate(self._attention)
        ]

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Have the blocks' weights taken, whatever computes them."""
        with ExitStack() as stack:
            for i, module in enumerate(self._attention):
                check = partial(self._check, i)
                stack.callback(module.register_forward_pre_hook(check, with_kwargs=True).remove)
            stack.enter_context(self._tap.over(self._attention))
            yield

    def values(self) -> list[LayerValues]:
        """Where each block's values are made and taken up.

        Raises
        ------
        UsageError
            If a block's projections are quantised, or have adapters not merged.
        """
        made: list[LayerValues] = []
        for i, module in enumerate(self._attention):
            own: Any = module
            if own.to_v is None or own.to_out is None or not plain_linear(unwrap(own.to_out[0])):
                raise UsageError(
                    f"value norms need modules to_v and to_out whose weights are plain numbers: "
                    f"{self.layout.phase} layer {i}, a {type(module).__name__}, has others (fused, "
                    f"quantised or with adapters not merged); {LEAVE_OUT}"
                )
            made.append(_Values(self._norms, module, partial(self._among, i)))
        return made

    @contextmanager
    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> Iterator[None]:
        """Block attention through the mask that an ``Attention`` takes.

        Keys that a block does not attend to are blocked already.

        Raises
        ------
        UsageError
            If there is no such layer of the phase.
        """
        phase = self.layout.phase
        wanted = by_layer(blocked, {(phase, i) for i in range(len(self._attention))})
        with ExitStack() as stack:
            for (_, layer), samples in wanted.items():
                hook = partial(self._block, layer, samples)
                handle = self._attention[layer].register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _among(self, layer: int, queries: int, keys: int) -> tuple[slice, int]:
        """Where a block's keys stand among the phase's, and how many those are."""
        blocks = self.layout.blocks
        own = queries if "own" in blocks else 0
        context = self._context if "context" in blocks else 0
        wanted, start = (context, 0) if blocks[layer] == "context" else (own, context)
        if keys != wanted:
            raise HealthError(
                f"{self.layout.phase} layer {layer} attends to {keys} tokens; to {wanted}, its "
                f"{blocks[layer]}, by its layout"
            )
        return slice(start, start + keys), context + own

    def _weights(self, layer: int, take: Callable[[Any], Any], output: Any) -> Any:
        weights = take(output)
        if weights is None or weights.ndim != 4:
            return weights
        at, total = self._among(layer, weights.shape[2], weights.shape[3])
        return _spread(weights, at, total)

    def _check(self, layer: int, module: Any, args: Any, kwargs: Any) -> None:
        given = _given(args, kwargs)
        other = given.get("encoder_hidden_states")
        crosses = other is not None and other is not given["hidden_states"]
        if crosses != (self.layout.blocks[layer] == "context"):
            raise HealthError(
                f"{self.layout.phase} layer {layer} attends to "
                f"{'other tokens than its own' if crosses else 'its own tokens'}; its layout says "
                f"{self.layout.blocks[layer]}"
            )

    def _block(
        self, layer: int, samples: Samples, module: Any, args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        import torch

        given = _given(args, kwargs)
        hidden, mask = given["hidden_states"], given.get("attention_mask")
        other = given.get("encoder_hidden_states")
        batch, queries = hidden.shape[:2]
        at, total = self._among(layer, queries, (hidden if other is None else other).shape[1])
        no = forbidden(samples, (batch, queries, total))[..., at]
        if not no.any():
            return args, kwargs
        closed = torch.from_numpy(no).to(hidden.device)
        if mask is None:
            mask = hidden.new_zeros((batch, 1, closed.shape[-1]))
        elif mask.ndim == 2:
            mask = mask[:, None]
        if mask.dtype == torch.bool:
            mask = mask & ~closed
            left = mask.any(-1)
        else:
            lowest = torch.finfo(mask.dtype).min
            mask = mask.expand(*closed.shape).masked_fill(closed, lowest)
            left = mask.amax(-1) > lowest / 2
        check_left(place_of(samples), no, left.cpu().numpy())
        return (), {**given, "attention_mask": mask}


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(_ARGUMENTS, args, strict=False)) | kwargs


def _spread(values: torch.Tensor, at: slice, total: int) -> torch.Tensor:
    """Put the last dimension's entries among so many, zeros elsewhere."""
    import torch

    return torch.nn.functional.pad(values, (at.start, total - at.stop))


@dataclass(slots=True)
class _Seen:
    """What one call of an ``Attention`` showed."""

    scores: list[torch.Tensor] = field(default_factory=list)
    """What ``get_attention_scores`` returned: (batch * head, query, key), or slices of it."""
    made: dict[str, torch.Tensor] = field(default_factory=dict)
    """What ``to_q``, ``to_k`` and ``to_v`` returned, and ``to_out`` got."""
    mask: Any = None


class AttentionTap(SdpaTap):
    """Holds the weights of diffusers' ``Attention`` modules, under any processor."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[torch.nn.Module, _Seen] = {}

    @contextmanager
    def over(self, modules: Iterable[torch.nn.Module]) -> Iterator[None]:
        """Tap what these modules call and return."""
        tapped: list[Any] = list(modules)
        with ExitStack() as stack:
            stack.callback(self._seen.clear)
            for module in tapped:
                scored = partial(self._scored, module)
                stack.enter_context(instead(module, "get_attention_scores", scored))
                for name in ("to_q", "to_k", "to_v"):
                    if (part := getattr(module, name, None)) is not None:
                        made = partial(self._made, module, name)
                        stack.callback(part.register_forward_hook(made).remove)
                if module.to_out is not None:
                    taken = partial(self._taken, module)
                    stack.callback(module.to_out[0].register_forward_pre_hook(taken).remove)
                # Behind the call: a mask may have been closed before it.
                ran = module.register_forward_hook(self._ran, with_kwargs=True)
                stack.callback(ran.remove)
            stack.enter_context(super().over(tapped))
            yield

    def _enter(self, name: str, module: Any, args: Any) -> None:
        self._seen.pop(module, None)
        super()._enter(name, module, args)

    def _of(self, module: torch.nn.Module) -> _Seen:
        return self._seen.setdefault(module, _Seen())

    def _scored(self, module: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        scores = original(*args, **kwargs)
        self._of(module).scores.append(scores.detach())
        return scores

    def _made(self, owner: Any, name: str, module: Any, args: Any, output: Any) -> None:
        self._of(owner).made[name] = output.detach()

    def _taken(self, owner: Any, module: Any, args: Any) -> None:
        self._of(owner).made["to_out"] = args[0].detach()

    def _ran(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        self._of(module).mask = _given(args, kwargs).get("attention_mask")

    def _take(self, module: torch.nn.Module, output: Any) -> Any:
        called, seen = super()._take(module, output), self._seen.pop(module, _Seen())
        if called is not None:
            return called
        if seen.scores:
            import torch

            whole = torch.cat(seen.scores) if len(seen.scores) > 1 else seen.scores[0]
            heads: Any = module.heads
            return whole.reshape(-1, heads, *whole.shape[1:])
        return _computed(module, seen)


def _computed(module: Any, seen: _Seen) -> torch.Tensor:
    """Weights of queries and keys, checked by what came out.

    Raises
    ------
    HealthError
        If the processor does not show them, or makes something else of them.
    """
    import torch

    name = f"{type(module).__name__} under {type(module.processor).__name__}"
    repair = "set_processor(AttnProcessor2_0()) of diffusers, and the weights are known"
    if len(seen.made) < 4 or module.norm_q is not None or module.norm_k is not None:
        raise HealthError(f"{name} shows neither its weights nor its queries and keys: {repair}")
    width = seen.made["to_q"].shape[-1] // module.heads

    def split(part: str) -> torch.Tensor:
        made = seen.made[part]
        return made.reshape(*made.shape[:2], -1, width).transpose(1, 2)

    query, key, value = split("to_q"), split("to_k"), split("to_v")
    batch, keys = len(query), key.shape[2]
    mask = seen.mask
    if mask is not None:
        mask = module.prepare_attention_mask(mask, keys, batch)
        mask = mask.view(batch, module.heads, -1, keys)
    weights = sdpa_weights(query, key, value, mask, scale=module.scale, enable_gqa=True)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        shared = value.float().repeat_interleave(module.heads // value.shape[1], 1)
        mixed = (weights.float() @ shared).transpose(1, 2).flatten(2)
    if (off := mixing_error(mixed, seen.made["to_out"])) is not None:
        raise HealthError(
            f"{name} makes something else of its queries and keys than a softmax of their products "
            f"(off by {off:.2g} of the largest entry), so its weights are not known: {repair}"
        )
    return weights


class _Values(SeenValues):
    """Values that ``to_v`` makes, and ``to_out`` takes up.

    Parameters
    ----------
    among
        Where so many keys of so many queries stand among the phase's.
    """

    def __init__(
        self, norms: ValueNorms, module: Any, among: Callable[[int, int], tuple[slice, int]]
    ) -> None:
        super().__init__(norms, module.to_v, unwrap(module.to_out[0]))
        self._factor, self._among = float(module.rescale_output_factor), among

    def take(self, weights: torch.Tensor, where: str) -> torch.Tensor:
        """See `LayerValues.take`."""
        new, mixed = self.seen(where)
        heads = int(weights.shape[1])
        values = new.reshape(*new.shape[:2], -1, mixed.shape[-1] // heads)
        at, total = self._among(int(weights.shape[2]), values.shape[1])
        check_mixing(mixed_last(weights[..., at], values), mixed, where)
        return _spread(self._norms.of(values, self._output, heads) / self._factor, at, total)

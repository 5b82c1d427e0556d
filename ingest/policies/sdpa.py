"""Weights of policies that call ``scaled_dot_product_attention`` themselves and return none.

`SdpaTap` watches the calls inside chosen modules and computes the weights beside the untouched
output, so the actions are bitwise those without it. An adapter gives them to its hooks::

    class MyPolicy(HookedPolicy):
        def __init__(self, ...):
            self._tap = SdpaTap()

        def watched(self):
            return [Watched("prefix", i, m, self._tap.weights(m)) for i, m in enumerate(...)]

        def eager(self):
            return self._tap.over(w.module for w in self.watched())

A module must make one call a forward. ``nn.MultiheadAttention`` is not for the tap: it returns its
weights when `weights_per_head` asks it. `block_sdpa` blocks attention in such calls, whatever mask the
module itself is given.

Attention modules of transformers run by ``scaled_dot_product_attention`` or eagerly, as their configuration
says. `SdpaTap.as_it_runs` leaves them so, and `block_as_it_runs` blocks them so: a capture's actions are then
bitwise those of the policy that nobody watches, and not those of an eager one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from attnstore.store.errors import HealthError

from .blocking import Blocked, block_by_mask, by_layer, closed_mask
from .hooks import Watched, eager_attention, second_output

if TYPE_CHECKING:
    import torch


def sdpa_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Weights that ``scaled_dot_product_attention`` multiplies the values with.

    Takes that function's arguments. Softmax is in float32 and rounded to the query's data type, as
    eager attention does. Computed head by head, so that beside the result only one head's float32
    scores are in memory. Dropout is ignored: in evaluation there is none.

    Parameters
    ----------
    query
        (batch, head, query, feature).
    key, value
        (batch, key_head, key, feature); fewer heads than the query's only with `enable_gqa`.
    attn_mask
        Broadcastable to (batch, head, query, key): True where attention is allowed, or added to
        the scores.
    is_causal
        A query attends to keys up to its own index.
    scale
        Factor of the scores; 1 / sqrt(feature) if None.

    Returns
    -------
    (batch, head, query, key). A query that may attend to nothing gets zeros.

    Raises
    ------
    HealthError
        If the tensors have no separate batch and head dimension, or heads that don't divide.

    References
    ----------
    .. [1] The equivalent implementation in the documentation of
       ``torch.nn.functional.scaled_dot_product_attention``.
    """
    import torch

    if query.ndim != 4 or key.ndim != 4:
        raise HealthError(
            "attention is (batch, head, token, feature): the policy calls "
            f"scaled_dot_product_attention with {tuple(query.shape)} and {tuple(key.shape)}"
        )
    batch, heads, queries, features = query.shape
    shared, keys = key.shape[1], key.shape[2]
    if heads % shared or (heads != shared and not (enable_gqa or shared == 1)):
        raise HealthError(f"{heads} query heads cannot share {shared} key heads")
    factor = 1 / math.sqrt(features) if scale is None else scale
    mask = None
    if attn_mask is not None:
        mask = attn_mask.expand(batch, heads, queries, keys)
    elif is_causal:
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
        mask = allowed.expand(batch, heads, queries, keys)
    weights = torch.empty(
        (batch, heads, queries, keys), dtype=query.dtype, device=query.device
    )  # not zeros: every head is written
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        for head in range(heads):
            source = key[:, head // (heads // shared)].to(query.dtype)
            # As eager attention does: the product in the model's type, the softmax in float32.
            scores = (query[:, head] @ source.transpose(-1, -2) * factor).float()
            if mask is not None:
                _apply(mask[:, head], scores)
            closed = scores.amax(-1, keepdim=True) == -math.inf
            weights[:, head] = scores.softmax(-1).masked_fill_(closed, 0)
    return weights


def _apply(mask: torch.Tensor, scores: torch.Tensor) -> None:
    import torch

    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, -math.inf)
    else:
        scores += mask


class SdpaTap:
    """Holds the weights of the attention that runs inside a module until its hook takes them.

    One layer's weights at most are held for each module that is running.
    """

    def __init__(self) -> None:
        self._running: list[tuple[torch.nn.Module, str]] = []
        self._held: dict[torch.nn.Module, torch.Tensor] = {}

    def weights(self, module: torch.nn.Module) -> Callable[[Any], Any]:
        """Return what `Watched.weights` wants for a module: it takes the weights out of the tap."""
        return partial(self._take, module)

    def either(self, module: torch.nn.Module) -> Callable[[Any], Any]:
        """Like `weights`, for a module under `as_it_runs`, which may return them."""

        def take(output: Any) -> Any:
            held = self._take(module, output)
            return second_output(output) if held is None else held

        return take

    @contextmanager
    def as_it_runs(self, modules: Sequence[Any], others: Sequence[Any] = ()) -> Iterator[None]:
        """Have transformers' attention modules show their weights; what shows none (flash) runs eager.

        `others` are tapped, too, as by `over`.
        """
        with ExitStack() as stack:
            if not runs_sdpa(modules):
                stack.enter_context(eager_attention(modules))
            stack.enter_context(self.over([*modules, *others]))
            yield

    @contextmanager
    def over(self, modules: Iterable[torch.nn.Module]) -> Iterator[None]:
        """Tap the calls inside these modules; the innermost one that runs gets the weights."""
        names: dict[torch.nn.Module, str] = {m: type(m).__name__ for m in modules}
        with ExitStack() as stack:
            stack.callback(self._clear)
            for module, name in names.items():
                enter = partial(self._enter, name)
                stack.callback(module.register_forward_pre_hook(enter).remove)
                left = module.register_forward_hook(self._leave, always_call=True)
                stack.callback(left.remove)
            stack.enter_context(_mode(self))
            yield

    def called(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Take note of a call; called by the function mode.

        Raises
        ------
        HealthError
            If the module called already.
        """
        if not self._running:
            return
        module, name = self._running[-1]
        if module in self._held:
            raise HealthError(
                f"{name} calls scaled_dot_product_attention twice in one forward; which weights "
                "are its own is not known: watch the inner modules instead"
            )
        self._held[module] = sdpa_weights(*arguments, **keywords)

    def _enter(self, name: str, module: Any, args: Any) -> None:
        # What nobody took of an earlier call: the tap may be open with no hook to take it.
        self._held.pop(module, None)
        self._running.append((module, name))

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        # After an exception inside, modules may have been left whose hooks did not run.
        while self._running and self._running.pop()[0] is not module:
            pass

    def _take(self, module: torch.nn.Module, output: Any) -> Any:
        return self._held.pop(module, None)

    def _clear(self) -> None:
        self._running.clear()
        self._held.clear()


def runs_sdpa(modules: Iterable[Any]) -> bool:
    """Whether transformers' attention modules call ``scaled_dot_product_attention``."""
    configs = (getattr(m, "config", None) for m in modules)
    return all(getattr(c, "_attn_implementation", None) == "sdpa" for c in configs)


@contextmanager
def block_as_it_runs(
    watched: Sequence[Watched], blocked: Sequence[Sequence[Blocked]]
) -> Iterator[None]:
    """Block attention of modules under `SdpaTap.as_it_runs`: in the call, or by the mask that they get."""
    block = block_sdpa if runs_sdpa(w.module for w in watched) else block_by_mask
    with block(watched, blocked):
        yield


def _mode(tap: SdpaTap) -> Any:
    def seen(call: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        output = call(*args, **keywords)
        tap.called(args, keywords)
        return output

    return _calls_through(seen)


def _calls_through(
    handle: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
) -> Any:
    """Return a mode in which calls go through `handle`, which gets function, arguments and keywords."""
    # Defined here: the base class is torch's, and this module is imported without torch.
    import torch
    from torch.overrides import TorchFunctionMode

    watched = torch.nn.functional.scaled_dot_product_attention

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is watched:
                return handle(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))

    return Mode()


@contextmanager
def block_sdpa(watched: Sequence[Watched], blocked: Sequence[Sequence[Blocked]]) -> Iterator[None]:
    """Block attention in the calls inside modules, through their ``attn_mask``.

    Entered inside `SdpaTap.over`, so that the tap sees what is left. A call without a mask gets one, which
    may change the last bits of the other rows.

    Raises
    ------
    UsageError
        If a layer is not among the watched ones.
    """
    modules = {(w.phase, w.layer): w.module for w in watched}
    wanted = {modules[place]: own for place, own in by_layer(blocked, modules.keys()).items()}
    running: list[torch.nn.Module] = []

    def enter(module: Any, args: Any) -> None:
        running.append(module)

    def leave(module: Any, args: Any, output: Any) -> None:
        while running and running.pop() is not module:
            pass

    def close(call: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if not running:
            return call(*args, **keywords)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | keywords
        mask = _additive(given["query"], given["key"], given)
        closed = closed_mask(mask, len(given["query"]), wanted[running[-1]])
        return call(**{**given, "attn_mask": closed, "is_causal": False})

    with ExitStack() as stack:
        for module in wanted:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            left = module.register_forward_hook(leave, always_call=True)
            stack.callback(left.remove)
        if wanted:
            stack.enter_context(_calls_through(close))
        yield


def _additive(query: torch.Tensor, key: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    """The mask of a call as one that is added, (1 or batch, 1 or head, query, key)."""
    import torch

    size = (query.shape[-2], key.shape[-2])
    mask = given.get("attn_mask")
    lowest = torch.finfo(query.dtype).min
    if mask is None:
        mask = torch.ones(size, dtype=torch.bool, device=query.device)
        if given.get("is_causal"):
            mask = mask.tril()
    if mask.dtype == torch.bool:
        mask = query.new_zeros(mask.shape).masked_fill(~mask, lowest)
    mask = mask[(None,) * (4 - mask.ndim)]
    whole: torch.Tensor = mask.expand(*mask.shape[:2], *size)
    return whole


def weights_per_head(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Forward pre-hook of ``nn.MultiheadAttention`` that asks for the weights of every head.

    Register it ``with_kwargs=True``; then the output is ``(output, weights)`` with weights
    (batch, head, query, key). Bitwise the same output where weights, averaged, were asked for
    before, as is the default.
    """
    # Its parameters: query, key, value, key_padding_mask, need_weights, attn_mask, average...
    names = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
    given = dict(zip(names, args[3:], strict=False)) | kwargs
    return args[:3], given | {"need_weights": True, "average_attn_weights": False}

"""Blocking attention before the softmax: the seam for knock-outs, and how masked modules do it.

A policy that can be knocked out has a method `BlockingPolicy.blocking`. Where attention modules
take an additive ``attention_mask``, (batch, 1 or head, query, key), it is one line with
`block_by_mask`, see `attnstore.ingest.policies.openpi.policy.OpenpiPolicy.blocking`; `block_multihead` is
for ``nn.MultiheadAttention``. Others block where their scores are, with `by_layer`, `forbidden` and
`check_left`: before the softmax, so that each row's remaining weights sum to 1. To zero weights
after it would take attention away without giving it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from attnstore.store.errors import HealthError, UsageError

from .hooks import Watched

if TYPE_CHECKING:
    import torch

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Blocked:
    """Attention that one layer must not have: from each of the queries to each of the keys."""

    phase: str
    layer: int
    query: tuple[int, ...]
    """Indices in the model's own sequence, padding included."""
    key: tuple[int, ...]
    """Likewise."""


Samples = Mapping[int, Sequence[Blocked]]
"""What one layer must not do, by sample of the batch."""


@runtime_checkable
class BlockingPolicy(Protocol):
    """What a policy adds whose attention can be blocked; others need not say anything."""

    def blocking(self, blocked: Sequence[Sequence[Blocked]]) -> AbstractContextManager[None]:
        """Block attention before the softmax, in all heads and steps, inside the context.

        It is entered inside `attnstore.ingest.policies.base.Policy.instrument`. Whatever it
        changes, it restores, also after an exception.

        Parameters
        ----------
        blocked
            For each sample of the batch.

        Raises
        ------
        UsageError
            If a layer cannot be blocked.
        HealthError
            While the policy acts, if a query has nothing left to attend to.
        """
        ...


def by_layer(
    blocked: Sequence[Sequence[Blocked]], layers: Collection[tuple[str, int]]
) -> dict[tuple[str, int], dict[int, list[Blocked]]]:
    """Sort what is blocked by (phase, layer), then by sample.

    Raises
    ------
    UsageError
        If a layer is not among `layers`.
    """
    wanted: dict[tuple[str, int], dict[int, list[Blocked]]] = {}
    for sample, blocks in enumerate(blocked):
        for block in blocks:
            place = (block.phase, block.layer)
            if place not in layers:
                raise UsageError(f"there is no {block.phase} layer {block.layer} to block")
            wanted.setdefault(place, {}).setdefault(sample, []).append(block)
    return wanted


def forbidden(samples: Samples, shape: tuple[int, int, int]) -> Bools:
    """Lay what one layer must not do over its attention.

    Parameters
    ----------
    shape
        (batch, query, key), padding included.

    Returns
    -------
    Of that shape, True where attention is blocked.

    Raises
    ------
    HealthError
        If there is no such query or key.

    Examples
    --------
    >>> forbidden({0: [Blocked("prefix", 0, (1,), (0, 2))]}, (1, 2, 3)).astype(int).tolist()
    [[[0, 0, 0], [1, 0, 1]]]
    """
    found = np.zeros(shape, np.bool_)
    for sample, blocks in samples.items():
        for block in blocks:
            for name, indices, length in (
                ("query", block.query, shape[1]),
                ("key", block.key, shape[2]),
            ):
                if not indices or max(indices) >= length or min(indices) < 0:
                    raise HealthError(
                        f"{block.phase} layer {block.layer}: {len(indices)} {name} tokens to "
                        f"block, up to {max(indices, default='none')}; the attention has {length}"
                    )
            found[sample, np.array(block.query)[:, None], np.array(block.key)] = True
    return found


def check_left(where: str, no: Bools, left: Bools) -> None:
    """Check that every query of which something is blocked may attend to something.

    Parameters
    ----------
    where
        The layer, for the message.
    no
        As `forbidden` gives it.
    left
        Whether anything is left to a query, (batch, query).

    Raises
    ------
    HealthError
        If nothing is: a softmax over nothing would be uniform over everything.
    """
    if bool((no.any(-1) & ~left).any()):
        raise nothing_left(where)


def nothing_left(where: str) -> HealthError:
    """Return the error that a query of a layer has no key left."""
    return HealthError(f"{where}: a query has nothing left to attend to; block fewer keys")


@contextmanager
def block_by_mask(
    watched: Sequence[Watched], blocked: Sequence[Sequence[Blocked]]
) -> Iterator[None]:
    """Block through the additive mask that attention modules get as ``attention_mask``.

    The mask given to a module is copied: layers share it.

    Raises
    ------
    UsageError
        If a layer is not among the watched ones.
    """
    with _before(watched, blocked, _masked):
        yield


@contextmanager
def block_multihead(
    watched: Sequence[Watched], blocked: Sequence[Sequence[Blocked]]
) -> Iterator[None]:
    """Block through ``attn_mask`` of ``nn.MultiheadAttention``.

    A module that got no mask adds zeros then where nothing is blocked, which may change the last
    bits.

    Raises
    ------
    UsageError
        If a layer is not among the watched ones.
    """
    with _before(watched, blocked, _multihead):
        yield


Hook = Callable[[Samples, Any, Any, Any], tuple[Any, Any]]
"""Takes what is blocked, the module, its arguments and keywords; returns the latter two."""


@contextmanager
def _before(
    watched: Sequence[Watched], blocked: Sequence[Sequence[Blocked]], hook: Hook
) -> Iterator[None]:
    modules = {(w.phase, w.layer): w.module for w in watched}
    with ExitStack() as stack:
        for place, samples in by_layer(blocked, modules.keys()).items():
            handle = modules[place].register_forward_pre_hook(
                partial(hook, samples), with_kwargs=True
            )
            stack.callback(handle.remove)
        yield


def additive_mask(module: Any, args: Any, kwargs: Any) -> tuple[torch.Tensor, int]:
    """Return an attention module's additive mask and the size of its batch.

    Raises
    ------
    HealthError
        If it got no such mask.
    """
    import torch

    mask = kwargs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4 or not mask.is_floating_point():
        raise HealthError(
            f"{type(module).__name__} got no additive (batch, head, query, key) attention mask, so "
            "its attention cannot be blocked"
        )
    return mask, len(args[0] if args else kwargs["hidden_states"])


def closed_mask(mask: torch.Tensor, batch: int, samples: Samples) -> torch.Tensor:
    """Return a copy of an additive mask, closed where attention is blocked.

    Parameters
    ----------
    mask
        (1 or batch, 1 or head, query, key).

    Raises
    ------
    HealthError
        If a query or key is not there, or a query has nothing left.
    """
    import torch

    # One mask may serve the whole batch.
    mask = mask.expand(batch, -1, -1, -1)
    no = forbidden(samples, (batch, mask.shape[2], mask.shape[3]))
    lowest = torch.finfo(mask.dtype).min
    changed = mask.masked_fill(torch.from_numpy(no).to(mask.device)[:, None], lowest)
    left = (changed.amax(-1) > lowest / 2).all(1).cpu().numpy()
    check_left(place_of(samples), no, left)
    return changed


def place_of(samples: Samples) -> str:
    """Name the layer that is blocked, for messages."""
    block = next(b for blocks in samples.values() for b in blocks)
    return f"{block.phase} layer {block.layer}"


def _masked(samples: Samples, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    mask, batch = additive_mask(module, args, kwargs)
    return args, {**kwargs, "attention_mask": closed_mask(mask, batch, samples)}


def _multihead(samples: Samples, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    import torch

    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask",
             "average_attn_weights", "is_causal")  # fmt: skip
    given = dict(zip(names, args, strict=False)) | kwargs
    query, key = given["query"], given["key"]
    along = 1 if module.batch_first else 0
    batch, size = query.shape[1 - along], (query.shape[along], key.shape[along])
    no = forbidden(samples, (batch, *size))
    closed = torch.from_numpy(no).to(query.device)[:, None].expand(-1, module.num_heads, -1, -1)
    closed = closed.reshape(-1, *size)
    known, padding = given.get("attn_mask"), given.get("key_padding_mask")
    shut = closed if known is None else closed | _shut(known)
    if padding is not None:
        shut = shut | _shut(padding).repeat_interleave(module.num_heads, 0)[:, None]
    left = (~shut.all(-1)).reshape(batch, module.num_heads, -1).all(1).cpu().numpy()
    check_left(place_of(samples), no, left)
    added = [m for m in (known, padding) if m is not None and m.is_floating_point()]
    if added:
        # torch wants both masks of one type.
        base = closed.new_zeros((), dtype=added[0].dtype) if known is None else known
        mask = base.expand(len(closed), *size).masked_fill(closed, -torch.inf)
    else:
        mask = closed if known is None else closed | known
    return (), {**given, "attn_mask": mask}


def _shut(mask: torch.Tensor) -> torch.Tensor:
    """Whether each entry of a mask, boolean or additive, lets nothing through."""
    return mask == -float("inf") if mask.is_floating_point() else mask

"""Blocking attention before the softmax: the seam for knock-outs, and how masked modules do it.

A policy that can be knocked out has a method `BlockingPolicy.blocking`. PyTorch policies whose
attention modules take an additive ``attention_mask``, (batch, 1 or head, query, key), implement it
with `block_by_mask`: one line, see `attnstore.ingest.policies.pi0.Pi0Policy.blocking`. Others
block where their scores are: before the softmax, so that each row's remaining weights sum to 1. To
zero weights after it would take attention away without giving it elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attnstore.store.errors import HealthError, UsageError

from .hooks import Watched

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Blocked:
    """Attention that one layer must not have: from each of the queries to each of the keys."""

    phase: str
    layer: int
    query: tuple[int, ...]
    """Indices in the model's own sequence, padding included."""
    key: tuple[int, ...]
    """Likewise."""


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
    modules = {(w.phase, w.layer): w.module for w in watched}
    wanted: dict[tuple[str, int], dict[int, list[Blocked]]] = {}
    for sample, blocks in enumerate(blocked):
        for block in blocks:
            place = (block.phase, block.layer)
            if place not in modules:
                raise UsageError(f"there is no {block.phase} layer {block.layer} to block")
            wanted.setdefault(place, {}).setdefault(sample, []).append(block)
    with ExitStack() as stack:
        for place, samples in wanted.items():
            hook = partial(_block, samples)
            handle = modules[place].register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _block(
    samples: Mapping[int, Sequence[Blocked]], module: Any, args: Any, kwargs: Any
) -> tuple[Any, Any]:
    import torch

    mask = kwargs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4 or not mask.is_floating_point():
        raise HealthError(
            f"{type(module).__name__} got no additive (batch, head, query, key) attention mask, so "
            "its attention cannot be blocked"
        )
    hidden = args[0] if args else kwargs["hidden_states"]
    # One mask may serve the whole batch.
    changed = mask.expand(len(hidden), -1, -1, -1).clone()
    for sample, blocks in samples.items():
        for block in blocks:
            query = torch.tensor(block.query, device=mask.device)
            key = torch.tensor(block.key, device=mask.device)
            _check_inside(block, query, key, mask)
            changed[sample, :, query[:, None], key] = torch.finfo(mask.dtype).min
            left = changed[sample][:, query].amax(-1)
            if bool((left <= torch.finfo(mask.dtype).min / 2).any()):
                raise HealthError(
                    f"{block.phase} layer {block.layer}: a query has nothing left to attend to; "
                    "block fewer keys"
                )
    return args, {**kwargs, "attention_mask": changed}


def _check_inside(
    block: Blocked, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor
) -> None:
    for name, indices, length in (("query", query, mask.shape[2]), ("key", key, mask.shape[3])):
        if not len(indices) or int(indices.max()) >= length or int(indices.min()) < 0:
            raise HealthError(
                f"{block.phase} layer {block.layer}: {len(indices)} {name} tokens to block, up to "
                f"{int(indices.max()) if len(indices) else 'none'}; the mask has {length}"
            )

"""Reusing a prefix: when only the suffix changes, images and prompt need not be run again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

REUSABLE = "suffix"
"""The phase that runs when the prefix is reused; the others are not shown then."""


@runtime_checkable
class PrefixPolicy(Protocol):
    """What a policy adds that can reuse its prefix; others need not say anything."""

    def keeping_prefix(self) -> AbstractContextManager[list[Any]]:
        """Keep what a call computes of its prefix; it is in the list after the call."""
        ...

    def reusing_prefix(self, kept: Any) -> AbstractContextManager[None]:
        """Have calls take what was kept for one observation, for every sample of their batch.

        The batch must be of that same observation. Vision tower and prefix do not run, so they are
        not shown. Whatever it changes, it restores, also after an exception.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class KeptPrefix:
    """What a language model with a key-value cache made of one observation."""

    embeddings: torch.Tensor = field(repr=False)
    """What entered it, (1, token, feature)."""
    output: Any = field(repr=False)
    """What its forward returned, with ``past_key_values`` of the prefix alone."""


@contextmanager
def keep_prefix(language_model: torch.nn.Module) -> Iterator[list[Any]]:
    """Keep what a language model is given as ``inputs_embeds``, and returns.

    The cache is copied, since the suffix appends to it.
    """
    found: list[Any] = []

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        found.append(KeptPrefix(kwargs["inputs_embeds"], deepcopy(output)))

    handle = language_model.register_forward_hook(keep, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def reuse_prefix(owner: Any, language_model: torch.nn.Module, kept: KeptPrefix) -> Iterator[None]:
    """Give back what was kept instead of running the vision tower and the language model.

    Parameters
    ----------
    owner
        The module whose method ``embed_prefix(input_ids, ...)`` embeds images and text.
    """

    def embed_prefix(input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        return kept.embeddings.expand(len(input_ids), -1, -1)

    def forward(*args: Any, inputs_embeds: Any, **kwargs: Any) -> Any:
        output = deepcopy(kept.output)
        if len(inputs_embeds) > 1:
            output.past_key_values.batch_repeat_interleave(len(inputs_embeds))
        return output

    replaced = ((owner, "embed_prefix", embed_prefix), (language_model, "forward", forward))
    # On the instances: a class's method is shared by other models.
    before = [vars(module).get(name) for module, name, _ in replaced]
    try:
        for module, name, function in replaced:
            setattr(module, name, function)
        yield
    finally:
        for (module, name, _), original in zip(replaced, before, strict=True):
            delattr(module, name)
            if original is not None:
                setattr(module, name, original)

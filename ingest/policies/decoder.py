"""Finding the parts of a language model that sees images: decoder, attention, encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from .base import PolicyError
from .checkpoint import unwrap
from .hooks import asked_for_weights, eager_attention


def language_model(model: Any) -> Any:
    """Return the decoder that takes image and text embeddings.

    Raises
    ------
    PolicyError
        If there is none.
    """
    found = unwrap(model.get_decoder())
    if found is None or found is model or not hasattr(found, "layers"):
        raise PolicyError(
            f"{type(model).__name__} has no language model with a list of decoder layers; models "
            "whose decoder takes images and text as one sequence are expected"
        )
    return found


def self_attention(decoder: Any, layers: int) -> list[Any]:
    """Return the one self-attention module of every layer of a decoder, in order.

    Raises
    ------
    PolicyError
        If a layer has none, or cross-attention, or if there are more or fewer layers than that.
    """
    if len(decoder.layers) != layers:
        raise PolicyError(
            f"{type(decoder).__name__} has {len(decoder.layers)} layers, its configuration {layers}"
        )
    modules: list[Any] = []
    for i, layer in enumerate(decoder.layers):
        found = {
            name: unwrap(child)
            for name, child in unwrap(layer).named_children()
            if type(unwrap(child)).__name__.endswith("Attention")
        }
        if len(found) != 1 or "cross" in next(iter(found)):
            raise PolicyError(
                f"{type(decoder).__name__} layer {i} has "
                f"{', '.join(found) or 'no attention module'}: one self-attention is expected in "
                "every layer (cross-attention and linear attention are not understood)"
            )
        modules.extend(found.values())
    return modules


@contextmanager
def eager_self_attention(modules: Sequence[Any]) -> Iterator[None]:
    """Make a decoder's attention modules return their weights, whatever they were built with.

    Before transformers 4.48 an implementation (sdpa, flash attention) is a class of its own, derived
    from the eager one with the same weights. Inside the context a module is of its eager class.
    """
    before = [type(module) for module in modules]
    with ExitStack() as stack:
        stack.enter_context(eager_attention(modules))
        try:
            for module, own in zip(modules, before, strict=True):
                module.__class__ = _eager_class(own)
            stack.enter_context(asked_for_weights(modules))
            yield
        finally:
            for module, own in zip(modules, before, strict=True):
                module.__class__ = own


def _eager_class(own: type) -> type:
    """The class of an attention module that its implementations derive from."""
    import torch

    line = own.__mro__[: own.__mro__.index(torch.nn.Module)]
    return next((c for c in reversed(line) if c.__name__.endswith("Attention")), own)


def vision_tower(model: Any) -> Any:
    """Return the image encoder, or None if the model does not say which it is."""
    found = unwrap(model.get_encoder(modality="image"))
    return None if found is model or found is unwrap(model.base_model) else found

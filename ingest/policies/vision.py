"""The image encoder of a PyTorch policy: its shape by its configuration, its attention modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnstore.store.errors import UsageError

from .base import EncoderShape
from .checkpoint import unwrap

if TYPE_CHECKING:
    import torch

Leading = tuple[tuple[str, int], ...]
_CLASS: Leading = (("class", 1),)
_LEADING: Mapping[str, Callable[[Any], Leading]] = {
    "siglip_vision_model": lambda config: (),
    "clip_vision_model": lambda config: _CLASS,
    "vit": lambda config: _CLASS,
    "deit": lambda config: (*_CLASS, ("distillation", 1)),
    "dinov2": lambda config: _CLASS,
    # Darcet et al. 2024, "Vision Transformers Need Registers"
    "dinov2_with_registers": lambda config: (
        *_CLASS,
        ("register", int(config.num_register_tokens)),
    ),
}
"""Tokens before the patches, by the configuration's ``model_type``."""


def vision_shape(config: Any) -> EncoderShape:
    """Read an encoder's shape off its transformers configuration.

    Raises
    ------
    UsageError
        If it is no encoder all of whose patches attend to each other in one grid.
    """
    kind = str(getattr(config, "model_type", type(config).__name__))
    if kind not in _LEADING:
        raise UsageError(
            f"--vision: the attention inside an image encoder of type {kind!r} cannot be stored; "
            f"supported are {', '.join(_LEADING)}, whose patches all attend to each other in one "
            "grid (encoders with windows, packed images or convolutions have no such weights); "
            "leave --vision out"
        )
    height, width = pair(config.image_size)
    rows, cols = pair(config.patch_size)
    leading = tuple(span for span in _LEADING[kind](config) if span[1])
    return EncoderShape(
        int(config.num_hidden_layers),
        int(config.num_attention_heads),
        (height // rows, width // cols),
        leading,
    )


def pair(size: Any) -> tuple[int, int]:
    """Return (height, width) of a size that is one number if both are equal."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height), int(width)


def encoder_attention(tower: Any, layers: int) -> list[torch.nn.Module]:
    """Find the self-attention of every layer of a vision transformer, in order.

    A pooling head stands beside the layers and is none of them.

    Raises
    ------
    UsageError
        If `tower` has no list of so many layers with attention.
    """
    import torch

    for module in tower.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            found = [_attention(unwrap(block)) for block in module]
            if all(a is not None for a in found):
                return found
    raise UsageError(
        f"--vision: {type(tower).__name__} has no list of {layers} layers with self-attention; "
        "leave --vision out"
    )


def _attention(block: Any) -> Any:
    import torch

    for name in ("self_attn", "attention", "attn"):
        found = getattr(block, name, None)
        # Older transformers wrap ViT's attention, and its output projection, in another module.
        while isinstance(inner := getattr(found, "attention", None), torch.nn.Module):
            found = inner
        if found is not None:
            return unwrap(found)
    return None

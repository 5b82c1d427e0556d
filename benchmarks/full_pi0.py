"""Pi0 at its full size, 3.5 billion parameters, with random bfloat16 weights.

Downloading nothing: time, memory and the attention's shape depend on the architecture alone.
"""

from __future__ import annotations

from typing import Any

from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.tiny import build_tiny_pi0, prompt_tokenizer

WEIGHT = 0.02
"""Standard deviation of the weights, the configuration's own ``initializer_range``."""
PIXELS, PATCH, STATE_DOF = 224, 14, 8


def tiny_policy() -> Pi0Policy:
    """The architecture of tests and demo: 4 layers, hidden size 64, 56 pixels, 4 steps."""
    return Pi0Policy.from_model(*build_tiny_pi0())


def full_policy(part: int = 1) -> Pi0Policy:
    """PI0Config's defaults: 18 + 18 layers, 8 heads, 224 pixels, 10 steps, 50 actions.

    Of the layers, the image encoder's too, one in `part`.
    """
    import torch
    from transformers import (
        PI0Config,
        PI0ForConditionalGeneration,
        PI0ImageProcessor,
        PI0Processor,
    )

    numbers = [0.0] * STATE_DOF, [1.0] * STATE_DOF
    config = PI0Config()
    vlm = config.vlm_config
    for each in (vlm.text_config, vlm.vision_config, config.dit_config):
        each.num_hidden_layers //= part
    processor = PI0Processor(
        image_processor=PI0ImageProcessor(
            size={"max_height": PIXELS, "max_width": PIXELS},
            pad_size={"height": PIXELS, "width": PIXELS},
            image_seq_length=(PIXELS // PATCH) ** 2,
        ),
        tokenizer=prompt_tokenizer(),
        state_mean=numbers[0],
        state_std=numbers[1],
        actions_mean=numbers[0],
        actions_std=numbers[1],
        chunk_size=config.chunk_size,
    )
    # the vocabulary keeps its size; the small tokenizer uses the first of it
    vlm.image_token_id = processor.image_token_id
    config.dtype = torch.bfloat16
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            model = PI0ForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    model.to_empty(device="cpu")
    fill(model)
    restore_buffers(model)
    return Pi0Policy.from_model(model.eval(), processor)


def fill(model: Any) -> None:
    """Fill parameters from one block of random numbers, starting at another place each time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    block = torch.randn(1 << 22, generator=generator).mul_(WEIGHT).to(torch.bfloat16)
    start = 0
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            if parameter.ndim == 1:  # norms and biases
                flat.zero_()
                continue
            start = (start + 7919) % len(block)
            rolled = block.roll(start)
            whole = len(flat) // len(block) * len(block)
            flat[:whole].view(-1, len(block)).copy_(rolled)
            flat[whole:].copy_(rolled[: len(flat) - whole])


def restore_buffers(model: Any) -> None:
    """Compute what a checkpoint doesn't hold and `to_empty` left uninitialised."""
    import torch

    for module in model.modules():
        buffers = dict(module.named_buffers(recurse=False))
        if "inv_freq" in buffers:
            inverse, module.attention_scaling = module.compute_default_rope_parameters(
                module.config
            )
            module.inv_freq = module.original_inv_freq = inverse
        if "embed_scale" in buffers:
            module.embed_scale = torch.tensor(module.scalar_embed_scale)
        if "position_ids" in buffers:
            module.position_ids = torch.arange(buffers["position_ids"].shape[-1]).expand(1, -1)
        if "sinusoid_freq" in buffers:
            module.sinusoid_freq = module.compute_freqs(module.config)
        unknown = set(buffers) - {
            "inv_freq", "original_inv_freq", "embed_scale", "position_ids", "sinusoid_freq",
        }  # fmt: skip
        if unknown:
            raise RuntimeError(f"{type(module).__name__}: unknown buffers {sorted(unknown)}")

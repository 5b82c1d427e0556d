"""PaliGemma 3B at its full width with a ninth of its layers, random bfloat16 weights.

2 of 18 language layers, 3 of 27 vision layers and a ninth of the vocabulary keep the proportions
of the whole, hence the ratio of capture to inference, at a ninth of the time.
"""

from __future__ import annotations

from typing import Any

from attnstore.ingest.policies.tiny import prompt_tokenizer
from attnstore.ingest.policies.vlm.policy import VlmPolicy

from .full_pi0 import fill, restore_buffers

PIXELS, PATCH, SHARE, NEW_TOKENS = 224, 14, 9, 8
TOY = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def paligemma(*, toy: bool = False) -> VlmPolicy:
    """Build it; a toy has narrow layers and small images."""
    import torch
    import transformers

    pixels = 4 * PATCH if toy else PIXELS
    tokenizer = prompt_tokenizer()
    processor = transformers.PaliGemmaProcessor(
        transformers.SiglipImageProcessor(
            size={"height": pixels, "width": pixels}, image_seq_length=(pixels // PATCH) ** 2
        ),
        tokenizer,
    )
    text: dict[str, Any] = {
        "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384,
        "num_hidden_layers": 18 // SHARE, "num_attention_heads": 8, "num_key_value_heads": 1,
        "head_dim": 256, "vocab_size": 257216 // SHARE,
    }  # fmt: skip
    vision: dict[str, Any] = {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27 // SHARE, "num_attention_heads": 16, "patch_size": PATCH,
        "image_size": pixels, "vision_use_head": False,
    }  # fmt: skip
    if toy:
        text |= TOY
        vision |= {"hidden_size": 64, "intermediate_size": 128}
    config = transformers.PaliGemmaConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=text["hidden_size"],
        image_token_id=processor.image_token_id,
    )
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            model = transformers.PaliGemmaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    model.to_empty(device="cpu")
    model.tie_weights()
    fill(model)
    restore_buffers(model)
    model.generation_config.eos_token_id = None  # every keyframe generates as many tokens
    return VlmPolicy.from_model(model.eval(), processor, max_new_tokens=NEW_TOKENS)

"""A tiny Pi0 checkpoint of the real architecture with random weights, for tests and benchmarks.

Random weights attend to nothing in particular: pictures made from it show how attnstore works, not
how a policy looks.
"""

from __future__ import annotations

from typing import Any

from ..optional import require

PROMPTS = (
    "place the green cube into the pink bowl",
    "place the blue cube into the purple bowl",
    "put the red cube onto the pink plate",
    "pick up the yellow block and move it to the left",
)


def prompt_tokenizer() -> Any:
    """Train a small byte-fallback BPE tokenizer with PaliGemma's conventions on a few prompts."""
    transformers: Any = require("transformers", "ingest", "the tiny Pi0 checkpoint")
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))],
        initial_alphabet=[*"abcdefghijklmnopqrstuvwxyz0123456789,;:\u2581\n"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROMPTS * 3, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def build_tiny_pi0(
    *,
    seed: int = 0,
    layers: int = 4,
    image: int = 56,
    steps: int = 4,
    chunk: int = 8,
    state_dof: int = 8,
    vision_layers: int = 2,
    heads: int = 8,
) -> tuple[Any, Any]:
    """Build a random Pi0 of the real architecture, and its processor.

    Parameters
    ----------
    seed
        Of the random weights.
    layers
        Of the language model and of the expert.
    image
        Side of the encoder's input in pixels, a multiple of 14.
    steps, chunk
        Denoising steps and actions in a chunk.
    state_dof
        Length of the robot state.
    vision_layers
        Of the image encoder, which has 4 heads.
    heads
        Of the language model and of the expert.

    Returns
    -------
    (model, processor), the model in evaluation mode, float32.
    """
    torch = require("torch", "ingest", "the tiny Pi0 checkpoint")
    transformers: Any = require("transformers", "ingest", "the tiny Pi0 checkpoint")

    tokens = (image // 14) ** 2
    tokenizer = prompt_tokenizer()
    processor = transformers.PI0Processor(
        image_processor=transformers.PI0ImageProcessor(
            size={"max_height": image, "max_width": image},
            pad_size={"height": image, "width": image},
            image_seq_length=tokens,
        ),
        tokenizer=tokenizer,
        state_mean=[0.0] * state_dof,
        state_std=[1.0] * state_dof,
        actions_mean=[0.0] * state_dof,
        actions_std=[1.0] * state_dof,
        chunk_size=chunk,
    )
    attention = {"num_attention_heads": heads, "num_key_value_heads": 1, "head_dim": 16}
    config = transformers.PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": {
                "model_type": "gemma",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": layers,
                "vocab_size": len(tokenizer),
                **attention,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_hidden_layers": vision_layers,
                "num_attention_heads": 4,
                "patch_size": 14,
                "image_size": image,
                "vision_use_head": False,
            },
            "projection_dim": 64,
            "image_token_id": processor.image_token_id,
        },
        dit_config={
            "model_type": "gemma",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            **attention,
        },
        chunk_size=chunk,
        num_inference_steps=steps,
        # Larger than the default 0.02: with that, every head would be uniform to three digits.
        initializer_range=0.25,
    )
    for part in (config.vlm_config.text_config, config.vlm_config.vision_config, config.dit_config):
        part.initializer_range = 0.25
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.PI0ForConditionalGeneration(config).eval()
    return model, processor

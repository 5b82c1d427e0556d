"""Tiny random vision-language models of real architectures, saved as transformers saves any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from attnstore.ingest.policies.tiny import PROMPTS, prompt_tokenizer

transformers: Any = import_module("transformers")  # its types are not for such calls
LAYERS = 2
HEADS = 4
SPREAD = 0.25
"""Standard deviation of the weights: with the default 0.02 every head would be nearly uniform."""
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": SPREAD,
    "max_position_embeddings": 512,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
    "initializer_range": SPREAD,
}
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def byte_level_tokenizer() -> Any:
    """A small byte-level BPE tokenizer with Qwen's markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(QWEN_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*PROMPTS * 3, "You are a helpful assistant."], trainer)
    return transformers.Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(QWEN_TOKENS),
    )


def _built(model_class: Any, config: Any, seed: int) -> Any:
    for part in (config, config.text_config, config.vision_config):
        part.initializer_range = SPREAD
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).eval()


def paligemma(seed: int = 0, *, image: int = 56) -> tuple[Any, Any]:
    """PaliGemma: SigLIP and Gemma, plain resize, bidirectional prompt."""
    tokenizer = prompt_tokenizer()
    processor = transformers.PaliGemmaProcessor(
        transformers.SiglipImageProcessor(
            size={"height": image, "width": image}, image_seq_length=(image // 14) ** 2
        ),
        tokenizer,
    )
    config = transformers.PaliGemmaConfig(
        text_config={"model_type": "gemma", "vocab_size": len(tokenizer), **TEXT},
        vision_config={
            "model_type": "siglip_vision_model", "image_size": image, "vision_use_head": False,
            **VISION,
        },
        projection_dim=32,
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    config.text_config.eos_token_id = tokenizer.eos_token_id
    model = _built(transformers.PaliGemmaForConditionalGeneration, config, seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def llava(seed: int = 0, *, image: int = 56) -> tuple[Any, Any]:
    """LLaVA: CLIP without its class token and Llama, resize and centre crop, causal."""
    tokenizer = prompt_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(
            size={"shortest_edge": image}, crop_size={"height": image, "width": image}
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        vision_config={"model_type": "clip_vision_model", "image_size": image, **VISION},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    model = _built(transformers.LlavaForConditionalGeneration, config, seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def qwen2_vl(seed: int = 0) -> tuple[Any, Any]:
    """Qwen2-VL: dynamic resolution, merged patches, multimodal rotary positions, causal."""
    tokenizer = byte_level_tokenizer()
    text = {k: v for k, v in TEXT.items() if k != "head_dim"}
    config = transformers.Qwen2VLConfig(
        text_config={
            **text, "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14,
            "mlp_ratio": 2,
        },
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return _qwen(transformers.Qwen2VLForConditionalGeneration, config, tokenizer, 14, seed)


def qwen2_5_vl(seed: int = 0) -> tuple[Any, Any]:
    """Qwen2.5-VL: as Qwen2-VL, with windows in its encoder."""
    tokenizer = byte_level_tokenizer()
    text = {k: v for k, v in TEXT.items() if k != "head_dim"}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **text, "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4,
            "patch_size": 14, "out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [1],
        },
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return _qwen(transformers.Qwen2_5_VLForConditionalGeneration, config, tokenizer, 14, seed)


def qwen3_vl(seed: int = 0) -> tuple[Any, Any]:
    """Qwen3-VL: patches of 16 pixels, visual features added in several layers."""
    tokenizer = byte_level_tokenizer()
    config = transformers.Qwen3VLConfig(
        text_config={
            **TEXT, "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4,
            "patch_size": 16, "out_hidden_size": 32, "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return _qwen(transformers.Qwen3VLForConditionalGeneration, config, tokenizer, 16, seed)


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
             "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}  # fmt: skip
    return {key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}


def _qwen(model_class: Any, config: Any, tokenizer: Any, patch: int, seed: int) -> tuple[Any, Any]:
    side = 2 * patch
    sizes = {"shortest_edge": side * side * 4, "longest_edge": side * side * 12}
    three = patch == 16
    processor_class = transformers.Qwen3VLProcessor if three else transformers.Qwen2VLProcessor
    video = transformers.Qwen3VLVideoProcessor if three else transformers.Qwen2VLVideoProcessor
    if model_class is transformers.Qwen2_5_VLForConditionalGeneration:
        processor_class = transformers.Qwen2_5_VLProcessor
    processor = processor_class(
        transformers.Qwen2VLImageProcessor(size=sizes, patch_size=patch, merge_size=2),
        tokenizer,
        video(patch_size=patch, merge_size=2),
        chat_template=QWEN_TEMPLATE,
    )
    model = _built(model_class, config, seed)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


FAMILIES: Mapping[str, Callable[..., tuple[Any, Any]]] = {
    "paligemma": paligemma,
    "llava": llava,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
}


def save(family: str, directory: Path, **options: Any) -> Path:
    """Save a family's tiny checkpoint; return the directory."""
    model, processor = FAMILIES[family](**options)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory

"""A tiny Pi0 for the toy world: the real architecture, two million parameters.

``python -m examples.toy_cube.architecture --out DIR`` saves it with random weights, to compare with.
Its vocabulary is the task's words; its action is the way from the hand to the commanded place, in
metres, and the gripper (0 open, 1 closed).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from attnstore.ingest.optional import require

from .expert import CHUNK
from .scene import BOWLS, CUBES

WORDS = ("place", "the", *CUBES, *BOWLS, "cube", "bowl", "into")
CUBE_WORD, BOWL_WORD = 2, 6
"""Places of the two colours in the instruction, ``place the red cube into the pink bowl``."""
IMAGE, PATCH = 112, 14
STATE_MEAN = [0.49, 0.0, 0.15, 0.0, 0.0, 0.0, 0.0, 0.18]
STATE_STD = [0.075, 0.09, 0.07, 1.0, 1.0, 1.0, 1.0, 0.27]
"""Joints x, y, z, four that are always 0, and the gripper."""
ACTION_MEAN = [0.0, 0.0, -0.035, 0.3]
ACTION_STD = [0.055, 0.065, 0.07, 0.46]


def tokenizer() -> Any:
    """Build a tokenizer of whole words with PaliGemma's conventions."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    transformers: Any = require("transformers", "ingest", "the toy policy")

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "\n"]
    words = [*special, *(mark + word for word in WORDS for mark in ("", "\u2581"))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    built = Tokenizer(model)
    built.normalizer = normalizers.Replace(" ", "\u2581")
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\u2581", "merged_with_next"),
            pre_tokenizers.Split("\n", "isolated"),
        ]
    )
    built.decoder = decoders.Replace("\u2581", " ")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def processor() -> Any:
    """Build the processor, with the statistics of state and action."""
    transformers: Any = require("transformers", "ingest", "the toy policy")
    return transformers.PI0Processor(
        image_processor=transformers.PI0ImageProcessor(
            size={"max_height": IMAGE, "max_width": IMAGE},
            pad_size={"height": IMAGE, "width": IMAGE},
            image_seq_length=(IMAGE // PATCH) ** 2,
        ),
        tokenizer=tokenizer(),
        state_mean=STATE_MEAN,
        state_std=STATE_STD,
        actions_mean=ACTION_MEAN,
        actions_std=ACTION_STD,
        max_state_dim=len(STATE_MEAN),
        chunk_size=CHUNK,
    )


def model(built: Any, seed: int) -> Any:
    """Build the model for a processor, with random weights.

    Parameters
    ----------
    built
        What `processor` returned.
    seed
        Of the weights.
    """
    import torch

    transformers: Any = require("transformers", "ingest", "the toy policy")
    torch.manual_seed(seed)
    # The embedding table ends with <image>; PI0Processor's 1152 <loc> and <seg> come behind it.
    heads = {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32}
    config = transformers.PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": {
                "model_type": "gemma",
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "vocab_size": built.image_token_id + 1,
                **heads,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "patch_size": PATCH,
                "image_size": IMAGE,
                "vision_use_head": False,
            },
            "projection_dim": 128,
            "image_token_id": built.image_token_id,
        },
        dit_config={
            "model_type": "gemma",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            **heads,
        },
        chunk_size=CHUNK,
        max_state_dim=len(STATE_MEAN),
        max_action_dim=len(ACTION_MEAN),
        num_inference_steps=8,
        initializer_range=0.05,
    )
    for part in (config.vlm_config.text_config, config.vlm_config.vision_config, config.dit_config):
        part.initializer_range = 0.05
    return transformers.PI0ForConditionalGeneration(config)


def save(trained: Any, built: Any, directory: Path) -> None:
    """Save model (float16) and processor as transformers saves any checkpoint."""
    import copy

    import torch

    copy.deepcopy(trained).to(torch.float16).save_pretrained(directory)
    built.save_pretrained(directory)


def main() -> None:
    """Save a checkpoint with random weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    built = processor()
    save(model(built, given.seed), built, given.out)


if __name__ == "__main__":
    main()

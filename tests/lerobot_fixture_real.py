"""Checkpoints of the real LeRobot's policies, small and random, saved as LeRobot saves any.

Needs LeRobot; `make test-lerobot` runs what uses it. LeRobot fixes the sizes of Pi0 in its code, so
they are replaced while a model is built or loaded (`small`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from attnstore.ingest.policies.tiny import prompt_tokenizer

STATE_DOF, ACTION_DOF, CHUNK, STEPS = 8, 7, 5, 3
WIDTH, PATCH, IMAGE = 64, 14, 56
CAMERAS = {
    "hand_camera": "observation.images.hand_camera",
    "varied_camera_1": "observation.images.varied_camera_1",
}


def features(*, missing: bool) -> dict[str, Any]:
    """Input features: the third camera comes first and is not in any observation."""
    from lerobot.configs.types import FeatureType, PolicyFeature

    cameras = ["observation.images.absent"] if missing else []
    cameras += reversed(CAMERAS.values())  # not the dataset's order
    found = {c: PolicyFeature(FeatureType.VISUAL, (3, 36, 64)) for c in cameras}
    return {**found, "observation.state": PolicyFeature(FeatureType.STATE, (STATE_DOF,))}


def outputs() -> dict[str, Any]:
    from lerobot.configs.types import FeatureType, PolicyFeature

    return {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DOF,))}


def statistics() -> dict[str, Any]:
    """Statistics of a dataset, as ``meta/stats.json`` holds them."""
    import numpy as np

    found = {}
    for key, length in (("observation.state", STATE_DOF), ("action", ACTION_DOF)):
        values = {"mean": 0.1, "std": 1.3, "min": -3, "max": 3, "q01": -2.5, "q99": 2.5}
        found[key] = {name: np.full(length, value) for name, value in values.items()}
    for camera in CAMERAS.values():
        values = {"mean": 0.45, "std": 0.25, "min": 0, "max": 1}
        found[camera] = {name: np.full((3, 1, 1), value) for name, value in values.items()}
    return found


@contextmanager
def small() -> Iterator[None]:
    """Build Pi0 and Pi0.5 with small modules; everything else of LeRobot is as it is."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi05 import modeling_pi05

    with pytest.MonkeyPatch.context() as patch:
        for module in (modeling_pi0, modeling_pi05):
            sizes: Any = module.GemmaConfig(
                width=WIDTH, depth=3, mlp_dim=96, num_heads=8, num_kv_heads=1, head_dim=16
            )
            patch.setattr(module, "get_gemma_config", lambda variant, sizes=sizes: sizes)
            for name in ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"):
                patch.setattr(module, name, _shrunk(getattr(module, name)))
        yield


def _shrunk(kind: Any) -> Any:
    def build(config: Any) -> Any:
        text = getattr(config, "text_config", config)
        text.vocab_size = 800
        text.initializer_range = 0.25
        if (vision := getattr(config, "vision_config", None)) is not None:
            vision.hidden_size, vision.intermediate_size = 48, 64
            vision.num_hidden_layers, vision.num_attention_heads = 2, 4
            vision.projection_dim, vision.initializer_range = WIDTH, 0.25
        return kind(config=config)

    return build


def save(policy: Any, preprocessor: Any, postprocessor: Any, directory: Path) -> Path:
    """Save as LeRobot does."""
    policy.save_pretrained(directory)
    preprocessor.save_pretrained(directory)
    postprocessor.save_pretrained(directory)
    return directory


def randomise(policy: Any) -> Any:
    """Give zero-initialised weights values, as training does."""
    import torch

    generator = torch.Generator().manual_seed(3)
    for parameter in policy.parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return policy.eval()


def save_pi(directory: Path, kind: str, **options: Any) -> Path:
    """Save a Pi0 or Pi0.5, with one image feature that no observation has."""
    import torch
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from lerobot.policies.pi0.modeling_pi0 import PI0Policy
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy
    from transformers import AutoTokenizer

    configs, policies = (
        {"pi0": PI0Config, "pi05": PI05Config},
        {"pi0": PI0Policy, "pi05": PI05Policy},
    )
    config = configs[kind](
        device="cpu", chunk_size=CHUNK, n_action_steps=CHUNK, num_inference_steps=STEPS,
        image_resolution=(IMAGE, IMAGE), input_features=features(missing=True),
        output_features=outputs(), **options,
    )  # fmt: skip
    tokenizer = prompt_tokenizer()
    words = directory.parent / "tokenizer"
    tokenizer.save_pretrained(words)
    torch.manual_seed(0)
    with small(), pytest.MonkeyPatch.context() as patch:
        policy = randomise(policies[kind](config))
        load = AutoTokenizer.from_pretrained
        patch.setattr(AutoTokenizer, "from_pretrained", lambda name, *a, **k: load(words, *a, **k))
        before, after = make_pre_post_processors(config, dataset_stats=statistics())
        save(policy, before, after, directory)
    file = directory / "policy_preprocessor.json"
    # The name is fixed in LeRobot's code; a checkpoint may name any tokenizer.
    file.write_text(file.read_text().replace("google/paligemma-3b-pt-224", str(words)))
    return directory


def save_act(directory: Path, **options: Any) -> Path:
    """Save an ACT with a random ResNet-18."""
    import torch
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    given = {"n_encoder_layers": 3, "n_decoder_layers": 2, "dropout": 0.1} | options
    config = ACTConfig(
        device="cpu", chunk_size=CHUNK, n_action_steps=CHUNK, dim_model=32, n_heads=4,
        dim_feedforward=48, latent_dim=8, n_vae_encoder_layers=1,
        pretrained_backbone_weights=None, input_features=features(missing=False),
        output_features=outputs(), **given,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = randomise(ACTPolicy(config))
    before, after = make_pre_post_processors(config, dataset_stats=statistics())
    return save(policy, before, after, directory)


def save_smolvla(directory: Path, **options: Any) -> Path:
    """Save a SmolVLA over a small SmolVLM."""
    import torch
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    backbone = save_smolvlm(directory.parent / "smolvlm")
    given: dict[str, Any] = {"num_vlm_layers": 4, "empty_cameras": 1} | options
    config = SmolVLAConfig(
        device="cpu", chunk_size=CHUNK, n_action_steps=CHUNK, num_steps=STEPS,
        vlm_model_name=str(backbone), resize_imgs_with_padding=(64, 64),
        input_features=features(missing=False), output_features=outputs(), **given,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = randomise(SmolVLAPolicy(config))
    before, after = make_pre_post_processors(config, dataset_stats=statistics())
    return save(policy, before, after, directory)


def save_smolvlm(directory: Path) -> Path:
    """Save configuration and processor of a small SmolVLM; SmolVLA makes its own weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    if directory.exists():
        return directory
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = [
        "<|im_start|>",
        "<end_of_utterance>",
        "<fake_token_around_image>",
        "<image>",
        "<global-img>",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    words.train_from_iterator(["put the red cube onto the pink plate"] * 3, trainer)
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, pad_token="<|im_start|>", eos_token="<end_of_utterance>",
        bos_token="<|im_start|>",
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>", "image_token": "<image>",
            "global_image_token": "<global-img>",
        },
    )  # fmt: skip
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama", "hidden_size": 48, "intermediate_size": 64,
            "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
            "head_dim": 8, "vocab_size": 500, "initializer_range": 0.25,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "patch_size": 8, "image_size": 64, "initializer_range": 0.25,
        },
        scale_factor=2, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    config.save_pretrained(directory)
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), image_seq_len=16
    )
    processor.save_pretrained(directory)
    return directory

"""LeRobot's policies at their released sizes, or with fewer layers, random weights: cases of `adapters`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from attnstore.ingest.policies.base import Policy

from .full_pi0 import fill

PART = 9
"""Where layers are left out, one in so many stays: of language model, expert and image encoder alike."""
TOKENS = 16
"""That Pi0-FAST writes; its random weights never end."""


def act(folder: Path) -> Policy:
    """ACT at its default size, 52 M parameters."""
    import lerobot_fixture_real as real
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    return _adapted(
        ACTPolicy(
            ACTConfig(
                device="cpu",
                pretrained_backbone_weights=None,
                input_features=real.features(missing=False),
                output_features=real.outputs(),
            )
        )
    )


def smolvla(folder: Path) -> Policy:
    """SmolVLA at its default size, 450 M parameters."""
    import lerobot_fixture_real as real
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from transformers import SmolVLMConfig

    backbone = real.save_smolvlm(folder / "smolvlm")
    # SmolVLM2-500M-Video-Instruct
    SmolVLMConfig(
        text_config={
            "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560,
            "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5,
            "head_dim": 64, "vocab_size": 49280,
        },
        vision_config={
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "patch_size": 16, "image_size": 512,
        },
        scale_factor=4,
    ).save_pretrained(backbone)  # fmt: skip
    return _adapted(
        SmolVLAPolicy(
            SmolVLAConfig(
                device="cpu",
                vlm_model_name=str(backbone),
                input_features=real.features(missing=False),
                output_features=real.outputs(),
            )
        )
    )


def xvla(folder: Path) -> Policy:
    """X-VLA at its default width over Florence-2 large, a quarter of the transformers' layers."""
    import lerobot_fixture_real as real
    from lerobot.policies.xvla.configuration_xvla import XVLAConfig
    from lerobot.policies.xvla.modeling_xvla import XVLAPolicy

    florence = {
        "vision_config": {"model_type": "florence_vision", "projection_dim": 1024,
            "depths": [1, 1, 9, 1], "embed_dim": [256, 512, 1024, 2048],
            "num_heads": [8, 16, 32, 64], "num_groups": [8, 16, 32, 64], "window_size": 12,
        },
        "text_config": {"model_type": "bart", "d_model": 1024, "vocab_size": 51289,
            "encoder_layers": 3, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096,
            "decoder_layers": 1, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
            "max_position_embeddings": 4096,
        },
    }  # fmt: skip
    return _adapted(
        XVLAPolicy(
            XVLAConfig(
                device="cpu",
                depth=6,
                florence_config=florence,
                tokenizer_name=str(real.bart_tokenizer(folder / "bart")),
                action_mode="auto",
                resize_imgs_with_padding=(224, 224),
                input_features=real.features(missing=False),
                output_features=real.outputs(),
            )
        )
    )


def pi(folder: Path, kind: str) -> Policy:
    """Pi0 or Pi0.5 at the width of ``lerobot/pi05_base``, a ninth of the layers, bfloat16."""
    import lerobot_fixture_real as real
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from transformers import AutoTokenizer
    from transformers.initialization import no_init_weights

    from attnstore.ingest.policies.tiny import prompt_tokenizer

    prompt_tokenizer().save_pretrained(folder / "words")
    load = AutoTokenizer.from_pretrained
    config = {"pi0": PI0Config, "pi05": PI05Config}[kind](
        device="cpu", dtype="bfloat16",
        input_features=real.features(missing=False), output_features=real.outputs(),
    )  # fmt: skip
    # PaliGemma's name is fixed in LeRobot's code
    ours = mock.patch.object(
        AutoTokenizer, "from_pretrained", lambda name, *a, **k: load(folder / "words", *a, **k)
    )
    with ours, _fewer_layers(kind) as modeling:
        policy = {"pi0": "PI0Policy", "pi05": "PI05Policy"}[kind]
        with no_init_weights():
            made = getattr(modeling, policy)(config)
        return _adapted(_filled(made))


def pi_fast(folder: Path) -> Policy:
    """Pi0-FAST at the width of ``lerobot/pi0fast-base``, a ninth of the layers, bfloat16."""
    import lerobot_fixture_real as real
    from lerobot.policies.pi0_fast.configuration_pi0_fast import PI0FastConfig
    from transformers.initialization import no_init_weights

    words = real.fast_words(folder / "words")
    real.save_fast_tokenizer(folder / "fast")
    config = PI0FastConfig(
        device="cpu", dtype="bfloat16", chunk_size=real.CHUNK, n_action_steps=real.CHUNK,
        max_decoding_steps=TOKENS, max_action_tokens=TOKENS, fast_skip_tokens=8,
        validate_action_token_prefix=False,  # random weights write anything
        text_tokenizer_name=str(folder / "words"), action_tokenizer_name=str(folder / "fast"),
        input_features=real.features(missing=False), output_features=real.outputs(),
    )  # fmt: skip
    with _fewer_layers("pi0_fast") as modeling, no_init_weights():
        policy = _filled(modeling.PI0FastPolicy(config))
    with torch.no_grad():  # none but words that there are
        for name, weight in policy.named_parameters():
            if "embed_tokens" in name or "lm_head" in name:
                weight[len(words) :] = 0
    return _adapted(policy)


@contextmanager
def _fewer_layers(kind: str) -> Iterator[Any]:
    modeling = import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    sizes, mapping = modeling.get_gemma_config, modeling.CONFIG_MAPPING

    def gemma(variant: str) -> Any:
        found = sizes(variant)
        found.depth //= PART
        return found

    def paligemma() -> Any:
        found = mapping["paligemma"]()
        found.vision_config.num_hidden_layers //= PART
        return found

    configs = {"paligemma": paligemma, "gemma": mapping["gemma"]}
    with (
        mock.patch.object(modeling, "get_gemma_config", gemma),
        mock.patch.object(modeling, "CONFIG_MAPPING", configs),
    ):
        yield modeling


def groot(folder: Path) -> Policy:
    """GR00T N1.7 at its released width over Cosmos-Reason2-2B, a quarter of the layers, bfloat16."""
    import lerobot_fixture_real as real
    import vlm_fixtures
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.groot import groot_n1_7
    from lerobot.policies.groot.configuration_groot import GrootConfig
    from lerobot.policies.groot.modeling_groot import GrootPolicy
    from transformers.initialization import no_init_weights

    from attnstore.ingest.policies.lerobot.policy import adapt_lerobot

    _, processor = vlm_fixtures.qwen3_vl()
    processor.image_processor.size = {"shortest_edge": 1 << 16, "longest_edge": 1 << 24}
    processor.save_pretrained(folder / "qwen")
    sizes = {"image_target_size": [256, 256], "image_crop_size": [230, 230]}
    (folder / "processor_config.json").write_text(json.dumps({"processor_kwargs": sizes}))
    described = groot_n1_7._cosmos_reason2_qwen3_vl_config

    def cosmos() -> Any:  # with the marks of the small tokenizer
        found = described()
        found.text_config.num_hidden_layers, found.vision_config.depth = 4, 6
        found.vision_config.deepstack_visual_indexes = [1, 2, 4]
        for name, token in vlm_fixtures._qwen_ids(processor.tokenizer).items():
            setattr(found, name, token)
        return found

    def model(*args: Any, **kwargs: Any) -> Any:
        shape = groot_n1_7.GR00TN17Config(select_layer=4)
        shape.diffusion_model_cfg["num_layers"] = 8
        shape.vl_self_attention_cfg["num_layers"] = 1
        return groot_n1_7.GR00TN17(shape, load_backbone_weights=False)

    config = GrootConfig(
        device="cpu", base_model_path=str(folder), model_params_fp32=False,
        input_features=real.features(missing=False), output_features=real.outputs(),
    )  # fmt: skip
    with (
        mock.patch.object(groot_n1_7, "_cosmos_reason2_qwen3_vl_config", cosmos),
        mock.patch.object(groot_n1_7.GR00TN17, "from_pretrained", model),
        _bfloat16(),
        no_init_weights(),
    ):
        policy = _filled(GrootPolicy(config))
    before, _ = make_pre_post_processors(config, dataset_stats=real.statistics(config))
    for step in before.steps:
        if hasattr(step, "model_name"):
            step.model_name = str(folder / "qwen")
    return adapt_lerobot(policy, before)


def molmoact2(folder: Path) -> Policy:
    """MolmoAct2 at its released width with a ninth of its layers, bfloat16."""
    import lerobot_fixture_real as real

    from attnstore.ingest.policies.lerobot.policy import load_lerobot

    layers = 36 // PART
    checkpoint = real.save_molmoact2(
        folder / "checkpoint",
        network={
            "text_config": {
                "hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8,
                "head_dim": 128, "num_hidden_layers": layers, "intermediate_size": 9728,
                "max_position_embeddings": 1024,
            },
            "vit_config": {
                "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27 // PART,
                "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72,
            },
            "adapter_config": {
                "hidden_size": 1152, "num_attention_heads": 16, "num_key_value_heads": 16,
                "head_dim": 72, "intermediate_size": 9728, "text_hidden_size": 2560,
            },
            "action_expert_config": {"hidden_size": 768, "num_layers": layers, "num_heads": 8},
            "flow_matching_num_steps": 10,
            "max_action_horizon": 30,
        },
        images={"size": {"height": 378, "width": 378}},
        model_dtype="bfloat16", chunk_size=30, n_action_steps=30,
        max_sequence_length=640,  # the fixture's words are shorter than the released tokenizer's
    )  # fmt: skip
    policy = load_lerobot(str(checkpoint))
    _ = policy.phases  # reads the weights
    return policy


@contextmanager
def _bfloat16() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _filled(policy: Any) -> Any:
    """Give weights values that were made without any: norms leave sizes as they are."""
    fill(policy)
    for name, parameter in policy.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.data.fill_(1)
    return policy.eval()


def _adapted(policy: Any) -> Policy:
    import lerobot_fixture_real as real
    from lerobot.policies.factory import make_pre_post_processors

    from attnstore.ingest.policies.lerobot.policy import adapt_lerobot

    before, _ = make_pre_post_processors(
        policy.config, dataset_stats=real.statistics(policy.config)
    )
    return adapt_lerobot(policy.eval(), before)

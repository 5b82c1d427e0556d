"""``python -m benchmarks.adapters CASE ...``: what capture costs with other adapters, and the bytes that it keeps.

Each case is to be run in its policy's own environment (docs/how-to/policies.md), at the released size or the part
that its line names, with random weights. CPU time of a keyframe on one thread: attention, written as float16, over
the policy's own call, then value norms and hidden states, which ingest keeps by default, over the attention alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnstore.ingest.policies.base import Policy, shows_hidden, shows_values

from .capture_process import WATCHED, Bench

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
STATE_DOF = 8
ARRAYS = {"value norms": "value_norm", "hidden states": "hidden"}


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
    """X-VLA at its default size over Florence-2 large, 0.9 B parameters."""
    import lerobot_fixture_real as real
    from lerobot.policies.xvla.configuration_xvla import XVLAConfig
    from lerobot.policies.xvla.modeling_xvla import XVLAPolicy

    florence = {
        "vision_config": {"model_type": "florence_vision", "projection_dim": 1024,
            "depths": [1, 1, 9, 1], "embed_dim": [256, 512, 1024, 2048],
            "num_heads": [8, 16, 32, 64], "num_groups": [8, 16, 32, 64], "window_size": 12,
        },
        "text_config": {"model_type": "bart", "d_model": 1024, "vocab_size": 51289,
            "encoder_layers": 12, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096,
            "decoder_layers": 12, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
            "max_position_embeddings": 4096,
        },
    }  # fmt: skip
    return _adapted(
        XVLAPolicy(
            XVLAConfig(
                device="cpu",
                florence_config=florence,
                tokenizer_name=str(real.bart_tokenizer(folder / "bart")),
                action_mode="auto",
                resize_imgs_with_padding=(224, 224),
                input_features=real.features(missing=False),
                output_features=real.outputs(),
            )
        )
    )


def _adapted(policy: Any) -> Policy:
    import lerobot_fixture_real as real
    from lerobot.policies.factory import make_pre_post_processors

    from attnstore.ingest.policies.lerobot.policy import adapt_lerobot

    before, _ = make_pre_post_processors(
        policy.config, dataset_stats=real.statistics(policy.config)
    )
    return adapt_lerobot(policy.eval(), before)


def openpi_pi05(folder: Path, layers: int | None = None) -> Policy:
    """Pi0.5 as configuration ``pi05_droid`` has it, or with fewer layers."""
    from openpi import transforms
    from openpi.models import gemma
    from openpi.models_pytorch.pi0_pytorch import PI0Pytorch
    from openpi.shared.normalize import NormStats
    from openpi.training.config import get_config

    from attnstore.ingest.policies.openpi.policy import OpenpiPolicy

    from .full_pi0 import fill

    config = get_config("pi05_droid")
    shape = replace(config.model, pytorch_compile_mode=None)
    if layers is not None:  # for good: the adapter asks for the same configurations
        full = gemma.get_config
        gemma.get_config = lambda variant: replace(full(variant), depth=layers)
    with torch.device("meta"):
        model = PI0Pytorch(shape)
    model = model.to_empty(device="cpu").eval()
    fill(model)
    for name, buffer in model.named_buffers():
        if "inv_freq" in name:
            size = 2 * buffer.numel()
            buffer.copy_(1 / 10000 ** (torch.arange(0, size, 2).float() / size))
        elif "position_ids" in name:
            buffer.copy_(torch.arange(buffer.numel()).view(buffer.shape))
    quantiles = {"q01": np.full(STATE_DOF, -2.0), "q99": np.full(STATE_DOF, 2.0)}
    stats = NormStats(mean=np.zeros(STATE_DOF), std=np.ones(STATE_DOF), **quantiles)
    data = config.data.create(config.assets_dirs, shape)
    return OpenpiPolicy.from_model(
        model,
        [
            transforms.InjectDefaultPrompt(None),
            *data.data_transforms.inputs,
            transforms.Normalize({"state": stats}, use_quantiles=True),
            *data.model_transforms.inputs,
        ],
    )


def octo(folder: Path) -> Policy:
    """Octo-small, 27 M parameters, over a small T5."""
    from octo_checkpoint import save_octo_small

    from attnstore.ingest.policies.octo.policy import OctoPolicy

    return OctoPolicy(str(save_octo_small(folder)))


CASES: Mapping[str, Callable[[Path], Policy]] = {
    "act": act,
    "smolvla": smolvla,
    "xvla": xvla,
    "openpi": openpi_pi05,
    "openpi-6-layers": partial(openpi_pi05, layers=6),
    "octo": octo,
}


def main() -> None:
    """Measure every case that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(CASES[case](Path(folder)), Path(folder))
            print(f"{case}: {measure(bench, options.rounds)}", flush=True)


def measure(bench: Bench, rounds: int) -> str:
    """Say what each part costs, rounds in turn, and how large it is."""
    shown = {"value norms": shows_values(bench.policy), "hidden states": shows_hidden(bench.policy)}
    parts = {name: watch for name, watch in WATCHED.items() if shown.get(name)}
    bench.plain()
    for watch in parts.values():
        bench.captured("float16", watch=watch)
    over_plain, over_attention = [], {name: [] for name in parts}
    sizes: dict[str, float] = {}
    for _ in range(rounds):
        plain, attention = bench.plain(), bench.captured("float16")
        over_plain.append(attention / plain)
        for name, watch in parts.items():
            over_attention[name].append(bench.captured("float16", watch=watch) / attention)
            sizes[name] = bench.stored[ARRAYS[name]] / bench.stored["attention"]
    said = [f"attention written over its own call {statistics.median(over_plain):.2f}"]
    said += [
        f"{name} over that {statistics.median(over_attention[name]):.3f}, {sizes[name]:.2%} of its bytes"
        for name in parts
    ]
    return "; ".join(said)


if __name__ == "__main__":
    main()

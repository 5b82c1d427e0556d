"""``python -m benchmarks.lerobot_capture act|smolvla``: capture on LeRobot's own policies.

To be run in LeRobot's environment (docs/how-to/lerobot.md): default sizes, random weights. Against the
policy's own call, which uses no eager attention.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attnstore.ingest.capture import Record, capture
from attnstore.ingest.policies.lerobot.policy import adapt_lerobot

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
ROUNDS = 3


def act(folder: Path) -> Any:
    """ACT at its default size, 52 M parameters."""
    import lerobot_fixture_real as real
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    return ACTPolicy(
        ACTConfig(
            device="cpu",
            pretrained_backbone_weights=None,
            input_features=real.features(missing=False),
            output_features=real.outputs(),
        )
    )


def smolvla(folder: Path) -> Any:
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
    return SmolVLAPolicy(
        SmolVLAConfig(
            device="cpu",
            vlm_model_name=str(backbone),
            input_features=real.features(missing=False),
            output_features=real.outputs(),
        )
    )


def main() -> None:
    import lerobot_fixture_real as real
    from ingest_fixtures import observe
    from lerobot.policies.factory import make_pre_post_processors

    if sys.argv[1:] not in (["act"], ["smolvla"]):
        sys.exit("usage: python -m benchmarks.lerobot_capture act|smolvla")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = {"act": act, "smolvla": smolvla}[sys.argv[1]](Path(folder)).eval()
        before, _ = make_pre_post_processors(model.config, dataset_stats=real.statistics())
        policy = adapt_lerobot(model, before)
        batch = policy.prepare([observe(1, size=(360, 640))])

        def plain() -> None:
            with torch.no_grad():
                policy.act(batch)

        def keep(record: Record) -> None:
            record.weights.to(torch.float16).clone()

        def captured() -> None:
            with capture(policy, keep):
                policy.act(batch)

        plain()
        captured()
        times: dict[Callable[[], None], list[float]] = {plain: [], captured: []}
        for _ in range(ROUNDS):
            for call, spent in times.items():
                start = time.process_time()
                call()
                spent.append(time.process_time() - start)
    ratio = statistics.median(times[captured]) / statistics.median(times[plain])
    print(f"capture and a float16 copy: {ratio:.2f} of the policy's own call (CPU time)")


if __name__ == "__main__":
    main()

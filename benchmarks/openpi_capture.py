"""``python -m benchmarks.openpi_capture [--layers N]``: capture on openpi's own Pi0.5, random weights.

To be run in openpi's environment (docs/how-to/openpi.md). Full size needs 12 GB. openpi forces eager
attention; the sdpa figure is of the same model with its attention function replaced for that call.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from attnstore.ingest.policies.openpi.policy import OpenpiPolicy

from . import capture_process
from .full_pi0 import fill

STATE_DOF = 8


def pi05(layers: int | None) -> OpenpiPolicy:
    """Pi0.5 as configuration ``pi05_droid`` has it, or with fewer layers."""
    from openpi import transforms
    from openpi.models import gemma
    from openpi.models_pytorch.pi0_pytorch import PI0Pytorch
    from openpi.shared.normalize import NormStats
    from openpi.training.config import get_config

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


def _sdpa(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
) -> tuple[Any, None]:
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask[..., : key.shape[-2]].to(query.dtype), scale=scaling
    )
    return output.transpose(1, 2).contiguous(), None


def main() -> None:
    from transformers.models.gemma import modeling_gemma

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, help="layers of both Gemmas; default: all 18")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = capture_process.Bench(pi05(options.layers), Path(folder))  # type: ignore[arg-type]
        bench.plain()
        over_eager, over_sdpa = [], []
        for _ in range(options.rounds):
            with mock.patch.object(modeling_gemma, "eager_attention_forward", _sdpa):
                sdpa = bench.plain()
            eager, captured = bench.plain(), bench.captured("float16")
            over_eager.append(captured / eager)
            over_sdpa.append(captured / sdpa)
    print(f"capture and writing, float16: {statistics.median(over_eager):.2f} of eager, "
          f"{statistics.median(over_sdpa):.2f} of sdpa (CPU time, {options.rounds} rounds)")  # fmt: skip


if __name__ == "__main__":
    main()

"""OpenVLA and OpenVLA-OFT at the released width with a sixteenth of the layers, random: cases of `adapters`.

Variables OPENVLA and OFT name the checkouts, as for ``make test-openvla`` and ``make test-oft``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attnstore.ingest.policies.base import Policy

SIDE, WRIST = "varied_camera_1", "hand_camera"
TEXT: Mapping[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 2,
    "num_attention_heads": 32, "num_key_value_heads": 32, "initializer_range": 0.02,
}  # fmt: skip
"""Llama 2 7B with 2 of 32 layers, its weights no larger than it starts with."""
TOWER: Mapping[str, int] = {"depth": 2}
"""Of 24 layers of DINOv2 and 27 of SigLIP."""
STEPS = 5
"""Denoising steps, of 50."""
SIZE: Mapping[str, Any] = {"text": TEXT, "tower": TOWER, "dtype": torch.bfloat16}


def openvla(folder: Path) -> Policy:
    """OpenVLA with one camera, a sixteenth of its layers."""
    from openvla_checkpoint import save_openvla, sources

    return _loaded(
        "openvla",
        save_openvla(sources(), folder / "openvla", **SIZE),
        trust_remote_code="true",
        camera=SIDE,
    )


def oft(folder: Path) -> Policy:
    """OpenVLA-OFT's regression of LIBERO, two cameras and a state, a sixteenth of its layers."""
    from openvla_oft_checkpoint import save_oft

    return _loaded("openvla-oft", save_oft(folder / "oft", **SIZE), cameras=f"{SIDE},{WRIST}")


def oft_diffusion(folder: Path) -> Policy:
    """OpenVLA-OFT's diffusion, `STEPS` of its steps, a sixteenth of its layers."""
    from openvla_oft_checkpoint import save_oft

    return _loaded(
        "openvla-oft",
        save_oft(folder / "oft", head="diffusion", **SIZE),
        cameras=f"{SIDE},{WRIST}",
        steps=str(STEPS),
    )


def _loaded(name: str, checkpoint: Path, **options: str) -> Policy:
    from openvla_checkpoint import small_towers

    from attnstore.ingest.policies.registry import load_policy

    policy: Any = load_policy(name, str(checkpoint), options=options)
    with small_towers(**TOWER):
        _ = policy.model  # loads the weights
    return policy

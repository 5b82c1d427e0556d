"""Digest of a model that is in memory."""

from __future__ import annotations

import hashlib
from typing import Any


def digest_parameters(model: Any) -> str:
    """SHA-256 over the names, shapes and bytes of a module's state, in float32."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        data = value.detach().cpu().contiguous()
        digest.update(
            data.view(torch.uint8).numpy().tobytes() if data.ndim else data.numpy().tobytes()
        )
    return digest.hexdigest()

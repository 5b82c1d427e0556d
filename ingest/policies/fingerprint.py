"""Digests of what a policy was loaded from: a directory, or a model in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
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


def digest_directory(directory: Path) -> str:
    """SHA-256 over the names and bytes of a checkpoint's files, sorted; hidden files left out."""
    digest = hashlib.sha256()
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        relative = file.relative_to(directory).as_posix()
        if any(part.startswith(".") for part in Path(relative).parts):
            continue
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{relative}\0{content}\n".encode())
    return digest.hexdigest()

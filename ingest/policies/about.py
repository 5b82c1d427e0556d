"""What an adapter says of itself without a checkpoint: docs/how-to/policies.md and ``attnstore policies NAME``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any


@dataclass(frozen=True, slots=True)
class About:
    """One model of an adapter; what capture and knock-outs can do is read off the class itself."""

    model: str
    phases: Mapping[str, str]
    """What attends to what, by phase: spans of tokens in their order, and how often."""
    tested: str
    """With which versions, and on what."""
    vision: str = "yes"
    """Whether `--vision` captures the image encoder."""
    adapter: type | None = None
    """Class that does it, where the entry point is a function."""


def facts(point: EntryPoint) -> list[dict[str, str]]:
    """Return what there is to say of an adapter, one mapping for each of its models.

    Raises
    ------
    ImportError
        If the adapter's libraries are missing.
    """
    adapter: Any = point.load()
    said: tuple[About, ...] = getattr(adapter, "about", ())
    return [_facts(point.name, about.adapter or adapter, about) for about in said]


def _facts(name: str, adapter: Any, about: About) -> dict[str, str]:
    return {
        "policy": name,
        "model": about.model,
        **{f"phase {phase}": tokens for phase, tokens in about.phases.items()},
        "intermediate actions": "yes" if getattr(adapter, "denoiser_steps", False) else "no",
        "value norms": str(getattr(adapter, "value_norms", "unknown")),
        "hidden states": str(getattr(adapter, "hidden_states", "unknown")),
        "--vision": about.vision,
        "knock-outs": "yes" if hasattr(adapter, "blocking") else "no",
        "tested": about.tested,
    }

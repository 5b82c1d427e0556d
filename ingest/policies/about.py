"""What an adapter says of itself without a checkpoint; see `attnstore.commands.policy_facts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .released import Released


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
    released: Released | None = None
    """A released checkpoint's sizes."""

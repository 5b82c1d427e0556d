"""What there is to say of an adapter without a checkpoint: docs/how-to/policies.md and ``attnstore policies NAME``."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from attnstore.ingest.plan import KEYFRAME_BYTES, Size, size_of, with_hidden
from attnstore.ingest.policies.about import About
from attnstore.ingest.policies.base import HiddenChoice
from attnstore.ingest.policies.released import Released
from attnstore.store.arrays.chunking import expected_ratio

from .output import size_text

PRECISION = "float16"
"""How weights are stored where nothing else is said."""


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
        **({} if about.released is None else _sizes(about.released, adapter)),
        "tested": about.tested,
    }


def released_size(released: Released, *, values: bool = True, hidden: bool = True) -> Size:
    """Forecast what a keyframe of a released checkpoint brings, as the plan of an ingest does."""
    size = size_of(released.phases, released.layouts, PRECISION, values=values)
    choice = HiddenChoice() if hidden else None
    return with_hidden(size, released.phases, released.layouts, choice)


def _sizes(released: Released, adapter: Any) -> dict[str, str]:
    shown = {
        "values": str(adapter.value_norms).startswith("yes"),
        "hidden": str(adapter.hidden_states).startswith("yes"),
    }
    size = released_size(released, **shown)
    ratio = expected_ratio(PRECISION, released.dtype)
    disk = size.compressed(ratio)
    without = {
        name: disk - released_size(released, **{**shown, part: False}).compressed(ratio)
        for part, name in (("values", "value norms"), ("hidden", "hidden states"))
        if shown[part]
    }
    parts, largest, whole = [], 0, 0
    for name, shape in released.phases.items():
        query, key = (
            len(axis) for axis in (released.layouts[name].query, released.layouts[name].key)
        )
        steps = "" if shape.steps is None else f", {shape.steps} steps"
        parts.append(
            f"{name} {_count(shape.layers, 'layer')} x {_count(shape.heads, 'head')} x {query} x {key} "
            f"tokens{steps}"
        )
        largest = max(largest, shape.heads * query * key)
        whole += shape.layers * (shape.steps or 1) * shape.heads * query * key
    item = 4 if released.dtype == "float32" else 2
    device = f"{size_text(largest * item)}, one layer's weights in {released.dtype}, at a time"
    memory = {"on the device": device}
    if getattr(adapter, "shows_at_the_end", False):
        all_of_it = (
            f"{size_text(whole * item)}, all its weights in {released.dtype}, padding not counted"
        )
        memory = {"until a call ends": f"{all_of_it}: JAX shows them when it has ended"}
    return {
        "released size": f"{released.name}: {'; '.join(parts)}",
        "a keyframe": f"{size_text(size.raw)} in memory, about {size_text(round(disk + KEYFRAME_BYTES))} on disk "
        f"({PRECISION}, with maps, without images)"
        + "".join(f"; {name} {size_text(round(more))} of it" for name, more in without.items()),
        **memory,
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"

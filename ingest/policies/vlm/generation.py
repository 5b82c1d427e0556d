"""Greedy generation, and which samples of a batch have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base import Observer


def generate_ids(
    model: Any, inputs: Mapping[str, Any], steps: int, observer: Observer | None
) -> list[list[int]]:
    """Generate token ids with a key-value cache, each time the most likely one.

    What else the checkpoint's generation configuration says (end markers, a repetition penalty)
    holds.

    Parameters
    ----------
    inputs
        Of the processor, on the model's device; a prompt's padding stands on the left.
    steps
        Tokens at most.
    observer
        Is told which samples go on, after every token.

    Returns
    -------
    Ids of each sample, up to its end marker.
    """
    import torch

    dtype = next(model.parameters()).dtype
    cast = {
        key: value.to(dtype) if torch.is_floating_point(value) else value
        for key, value in inputs.items()
    }
    start = int(inputs["input_ids"].shape[1])
    ends = _end_markers(model.generation_config.eos_token_id)

    def follow(ids: Any, scores: Any, **unused: Any) -> Any:
        if observer is not None:
            rows = ids[:, start:].tolist()
            observer.continuing([i for i, row in enumerate(rows) if not ends.intersection(row)])
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    with torch.no_grad():
        found = model.generate(
            **cast, do_sample=False, num_beams=1, use_cache=True, max_new_tokens=steps,
            stopping_criteria=[follow],
        )  # fmt: skip
    return [_until_end(row, ends) for row in found[:, start:].tolist()]


def _end_markers(value: Any) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset(value) if isinstance(value, (list, tuple)) else frozenset({int(value)})


def _until_end(ids: Sequence[int], ends: frozenset[int]) -> list[int]:
    stop = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:stop])

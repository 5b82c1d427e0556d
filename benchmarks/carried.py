"""``python -m benchmarks.carried``: what value norms and hidden states cost a layer of Pi0's size, alone.

CPU milliseconds on one thread, median of 15 calls: the reductions of `attnstore.ingest.reduction`, norms by Gram
matrices, and the same product in bfloat16 with a factor of them, with how far its norms are off.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from attnstore.ingest.policies.released import tokens
from attnstore.ingest.policies.values import ValueNorms, check_mixing, mixed_last
from attnstore.ingest.reduction import reduce, reduce_carried, reduce_states
from attnstore.store.format.tokens import Axis

HEADS, FEATURES, CALLS = 8, 256, 15
PREFIX = tokens(front=(16, 16), wrist=(16, 16), bos=1, task=12, newline=1)
SUFFIX = tokens(state=1, action=50)
PHASES = {"prefix": (PREFIX, 0, 2048, "task"), "suffix": (SUFFIX, len(PREFIX), 1024, "action")}
"""Queries, keys before them, width, and the query group."""


def main() -> None:
    """Time every part of every phase."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for phase, (query, before, width, group) in PHASES.items():
        for name, call in parts(query, before, width, group).items():
            print(f"{phase}, {name}: {milliseconds(call):.3g} ms", flush=True)


def parts(query: Axis, before: int, width: int, group: str) -> dict[str, Callable[[], Any]]:
    """What a layer's capture does with its weights, its own tokens' values and its hidden states."""
    own, keys = len(query), before + len(query)
    weights = torch.randn(1, HEADS, own, keys).softmax(-1)
    norms = torch.rand(HEADS, keys) + 0.1
    values = torch.randn(1, keys, 1, FEATURES).bfloat16()
    output = torch.nn.Linear(HEADS * FEATURES, width, bias=False, dtype=torch.bfloat16)
    states = torch.randn(own, width).bfloat16()
    seen, made, kept = weights.bfloat16(), values[:, :own], ValueNorms()
    mixed = mixed_last(seen, values).bfloat16()
    heads = output.weight.detach().double().reshape(width, HEADS, FEATURES).transpose(0, 1)
    wide = torch.linalg.qr(heads, mode="r").R.permute(2, 0, 1).reshape(FEATURES, -1).bfloat16()

    def rounded() -> torch.Tensor:
        product = (made[0, :, 0] @ wide).view(own, HEADS, FEATURES)
        return torch.linalg.vector_norm(product, dim=-1, dtype=torch.float32).T

    exact = torch.stack([(made[0, :, 0].double() @ each.T).norm(dim=-1) for each in heads])
    off = float((rounded() / exact - 1).abs().max())
    return {
        "raw statistics": lambda: reduce(weights[0], query, (group,)),
        "value-weighted statistics": lambda: reduce_carried(weights[0], norms, query, (group,)),
        "norms of its own tokens": lambda: kept.of(made, output, HEADS),
        f"the same in bfloat16, up to {off:.2%} off": rounded,
        "check of what is mixed": lambda: check_mixing(mixed_last(seen, values), mixed, "here"),
        "means of hidden states": lambda: reduce_states(states, query, ()),
    }


def milliseconds(call: Callable[[], Any]) -> float:
    """CPU time of a call."""
    call()
    found = []
    for _ in range(CALLS):
        start = time.thread_time()
        call()
        found.append(time.thread_time() - start)
    return 1000 * statistics.median(found)


if __name__ == "__main__":
    main()

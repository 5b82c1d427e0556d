"""``python -m examples.toy_cube.train``: train the tiny Pi0 by flow matching; resumable.

The learning rate rises for `WARMUP` steps, stays, and falls to zero over the last ``--decay``
steps: a run may be prolonged later with a larger ``--steps``. Batches depend on seed and step alone.
What is saved is the exponential moving average of the weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import architecture, attention
from .batches import Samples
from .losses import Probes, losses
from .validation import validate

WARMUP = 200
WEIGHTS = {"flow": 1.0, "classes": 1.0, "place": 0.5, "words": 0.5}
AVERAGE = 0.998
"""Decay of the moving average of the weights."""


def main() -> None:
    """Train until ``--steps``; go on where an earlier run of the same directory stopped."""
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "meeting").unlink(missing_ok=True)  # of an earlier run
    context = get_context("spawn")
    for rank in range(1, given.processes):
        context.Process(target=train, args=(rank, given), daemon=True).start()
    train(0, given)


def train(rank: int, given: argparse.Namespace) -> None:
    """Train as one of several processes, which see different shards and share their gradients."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if given.processes > 1:
        meeting = f"file://{(given.out / 'meeting').resolve()}"
        torch.distributed.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=given.processes
        )
    built = architecture.processor()
    samples = Samples(
        given.data, built, shards=given.shards, part=(given.processes, rank), blind=given.blind
    )
    held_out = Samples(given.validation, built, blind=given.blind)
    model = architecture.model(built, given.seed)
    model.set_attn_implementation(attention.register())
    probes = Probes(model.config.vlm_config.text_config.hidden_size)
    average, average_probes = copy.deepcopy(model).eval(), copy.deepcopy(probes).eval()
    weights = Master([*model.parameters(), *probes.parameters()])
    model.to(torch.bfloat16), probes.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(weights.exact, given.rate, betas=(0.9, 0.95), weight_decay=0.01)
    saved = given.out / "state.pt"
    step, curve = 0, []
    modules = {"average": average, "average_probes": average_probes}
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        step, curve = state["step"], state["curve"]
        optimizer.load_state_dict(state["optimizer"])
        for name, module in modules.items():
            module.load_state_dict(state[name])
        weights.load(state["weights"])
    shares = {**WEIGHTS, **({"words": 0.0} if given.no_words else {})}
    start, seen = time.monotonic(), step
    while step < given.steps:
        for group in optimizer.param_groups:
            group["lr"] = given.rate * schedule(step, given.steps, given.decay)
        parts = train_step(model, probes, samples, given, step, rank, shares)
        weights.update(optimizer)
        kept = [*average.parameters(), *average_probes.parameters()]
        blend(kept, weights.exact, step)
        step += 1
        if rank:
            continue
        if step % 50 == 0:
            pace = (time.monotonic() - start) / (step - seen)
            point = {"step": step, "rate": optimizer.param_groups[0]["lr"], "pace": pace, **parts}
            curve.append(point)
            print(line(point), flush=True)
        if step % given.every == 0 or step == given.steps:
            point = {"step": step, **validate(average, average_probes, held_out)}
            curve.append(point)
            print(line(point), flush=True)
            state = {name: module.state_dict() for name, module in modules.items()}
            state |= {"step": step, "curve": curve, "optimizer": optimizer.state_dict()}
            state["weights"] = weights.exact
            torch.save(state, saved.with_suffix(".part"))
            saved.with_suffix(".part").rename(saved)
            (given.out / "curve.json").write_text(json.dumps(curve))
            architecture.save(average, built, given.out / "checkpoint")


class Master:
    """Exact weights beside the model's bfloat16 ones: a small step would be lost in those.

    Parameters
    ----------
    parameters
        Of a model in float32, which is then turned to bfloat16 in place.
    """

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self._rounded = parameters
        self.exact = [p.detach().clone().requires_grad_() for p in parameters]

    @torch.no_grad()
    def load(self, exact: list[torch.Tensor]) -> None:
        """Take over saved weights."""
        for mine, saved, rounded in zip(self.exact, exact, self._rounded, strict=True):
            mine.copy_(saved)
            rounded.copy_(saved)

    @torch.no_grad()
    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Step with the gradients of the rounded weights, their norm clipped to 1."""
        for mine, rounded in zip(self.exact, self._rounded, strict=True):
            mine.grad = None if rounded.grad is None else rounded.grad.float()
            rounded.grad = None
        if torch.distributed.is_initialized():
            share_gradients([mine.grad for mine in self.exact if mine.grad is not None])
        torch.nn.utils.clip_grad_norm_(self.exact, 1.0)
        optimizer.step()
        for mine, rounded in zip(self.exact, self._rounded, strict=True):
            rounded.copy_(mine)


def share_gradients(gradients: list[torch.Tensor]) -> None:
    """Replace gradients by their mean over all processes."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def train_step(
    model: Any,
    probes: Probes,
    samples: Samples,
    given: argparse.Namespace,
    step: int,
    rank: int,
    shares: dict[str, float],
) -> dict[str, float]:
    """Compute the gradients of one step; return the parts of the loss."""
    random = np.random.default_rng([given.seed, step, rank])
    part = "vision" if step < given.vision else "prefix" if step < given.prefix else "all"
    rows = random.integers(len(samples), size=given.batch * (1 if part == "all" else 2))
    torch.manual_seed(int(random.integers(2**62)))  # noise and times inside the model
    inputs = samples.inputs(rows, torch.Generator().manual_seed(int(random.integers(2**62))))
    for name in ("pixel_values", "state"):
        inputs[name] = inputs[name].to(torch.bfloat16)
    parts = losses(
        model,
        probes,
        inputs,
        samples.actions(rows).to(torch.bfloat16),
        samples.targets(rows),
        draws=given.draws,
        part=part,
    )
    total = sum(share * getattr(parts, name) for name, share in shares.items())
    total.backward()
    return {name: getattr(parts, name).item() for name in shares}


def schedule(step: int, steps: int, decay: int) -> float:
    """Share of the learning rate at a step."""
    falling = (steps - step) / decay if decay else 1.0
    return min(1.0, (step + 1) / WARMUP, falling)


@torch.no_grad()
def blend(average: list[torch.Tensor], exact: list[torch.Tensor], step: int) -> None:
    """Update the moving average; a young one forgets faster."""
    decay = min(AVERAGE, (step + 1) / (step + 10))
    for kept, new in zip(average, exact, strict=True):
        kept.lerp_(new, 1 - decay)


def line(point: dict[str, Any]) -> str:
    """One point of the curve as text."""
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in point.items()
    )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="shards of `samples`")
    parser.add_argument("--validation", type=Path, required=True, help="shards of another seed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, help="use the first so many; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1850)
    parser.add_argument("--decay", type=int, default=350, help="steps of falling learning rate")
    parser.add_argument("--batch", type=int, default=16, help="samples a step and process")
    parser.add_argument("--vision", type=int, default=500, help="first steps: vision tower alone")
    parser.add_argument("--prefix", type=int, default=750, help="first steps without the suffix")
    parser.add_argument("--draws", type=int, default=4, help="noises a sample")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument(
        "--processes", type=int, default=2, help="one thread each: faster than one with two"
    )
    parser.add_argument("--blind", action="store_true", help="train on black images")
    parser.add_argument("--no-words", action="store_true", help="without the loss of the words")
    return parser.parse_args()


if __name__ == "__main__":
    main()

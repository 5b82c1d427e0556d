"""``python -m benchmarks.adapters CASE ...``: what capture costs with other adapters, and the bytes that it keeps.

Each case is to be run in its policy's own environment (docs/how-to/policies.md), at the released size or the part
that its function names, with random weights. CPU time of a keyframe on one thread: attention, written as float16,
over the policy's own call, then value norms and hidden states, which ingest keeps by default, over the attention
alone. JAX has as many threads as it sees cores: ``taskset -c 0``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from attnstore.ingest.policies.base import ATTENTION_ONLY, Policy, shows_hidden, shows_values

from . import lerobot_cases, openpi_cases, openvla_cases
from .capture_process import WATCHED, Bench
from .full_paligemma import paligemma
from .full_pi0 import full_policy

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
ARRAYS = {"value norms": "value_norm", "hidden states": "hidden"}


def octo(folder: Path) -> Policy:
    """Octo-small, 27 M parameters, over a small T5."""
    from octo_checkpoint import save_octo_small

    from attnstore.ingest.policies.octo.policy import OctoPolicy

    return OctoPolicy(str(save_octo_small(folder)))


CASES: Mapping[str, Callable[[Path], Policy]] = {
    "pi0": lambda folder: full_policy(),
    "pi0-2-layers": lambda folder: full_policy(part=9),
    "paligemma": lambda folder: paligemma(),
    "act": lerobot_cases.act,
    "smolvla": lerobot_cases.smolvla,
    "xvla": lerobot_cases.xvla,
    "groot": lerobot_cases.groot,
    "molmoact2": lerobot_cases.molmoact2,
    "lerobot-pi0": partial(lerobot_cases.pi, kind="pi0"),
    "lerobot-pi05": partial(lerobot_cases.pi, kind="pi05"),
    "lerobot-pi0-fast": lerobot_cases.pi_fast,
    "openpi": openpi_cases.pi05,
    "openpi-6-layers": partial(openpi_cases.pi05, layers=6),
    "openpi-2-layers": partial(openpi_cases.pi05, layers=2),
    "openpi-jax": openpi_cases.pi05_jax,
    "openpi-jax-fast": openpi_cases.pi_fast_jax,
    "openvla": openvla_cases.openvla,
    "openvla-oft": openvla_cases.oft,
    "openvla-oft-diffusion": openvla_cases.oft_diffusion,
    "octo": octo,
}


def main() -> None:
    """Measure every case that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--keyframes", type=int, default=3, help="of which a round takes the median"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            indices = range(0, 8 * options.keyframes, 8)
            bench = Bench(CASES[case](Path(folder)), Path(folder), indices)
            load = os.getloadavg()[0]
            print(f"{case}, load {load:.1f}: {measure(bench, options.rounds)}", flush=True)


def measure(bench: Bench, rounds: int) -> str:
    """Say what each part costs, rounds in turn, and how large it is."""
    shown = {"value norms": shows_values(bench.policy), "hidden states": shows_hidden(bench.policy)}
    shown["both"] = all(shown.values())
    parts = {name: watch for name, watch in WATCHED.items() if shown[name]}
    bench.plain()
    for watch in (ATTENTION_ONLY, *parts.values()):  # JAX compiles for each
        bench.captured("float16", watch=watch)
    own, over_own, over_attention = [], [], {name: [] for name in parts}
    sizes: dict[str, float] = {}
    for _ in range(rounds):
        plain, attention = bench.plain(), bench.captured("float16")
        own.append(plain)
        over_own.append(attention / plain)
        for name, watch in parts.items():
            over_attention[name].append(bench.captured("float16", watch=watch) / attention)
            if name in ARRAYS:
                sizes[name] = bench.stored[ARRAYS[name]] / bench.stored["attention"]
    said = [
        f"its own call {statistics.median(own):.3g} CPU s",
        f"attention written over that {_spread(over_own)}",
    ]
    for name in parts:
        size = f", {sizes[name]:.2%} of its bytes" if name in sizes else ""
        said.append(f"{name} over the attention {_spread(over_attention[name])}{size}")
    return "; ".join(said)


def _spread(ratios: list[float]) -> str:
    """The median, and the least and the largest."""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()

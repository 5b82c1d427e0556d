"""What capture costs: CPU time of a keyframe's inference with it, over plain sdpa inference.

The policy's own processor (images, tokens) is outside both. Torch runs on one thread, so that CPU
time is not that of threads waiting for each other; the writer's threads count in full. Rounds
alternate, so that a busy neighbour slows all kinds alike. Every kind runs in a process of its own
where memory is measured.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

from .capture_process import WATCHED
from .measure import Figure, Setting

LABELS = {
    "tiny": "Pi0 tiny",
    "full": "Pi0 full",
    "paligemma": "PaliGemma 3B, a ninth of its layers",
    "paligemma toy": "PaliGemma toy",
}


def run(setting: Setting) -> list[Figure]:
    figures = []
    for size in ("tiny", "paligemma toy") if setting.toy else ("tiny", "full", "paligemma"):
        figures += _costs(setting, size)
    return figures


def _costs(setting: Setting, size: str) -> list[Figure]:
    rounds = setting.repeats(15 if size == "tiny" else 3)
    times = _process("times", size, setting, rounds)
    plain = statistics.median(times["plain"])
    eager = statistics.median(times["eager"])
    aim = "<= 1.1" if size == "full" else ""
    label = LABELS[size]
    figures = [
        Figure(f"{label}: parameters", times["parameters"] / 1e9, "billion"),
        Figure(f"{label}: raw float16 a keyframe", times["raw"] / 1e6, "MB"),
        Figure(f"{label}: plain sdpa", plain, "CPU s", note=f"median of {rounds} rounds"),
        Figure(f"{label}: eager without capture", eager, "CPU s"),
        Figure(f"{label}: eager over sdpa", _ratio(times, "eager"), "times", baseline="plain sdpa"),
    ]
    for precision in ("float16", "log8"):
        full = statistics.median(times[precision])
        reduced = statistics.median(times[f"{precision} unwritten"])
        encoding = statistics.median(times[f"{precision} encoding"])
        over = _ratio(times, precision)
        figures += [
            Figure(f"{label}, {precision}: capture and writing over sdpa", over, "times",
                   baseline="plain sdpa", aim=aim if precision == "float16" else ""),
            Figure(f"{label}, {precision}: capture and writing over eager", full / eager, "times",
                   baseline="eager without capture"),
            Figure(f"{label}, {precision}: statistics and hooks", reduced - eager - encoding, "CPU s"),
            Figure(f"{label}, {precision}: encoding", encoding, "CPU s"),
            Figure(f"{label}, {precision}: compressing, hashing, writing", full - reduced, "CPU s"),
            Figure(f"{label}, {precision}: end of an episode", times[f"{precision} commit"], "CPU s",
                   note="sinks, aggregates, Parquet, commit; once an episode of 3 keyframes"),
        ]  # fmt: skip
    figures += [
        Figure(f"{label}, float16: with {name}, over attention alone",
               statistics.median(a / b for a, b in zip(times[name], times["float16"], strict=True)),
               "times", baseline="float16: capture and writing")
        for name in WATCHED
    ]  # fmt: skip
    stored = times["bytes"]
    figures += [
        Figure(f"{label}, float16: bytes of {name} over those of the attention",
               stored[array] / stored["attention"], "of 1")
        for array, name in (("value_norm", "value norms"), ("hidden", "hidden states"))
    ]  # fmt: skip
    bare = _process("memory-plain", size, setting, 1)
    full = _process("memory-float16", size, setting, 1)
    extra = (full["peak"] - bare["peak"]) / 2**20
    note = "difference of two processes' peaks over 3 keyframes, after one for warming up"
    figures += [
        Figure(f"{label}: peak memory of plain inference", bare["peak"] / 2**20, "MiB"),
        Figure(f"{label}: peak memory that capture adds", extra, "MiB", baseline="plain sdpa",
               aim="<= 300" if size == "full" else "", note=note),
    ]  # fmt: skip
    return figures


def _ratio(times: dict[str, Any], kind: str) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times[kind], times["plain"], strict=True))


def _process(mode: str, size: str, setting: Setting, rounds: int) -> dict[str, Any]:
    if setting.toy:
        from .capture_process import measure

        return measure(mode, size, setting.directory, rounds)
    arguments = [mode, size, str(setting.directory), str(rounds)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.capture_process", *arguments],
        check=True,
        stdout=subprocess.PIPE,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))

"""log8 with a floor: how much smaller attention gets when small weights are stored as exact zero.

Each row would keep the mass that was dropped as a number of its own, a float16. Two rules: one threshold
for all weights, and each row's own, which drops its smallest weights up to a share of its mass. The
second drops the most weights that a bound on the mass allows: no other rule is smaller.
Blocks are those of a store: 64 rows of a head, with the store's codec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray

import attnstore
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import EpisodeJob, ingest_episode
from attnstore.ingest.plan import describe_run
from attnstore.ingest.policies.registry import load_policy
from attnstore.sample import checkpoint_path, episodes_path
from attnstore.store.arrays.chunking import QUERY_BLOCK, blosc
from attnstore.store.commits.run import save_run
from attnstore.store.format.precision import encode
from attnstore.store.opening import create_store

from .measure import Figure, Setting
from .trained import keyframes

Weights = NDArray[np.float32]
Rule = Callable[[Weights], NDArray[np.bool_]]
PREFIX, ACTIONS, STEPS = 572, 15, 2
THRESHOLDS = (2.0**-14, 2.0**-12, 1e-3, 2.0**-8)
SHARES = (0.001, 0.01, 0.05, 0.1)
SMALLER = 3.0
"""Times smaller than log8 at which a floor would become a precision, at `AT_MOST` of a row's mass."""
AT_MOST = 0.01


def run(setting: Setting) -> list[Figure]:
    figures = []
    for source, phases in _sources(setting).items():
        for phase, heads in phases.items():
            figures += _measure(f"{source}, {phase}", heads)
    return figures


def _measure(where: str, heads: list[Weights]) -> list[Figure]:
    plain = sum(_stored(encode(w, "log8")) for w in heads)
    rows = sum(w.shape[0] for w in heads)
    weights = sum(w.size for w in heads)
    figures = [Figure(f"{where}: log8", 8 * plain / weights, "bits a weight")]
    rules: dict[str, Rule] = {
        f"below {t:.2g}": lambda w, t=t: w < t
        for t in THRESHOLDS  # type: ignore[misc]
    }
    rules |= {
        f"{share:.1%} of each row": lambda w, share=share: _smallest(w, share)  # type: ignore[misc]
        for share in SHARES
    }
    for name, rule in rules.items():
        size, zeros, lost = 2 * rows, 0, []
        for each in heads:
            dropped = rule(each)
            codes = encode(each, "log8")
            codes[dropped] = 0
            size += _stored(codes)
            zeros += int(dropped.sum())
            lost.append((each * dropped).sum(-1))
        mass = np.concatenate(lost)
        bounded = name == f"{AT_MOST:.1%} of each row"
        figures.append(
            Figure(f"{where}: {name}, smaller than log8", plain / size, "times",
                   aim=f">= {SMALLER:g}" if bounded else "",
                   note=f"{zeros / weights:.0%} of the weights; mass of a row: mean {mass.mean():.2%}, "
                        f"p99 {np.quantile(mass, 0.99):.2%}, most {mass.max():.2%}")
        )  # fmt: skip
    return figures


def _smallest(weights: Weights, share: float) -> NDArray[np.bool_]:
    """Mark each row's smallest weights that together are at most a share of it."""
    order = np.argsort(weights, -1)
    total = np.cumsum(np.take_along_axis(weights, order, -1).astype(np.float64), -1)
    marks = np.empty(weights.shape, bool)
    np.put_along_axis(marks, order, total <= share * total[:, -1:], -1)
    return marks


def _stored(codes: NDArray[Any]) -> int:
    """Bytes of a head's (query, key) codes as the store compresses them."""
    settings = blosc("log8")
    shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[settings["shuffle"]]
    codec = Blosc(settings["cname"], settings["clevel"], shuffle)
    return sum(
        len(codec.encode(np.ascontiguousarray(codes[start : start + QUERY_BLOCK])))
        for start in range(0, len(codes), QUERY_BLOCK)
    )


def _sources(setting: Setting) -> Mapping[str, Mapping[str, list[Weights]]]:
    prefix, layers = (128, 2) if setting.toy else (PREFIX, 18)
    (page,) = keyframes(1, prefix=prefix, actions=ACTIONS, steps=STEPS, layers=layers)
    return {
        "all-MiniLM-L6-v2": {
            "prefix": [head.float().numpy() for layer in page.prefix for head in layer],
            "suffix": [h.float().numpy() for step in page.suffix for layer in step for h in layer],
        },
        "toy cube's policy": {
            phase: list(_heads(_packaged(setting.directory), phase))
            for phase in ("prefix", "suffix")
        },
    }


def _packaged(directory: Path) -> Path:
    """Ingest one episode of the packaged sample with its trained policy, at float16."""
    path = directory / "packaged.attn"
    if not path.exists():
        policy = load_policy("pi0", str(checkpoint_path()), dtype="float32")
        dataset = DroidDataset(episodes_path())
        job = describe_run(policy, "pi0", dataset, stride=16, precision="float16", seed=0)
        paths = create_store(path)
        save_run(paths, job, {})
        ingest_episode(EpisodeJob(paths, job), policy, dataset, dataset.episode_names()[-1])
    return path


def _heads(path: Path, phase: str) -> Iterator[Weights]:
    with attnstore.open(path) as store:
        (episode,) = store.episodes.values()
        weights = episode.attention(phase, keyframe=[0, -1]).values
    yield from weights.reshape(-1, *weights.shape[-2:])

"""``python -m examples.toy_cube.outcomes``: where successes and failures of one policy look.

One number an episode: the mean over its first `EARLY` keyframes, which every episode has. Outcomes
are exchanged within a world only, so that no difference between worlds is one between outcomes. Two
kinds of families of tests, each with its own Benjamini-Hochberg correction: lift on what the
instruction names, of the heads that were found on other episodes to look there; and entropy and
share of attention of every head, a family for each camera and phase.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import attnstore
from attnstore.query.groups.comparison import compare
from attnstore.query.resampling import (
    benjamini_hochberg,
    bootstrap_interval,
    cliffs_delta,
    difference,
    permutation_test,
)
from attnstore.sample.looking import Float, look, mean_interval, read_scenes
from attnstore.sample.strength import HEADS

from .samples import CAMERAS

EARLY = 2
"""Keyframes: before any cube is in the gripper."""
METRICS = ("entropy", "camera_mass")


def lifts(store: attnstore.Store, dataset: Path, run: str) -> list[dict[str, Any]]:
    """Test each of `HEADS`; q is over all of them."""
    rows = []
    for camera in CAMERAS:
        scenes = read_scenes(store, dataset, camera, run)
        success = np.array([scene.episode.outcome == "success" for scene in scenes])
        worlds = np.unique([str(scene.episode.date) for scene in scenes], return_inverse=True)[1]
        for question, (layer, head) in HEADS.items():
            if question.camera != camera:
                continue
            values = look(scenes, question, EARLY).lift["target"][:, layer, head]
            row: dict[str, Any] = {"query": question.query, "object": question.thing}
            row |= {"camera": camera, "layer": layer, "head": head}
            rows.append(row | tested(values, success, worlds))
    adjusted = benjamini_hochberg(np.array([row["p"] for row in rows]))
    return [row | {"q": round(float(q), 4)} for row, q in zip(rows, adjusted, strict=True)]


def tested(values: Float, success: Any, stratum: Any) -> dict[str, Any]:
    """Compare successes and failures within strata; episodes without the object are left out."""
    known = ~np.isnan(values)
    x, a, by = values[known, None], success[known], stratum[known]
    low, high = bootstrap_interval(x, a, by, np.arange(len(x)))
    return {
        "episodes": [int(a.sum()), int((~a).sum())],
        "success": mean_interval(x[a, 0]),
        "failure": mean_interval(x[~a, 0]),
        "within": [float(difference(x, a, by)[0]), float(low[0]), float(high[0])],
        "cliffs_delta": float(cliffs_delta(x[a], x[~a])[0]),
        "p": float(permutation_test(x, a, by).p[0]),
    }


def families(store: attnstore.Store, run: str) -> list[dict[str, Any]]:
    """Test entropy and share of attention of every head, family by family."""
    rows = []
    for metric, phase, camera in product(METRICS, ("prefix", "suffix"), CAMERAS):
        found = compare(
            store, metric, by="outcome", where=f"run = '{run}'", phase=phase, camera=camera,
            window=EARLY, strata=("date",),
        )  # fmt: skip
        table = found.table().to_pylist()
        keys = ("layer", "head", "mean_a", "mean_b", "within", "within_low", "within_high",
                "cliffs_delta", "p", "q")  # fmt: skip
        rows.append(
            {
                "metric": metric,
                "phase": phase,
                "camera": camera,
                "groups": [table[0]["group_a"], table[0]["group_b"]],
                "tests": len(table),
                "significant": sum(row["significant"] for row in table),
                "first": [{key: row[key] for key in keys} for row in table[:3]],
            }
        )
    return rows


def main() -> None:
    """Print what was tested, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--episodes", type=Path, required=True, help="the ingested data set")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    store = attnstore.open(given.store)
    (run,) = store.runs
    found = {"lift": lifts(store, given.episodes, run), "families": families(store, run)}
    for row in found["lift"]:
        success, failure, within = (
            "{:.1f} ({:.1f} to {:.1f})".format(*row[key])
            for key in ("success", "failure", "within")
        )
        print(
            f"{row['query']} → {row['object']}, {row['camera']}, L{row['layer']:02d} "
            f"H{row['head']:02d}: {success} against {failure}; within worlds {within}, "
            f"p {row['p']:.4f}, q {row['q']:.4f}"
        )
    for row in found["families"]:
        first = row["first"][0]
        print(
            f"{row['metric']}, {row['phase']}, {row['camera']}: {row['significant']} of "
            f"{row['tests']} heads; smallest q {first['q']:.4f} at L{first['layer']:02d} "
            f"H{first['head']:02d}"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

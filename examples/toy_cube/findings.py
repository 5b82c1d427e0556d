"""``python -m examples.toy_cube.findings``: which heads look at the target, and how surely.

The head of a question is chosen on every other episode (largest mean lift on the target), and all
numbers are of the remaining ones: the best of many heads is good by chance on those that chose it.
The same choice among a randomly initialised model's heads is reported beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import attnstore
from attnstore.query.resampling import permutation_test
from attnstore.sample.looking import (
    AGAINST,
    Float,
    Looking,
    Question,
    look,
    mean_interval,
    read_scenes,
    span,
    word_share,
)

from .samples import CAMERAS

ASKED = (("cube word", "cube"), ("bowl word", "bowl"), ("action", "cube"), ("action", "bowl"))
EARLY = 2
"""Keyframes of the window in which successes and failures are compared."""


def best_head(lift: Float) -> tuple[int, int]:
    """Return layer and head of the largest mean over episodes, (episode, layer, head)."""
    mean = np.nanmean(lift, axis=0)
    layer, head = np.unravel_index(int(np.nanargmax(mean)), mean.shape)
    return int(layer), int(head)


def summary(found: Looking) -> dict[str, Any]:
    """Choose a head on the even episodes; measure it on the odd ones."""
    layer, head = best_head(found.lift["target"][::2])
    row: dict[str, Any] = {"layer": layer, "head": head}
    for name in AGAINST:
        row[f"lift_{name}"] = mean_interval(found.lift[name][1::2, layer, head])
        row[f"hit_{name}"] = mean_interval(found.hit[name][1::2, layer, head])
    row["lift_all_heads"] = mean_interval(np.nanmean(found.lift["target"][1::2], axis=(1, 2)))
    return row


def outcomes(found: Looking, outcome: list[str], head: tuple[int, int]) -> dict[str, Any] | None:
    """Compare the target's lift at a head between successes and failures, one number an episode."""
    values = found.lift["target"][:, head[0], head[1]]
    known = ~np.isnan(values)
    values, success = values[known], np.array(outcome)[known] == "success"
    if min(success.sum(), (~success).sum()) < 4:
        return None
    tested = permutation_test(values[:, None], success, np.zeros(len(values), np.intp))
    return {
        "success": mean_interval(values[success]),
        "failure": mean_interval(values[~success]),
        "episodes": [int(success.sum()), int((~success).sum())],
        "p": float(tested.p[0]),
    }


def measure(store: attnstore.Store, dataset: Path, run: str) -> dict[str, Any]:
    """Answer every question for one run."""
    rows = []
    for camera in CAMERAS:
        scenes = read_scenes(store, dataset, camera, run)
        outcome = [scene.episode.outcome for scene in scenes]
        for query, thing in ASKED:
            question = Question(query, thing, camera)
            found = look(scenes, question)
            row = {"query": query, "object": thing, "camera": camera, **summary(found)}
            early = look(scenes, question, EARLY)
            row["outcomes"] = outcomes(early, outcome, (row["layer"], row["head"]))
            rows.append(row)
    shares = store.sql(
        "select phase, query_group, layer, camera, avg(camera_mass_mean) image, "
        f"avg(letterbox_mass_mean) letterbox from episode_stats where run = '{run}' "
        "and weighting = 'raw' "
        "and query_group in ('task', 'action') group by all order by all"
    ).fetchall()
    names = ("phase", "query_group", "layer", "camera", "image", "letterbox")
    return {
        "episodes": len(outcome),
        "successes": outcome.count("success"),
        "heads": rows,
        "action_to_word": {
            thing: np.round(word_share(scenes, thing), 4).tolist() for thing in ("cube", "bowl")
        },
        "cameras": [dict(zip(names, share, strict=True)) for share in shares],
    }


def table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the heads as a Markdown table."""
    lines = [
        "| queries → object, camera | run | head | lift, target | lift, other of its kind | "
        "lift, shuffled | hit, target | hit, other |",
        "|---|---|---|---|---|---|---|---|",
    ]
    trained = next(iter(measured.values()))
    for i, name in product(range(len(trained["heads"])), measured):
        row = measured[name]["heads"][i]
        cells = [
            f"{row['query']} → {row['object']}, {row['camera']}",
            name,
            f"L{row['layer']:02d} H{row['head']:02d}",
            *(span(row[f"lift_{against}"], 1) for against in AGAINST),
            span(row["hit_target"], 2),
            span(row["hit_other"], 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and write all numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--episodes", type=Path, required=True, help="the ingested data set")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    store = attnstore.open(given.store)
    runs = store.sql("select checkpoint, run from runs order by created").fetchall()
    measured = {name: measure(store, given.episodes, run) for name, run in runs}
    print(table(measured))
    if given.json:
        given.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()

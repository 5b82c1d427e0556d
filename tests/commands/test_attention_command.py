"""``attnstore attention``: rollout and words on the command line, against plain NumPy over the store's arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cli_fixtures import NAME, assert_one_line, make_root, run
from numpy.testing import assert_allclose
from numpy.typing import NDArray

import attnstore

__all__ = ["make_root"]
Float = NDArray[np.float64]


def rows_of(root: Path, *words: str) -> list[dict[str, Any]]:
    done = run("attention", words[0], root, "--episode", NAME, "--json", *words[1:])
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("residual", ["0.5", "0.25"])
def test_a_rollout_is_the_product_of_the_layers(root: Path, tmp_path: Path, residual: str) -> None:
    out = tmp_path / "rollout.png"
    rows = rows_of(root, "rollout", "--keyframe", "1", "--residual", residual, "--out", str(out))
    episode = attnstore.open(root).episode(NAME)
    stored: Float = np.asarray(
        episode.attention("prefix", keyframe=1).to_numpy(), np.float64
    )  # (layer, head, query, key)
    there = [int(i) for i in np.flatnonzero(np.isfinite(stored[0, 0]).any(1))]
    total = np.eye(len(there))
    for layer in stored.mean(1)[:, there][:, :, there]:
        mixed = float(residual) * np.eye(len(there)) + (1 - float(residual)) * layer
        total = mixed / mixed.sum(1, keepdims=True) @ total
    spec = episode.phase("prefix")
    task = [
        there.index(i)
        for i in range(spec.query["task"].start, spec.query["task"].stop)
        if i in there
    ]
    for row in rows:
        inputs = [
            there.index(i)
            for i in range(spec.key[row["input"]].start, spec.key[row["input"]].stop)
            if i in there
        ]
        assert_allclose(row["share"], total[task][:, inputs].sum(1).mean(), rtol=1e-4)
    assert_allclose(sum(row["share"] for row in rows), 1, rtol=1e-5)
    assert {row["query"] for row in rows} == {"task"}
    picture = cv2.imread(str(out))
    assert picture is not None
    assert picture.std() > 5


def test_words_against_the_stored_weights(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "words.png"
    episode = attnstore.open(root).episode(NAME)
    camera = episode.cameras[0]
    rows = rows_of(
        root, "words", "--camera", camera, "--layer", "1", "--head", "0", "--out", str(out)
    )
    for row in rows:
        weights = np.asarray(
            episode.attention(
                "prefix",
                keyframe=0,
                layer=1,
                head=0,
                query=f"word:{row['word']}",
                key=f"image:{camera}",
            ).to_numpy(),
            np.float64,
        ).reshape(-1, np.prod(episode.geometry(camera).grid))
        tokens = weights[np.isfinite(weights).all(1)]
        assert (row["mass"] is None) == (not len(tokens))
        if len(tokens):
            assert_allclose(row["mass"], tokens.mean(0).sum(), rtol=1e-3)
    assert [row["layer"] for row in rows] == [1] * len(rows)
    picture = cv2.imread(str(out))
    assert picture is not None
    assert picture.shape[1] > 400


def test_what_cannot_be_answered_is_one_line(root: Path) -> None:
    assert_one_line(run("attention", "words", root, "--head", "best"), 2, "--head", "'best'")
    assert_one_line(run("attention", "words", root, "--camera", "roof"), 2, "roof")
    assert_one_line(run("attention", "rollout", root, "--phase", "dream"), 2, "dream")

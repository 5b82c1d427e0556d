"""`attnstore demo` runs as a newcomer runs it, and what it says is what the store holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import attnstore
from attnstore.sample import checkpoint_path, episodes_path
from attnstore.sample.looking import mean_interval
from attnstore.sample.strength import HEADS, measure

CUBE = "cube word → cube, wrist"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Its directory, and all that it printed."""
    pytest.importorskip("torch", reason="a model's test needs torch")
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "attnstore", "demo", "--out", str(out)]
    done = subprocess.run(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout + done.stderr


@pytest.mark.slow
def test_the_table_says_what_the_store_holds(ran: tuple[Path, str]) -> None:
    out, said = ran
    trained, untrained = attnstore.open(out / "demo.attn"), attnstore.open(out / "untrained.attn")
    rows = measure(trained, untrained, episodes_path())
    assert [row.question for row in rows] == [*HEADS]
    (line,) = (line for line in said.splitlines() if line.strip().startswith(CUBE))
    told = [float(number) for number in re.findall(r"\d+\.\d+", line)]
    shown = [*rows[0].lift.values(), rows[0].untrained, rows[0].hit]
    np.testing.assert_allclose(told, np.concatenate(shown), atol=0.051)
    for row in rows:
        if row.question.query != "action":  # training asked the words, not the actions
            # the whole interval is above what the place alone is worth, and above the other object
            assert row.lift["target"][1] > row.lift["other"][2]
            assert row.lift["target"][1] > row.untrained[2]
            assert row.lift["target"][0] > 1.5 * row.lift["shuffled"][0]
        assert row.untrained[2] < 1.5, "random weights look at nothing in particular"


@pytest.mark.slow
def test_it_says_where_the_numbers_are_from(ran: tuple[Path, str]) -> None:
    _, said = ran
    for word in ("simulated", "auxiliary losses", "untrained", "docs/findings.md", "Next:"):
        assert word in " ".join(said.split())
    assert "\nfailure" in said
    assert "\nsuccess" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_first_picture_is_hot_on_the_named_cube(ran: tuple[Path, str]) -> None:
    out, said = ran
    pictures = [Path(line.split("  (")[0].strip()) for line in said.splitlines() if " (" in line]
    pictures = [path for path in pictures if path.is_relative_to(out)]
    assert all(path.exists() for path in pictures)
    (first,) = (path for path in pictures if path.name == "prefix_L0_attn_vis_max.jpg")
    image = cv2.imread(str(first))
    assert image is not None
    # the wrist camera's picture is at the top left, its overlay 640 pixels and a gap to the right
    top = image[: image.shape[0] // 2].astype(int)
    lit = {}
    for name, channel in (("red", 2), ("blue", 0)):
        others = np.delete(top[:, :640], channel, axis=2).max(2)
        rows, cols = np.nonzero(top[:, :640, channel] > others + 100)
        assert len(rows) > 1000, f"the picture shows the {name} cube"
        lit[name] = top[rows, cols + 650].sum() / top[rows, cols].sum()
    assert lit["red"] > 2 * lit["blue"], "the named cube is hot, the other dark"


def test_the_package_stays_small() -> None:
    files = [file for file in episodes_path().parent.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 9e6
    assert (checkpoint_path() / "model.safetensors").stat().st_size < 4e6


def test_an_interval_is_the_percentiles_of_resampled_means() -> None:
    values = np.random.default_rng(1).normal(3, 2, 40)
    mean, low, high = mean_interval(np.append(values, np.nan))
    assert mean == pytest.approx(values.mean())
    error = values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15)

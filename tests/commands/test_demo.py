"""`attnstore demo` runs as a newcomer runs it, and what it says is what the store holds."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas
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


NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture
def wide() -> Iterator[None]:
    """Tables as wide as a notebook's kernel prints them, whatever this terminal is."""
    with pandas.option_context("display.width", 80, "display.max_columns", 20):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_says_in_the_repository(
    path: Path, ran: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells run one after the other, and every table and printed line is as it was kept."""
    matplotlib.use("Agg")
    shutil.copytree(ran[0] / "demo.attn", tmp_path / "demo.attn")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    pictures = 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        code = ast.parse(source)
        shown = code.body.pop() if isinstance(code.body[-1], ast.Expr) else None
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, path.name, "exec"), names)
            value = (
                eval(compile(ast.Expression(shown.value), path.name, "eval"), names)
                if isinstance(shown, ast.Expr)
                else None
            )
        for output in cell["outputs"]:
            data = output.get("data", {})
            pictures += bool({"image/png", "image/jpeg"} & {*data})
            if output["output_type"] == "execute_result":
                said, was = repr(value), "".join(data["text/plain"])
                assert alike(said, was), f"{source}\n{said}\n{was}"
            elif output.get("name") == "stdout":
                assert alike(printed.getvalue(), "".join(output["text"])), source
    plt.close("all")
    assert pictures, "it shows something"
    assert not re.search(r"(/home|/root|/tmp|site-packages)/", path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 500_000


def alike(said: str, kept: str) -> bool:
    """The same words, and numbers that differ by what other libraries' last digits make of them."""
    number = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
    if re.sub(rf"{number}|\s+|-+", "", said) != re.sub(rf"{number}|\s+|-+", "", kept):
        return False
    one, other = ([float(n) for n in re.findall(number, text)] for text in (said, kept))
    return len(one) == len(other) and np.allclose(one, other, rtol=0.05, atol=0.03)

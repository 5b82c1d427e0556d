"""The worked example of docs/how-to/add-a-dataset.md, installed as a distribution of its own and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import CHECKOUT
from cli_fixtures import run
from PIL import Image

import attnstore
from attnstore.ingest.datasets.registry import load_reader, recognised
from attnstore.ingest.datasets.selection import Selection
from attnstore.store.errors import EpisodeError, NotFoundError
from attnstore.store.image import decode

PAGE = CHECKOUT / "docs" / "how-to" / "add-a-dataset.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip installed the page's module as a package of its own."""
    folder = tmp_path_factory.mktemp("package")
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (announced,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (folder / "my_dataset.py").write_text(code)
    about = '[project]\nname = "my-dataset"\nversion = "1.0"\n'
    build = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    (folder / "pyproject.toml").write_text(
        f'{build}{about}{announced}[tool.setuptools]\npy-modules = ["my_dataset"]\n'
    )
    site = folder / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
    ]
    done = subprocess.run(
        [*command, site, folder], capture_output=True, text=True, check=False,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for number, outcome in enumerate(("success", "failure")):
        rng = np.random.default_rng(number)
        folder = tmp_path / "toy" / f"e{number}"
        folder.mkdir(parents=True)
        said: dict[str, Any] = {
            key: rng.normal(size=(3, 8)).tolist() for key in ("states", "actions")
        }
        said |= {"outcome": outcome, "instruction": f"pick {number}"}
        (folder / "steps.json").write_text(json.dumps(said))
        for frame in range(3):
            Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(
                folder / f"{frame}.png"
            )
    return tmp_path / "toy"


def test_its_command(
    site: Path, recordings: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(site))
    assert recognised(str(recordings)) == ["mine"]
    reader = load_reader("mine")(str(recordings), selection=Selection(), name=None, options={})
    (recordings / "e1/1.png").write_bytes(b"\x89PNG")
    with pytest.raises(
        EpisodeError, match=r"1\.png is not a complete image: .*; copy the file again"
    ):
        list(reader.frames("e1", [0, 1]))
    assert "mine" in run("ingest", "--help").stdout
    store = tmp_path / "lab.attn"
    arguments = ("ingest", "mine", store, recordings, "--checkpoint", checkpoint, "--stride", "2")
    done = run(*arguments, "--dataset-option", "a=b")
    assert (done.returncode, done.stderr) == (2, "attnstore: mine has no options; got a\n")
    done = run(*arguments, "--outcome", "success", "--turn", "front=180")
    assert done.returncode == 0, done.stderr
    assert "policy pi0, by the checkpoint's files" in done.stderr
    with attnstore.open(store) as opened:
        (episode,) = opened.episodes.values()
        assert (episode.name, episode.outcome) == ("e0", "success")
        kept = decode(episode.image_bytes(1, "front"))
    np.testing.assert_array_equal(kept, np.asarray(Image.open(recordings / "e0/2.png"))[::-1, ::-1])


def test_a_reader_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no dataset reader 'mine'; other packages bring none"):
        load_reader("mine")
    assert "No such command 'mine'" in run("ingest", "mine", tmp_path / "s", tmp_path).stderr


def test_own_formats_are_recognised(tmp_path: Path) -> None:
    places = {
        "droid": "success/2025-12-10/2025-12-10_09-00-39/trajectory.h5",
        "lerobot": "meta/info.json",
        "rlds": "1.0.0/features.json",
        "openpi-records": "step_4.npy",
        "aloha": "success/episode_0.hdf5",
        "robomimic": "open_the_drawer_demo.hdf5",
    }
    for name, place in places.items():
        path = tmp_path / name / place
        path.parent.mkdir(parents=True)
        path.touch()
        assert recognised(str(tmp_path / name)) == [name]
    assert recognised(str(tmp_path / "aloha" / places["aloha"])) == ["aloha"]
    assert recognised(str(tmp_path / "robomimic" / places["robomimic"])) == ["robomimic"]
    assert recognised(str(tmp_path / "nowhere")) == []

"""The worked example of docs/how-to/add-a-policy.md, run as a stranger would install it."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkout import CHECKOUT
from cli_fixtures import run
from droid_sample import sample_path
from policy_contract import Case, PolicyContract

from attnstore.ingest.policies.base import Observation
from attnstore.ingest.policies.registry import load_policy

PAGE = CHECKOUT / "docs" / "how-to" / "add-a-policy.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds the page's module, installed: its metadata announces the class."""
    site = tmp_path_factory.mktemp("site")
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (announced,) = re.findall(r"```toml\n.*?\n(.*?)```", text, re.DOTALL)
    (site / "my_policy.py").write_text(code)
    metadata = site / "my_policy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-policy\nVersion: 1.0\n")
    points = f"[attnstore.policies]\n{announced.replace(chr(34), '')}"
    (metadata / "entry_points.txt").write_text(points)
    return site


@pytest.fixture(scope="module")
def checkpoint(site: Path) -> Path:
    spec = importlib.util.spec_from_file_location("my_policy_weights", site / "my_policy.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    directory = site / "checkpoint"
    directory.mkdir()
    torch.save(module.Net().state_dict(), directory / "net.pt")
    return directory


class TestContract(PolicyContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, site: Path, checkpoint: Path) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(site))
            policy: Any = load_policy("mine", str(checkpoint))
            rng = np.random.default_rng(0)
            observations = tuple(
                Observation(
                    {c: rng.integers(0, 256, (90, 160, 3), np.uint8) for c in ("hand", "side")},
                    instruction,
                    rng.standard_normal(8).astype(np.float32),
                    seed,
                )
                for seed, instruction in enumerate(("place the cube", "lift the bowl"))
            )
            yield Case(policy, observations, module=policy.model, seeded=False)

    def test_a_pixel_is_in_the_patch_that_the_geometry_says(self, case: Case) -> None:
        sight = case.observations[0]
        before = case.policy.prepare([sight])
        (sample,) = before.samples
        for camera, image in sight.images.items():
            (span,) = [s for s in sample.layouts["joint"].key if s.camera == camera]
            geometry = sample.geometry[camera]
            for row, col in ((0, 0), (1, 6), (7, 2)):
                y, x = geometry.grid_to_source(np.array(row + 0.5), np.array(col + 0.5))
                changed = image.copy()
                changed[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] ^= 255
                after = case.policy.prepare(
                    [replace(sight, images={**sight.images, camera: changed})]
                )
                moved = (before.inputs["patches"] != after.inputs["patches"])[0].any(-1).nonzero()
                assert moved.flatten().tolist() == [span.start + row * geometry.grid[1] + col]


def test_its_commands(
    site: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)

    def attnstore(*arguments: object) -> str:
        done = run(*map(str, arguments), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "mine" in attnstore("policies")
    store = tmp_path / "lab.attn"
    attnstore(
        "ingest", "droid", store, sample_path(), "--policy", "mine", "--checkpoint", checkpoint,
        "--limit", 1, "--stride", 16,
    )  # fmt: skip
    pictures = tmp_path / "pictures"
    attnstore("render", "images", store, "--phase", "joint", "--out", pictures)
    assert len(list(pictures.rglob("joint_L0_attn_vis_max.jpg"))) == 2


def test_it_is_short() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 60

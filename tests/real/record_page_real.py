"""docs/how-to/record.md with LeRobot, vla-eval and inspect-robots, as it stands; part of ``make test-lerobot``.

tests/test_pages.py runs the rest of the page. Of a block only what a reader has of his own is put in its place: the
checkpoint, his observation, a port; and for ``pi0``, which needs a newer transformers than LeRobot has, an ACT.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from lerobot_fixture_real import save_act
from vla_eval.connection import Connection

import attnstore
from attnstore.ingest.recording.dataset import RecordingDataset, recording_directories

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "record.md"
FOUND = "select name, outcome, frames, keyframes from episodes order by name"


def block(named: str) -> str:
    """Return the page's block of Python that begins by importing this module of ours."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (found,) = (b for b in blocks if b.startswith(f"from attnstore.ingest.recording.{named} "))
    return str(found)


def checkpoint(folder: Path, cameras: tuple[str, ...], action: int) -> None:
    from lerobot.configs.types import FeatureType, PolicyFeature

    save_act(
        folder / "CHECKPOINT",
        input_features={
            **{f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for c in cameras},
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action,))},
    )  # fmt: skip


def script(folder: Path, text: str, *changes: tuple[str, str]) -> list[str]:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "script.py").write_text(text)
    return [sys.executable, "-W", "ignore", "script.py"]


OURS = ('load_policy("pi0", str(checkpoint_path()))', 'load_policy("lerobot", "CHECKPOINT")')


def test_a_lerobot_policy(tmp_path: Path) -> None:
    checkpoint(tmp_path, ("top",), 7)
    seen = '{"observation.images.top": torch.rand(1, 3, 64, 64), "observation.state": torch.zeros(1, 8)}'
    text = block("lerobot")
    assert text.count("preprocessor(observation)") == 1
    asked = script(tmp_path, f"import torch\nobservation = {seen}\n{text}")
    subprocess.run(asked, cwd=tmp_path, check=True)
    (directory,) = recording_directories(tmp_path / "robot.attn")
    dataset = RecordingDataset(directory)
    info = dataset.info("try-1")
    assert (info.outcome, info.keyframes, info.attributes["seed"]) == ("success", (0,), 1)
    ingest = ["ingest", "recording", "robot.attn", "--policy", "lerobot", "--checkpoint", "CHECKPOINT"]  # fmt: skip
    subprocess.run([sys.executable, "-m", "attnstore", *ingest], cwd=tmp_path, check=True)
    with attnstore.open(tmp_path / "robot.attn") as store:
        assert store.sql("select action_difference from calls").fetchall() == [(0,)]


async def _evaluate(port: int) -> None:
    """Two episodes that end, and one whose client goes away."""
    for _ in range(600):
        try:
            async with Connection(f"ws://127.0.0.1:{port}"):
                break
        except Exception:
            await anyio.sleep(0.2)
    random = np.random.default_rng(0)

    def see() -> dict[str, Any]:
        images = {c: random.integers(0, 256, (64, 64, 3), np.uint8) for c in ("agentview", "wrist")}
        return {"images": images, "task_description": "lift the cube", "state": np.zeros(8)}

    async with Connection(f"ws://127.0.0.1:{port}") as client:
        for name, success in (("lift", True), ("wipe", False)):
            await client.start_episode({"task": {"name": name, "seed": 3}})
            for _ in range(10):
                assert len((await client.act(see()))["actions"]) == 7
            await client.end_episode({"metrics": {"success": success}})
        await client.start_episode({"task": {"name": "gone"}})
        await client.act(see())


def test_a_model_server_of_vla_eval(tmp_path: Path) -> None:
    checkpoint(tmp_path, ("agentview", "wrist"), 7)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    asked = script(tmp_path, block("vla_eval"), OURS, ("port=8000", f"port={port}"))
    with subprocess.Popen(asked, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server:
        try:
            anyio.run(_evaluate, port)
        finally:
            server.send_signal(signal.SIGINT)
            _, said = server.communicate(timeout=120)
    assert "KeyboardInterrupt" in said
    with attnstore.open(tmp_path / "lab.attn") as store:
        calls = 10 / min(8, 5)  # chunks of eight are asked for; this ACT's have five
        assert store.sql(FOUND).fetchall() == [
            ("gone", "unknown", 1, 1), ("lift", "success", 10, calls), ("wipe", "failure", 10, calls),
        ]  # fmt: skip


def test_trials_of_inspect_robots(tmp_path: Path) -> None:
    checkpoint(tmp_path, ("top",), 2)
    asked = script(tmp_path, block("inspect_robots"), OURS)
    subprocess.run(asked, cwd=tmp_path, check=True)
    with attnstore.open(tmp_path / "lab.attn") as store:
        # an ACT of random weights does not find the cube
        assert [(name, outcome, frames) for name, outcome, frames, _ in store.sql(FOUND).fetchall()] == [
            ("reach/near-e0", "failure", 24), ("reach/near-e1", "failure", 24),
        ]  # fmt: skip


@pytest.mark.parametrize("named", ["lerobot", "vla_eval", "inspect_robots"])
def test_blocks_are_whole(named: str) -> None:
    """Each can be put into a file of its own: nothing is left out."""
    assert "..." not in block(named)

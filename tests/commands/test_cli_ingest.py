"""``attnstore ingest``: what it prints where, its exit codes, one clear line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ingest_fixtures import commits, problems, run_attnstore, write_droid

from attnstore.cli import main
from attnstore.ingest.policies.tiny import build_tiny_pi0

NAMES = [
    "failure/2025-12-10/2025-12-10_09-02-00",
    "success/2025-12-10/2025-12-10_09-00-00",
    "success/2025-12-10/2025-12-10_09-01-00",
]


@dataclass
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The only line on stderr, which is all that there is."""
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        return self.err.removesuffix("\n")


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("ATTNSTORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        assert isinstance(stop.value.code, int)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Result(stop.value.code, said.out, said.err)

    return run


@pytest.fixture
def droid(run: Run, recordings: Path, checkpoint: Path, ram_path: Path) -> Run:
    """``attnstore ingest droid`` with what it needs, unless a test says otherwise."""

    def droid(*more: object, **given: Any) -> Result:
        path = given.pop("path", recordings)
        store = given.pop("store", ram_path / "s")
        options = {"policy": "pi0", "checkpoint": checkpoint} | given
        pairs = [x for k, v in options.items() if v is not None for x in (f"--{k}", v)]
        named = () if store is None else (store,)
        return run("ingest", "droid", *named, path, *pairs, *more)

    return droid


class TestGood:
    def test_ingest_and_resume(self, droid: Run, ram_path: Path) -> None:
        first = droid("--limit", 2)
        assert (first.code, first.out) == (0, "")
        assert "2 episodes to do, 6 keyframes; 0 committed already, 0 broken" in first.err
        assert "committed 2 episodes, 6 keyframes, " in first.err
        assert sorted(commits(ram_path / "s")) == NAMES[:2]
        second = droid()
        assert second.code == 0
        assert "1 episodes to do, 2 keyframes; 2 committed already, 0 broken" in second.err
        assert sorted(commits(ram_path / "s")) == NAMES
        third = droid("--workers", 2)
        assert third.code == 0
        assert "0 episodes to do, 0 keyframes; 3 committed already" in third.err
        assert problems(ram_path / "s") == []
        (run_file,) = (ram_path / "s" / "runs").iterdir()
        config = json.loads(run_file.read_text())["config"]
        assert (config["stride"], config["precision"], config["seed"]) == (8, "float16", 0)

    def test_options_reach_the_run(self, droid: Run, ram_path: Path) -> None:
        result = droid(
            "--stride", 16, "--precision", "log8", "--seed", 3, "--side", "right", "--dtype", "bfloat16",
            "--policy-option", "steps=1", "--dataset-name", "cube", "--batch-size", 2,
            "--episode", "*_09-00-*",
        )  # fmt: skip
        assert result.code == 0, result.err
        (commit,) = commits(ram_path / "s").values()
        assert (commit.summary["keyframes"], commit.summary["precision"]) == (2, "log8")
        config = json.loads((ram_path / "s" / "runs" / f"{commit.run}.json").read_text())["config"]
        assert config["cameras"] == ["hand_camera", "varied_camera_2"]
        assert (config["seed"], config["dtype"], config["dataset"]) == (3, "bfloat16", "droid:cube")
        assert config["options"]["phases"]["suffix"] == [3, 8, 1]

    def test_shards(self, droid: Run, ram_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of three episodes two and one, then the share of one job too many."""
        first = droid("--shard", "0/2")
        assert first.code == 0
        assert first.err.startswith("shard 0/2: 2 of 3 episodes\n")
        assert sorted(commits(ram_path / "s")) == NAMES[:2]
        monkeypatch.setenv("SLURM_PROCID", "1")
        monkeypatch.setenv("SLURM_NTASKS", "2")
        second = droid("--shard", "auto")
        assert "1 episodes to do, 2 keyframes; 0 committed already, 0 broken" in second.err
        assert sorted(commits(ram_path / "s")) == NAMES
        third = droid("--shard", "0/9")
        assert third.code == 0
        assert third.err.startswith("shard 0/9: 0 of 3 episodes\n")

    def test_workers_without_dask(self, droid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "distributed", None)
        result = droid("--workers", 2)
        assert (result.code, result.line) == (
            2, "attnstore: --workers needs distributed: pip install 'attnstore[dask]'",
        )  # fmt: skip

    def test_json(self, droid: Run, ram_path: Path) -> None:
        result = droid("--json", "--outcome", "success")
        assert result.code == 0
        rows = [json.loads(line) for line in result.out.splitlines()]
        forecast, *episodes = rows
        assert (forecast["event"], forecast["episodes"], forecast["keyframes"]) == (
            "forecast",
            2,
            5,
        )
        assert (forecast["committed"], forecast["broken"]) == (0, {})
        assert 0 < forecast["keyframe_bytes"] < forecast["bytes"] < forecast["free_bytes"]
        assert [(e["event"], e["name"], e["status"]) for e in episodes] == [
            ("episode", NAMES[1], "committed"), ("episode", NAMES[2], "committed"),
        ]  # fmt: skip
        for episode in episodes:
            commit = commits(ram_path / "s")[episode["name"]]
            assert episode["bytes"] == sum(f.size for f in commit.files)
            assert episode["keyframes"] == commit.summary["keyframes"]
            assert forecast["run"] == commit.run
        assert result.err == ""

    def test_a_dry_run_writes_nothing_and_loads_no_weights(
        self, droid: Run, checkpoint: Path, ram_path: Path
    ) -> None:
        light = ram_path / "ck"
        shutil.copytree(checkpoint, light)
        (light / "model.safetensors").unlink()
        result = droid("--dry-run", checkpoint=light)
        assert result.code == 0
        assert "3 episodes to do, 8 keyframes" in result.err
        assert "a keyframe before compression; prefix " in result.err
        assert not (ram_path / "s").exists()

    def test_policies(self, run: Run) -> None:
        assert {x.split()[0] for x in run("policies").out.splitlines()} >= {"pi0", "openpi", "octo"}
        rows = [json.loads(line) for line in run("policies", "--json").out.splitlines()]
        assert {
            "name": "pi0",
            "adapter": "attnstore.ingest.policies.pi0.policy:Pi0Policy",
            "values": "yes",
            "hidden": "yes",
        } in rows

    def test_the_sizes_of_what_was_released(self, run: Run) -> None:
        """Attention by the formula of Pi0.5 on DROID: 18 layers of 8 heads, 10 steps of 15 actions, in 2 bytes."""
        from attnstore.commands.policy_facts import released_size
        from attnstore.ingest.policies.openpi.policy import OpenpiPolicy

        prefix, actions = 2 * 256 + 60, 15
        released = OpenpiPolicy.about[0].released
        assert released is not None
        found = released_size(released, values=False, hidden=False)
        wanted = 288 * prefix**2 + 2880 * actions * (prefix + actions)
        assert found.attention == wanted == 119_587_392
        # Of the task's and the actions' sight of two images of 256 patches: mean and last, in 4 bytes.
        assert found.raw == wanted + 2 * 4 * 18 * 8 * 2 * 256 * (1 + 10)
        said = json.loads(run("policies", "openpi", "--json").out)
        assert "prefix 18 layers x 8 heads x 572 x 572 tokens" in said["released size"]
        assert said["a keyframe"].startswith("126.1 MB in memory")
        assert said["on the device"].startswith("5.2 MB")  # 8 x 572 x 572 in 2 bytes
        rows = [
            json.loads(line) for line in run("policies", "openpi-jax", "--json").out.splitlines()
        ]
        assert [row["model"].partition(" of")[0] for row in rows] == ["Pi0.5 and Pi0", "Pi0-FAST"]
        assert not any("on the device" in row for row in rows)
        # 18 x 8 x 572 x 572, and 10 x 15 x 587, in 2 bytes
        assert rows[0]["until a call ends"].startswith("119.6 MB")
        assert [row["knock-outs"] for row in rows] == ["yes", "yes"]


class TestStore:
    def test_none_named(self, droid: Run) -> None:
        result = droid(store=None)
        assert result.code == 2
        assert "STORE DATASET and got 1 of 2 arguments" in result.line

    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_a_directory_with_other_content(
        self, droid: Run, ram_path: Path, more: list[str]
    ) -> None:
        (ram_path / "s").mkdir()
        (ram_path / "s" / "thesis.tex").touch()
        result = droid(*more)
        assert result.code == 2
        assert f"{ram_path / 's'} exists, is not empty and " in result.line
        assert [p.name for p in (ram_path / "s").iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_a_file(self, droid: Run, ram_path: Path, more: list[str]) -> None:
        (ram_path / "s").write_text("x")
        result = droid(*more)
        assert result.code == 2
        assert result.line.startswith(f"attnstore: {ram_path / 's'} ")

    def test_a_place_that_cannot_be_written(self, droid: Run, ram_path: Path) -> None:
        (ram_path / "file").touch()
        result = droid(store=ram_path / "file" / "s")
        assert result.code == 1
        assert (
            result.line
            == f"attnstore: {ram_path / 'file' / 's'} cannot be written: Not a directory"
        )

    def test_a_newer_format(self, droid: Run, ram_path: Path) -> None:
        (ram_path / "s").mkdir()
        (ram_path / "s" / "attnstore.json").write_text('{"format": {"major": 2, "minor": 0}}')
        result = droid()
        assert result.code == 4
        assert "has format version 2" in result.line

    def test_a_disk_that_is_too_small(
        self, droid: Run, ram_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(ram_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        result = droid()
        assert result.code == 1
        last = result.err.splitlines()[-1]
        assert last.startswith("attnstore: the forecast needs ")
        assert last.endswith("use --precision log8, a larger --stride, another STORE, or --force")
        assert droid("--dry-run").code == 0
        assert droid("--force", "--limit", 1).code == 0


class TestPolicy:
    @pytest.mark.parametrize(
        ("given", "code", "message"),
        [
            ({"policy": "pi1"}, 3, "no policy 'pi1'; installed: "),
            ({"policy": "pi0:x"}, 2, "pi0 has no variants; got 'x'"),
            ({"dtype": "int4"}, 2, "dtype is one of float32, bfloat16, float16; got 'int4'"),
            ({"policy-option": "steps"}, 2, "a policy option is KEY=VALUE; got 'steps'"),
            ({"policy-option": "steps=x"}, 2, "steps is a whole number of denoising steps, "),
            ({"policy-option": "stpes=3"}, 2, "pi0 has the options stats, steps; got 'stpes'"),
            ({"policy-option": "stats=/no/file"}, 1, "/no/file: JSON with state_mean and "),
            ({"checkpoint": "/no/such/place"}, 3, "/no/such/place: no such checkpoint directory"),
        ],
    )
    def test_mistakes(
        self, droid: Run, ram_path: Path, given: Any, code: int, message: str
    ) -> None:
        result = droid(**given)
        assert result.code == code
        assert result.line.startswith(f"attnstore: {message}")
        assert not (ram_path / "s").exists()

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("config.json", None, "no config.json in it; a checkpoint directory is expected"),
            ("config.json", "{", "its config.json cannot be read ("),
            ("config.json", '{"model_type": "bert"}', "its config.json is of 'bert', not 'pi0'"),
            ("processor_config.json", None, "not a readable Pi0 checkpoint ("),
            ("tokenizer.json", "{}", "not a readable Pi0 checkpoint ("),
        ],
    )
    def test_a_bad_checkpoint(
        self,
        droid: Run,
        checkpoint: Path,
        ram_path: Path,
        file: str,
        content: str | None,
        message: str,
    ) -> None:
        bad = ram_path / "ck"
        shutil.copytree(checkpoint, bad)
        (bad / file).unlink()
        if content is not None:
            (bad / file).write_text(content)
        result = droid(checkpoint=bad)
        assert result.code == 1
        assert result.line.startswith(f"attnstore: {bad}: {message}")

    def test_truncated_weights(self, droid: Run, checkpoint: Path, ram_path: Path) -> None:
        bad = ram_path / "ck"
        shutil.copytree(checkpoint, bad)
        weights = bad / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        result = droid(checkpoint=bad)
        assert result.code == 1
        *_, last = result.err.splitlines()
        assert last.startswith("attnstore: ck: weights cannot be loaded (SafetensorError")
        assert commits(ram_path / "s") == {}

    def test_a_policy_with_another_state(self, droid: Run, ram_path: Path) -> None:
        model, processor = build_tiny_pi0(layers=1, state_dof=7)
        model.save_pretrained(ram_path / "ck")
        processor.save_pretrained(ram_path / "ck")
        result = droid(checkpoint=ram_path / "ck")
        assert result.code == 1
        *_, last = result.err.splitlines()
        assert last == (
            "attnstore: the robot state has 8 components, the processor's state_mean has 7 "
            "and its state_std 7"
        )

    def test_a_sick_model(self, droid: Run, ram_path: Path) -> None:
        import torch

        model, processor = build_tiny_pi0(layers=2, steps=2, chunk=2)
        with torch.no_grad():
            model.model.dit.layers[1].self_attn.k_proj.weight[0, 0] = float("nan")
        model.save_pretrained(ram_path / "ck")
        processor.save_pretrained(ram_path / "ck")
        result = droid("--limit", 2, checkpoint=ram_path / "ck")
        assert result.code == 5
        said = "quarantined: keyframe 0, suffix layer 1, step 0: attention rows sum to nan"
        assert f"\n  2 episodes ({NAMES[0]}, {NAMES[1]}): {said}" in result.err
        assert "attnstore: 2 episodes are not in " in result.err
        assert commits(ram_path / "s") == {}
        assert len(list((ram_path / "s" / "quarantine").glob("*/*/*.json"))) == 2

    def test_a_missing_extra(self, checkpoint: Path, recordings: Path, ram_path: Path) -> None:
        """In a process that has not imported it yet."""
        code = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from attnstore.cli import main
main(sys.argv[1:])
"""
        arguments = ["ingest", "droid", ram_path / "s", recordings,
                     "--policy", "pi0", "--checkpoint", checkpoint]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.endswith(" needs torch: pip install 'attnstore[ingest]'\n")

    def test_a_missing_extra_of_the_dataset(
        self, droid: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Found after the policy was loaded, so not in a process that would load it for this alone."""
        monkeypatch.setitem(sys.modules, "h5py", None)
        result = droid()
        assert (result.code, result.out) == (2, "")
        assert result.line.endswith(" needs h5py: pip install 'attnstore[ingest]'")


class TestDataset:
    def test_no_such_directory(self, droid: Run, ram_path: Path) -> None:
        result = droid(path=ram_path / "nothing")
        assert result.code == 3
        assert str(ram_path / "nothing") in result.line

    def test_no_episode_in_it(self, droid: Run, ram_path: Path) -> None:
        (ram_path / "empty").mkdir()
        result = droid(path=ram_path / "empty")
        assert result.code == 3
        assert "empty" in result.line

    @pytest.fixture
    def damaged(self, ram_path: Path) -> Path:
        """One episode without a readable trajectory, one with a torn image, one good one."""
        root = write_droid(ram_path / "toy")
        (root / NAMES[0] / "trajectory.h5").write_bytes(b"not HDF5")
        image = root / NAMES[1] / "recordings" / "frames" / "hand_camera" / "00016.jpg"
        image.write_bytes(image.read_bytes()[:100])
        return root

    def test_broken_episodes_are_named_and_the_others_go_on(
        self, droid: Run, damaged: Path, ram_path: Path
    ) -> None:
        result = droid(path=damaged)
        assert result.code == 5
        assert "1 episodes to do, 2 keyframes; 0 committed already, 2 broken" in result.err
        assert f"attnstore: 2 episodes are not in {ram_path / 's'}:" in result.err
        for name, words in ((NAMES[0], "trajectory.h5"), (NAMES[1], "hand_camera/00016.jpg")):
            (line,) = (x for x in result.err.splitlines() if x.startswith(f"  {name}: broken: "))
            assert words in line
        assert list(commits(ram_path / "s")) == [NAMES[2]]
        again = droid(path=damaged)
        assert again.code == 5
        assert "0 episodes to do, 0 keyframes; 1 committed already, 2 broken" in again.err

    def test_broken_episodes_as_json(self, droid: Run, damaged: Path) -> None:
        result = droid("--json", path=damaged)
        assert result.code == 5
        forecast, *rows = (json.loads(line) for line in result.out.splitlines())
        assert list(forecast["broken"]) == NAMES[:2]
        assert {r["name"]: r["status"] for r in rows} == {NAMES[2]: "committed"}


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--stride", "0"], "Invalid value for '--stride': 0 is not in the range x>=1."),
            (["--precision", "int8"], "Invalid value for '--precision'"),
            (["--outcome", "maybe"], "Invalid value for '--outcome'"),
            (["--workers", "0"], "Invalid value for '--workers'"),
            (["--batch-size", "x"], "Invalid value for '--batch-size'"),
            (["--nonsense"], "No such option"),
        ],
    )
    def test_bad_values(
        self, droid: Run, ram_path: Path, arguments: list[str], message: str
    ) -> None:
        result = droid(*arguments)
        assert (result.code, result.out) == (2, "")
        assert message in result.err
        assert not (ram_path / "s").exists()

    def test_what_is_required(self, run: Run, recordings: Path) -> None:
        result = run("ingest", "droid", "lab.attn", recordings)
        assert result.code == 2
        assert "Missing option '--checkpoint'" in result.err


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(
    recordings: Path, checkpoint: Path, ram_path: Path
) -> None:
    """Nothing but ours on stderr: no warnings, no progress bars of transformers."""
    done = run_attnstore(
        "ingest", "droid", ram_path / "s", recordings, "--policy", "pi0", "--checkpoint", checkpoint,
        "--limit", 1, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    run, todo, forecast, result = done.stderr.splitlines()
    assert run.startswith("run pi0-")
    assert todo == "1 episodes to do, 3 keyframes; 0 committed already, 0 broken"
    assert forecast.startswith("about ")
    assert result.startswith("committed 1 episodes, 3 keyframes, ")

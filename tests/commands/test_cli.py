"""The command line as a user meets it: output, exit codes, messages; real processes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import av
import click
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_fixtures import NAME, assert_one_line, every_command, run, run_process
from click.testing import CliRunner
from droid_sample import sample_path
from store_fixtures import flip_byte, random_episode, write_episode

import attnstore
from attnstore.cli import cli
from attnstore.commands import listing
from attnstore.render.picture.track import LayerMaps
from attnstore.store.opening import create_store


def test_render_takes_any_group_and_names_the_episodes_without_the_word(
    root: Path, tmp_path: Path
) -> None:
    def draw(*arguments: str) -> subprocess.CompletedProcess[str]:
        fixed = ("--out", tmp_path, "--layers", "0", "--heads", "active", "--format", "png")
        return run("render", "images", root, *fixed, *arguments)

    episode = attnstore.open(root).episode("2025-01-01_10-00-00")
    word = episode.phase("prefix").query["task"].tokens[0].text.strip()
    some = draw("--query", f"word:{word}")
    assert some.returncode == 5, some.stderr
    assert f"have no 'word:{word}': failure/2025-01-01/2025-01-01_11-00-00" in some.stderr
    names = {p.name for p in tmp_path.rglob("*.png")}
    assert names == {f"prefix_L0_query-word-{word}_attn_vis_max.png"}
    assert f"max over the word “{word}”" in next(tmp_path.rglob("pi05.md")).read_text()
    # the heads' maps of the word itself: its picture is that of the token's index, read by hand
    (index,) = (
        i for i, w in enumerate(episode.phase("prefix").query["task"].tokens) if word in w.text
    )
    place = episode.phase("prefix").query["task"].start + index
    for camera in episode.cameras:
        drawn = LayerMaps.load(episode, "prefix", 0, (camera,), query=f"word:{word}").maps[camera]
        rows = episode.attention("prefix", layer=0, query=place, key=f"image:{camera}").values
        np.testing.assert_array_equal(drawn.reshape(rows.shape), rows)
    both = draw("--query", "state", "--episode", "2025-01-01_10-00-00")
    assert both.returncode == 0, both.stderr
    assert len(list(tmp_path.rglob("*_L0_query-state_attn_vis_max.png"))) == 2 * len(episode.frames)
    for group, says in (
        ("word:nowhere", "prefix query: no word 'nowhere' in the instruction; its words: "),
        ("text:cube", "no tokens 'text:cube': a word is called 'word:cube'"),
        ("plum", "no tokens 'plum'; there are image, text, state"),
    ):
        refused = draw("--query", group)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert says in refused.stderr


@pytest.mark.parametrize(("path", "command"), list(every_command(cli)))
def test_every_command_and_option_has_help(path: str, command: click.Command) -> None:
    assert command.help, path
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.name}"


class TestFindingTheStore:
    def test_no_store_named(self, tmp_path: Path) -> None:
        assert_one_line(run("ls", cwd=tmp_path), 2, "no store", "ATTNSTORE", "attnstore.toml")

    def test_by_variable(self, root: Path, tmp_path: Path) -> None:
        assert NAME in run("ls", cwd=tmp_path, ATTNSTORE=str(root)).stdout

    def test_by_file_of_a_directory_above(self, root: Path, tmp_path: Path) -> None:
        below = tmp_path / "a" / "b"
        below.mkdir(parents=True)
        relative = os.path.relpath(root, tmp_path)
        (tmp_path / "attnstore.toml").write_text(f'store = "{relative}"\n')
        assert NAME in run("ls", cwd=below).stdout

    def test_a_bad_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "attnstore.toml").write_text("store = ")
        assert_one_line(run("ls", cwd=tmp_path), 2, "attnstore.toml")

    def test_not_a_store(self, tmp_path: Path) -> None:
        assert_one_line(run("ls", tmp_path), 3, "is not an attnstore store", "attnstore.json")
        assert_one_line(run("ls", tmp_path / "x"), 3, "no such directory")

    def test_a_newer_format_is_refused(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "store")
        marker = json.loads((paths.root / "attnstore.json").read_text())
        marker["format"]["major"] = 2
        (paths.root / "attnstore.json").write_text(json.dumps(marker))
        process = run("sql", paths.root, "from episodes")
        assert_one_line(process, 4, "format version 2", "reads up to 1", "pip install --upgrade")


class TestListing:
    def test_episodes(self, root: Path) -> None:
        rows = [json.loads(line) for line in run("ls", root, "--json").stdout.splitlines()]
        assert sorted(r["episode"] for r in rows) == [
            "failure/2025-01-01/2025-01-01_11-00-00",
            NAME,
        ]
        assert {r["keyframes"] for r in rows} == {3}

    def test_a_long_log_is_not_read_and_says_the_same(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of more than a thousand entries the catalog tells, of every part what its commit says."""
        read = CliRunner().invoke(cli, ["ls", str(root), "--json"])
        monkeypatch.setattr(sys.modules["attnstore.store.catalog.generations"], "LONG", 1)
        monkeypatch.setattr(listing, "read_commits", None)
        told = CliRunner().invoke(cli, ["ls", str(root), "--json"])
        assert told.exit_code == 0, told.output
        assert told.stdout == read.stdout

    def test_runs(self, root: Path) -> None:
        (row,) = map(json.loads, run("ls", root, "--runs", "--json").stdout.splitlines())
        assert (row["policy"], row["precision"], row["stride"]) == ("pi0", "float16", 8)

    def test_coverage_of_a_dataset(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "store")
        write_episode(paths, "success/2025-12-10/2025-12-10_09-00-39")
        process = run("ls", paths.root, "--coverage", sample_path(), "--json")
        found = {r["episode"]: r["status"] for r in map(json.loads, process.stdout.splitlines())}
        assert len(found) == 4
        assert found.pop("success/2025-12-10/2025-12-10_09-00-39") == "committed"
        assert set(found.values()) == {"missing"}


class TestSql:
    def test_forms(self, root: Path, tmp_path: Path) -> None:
        query = "select outcome, count(*) as n from episodes group by all order by 1"
        table = run("sql", root, query)
        assert "failure" in table.stdout
        assert "(2 rows)" in table.stdout
        rows = [json.loads(x) for x in run("sql", root, query, "--json").stdout.splitlines()]
        assert rows == [{"outcome": "failure", "n": 1}, {"outcome": "success", "n": 1}]
        assert run("sql", root, query, "--csv").stdout.split() == [
            "outcome,n",
            "failure,1",
            "success,1",
        ]
        file = tmp_path / "out.parquet"
        assert run("sql", root, query, "--parquet", "--out", file).returncode == 0
        assert pq.read_table(file)["n"].to_pylist() == [1, 1]

    def test_from_a_file_and_by_name(self, root: Path, tmp_path: Path) -> None:
        file = tmp_path / "q.sql"
        file.write_text("select 41 + 1 as answer")
        assert "42" in run("sql", root, "--file", file).stdout
        assert "on_padding" in run("sql", root, "--named", "camera-by-layer").stdout
        assert "camera-by-layer" in run("sql", "--list").stdout
        empty = run("sql", root, "--named", "effect-by-region")
        assert "no rows; it needs `attnstore probe regions`" in empty.stderr
        assert "needs" not in run("sql", root, "--named", "camera-by-layer").stderr

    def test_mistakes_are_one_line(self, root: Path) -> None:
        process = run("sql", root, "select outcom from episodes")
        assert_one_line(process, 2, "outcom", "outcome")
        assert_one_line(run("sql", root), 2, "give one query")
        assert_one_line(run("sql", root, "--named", "x"), 3, "camera-by-layer")

    def test_a_closed_pipe_is_no_error(self, root: Path) -> None:
        command = f"{sys.executable} -m attnstore sql {root} 'from range(200000)' --csv | head -1"
        process = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
        )
        assert "Traceback" not in process.stderr


class TestUpkeep:
    def test_verify_names_a_flipped_byte_and_a_missing_table(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "store")
        commit = write_episode(paths, NAME)
        quick = run("verify", paths.root, "--quick")
        assert quick.returncode == 0
        # what the directory holds, but for the commit that lists it
        there = [f for f in commit.directory(paths).rglob("*") if f.is_file()]
        said = f"every committed file is of its size, its bytes not read: {len(there) - 1} files, "
        assert quick.stdout.startswith(said)
        assert run("verify", paths.root).returncode == 0
        folder = commit.directory(paths)
        shard = next(folder.glob("attention.zarr/prefix/attention/c/*/*/*/*/*"))
        flip_byte(shard, shard.stat().st_size // 2)
        (folder / "tokens.parquet").unlink()
        process = run("verify", paths.root)
        assert process.returncode == 4
        assert "prefix/attention/c/" in process.stdout
        assert "tokens.parquet: missing" in process.stdout
        assert "2 problems" in process.stderr

    def test_gc_removes_abandoned_attempts_only(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "store")
        commit = write_episode(paths, NAME)
        abandoned = commit.directory(paths).parent / "base.0123456789ab"
        abandoned.mkdir()
        (abandoned / "attempt.json").write_text('{"host": "elsewhere", "pid": 1, "created": "x"}')
        kept = run("gc", paths.root)
        assert kept.returncode == 0
        assert abandoned.exists(), "younger than the lease"
        process = run("gc", paths.root, "--lease", "0")
        assert process.returncode == 0, process.stderr
        assert not abandoned.exists()
        assert run("verify", paths.root).returncode == 0

    def test_catalog_is_rebuilt(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "store")
        write_episode(paths, NAME)
        for file in paths.catalog.iterdir():
            file.unlink()
        assert run("catalog", "rebuild", paths.root).returncode == 0
        assert list(paths.catalog.glob("catalog-*.duckdb"))


class TestRender:
    def test_images_and_videos_without_torch(self, root: Path, tmp_path: Path) -> None:
        """The lab's layout, in a process in which importing torch is an error."""
        blocker = tmp_path / "site"
        blocker.mkdir()
        (blocker / "torch.py").write_text("raise AssertionError('torch was imported')")
        (blocker / "transformers.py").write_text(
            "raise AssertionError('transformers was imported')"
        )
        path = os.pathsep.join([str(blocker), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        out = tmp_path / "pictures"
        common = (root, "--out", out, "--where", "outcome = 'success'", "--layers", "1")
        for command in ("images", "videos"):
            process = run_process("render", command, *common, PYTHONPATH=path)
            assert process.returncode == 0, process.stderr
        folder = out / NAME
        assert not (out / "failure").exists()
        for expected in (
            "00008/prefix_L1_attn_vis_max.jpg",
            "00008/suffix_L1_attn_vis_max.jpg",
            "00016/L1_prefix_heads/head_01.jpg",
            "L01_prefix_max.webm",
            "L1/H00_suffix.webm",
            "instruction.txt",
            "pi05.md",
        ):
            assert (folder / expected).is_file(), expected
        assert (folder / "instruction.txt").read_text().strip() == random_episode().spec.instruction
        with av.open(str(folder / "L01_prefix_max.webm")) as video:
            frames = [f.to_ndarray(format="bgr24") for f in video.decode(video=0)]
        image = cv2.imread(str(folder / "00008/L1_prefix_heads/head_01.jpg"))
        assert len(frames) == 3
        assert image is not None
        assert image.shape == frames[0].shape
        assert np.ptp(image) > 100

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (("--layers", "1;2"), 2, "--layers takes numbers and ranges"),
            (("--layers", "9"), 2, "there is no 9"),
            (("--phase", "joint"), 2, "no phase 'joint'; there are: prefix, suffix"),
            (("--camera", "top"), 2, "hand_camera"),
            (("--cmap", "rainbow"), 2, "viridis"),
            (("--scale", "big"), 2, "VMIN:VMAX"),
            (("--where", "outcome = 'unknown'"), 3, "no episodes where outcome"),
            (("--where", "nonsense = 1"), 2, "nonsense"),
            (("--episode", "nope"), 3, "no episode 'nope'"),
        ],
    )
    def test_mistakes_are_one_line(
        self, root: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
    ) -> None:
        process = run("render", "images", root, "--out", tmp_path, *arguments)
        assert_one_line(process, code, says)


def test_public_names() -> None:
    assert attnstore.__all__ == sorted(attnstore.__all__)
    assert all(hasattr(attnstore, name) for name in attnstore.__all__)


def test_version_says_what_a_bug_report_needs() -> None:
    """Of what is installed, one a line, so that a report can be pasted whole; nothing is imported."""
    lines = run("--version").stdout.splitlines()
    assert lines[:2] == [f"attnstore {attnstore.__version__}", "store format 1.0"]
    assert lines[2].startswith(f"Python {platform.python_version()} on ")
    said = dict(line.split(" ", 1) for line in lines[3:])
    installed = {found.name.lower(): found.version for found in metadata.distributions()}
    assert {"numpy", "zarr", "duckdb"} <= said.keys() & installed.keys()
    for name, version in said.items():
        assert version == installed.get(name, "is not installed")

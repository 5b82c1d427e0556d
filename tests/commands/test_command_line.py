"""Every command says the same thing in the same way, whatever its surroundings: help, paths, pipes, encodings."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from checkout import CHECKOUT
from cli_fixtures import NAME, assert_one_line, every_command, on_a_terminal, run, run_process
from mask_fixtures import detection
from store_fixtures import write_episode

from attnstore.cli import cli
from attnstore.store.opening import create_store

TOP = CHECKOUT
COMMANDS = [(path, c) for path, c in every_command(cli) if not isinstance(c, click.Group)]


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_help_has_examples_and_nothing_stray(path: str, command: click.Command) -> None:
    words = path.split()
    context = click.Context(command, info_name=f"attnstore {path}")
    text = command.get_help(context)
    assert not re.search(r"\\[a-z]|[\x00-\x08\x0b-\x1f]", text), path
    body = text.partition("\nExamples:\n")[2].splitlines()
    assert body, f"{path} has no examples"
    assert any(line.strip().startswith(" ".join(["attnstore", *words])) for line in body), body
    for line in body:
        if line.strip().startswith("attnstore "):
            assert "  " not in line.strip(), line  # each stands on a line of its own
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.name}"
            assert parameter.help.rstrip().endswith((".", "]", ")", '"')), parameter.help


@pytest.mark.parametrize(("path", "command"), COMMANDS)
def test_one_word_has_one_meaning(path: str, command: click.Command) -> None:
    """STORE stands first, and the options that commands share are the same options."""
    options = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
    gone = {"--store", "--output", "-o", "--plot", "--query-group", "--cameras", "--episodes"}
    assert not options & gone
    arguments = [p.name for p in command.params if isinstance(p, click.Argument)]
    if path not in ("policies", "demo", "cnn layers", "doctor"):  # which have no store
        assert arguments[0] in ("store", "stores")
    if path.startswith(("ingest", "cnn", "export lerobot")) or "--episode" not in options:
        return
    assert "--where" in options or path == "render cnn"
    assert "--run" in options or {"run_a", "run_b"} <= {*arguments}


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file of this process grows, as on a full disk; Python ignores the signal that says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestOutputThatCannotBeWritten:
    """A file stands where a directory is to be, and the other way round."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ("sql", "STORE", "from episodes", "--parquet"),
            ("tokens", "STORE"),
            ("compare", "groups", "STORE", "--metric", "entropy"),
            ("render", "images", "STORE"),
            ("render", "videos", "STORE"),
            ("render", "cnn", "STORE"),
            ("report", "STORE"),
            ("objects", "add", "STORE", "--masks", "."),
            ("objects", "timeline", "STORE"),
            ("export", "rerun", "STORE"),
            ("export", "pack", "STORE"),
            ("demo",),
        ],
        ids=lambda words: " ".join(words[:2]),
    )
    def test_out(self, root: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        blocker = tmp_path / "file"
        blocker.touch()
        suffix = {"tokens": ".png", "compare": ".png", "export": ".rrd"}.get(arguments[0], "")
        words = [str(root) if word == "STORE" else word for word in arguments]
        process = run(*words, "--out", blocker / f"below{suffix}")
        assert_one_line(process, 2, "cannot be made", str(blocker), "is a file")

    def test_a_copy(self, root: Path, tmp_path: Path) -> None:
        blocker = tmp_path / "file"
        blocker.touch()
        assert_one_line(run("pull", root, blocker / "copy"), 2, "cannot be made")

    def test_a_full_device(self, root: Path) -> None:
        command = f"{sys.executable} -m attnstore sql {root} 'from range(100000)' --csv > /dev/full"
        process = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert_one_line(process, 1, "No space left on device")

    @pytest.mark.parametrize(
        ("arguments", "file"),
        [
            (
                ("sql", "STORE", "from range(100000)", "--parquet", "--out", "rows.parquet"),
                "rows.parquet",
            ),
            (("tokens", "STORE", "--out", "tokens.png"), "tokens.png"),
            (("compare", "groups", "STORE", "--metric", "entropy", "--out", "c.png"), "c.png"),
            (("render", "images", "STORE", "--out", "out"), ".jpg"),
            (("render", "videos", "STORE", "--out", "out"), ".webm"),
            (("report", "STORE", "--out", "out"), "out/"),
            pytest.param(
                ("export", "rerun", "STORE", "--out", "out.rrd"),
                "out.rrd",
                marks=pytest.mark.skipif(find_spec("rerun") is None, reason="needs rerun-sdk"),
            ),
        ],
        ids=lambda words: " ".join(words[:2]) if isinstance(words, tuple) else words,
    )
    def test_a_full_disk(
        self, root: Path, tmp_path: Path, arguments: tuple[str, ...], file: str
    ) -> None:
        """No byte fits: the file is named, by its own name, and nothing of it is left."""
        run("sql", root, "select 1")  # the catalog is up to date: nothing else is written
        with no_room():
            process = run(*(root if a == "STORE" else a for a in arguments), cwd=tmp_path)
        last = process.stderr.splitlines()[-1]
        assert re.fullmatch(rf"attnstore: .*{re.escape(file)}.*: File too large", last), (
            process.stderr
        )
        assert ".part" not in last
        assert [f for f in tmp_path.rglob("*") if f.is_file() and not f.is_relative_to(root)] == []

    @pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
    def test_a_closed_stdout(self, root: Path, closed: str) -> None:
        command = f"{sys.executable} -m attnstore ls {root} {closed}"
        process = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


NAMES = [
    "a?b.attn", "a#b.attn", "a b.attn", "a%20b.attn", "a:b.attn", "lab*.attn", "[x].attn",
    "lába.attn", "a'b.attn", 'a"b.attn', "a;b.attn", "-.attn", "~.attn",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_store_is_found_whatever_it_is_called(root: Path, tmp_path: Path, name: str) -> None:
    """Relative, since a colon after a relative name's first part looks like a URL's scheme."""
    shutil.copytree(root, tmp_path / name)
    shown = f"./{name}" if name.startswith("-") else name
    rows = [json.loads(x) for x in run("ls", shown, "--json", cwd=tmp_path).stdout.splitlines()]
    assert NAME in [row["episode"] for row in rows]
    query = "select count(*) n from head_stats"
    counted = run("sql", shown, query, "--csv", cwd=tmp_path)
    assert counted.stdout == run("sql", root, query, "--csv").stdout, counted.stderr
    drawn = run(
        "render", "images", shown, "--out", "out", "--layers", "0", "--heads", "active",
        "--episode", NAME, "--phase", "prefix", cwd=tmp_path,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    assert "every committed file" in run("verify", shown, cwd=tmp_path).stdout


def test_a_terminal_that_cannot_spell(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "lab.attn")
    write_episode(paths, "success/2025-01-01/größe-机器人")
    plain: Any = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    listed = run_process("ls", paths.root, **plain)
    assert listed.returncode == 0, listed.stderr
    assert r"gr\xf6\xdfe" in listed.stdout
    (row,) = map(json.loads, run_process("ls", paths.root, "--json", **plain).stdout.splitlines())
    assert row["episode"] == "success/2025-01-01/größe-机器人"
    assert_one_line(run_process("ls", tmp_path / "größe", **plain), 3, "is not an attnstore store")


@pytest.mark.parametrize("command", ["ls {} --json", "sql {} 'from range(200000)' --csv", "--help"])
def test_a_reader_that_goes_away_is_no_error(root: Path, command: str) -> None:
    line = f"{sys.executable} -m attnstore {command.format(root)} | true"
    done = subprocess.run(
        ["bash", "-c", f"{line}; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("0", "")


@pytest.mark.parametrize("path", ["sql", "ingest droid", "compare runs", "pull", "serve", "tokens"])
def test_help_needs_no_store(tmp_path: Path, path: str) -> None:
    for flag in ("--help", "-h"):
        shown = run_process(*path.split(), flag, cwd=tmp_path)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith(f"Usage: attnstore {path} [OPTIONS] [STORE]")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lab.attn`, two recordings in two runs each, and MASKS of its objects."""
    folder = tmp_path_factory.mktemp("work")
    lab = create_store(folder / "lab.attn")
    for number in range(2):
        for run_seed in range(2):
            write_episode(
                lab, f"success/2025-01-01/e{number}", seed=number, run_seed=run_seed, features=2
            )  # fmt: skip
        masks = folder / "MASKS" / "success" / "2025-01-01" / f"e{number}"
        masks.mkdir(parents=True)
        found = {str(frame): [detection("cube", 4, 8, (36, 64), 9)] for frame in (0, 8, 16)}
        (masks / "dinox_info.json").write_text(json.dumps(found))
    return folder


@pytest.fixture(scope="module")
def many(work: Path) -> None:
    """`many.attn`: enough episodes to predict failures."""
    many = create_store(work / "many.attn")
    for number in range(36):
        outcome = ("success", "failure")[number % 2]
        name = f"{outcome}/2025-01-01/e{number}"
        shape: Any = {"keyframes": 2, "layers": 1, "heads": 1, "steps": 1, "features": 2}
        write_episode(many, name, outcome, number, **shape)


LONG = [
    "verify lab.attn",
    "render images lab.attn --out OUT --layers 0 --heads active --run RUN",
    "render videos lab.attn --out OUT --layers 0 --heads active --run RUN",
    "report lab.attn --out OUT --run RUN",
    "objects add lab.attn --masks MASKS --run RUN",
    "objects timeline lab.attn --out OUT --run RUN",
    "compare runs lab.attn RUN OTHER --videos OUT --layers 0",
    "export rerun lab.attn --out OUT.rrd --run RUN",
    "export fiftyone lab.attn OUT --run RUN",
    "export hidden many.attn OUT --tokens mean",
    "failure many.attn --shuffles 1 --alpha 0.4",
    "linear-probe many.attn --target outcome --shuffles 1",
    "pull lab.attn OUT.attn",
    "compare groups many.attn --metric entropy --permutations 99 --bootstraps 9",
    "compare runs lab.attn RUN OTHER",
    "similarity lab.attn RUN OTHER",
    "export pack lab.attn --out OUT --episode e0 --run RUN --layers 0 --phase prefix",
    "gc lab.attn",
    "catalog rebuild lab.attn",
]
"""Whatever loops over episodes, but for what needs a policy (test_cli_ingest, test_cli_probe) or a bucket."""


@pytest.mark.parametrize("line", LONG)
def test_long_work_shows_progress_on_a_terminal_alone(
    line: str, work: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """How much is done and the time that is left; in a log or a pipe there is nothing of it.

    The last line says what was made, and, where something was, what to do next.
    """
    needs = {"rerun": "rerun", "pack": "starlette", "failure": "sklearn", "linear-probe": "sklearn"}
    if "many.attn" in line:
        request.getfixturevalue("many")
    for word in line.split()[:2]:
        if word in needs:
            pytest.importorskip(needs[word])
    listed = run("ls", work / "lab.attn", "--json").stdout.splitlines()
    runs = list(dict.fromkeys(json.loads(row)["run"] for row in listed))
    number = LONG.index(line)
    words, again = (
        [
            {"RUN": runs[0], "OTHER": runs[1]}.get(word, word).replace("OUT", f"{kind}-{number}")
            for word in line.split()
        ]
        for kind in ("shown", "quiet")
    )
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    code, said = on_a_terminal(words, work)
    assert code == 0, said
    assert re.search(r"\d+% .* left |MB/s [-\d]", said), said
    last = said.rstrip().splitlines()[-1]
    assert "next: " in last, last
    quiet = run(*again, cwd=work)
    assert quiet.returncode == 0, quiet.stderr
    assert not re.search(r" (left|eta) [-\d]", quiet.stderr)
    assert "\x1b" not in quiet.stderr

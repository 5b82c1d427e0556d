"""Every command and every Python block of the pages, run in the order of its page.

A page runs in a folder of its own where the names that it uses exist: `page_fixtures`. What cannot be run
here is in `ELSEWHERE`, with what it needs; a new block that is not listed there is run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from cli_fixtures import run
from page_fixtures import PAGES, Names, Workshop
from service_fixtures import start, stop

import attnstore

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
COMMANDS = ("", "sh", "console")
LANGUAGES = {*COMMANDS, "python", "sql", "toml", "text", "mermaid"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A statement of a shell, or a whole block of another language."""

    page: str
    line: int
    language: str
    text: str


def pieces(page: Path) -> Iterator[Piece]:
    name = page.relative_to(ROOT).as_posix()
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, found.start()) + 2
        language, body = found[2], textwrap.dedent(found[3])
        assert language in LANGUAGES, f"{name}:{line}: what is a block of {language}?"
        if language in ("text", "mermaid"):
            continue
        if language not in COMMANDS:
            yield Piece(name, line, language, body)
            continue
        for offset, statement in statements(body, prompt=language == "console"):
            yield Piece(name, line + offset, "sh", statement)


def statements(body: str, *, prompt: bool) -> Iterator[tuple[int, str]]:
    """Split as a shell does: by lines, but for open quotes, a line's end that is escaped, and loops.

    After prompts there are commands; the other lines are what they print.
    """
    held, start = "", 0
    for number, line in enumerate(body.splitlines()):
        if not held:
            start = number
            if prompt and not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ") if prompt else line
        held += line + "\n"
        try:
            words = shlex.split(held, comments=True)
        except ValueError:  # a quote is open
            continue
        if line.endswith("\\") or words.count("do") > words.count("done"):
            continue
        if words[:1] == ["for"] and "do" not in words and "do;" not in words:
            continue
        if words:
            for part in held.strip().split(" && ") if words[0] != "for" else [held.strip()]:
                yield start, part
        held = ""
    assert not held, held


ALL = [piece for page in PAGES for piece in pieces(page)]

ELSEWHERE: dict[str, tuple[tuple[str, str], ...]] = {
    "installs packages of PyPI or npm; what attnstore publishes is installed by make test-package": (
        ("*", "pip install"), ("*", "uv pip install"), ("*", "uvx "), ("*", "npx "),
        ("*", "apt-get install"),
        ("how-to/lerobot.md", "lerobot-env/bin/pip install"),
        ("how-to/lerobot.md", "python3.12 -m venv"),
        ("how-to/octo.md", "python3.11 -m venv"), ("how-to/octo.md", ". octo-env"),
        ("how-to/openvla.md", "python3.11 -m venv"), ("how-to/openvla.md", ". o"),
    ),
    "a target of the Makefile, which needs what stands before it on the page": (
        ("*", "make "), ("how-to/remote.md", "AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… make test-s3"),
    ),
    "the internet: repositories and checkpoints of others": (
        ("*", "git clone"), ("how-to/openpi.md", "GIT_LFS_SKIP_SMUDGE=1"), ("how-to/openpi.md", "cp -r"),
        ("how-to/openpi.md", "source .venv"), ("how-to/openpi.md", "cd openpi"),
        ("how-to/openpi.md", "CHECKPOINT="), ("how-to/openpi.md", "uv run"),
    ),
    "openpi's environment: make test-openpi runs the same functions, not these lines": (
        ("how-to/openpi.md", "attnstore ingest"), ("how-to/openpi.md", "attnstore record openpi"),
        ("how-to/openpi.md", "attnstore outcomes"), ("how-to/openpi.md", "client.infer"),
        ("how-to/openpi.md", "import attnstore\n\nepisode"),
        ("how-to/openpi.md", "import attnstore\nfrom attnstore.ingest.policies"),
        ("how-to/openpi.md", "from openpi.policies"),
        ("how-to/record.md", "attnstore record openpi"),
    ),
    "LeRobot's environment: make test-lerobot runs the same functions, not these lines": (
        ("how-to/lerobot.md", "attnstore ingest lerobot"), ("how-to/lerobot.md", "attnstore compare runs"),
        ("how-to/lerobot.md", "from attnstore.ingest.capture"),
        ("how-to/hdf5.md", "attnstore ingest"),
        ("how-to/record.md", "attnstore record lerobot-eval"),
        ("how-to/record.md", "attnstore ingest recording lab.attn --name aloha"),
        ("how-to/record.md", "from attnstore.ingest.recording.lerobot"),
        ("how-to/record.md", "from attnstore.ingest.recording.vla_eval"),
        ("how-to/record.md", "from attnstore.ingest.recording.inspect_robots"),
    ),
    "Octo's environment: make test-octo runs the same functions, not these lines": (
        ("how-to/octo.md", "attnstore ingest"), ("how-to/cnn.md", "attnstore cnn layers --network octo"),
    ),
    "OpenVLA's environments: make test-openvla and test-oft run the same functions, not these lines": (
        ("how-to/openvla.md", "attnstore "), ("how-to/openvla.md", "select"),
        ("how-to/openvla.md", "import attnstore"),
    ),
    "a data set of LeRobot: tests/commands/test_lerobot_command.py exports to one": (
        ("how-to/lerobot.md", "attnstore export lerobot"),
    ),
    "MuJoCo's simulator, or hours: tests/test_toy_cube.py drives the same modules, not these lines": (
        ("*", "for world in"), ("*", "python -m examples"), ("how-to/toy-cube.md", "for checkpoint in"),
        ("how-to/toy-cube.md", "attnstore ingest droid toy/"), ("how-to/toy-cube.md", "attnstore compare"),
        ("findings.md", "C="), ("findings.md", "for "), ("findings.md", "attnstore ingest"),
        ("findings.md", "attnstore compare"), ("findings.md", "attnstore failure"),
        ("findings.md", "attnstore probe"),
        ("findings.md", "attnstore sql demo.attn"), ("findings.md", "attnstore sql failure.attn"),
        ("findings.md", "attnstore objects add --masks look"),
        ("how-to/failure.md", "attnstore failure failure.attn"),
    ),
    "a cluster: make test-slurm, make test-cluster": (
        ("how-to/cluster.md", "dask "), ("how-to/cluster.md", "sbatch"),
        ("how-to/cluster.md", "with SLURMCluster"), ("how-to/cluster.md", "class Attnstore"),
    ),
    "tests/commands/test_demo.py runs it": (("tutorials/gpu-node.md", "attnstore demo"),),
    "torchvision's published weights: tests/ingest/test_cnn.py runs it with random ones": (
        ("how-to/cnn.md", "attnstore cnn filters"), ("how-to/cnn.md", "attnstore cnn activations"),
        ("how-to/cnn.md", "attnstore cnn guided"), ("how-to/cnn.md", "attnstore render cnn"),
        ("how-to/cnn.md", "import attnstore"),
    ),
    "another machine": (("how-to/serve.md", "ssh "),),
    "curl against a server: tests/query/test_service.py runs the blocks as one script": (
        ("how-to/serve.md", "curl "), ("how-to/serve.md", "U="), ("how-to/serve.md", "A="),
        ("how-to/serve.md", "S="), ("how-to/serve.md", "J="), ("how-to/serve.md", "E="),
    ),
    "the address and credentials of a lab; here those of a local server": (
        ("how-to/remote.md", "export "), ("how-to/remote.md", "attnstore pull http://gpu-node"),
    ),
    "publishes on the Hub": (("how-to/hub.md", "hf upload"),),
    "opens a window": (("how-to/look.md", "rerun one.rrd"), ("how-to/record.md", "attnstore record watch")),
    "FiftyOne's environment: make test-fiftyone opens such a folder, not by these lines": (
        ("how-to/fiftyone.md", "import fiftyone"),
    ),
}  # fmt: skip
"""Why a piece is not run here: what it needs or which test runs it, the page and how the piece begins."""


def elsewhere(piece: Piece) -> str | None:
    for reason, listed in ELSEWHERE.items():
        for page, first in listed:
            if page in ("*", piece.page.removeprefix("docs/")) and piece.text.startswith(first):
                return reason
    return None


@dataclass
class Reader:
    """Somebody who does what a page says, in a folder."""

    names: Names
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    python: dict[str, Any] = field(default_factory=dict)

    def does(self, piece: Piece) -> None:
        text = self.names.told(piece.text)
        if piece.language == "sh":
            self.shell(text)
        elif piece.language == "python":
            self.block(text, piece)
        elif piece.language == "toml":
            self.names.announce(tomllib.loads(text))
        elif piece.language == "sql":
            with attnstore.open(self.names.store) as store:
                assert store.sql(text).fetchall() or self.names.store is None

    def block(self, text: str, piece: Piece) -> None:
        file = re.match(r'"""(\w+\.py): ', text)
        if file is not None:
            (self.folder / file[1]).write_text(text)
        exec(compile(text, f"{piece.page}:{piece.line}", "exec"), self.python)

    def shell(self, text: str) -> None:
        words = shlex.split(self.expanded(text).replace("\\\n", " "), comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):  # for one command, or from here on
            name, _, value = words.pop(0).partition("=")
            self.variables[name] = value
        if not words:
            return
        if words[0] == "export":
            self.variables |= dict(word.split("=", 1) for word in words[1:])
            return
        if words[0] != "attnstore" or {"|", ">", ">>", "&&"} & {*words}:
            self.bash(text)
            return
        if words[1] == "serve":
            self.serve(words[2:])
            return
        done = run(*words[1:], cwd=self.folder, **self.variables)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    def serve(self, words: list[str]) -> None:
        """Until it has said where it is, in a process that has imported everything already."""
        started = start(*words, log=self.folder / "serve.log")
        try:
            assert started.get("/v1/stores").json()
        finally:
            stop(started)

    def expanded(self, text: str) -> str:
        for name, value in self.variables.items():
            text = re.sub(rf"\$(?:{name}\b|{{{name}}})", value.replace("\\", r"\\"), text)
        return text

    def bash(self, text: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", text], cwd=self.folder, text=True, capture_output=True,
            env=os.environ | {"PATH": path, "HOME": str(self.folder)} | self.variables, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("pages"), request)


RUN = {piece.page for piece in ALL if elsewhere(piece) is None}


@pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")  # ibis 12 with DuckDB 2
@pytest.mark.parametrize("page", sorted(RUN))
def test_a_page_can_be_followed(
    page: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTNSTORE_CACHE", str(workshop.folder / "cache"))  # and not the user's own
    names = workshop.names_of(page, monkeypatch)
    monkeypatch.chdir(names.folder)
    monkeypatch.syspath_prepend(names.folder)
    monkeypatch.delenv("ATTNSTORE", raising=False)
    monkeypatch.setenv("BROWSER", "true")  # what --open opens
    reader = Reader(names, names.folder, python=dict(names.given))
    try:
        for piece in (p for p in ALL if p.page == page and elsewhere(p) is None):
            reader.does(piece)
    finally:
        plt.close("all")
        names.after.close()
    shutil.rmtree(names.folder)


def test_what_is_not_run_is_there() -> None:
    """The list holds nothing that no page has any more."""
    for reason, listed in ELSEWHERE.items():
        for page, first in listed:
            assert any(
                page in ("*", piece.page.removeprefix("docs/")) and piece.text.startswith(first)
                for piece in ALL
            ), f"{page}: {first!r} ({reason}) is in no page: take it off the list"

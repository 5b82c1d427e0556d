"""``attnstore probe``: forecast, output, exit codes, and a kill -9 of it in the middle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import on_a_terminal
from ingest_fixtures import Zygote, problems, run_attnstore

import attnstore
from attnstore.cli import main
from attnstore.commands.options import NumberList
from attnstore.store.commits import StorePaths, all_commits
from attnstore.store.errors import UsageError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def ingested(
    zygote: Zygote, checkpoint: Path, recordings: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("probed")
    options = ("--policy", "pi0", "--checkpoint", checkpoint)
    code = zygote.run("ingest", "droid", folder / "s", recordings, *options, output=folder / "log")
    assert code == 0, (folder / "log").read_text()
    return folder / "s"


@pytest.fixture
def store(ingested: Path, ram_path: Path) -> Path:
    """A copy of the ingested store, to be changed."""
    shutil.copytree(ingested, ram_path / "s")
    return ram_path / "s"


@pytest.fixture
def probe(
    store: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:  # fmt: skip
    monkeypatch.delenv("ATTNSTORE", raising=False)

    def probe(kind: str, *more: object) -> tuple[int, str, str]:
        arguments = ["probe", kind, store, "--checkpoint", checkpoint, *more]
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(stop.value.code or 0), said.out, said.err

    return probe


def parts(store: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (str(c.summary["name"]), c.part): dict(c.summary)
        for c in all_commits(StorePaths(store))
        if c.part.startswith("probe-")
    }


@pytest.mark.parametrize("command", ["ingest", "probe"])
def test_progress_on_a_terminal(
    command: str, store: Path, checkpoint: Path, recordings: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """How many keyframes of all, and the time left; then what was made, and what is next."""
    monkeypatch.delenv("ATTNSTORE", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    lines: dict[str, list[object]] = {
        "ingest": ["ingest", "droid", store, recordings, "--policy", "pi0", "--seed", 1],
        "probe": ["probe", "fidelity", store, "--layers", 0, "--repeats", 1, "--every", 9],
    }
    words = [*lines[command], "--checkpoint", checkpoint, "--limit", 1]
    code, said = on_a_terminal([str(word) for word in words], tmp_path)
    assert code == 0, said
    assert re.search(r"\d+/\d+ keyframes [\d:]+ left [-\d]", said), said
    then = {"ingest": "ls", "probe": "report"}[command]
    last = said.rstrip().splitlines()[-1]
    assert re.match(rf"committed 1 episodes, .*; next: attnstore {then} ", last), last


def test_fidelity_and_resume(probe: Run, store: Path) -> None:
    options = ("--layers", "0,2", "--every", 2, "--fill", "black", "--repeats", 1)
    code, out, err = probe("fidelity", *options, "--limit", 2)
    assert (code, out) == (0, "")
    assert "2 episodes to do, 4 keyframes, 20 action chunks of 8 degrees of freedom" in err
    assert "committed 2 episodes, 4 keyframes, " in err
    code, _, err = probe("fidelity", *options)
    assert code == 0
    assert "1 episodes to do, 1 keyframes, 5 action chunks" in err
    assert "2 committed already" in err
    assert len(parts(store)) == 3
    rows = attnstore.open(store).sql(
        "select distinct phase, step, query_group, heads, fill, layer from interventions "
        "where target = 'control' order by layer"
    )
    assert rows.fetchall() == [("suffix", 2, "action", "mean", "black", layer) for layer in (0, 2)]
    assert problems(store) == []


def test_json_and_other_kinds(probe: Run, store: Path) -> None:
    code, out, err = probe(
        "prompts", "--json", "--limit", 1, "--empty", "--replace", "pick=push", "--every", 9
    )
    assert (code, err) == (0, "")
    forecast, episode = (json.loads(line) for line in out.splitlines())
    assert (forecast["event"], forecast["keyframes"], forecast["forwards"]) == ("forecast", 1, 3)
    assert (episode["status"], episode["keyframes"]) == ("committed", 1)
    code, _, err = probe("knockout", "--key", "image:hand_camera", "--query", "action",
                         "--at", "each", "--limit", 1, "--every", 9)  # fmt: skip
    assert code == 0, err
    code, _, err = probe("regions", "--by", "cell", "--cells", "1x2", "--limit", 1, "--every", 9)
    assert code == 0, err
    found = attnstore.open(store).sql(
        "select probe, count(*) from interventions group by all order by all"
    )
    assert found.fetchall() == [("knockout", 4), ("prompts", 3), ("regions", 5)]


def test_episodes_whose_prompt_has_not_the_word_are_named(probe: Run, store: Path) -> None:
    code, _, err = probe("knockout", "--key", "word:cube", "--query", "word:the", "--every", 9)
    assert code == 5
    assert "1 episodes to do, 1 keyframes, 2 action chunks" in err
    assert "0 committed already, 2 broken" in err
    assert "2 episodes are not in" in err
    assert err.count("query: no word 'the'") + err.count("key: no word 'cube'") == 2
    assert len(parts(store)) == 1


def test_a_dry_run_writes_nothing(probe: Run, store: Path) -> None:
    code, _, err = probe("regions", "--dry-run", "--cells", "2x2")
    assert code == 0
    assert "3 episodes to do, 8 keyframes, 96 action chunks" in err
    assert parts(store) == {}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("fidelity", "--layers", "7-3"), 2, "--layers takes numbers and ranges"),
        (("fidelity", "--layers", "9"), 2, "layer 9: phase suffix has layers 0 to 2"),
        (("fidelity", "--phase", "joint"), 2, "has no phase 'joint'"),
        (("fidelity", "--camera", "x"), 2, "has no camera 'x'; it has: hand_camera, varied"),
        (("fidelity", "--episode", "x"), 3, "no episode 'x'; there are"),
        (("regions", "--cells", "4"), 2, "--cells is ROWSxCOLUMNS, as 4x4; got '4'"),
        (("regions", "--by", "rank"), 2, "--by rank needs --layers"),
        (("prompts",), 2, "there is no prompt to try: give --prompts FILE"),
        (
            ("knockout", "--key", "wheel"),
            2,
            "prefix, suffix key: no tokens 'wheel'; there are image, text, ",
        ),
        (("knockout", "--key", "word:wheel"), 2, "and 2 more: prefix, suffix key: no word 'wheel'"),
        (("fidelity", "--dof", "33"), 2, "--dof 33: the policy's actions have 32 components"),
        (("fidelity", "--policy-option", "steps=1"), 2, "pass the --policy-option values"),
    ],
)
def test_mistakes_are_one_line(
    probe: Run, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, out, err = probe(*arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1, err


def test_layers() -> None:
    layers = NumberList()
    assert layers.convert("0-2, 7,1", None, None) == (0, 1, 2, 7)
    for wrong in ("", "a", "3-1", "1-2-3", "-1"):
        with pytest.raises(UsageError):
            layers.convert(wrong, None, None)


def test_kill_9_loses_at_most_the_episode_in_flight(
    zygote: Zygote, store: Path, checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ("probe", "fidelity", store, "--checkpoint", checkpoint, "--repeats", 4)
    log = tmp_path / "log"
    for wait in (0.0, 0.5, 1.0):
        known = set(store.glob("data/*/*/probe-*"))
        pid = zygote.start(*arguments, output=log)
        deadline = time.monotonic() + 60
        while not set(store.glob("data/*/*/probe-*")) - known and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
        assert zygote.wait(pid) in (-signal.SIGKILL, 0)
        assert problems(store) == []
        done = parts(store)
        # what readers see is whole, at any moment
        seen = attnstore.open(store).sql("select distinct episode from interventions").fetchall()
        assert len(seen) == len(done)
    assert len(set(store.glob("data/*/*/probe-*"))) > len(done), "no kill hit one in the making"
    assert zygote.run(*arguments, output=log) == 0, log.read_text()
    assert len(parts(store)) == 3
    assert problems(store) == []


def test_it_is_listed_and_needs_no_torch_for_its_help() -> None:
    done = run_attnstore("probe", "--help")
    assert done.returncode == 0
    for kind in ("fidelity", "regions", "prompts", "knockout"):
        assert kind in done.stdout

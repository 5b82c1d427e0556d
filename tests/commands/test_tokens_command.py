"""``attnstore tokens``: what a token matrix is made of, measured from stored weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from ingest_fixtures import make_job
from numpy.typing import NDArray
from octo_fixture import HEADS, LAYERS, may_attend
from octo_store import octo_store

from attnstore.cli import main
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.episode import ingest_episode
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.query import Episode, Store
from attnstore.query import open as open_for_reading
from attnstore.query.attention.structure import Relation, SpanTokens, TokenMatrix, token_matrix
from attnstore.query.attention.structure import _relation as relation
from attnstore.render.charts.structure import draw_structure
from attnstore.store.errors import SelectionError

__all__ = ["octo_store"]
NAME = "2025-12-10_09-00-00"


@pytest.fixture(scope="module")
def pi0_store(
    loaded: Pi0Policy, recordings: Path, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    dataset = DroidDataset(recordings)
    job = make_job(tmp_path_factory.mktemp("pi0") / "pi0.attn", loaded, dataset)
    ingest_episode(job, loaded, dataset, dataset.episode_names()[1])
    return open_for_reading(job.paths.root)


@pytest.fixture(scope="module")
def pi0(pi0_store: Store) -> Episode:
    return pi0_store.episode(NAME)


@pytest.fixture(scope="module")
def octo(octo_store: Store) -> Episode:
    return octo_store.episode(NAME)


def blocks(matrix: TokenMatrix) -> dict[tuple[str, str], Relation]:
    return {
        (q.name, k.name): r
        for q, row in zip(matrix.queries, matrix.relations, strict=True)
        for k, r in zip(matrix.keys, row, strict=True)
    }


def test_pi0s_state_never_sees_the_actions(pi0: Episode) -> None:
    matrix = token_matrix(pi0, "suffix")
    found = {pair: r.pattern for pair, r in blocks(matrix).items()}
    assert found.pop(("state", "action")) == "none"
    assert set(found.values()) == {"all"}
    assert (matrix.layers, matrix.heads, matrix.steps) == (3, 8, 3)
    assert [s.name for s in matrix.queries] == ["state", "action"]
    task = next(s for s in matrix.keys if s.name == "task")
    assert "".join(t.text for t in task.tokens) == pi0.instruction
    assert {r.pattern for r in blocks(token_matrix(pi0, "prefix")).values()} == {"all"}


def test_masses_are_means_of_the_stored_weights(pi0: Episode) -> None:
    matrix = token_matrix(pi0, "suffix", keyframe=1)
    weights = pi0.attention("suffix", keyframe=1).values.astype(np.float64)
    for (query, key), found in blocks(matrix).items():
        q, k = pi0.phase("suffix").query[query], pi0.phase("suffix").key[key]
        part = weights[..., q.start : q.stop, k.start : k.stop]
        assert found.mass == pytest.approx(part.sum(-1).mean(), rel=1e-6)
    for row in matrix.relations:
        assert sum(r.mass for r in row) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("keyframe", [0, 1])
def test_octos_rules_are_found(octo: Episode, keyframe: int) -> None:
    """Against the rules themselves, by group and timestep."""
    matrix = token_matrix(octo, "joint", keyframe=keyframe)
    assert matrix.square
    assert (matrix.layers, matrix.heads, matrix.steps) == (LAYERS, HEADS, None)

    def group(name: str) -> tuple[str, int]:
        base, _, back = name.partition("@")
        kind = "readout" if base.startswith("readout") else "obs"
        if base in ("task", "task_eos", "task_pad"):
            return "task_language", -1
        return f"{kind}_x", 1 + int(back or 0)

    for (query, key), found in blocks(matrix).items():
        assert found.pattern == ("all" if may_attend(group(query), group(key)) else "none")
    has_past = any(s.name == "image:hand_camera@-1" for s in matrix.keys)
    assert has_past == (keyframe == 1)


def span(name: str, start: int, stop: int) -> SpanTokens:
    return SpanTokens(name, "other", None, None, None, start, stop, start, ())


@pytest.mark.parametrize(
    ("attended", "same", "pattern", "share"),
    [
        (np.ones((3, 3)), True, "all", 1.0),
        (np.zeros((3, 3)), True, "none", 0.0),
        (np.tri(3), True, "causal", 6 / 9),
        (np.tri(3), False, "part", 6 / 9),
        (np.tri(3).T, True, "part", 6 / 9),
        (np.eye(3), True, "part", 3 / 9),
        (np.where(np.tri(3) > 0, 1, np.nan), True, "causal", 6 / 9),
    ],
)
def test_patterns(attended: NDArray[np.float64], same: bool, pattern: str, share: float) -> None:
    whole = np.zeros((4, 5))
    whole[1:, 2:] = attended
    found = relation(span("a", 1, 4), span("a" if same else "b", 2, 5), whole, whole)
    assert found.pattern == pattern
    assert found.share == pytest.approx(share)


def test_a_keyframe_or_phase_that_is_not_there(pi0: Episode) -> None:
    with pytest.raises(SelectionError, match="keyframe 9 is out of range"):
        token_matrix(pi0, "prefix", keyframe=9)
    with pytest.raises(SelectionError, match="no phase 'joint'; there are: prefix, suffix"):
        token_matrix(pi0, "joint")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def test_the_command_prints(octo_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokens", octo_store.paths.root, "--episode", NAME, "--keyframe", -1) == 0
    said = capsys.readouterr().out
    assert "joint: 90 query x 90 key tokens, 2 layers x 2 heads, keyframe 2" in said
    assert "'place' ' the' ' green' ' cube'" in said
    assert "4 x 4 patches" in said
    (row,) = [x for x in said.splitlines() if x.startswith(" 14 readout_action ") and "#" in x]
    assert row.split()[2:] == ["#"] * 15
    (row,) = [x for x in said.splitlines() if x.startswith("  0 task ") and "#" in x]
    assert row.split()[2:] == ["#"] * 3 + ["."] * 12


def test_the_command_as_json(pi0_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokens", pi0_store.paths.root, "--episode", NAME, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["phase"] for r in rows] == ["prefix", "suffix"]
    (block,) = [b for b in rows[1]["attends"] if (b["query"], b["key"]) == ("state", "action")]
    assert block == {
        "query": "state", "key": "action", "pattern": "none", "share": 0.0, "mass": 0.0,
    }  # fmt: skip
    assert sum(s["tokens"] for s in rows[1]["keys"]) == sum(
        s["tokens"] for s in [*rows[0]["keys"], *rows[1]["queries"]]
    )


def test_the_picture(pi0_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens.png"
    assert (
        run("tokens", pi0_store.paths.root, "--episode", NAME, "--phase", "suffix", "--out", file)
        == 0
    )
    image = cv2.imread(str(file))
    assert image is not None
    assert image.shape[0] > 150
    assert run("tokens", pi0_store.paths.root, "--episode", NAME, "--out", tmp_path / "a.gif") == 2
    assert "--out takes a file named *.png, *.jpg, *.webp; got" in capsys.readouterr().err


def test_blocks_of_the_picture_tell_the_patterns_apart() -> None:
    """A masked block is dark, a triangle half filled, and colour says how much."""

    def picture(*relations: Relation) -> NDArray[np.uint8]:
        spans = (span("a", 0, 64),)
        matrix = TokenMatrix("prefix", 0, 1, 1, None, spans, spans, ((relations[0],),))
        return draw_structure([matrix], "title")

    def filled(image: NDArray[np.uint8]) -> float:
        # the block is the only thing that is coloured
        return float((np.ptp(image.astype(int), axis=-1) > 40).mean())

    none, causal, part, full, faint = (
        filled(picture(r))
        for r in (
            Relation("none", 0, 0), Relation("causal", 0.5, 0.5), Relation("part", 0.5, 0.5),
            Relation("all", 1, 0.5), Relation("all", 1, 0.001),
        )
    )  # fmt: skip
    assert none == 0
    assert causal == pytest.approx(full / 2, rel=0.15)
    assert part == pytest.approx(full / 2, rel=0.15)
    assert faint > 0.8 * full


def test_it_needs_no_torch(pi0_store: Store) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, jax=None, transformers=None);"
        "from attnstore.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "tokens", str(pi0_store.paths.root), "--episode", NAME],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "suffix: 6 query" in done.stdout

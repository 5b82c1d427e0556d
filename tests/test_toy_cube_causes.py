"""Interventions on a policy whose ground truth is known: where the hand is sent, in centimetres."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ingest_fixtures import Watcher, make_job
from toy_cube import causes
from toy_cube.architecture import BOWL_WORD, CUBE_WORD

from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.pipeline import ingest_all
from attnstore.ingest.policies.pi0.policy import Pi0Policy
from attnstore.ingest.policies.registry import load_policy
from attnstore.ingest.probing.pipeline import choose_episodes
from attnstore.sample import checkpoint_path, episodes_path

CUBE = f"task:{CUBE_WORD}:{CUBE_WORD + 1}"
BOWL = f"task:{BOWL_WORD}:{BOWL_WORD + 1}"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Two threads wait for each other longer than a policy of this size computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def answer(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of one episode of the training's world, by cube and bowl, then by variant."""
    store = tmp_path_factory.mktemp("causes") / "toy.attn"
    dataset = DroidDataset(
        episodes_path(), outcome="success", episodes="2026-*", limit=1, video_frames="png"
    )
    policy = load_policy("pi0", str(checkpoint_path()), dtype="float32")
    assert isinstance(policy, Pi0Policy)
    job = make_job(store, policy, dataset)
    assert not ingest_all(job, policy, dataset, dataset.episode_names(), Watcher()).failed
    episodes = choose_episodes(job.paths, job.run, ())
    found = causes.commanded(policy, episodes, Path(episodes_path()))
    assert {kind: each["episodes"] for kind, each in found.items()} == {"cube": 1, "bowl": 1}
    return {kind: each["variants"] for kind, each in found.items()}


def cm(answer: dict[str, dict[str, Any]], kind: str, variant: str, what: str) -> float:
    return float(answer[kind][variant][what][0])


@pytest.mark.parametrize("kind", ["cube", "bowl"])
def test_the_instruction_sends_it_to_what_it_names(answer: Any, kind: str) -> None:
    assert cm(answer, kind, "base", "to_named_cm") < 5
    assert cm(answer, kind, "base", "nearer_other") == 0
    assert cm(answer, kind, "other named", "to_other_cm") < 5
    assert cm(answer, kind, "other named", "nearer_other") == 1
    assert cm(answer, kind, "base", "moved_cm") == 0


@pytest.mark.parametrize(("kind", "own", "foreign"), [
    ("cube", CUBE, BOWL), ("bowl", BOWL, CUBE),
])  # fmt: skip
def test_places_are_read_off_the_colour_words(
    answer: Any, kind: str, own: str, foreign: str
) -> None:
    assert cm(answer, kind, f"blocked action > {own}", "moved_cm") > 6
    assert cm(answer, kind, f"blocked action > {foreign}", "moved_cm") < 1
    assert cm(answer, kind, "blocked text > image", "moved_cm") > 6
    assert cm(answer, kind, "blocked action > image", "moved_cm") < 4


def test_the_table_has_every_variant(answer: Any) -> None:
    rows = {kind: {"episodes": 1, "variants": found} for kind, found in answer.items()}
    text = causes.tables(rows)
    assert text.count("\n| blocked ") == 2 * 12
    assert "| other named | " in text

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal
from store_fixtures import (
    CAMERAS,
    GROUPS,
    POLICY,
    RandomEpisode,
    maps_of,
    random_episode,
    run_config,
    write_blocks,
    write_rows,
)

import attnstore
from attnstore.commands.compare import compare as command
from attnstore.query import Store
from attnstore.query.groups.run_diff import diff_runs, diff_table, rank_heads
from attnstore.store.commits import Attempt, StorePaths, slug
from attnstore.store.commits.run import save_run
from attnstore.store.commits.writer import EpisodeWriter
from attnstore.store.errors import AttnstoreError, NotFoundError, SelectionError, UsageError
from attnstore.store.format.statistics import image_distribution, jensen_shannon
from attnstore.store.opening import create_store

NAME = "success/2025-01-01/2025-01-01_10-00-00"
CHANGED = (1, 0)
"""Layer and head in which the second run differs."""
LEVEL = 2e-8
"""What one-byte codes of overview maps alone do to a divergence."""


def write(paths: StorePaths, episode: RandomEpisode, run_seed: int) -> str:
    run = save_run(paths, run_config(run_seed), {"host": "test"})
    attempt = Attempt(paths, run, slug(episode.spec.name), "base")
    writer = EpisodeWriter(attempt, episode.spec, POLICY)
    write_blocks(writer, episode)
    write_rows(writer, episode)
    writer.commit({}, after=0)
    return run


def changed(episode: RandomEpisode) -> RandomEpisode:
    """The same episode with other weights in one head, the more so the later the keyframe."""
    rng = np.random.default_rng(9)
    weights = {at: values.copy() for at, values in episode.weights.items()}
    for (_, keyframe, layer, _), values in weights.items():
        if layer == CHANGED[0]:
            shape = values[CHANGED[1]].shape
            noise = np.exp((keyframe + 1) * rng.standard_normal(shape)).astype(np.float32)
            moved = values[CHANGED[1]] * noise
            values[CHANGED[1]] = moved / moved.sum(-1, keepdims=True)
    return replace(episode, weights=weights)


@pytest.fixture(scope="module")
def episodes() -> tuple[RandomEpisode, RandomEpisode]:
    one = random_episode(NAME, keyframes=3)
    return one, changed(one)


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, episodes: tuple[RandomEpisode, RandomEpisode]
) -> tuple[Store, str, str]:
    root = tmp_path_factory.mktemp("diff") / "toy.attn"
    paths = create_store(root)
    one, other = (write(paths, episode, seed) for seed, episode in enumerate(episodes))
    return attnstore.open(root), one, other


@pytest.mark.parametrize("phase", ["prefix", "suffix"])
def test_divergence_is_that_of_the_unrounded_maps(
    opened: tuple[Store, str, str], episodes: tuple[RandomEpisode, RandomEpisode], phase: str
) -> None:
    store, one, other = opened
    found = diff_runs(store, one, other, NAME, phase=phase, step="all")
    steps = 2 if phase == "suffix" else 1
    assert dict(found.sizes) == {"camera": 2, "keyframe": 3, "step": steps, "layer": 2, "head": 2}
    assert found["step"].values.tolist() == ([0, 1] if phase == "suffix" else [-1])
    assert found["frame"].values.tolist() == [0, 8, 16]
    for camera in CAMERAS:
        cover = episodes[0].spec.geometry[camera].coverage()
        for keyframe in range(3):
            a, b = (
                image_distribution(maps_of(e, phase, GROUPS[phase], camera, keyframe)[0], cover)
                for e in episodes
            )
            expected = jensen_shannon(a, b).reshape(steps, 2, 2)
            at = found.sel(camera=camera, keyframe=keyframe)
            assert_allclose(at.values, expected, atol=2e-4)
    same = np.ones((2, 2), bool)
    same[CHANGED] = False
    assert_array_equal(found.values[..., same], 0.0)
    assert (found.values[..., *CHANGED] > 10 * LEVEL).all()


def test_the_last_step_is_taken_unless_another_is_asked_for(opened: tuple[Store, str, str]) -> None:
    store, one, other = opened
    every = diff_runs(store, one, other, NAME, phase="suffix", step="all")
    last = diff_runs(store, one, other, NAME, phase="suffix")
    first = diff_runs(store, one, other, NAME, phase="suffix", step=-2, cameras=CAMERAS[:1])
    assert_array_equal(last.values, every.values[:, :, 1:])
    assert_array_equal(first.values, every.values[:1, :, :1])


def test_a_stored_map_and_the_map_itself_are_below_the_stated_level(
    opened: tuple[Store, str, str], episodes: tuple[RandomEpisode, RandomEpisode]
) -> None:
    store, one, _ = opened
    cover = episodes[0].spec.geometry[CAMERAS[0]].coverage()
    stored = (
        store.episode(NAME, run=one).maps("prefix", CAMERAS[0], reduce="mean", keyframe=0).values
    )
    exact = maps_of(episodes[0], "prefix", "task", CAMERAS[0], 0)[0]
    apart = jensen_shannon(image_distribution(stored, cover), image_distribution(exact, cover))
    assert apart.max() < LEVEL


def test_a_table_has_a_row_per_value_and_ranks_the_changed_head_first(
    opened: tuple[Store, str, str],
) -> None:
    store, one, other = opened
    found = diff_runs(store, one, other, NAME)
    table = diff_table(found)
    assert table.num_rows == found.size
    row = table.to_pylist()[7]
    assert (
        row["divergence"]
        == found.sel(camera=row["camera"], step=-1, layer=row["layer"], head=row["head"]).values[
            row["frame"] // 8
        ]
    )
    assert row["step"] is None
    assert (row["run_a"], row["run_b"], row["episode"]) == (one, other, NAME)
    ranked = rank_heads([found]).to_pylist()
    assert [(r["layer"], r["head"]) for r in ranked[:2]] == [CHANGED, CHANGED]
    top = found.sel(camera=ranked[0]["camera"], layer=CHANGED[0], head=CHANGED[1]).squeeze()
    assert ranked[0]["mean"] == pytest.approx(float(top.mean()))
    assert ranked[0]["max"] == pytest.approx(float(top.max()))
    assert ranked[0]["frame"] == top["frame"].values[int(top.values.argmax())]
    assert ranked[0]["keyframes"] == 3


def other_run(tmp_path: Path, first: dict[str, Any], **shape: Any) -> tuple[Store, str, str]:
    paths = create_store(tmp_path / "toy.attn")
    small = {"keyframes": 2, "layers": 1, "heads": 1, "steps": 1, "grid": (2, 2)}
    frames = shape.pop("frames", None)
    one = write(paths, random_episode(NAME, **{**small, **first}), 0)
    episode = random_episode(NAME, **{**small, **shape})
    if frames:
        episode = replace(episode, spec=replace(episode.spec, frames=frames))
    return attnstore.open(tmp_path / "toy.attn"), one, write(paths, episode, 1)


def test_only_common_frames_are_compared(tmp_path: Path) -> None:
    store, one, other = other_run(tmp_path, {"keyframes": 3}, frames=(8, 24))
    found = diff_runs(store, one, other, NAME)
    assert found["frame"].values.tolist() == [8]
    a, b = (
        store.episode(NAME, run=r)
        .maps("prefix", CAMERAS[0], reduce="mean", keyframe=k, layer=0)
        .values
        for r, k in ((one, 1), (other, 0))
    )
    cover = store.episode(NAME, run=one).geometry(CAMERAS[0]).coverage()
    expected = jensen_shannon(image_distribution(a, cover), image_distribution(b, cover))
    assert_allclose(found.values[0, 0, 0, 0], expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"frames": (1, 3)}, "no frame is a keyframe of both runs"),
        ({"heads": 2}, r"different shape, .* \(1, 1, None\) and \(1, 2, None\)"),
        ({"grid": (4, 4)}, r"different patches \(2 × 2 and 4 × 4"),
        ({"cameras": ("top",)}, "no camera  in both runs; both have: none"),
    ],
    ids=["frames", "heads", "grid", "cameras"],
)
def test_what_cannot_be_compared_is_said(
    tmp_path: Path, shape: dict[str, Any], message: str
) -> None:
    store, one, other = other_run(tmp_path, {}, **shape)
    with pytest.raises(SelectionError, match=message):
        diff_runs(store, one, other, NAME)


def test_wrong_names_are_refused(opened: tuple[Store, str, str]) -> None:
    store, one, other = opened
    with pytest.raises(UsageError, match="two runs are compared"):
        diff_runs(store, one, one, NAME)
    with pytest.raises(NotFoundError, match="has no run 'none'"):
        diff_runs(store, one, "none", NAME)
    with pytest.raises(NotFoundError, match="no episode 'x'"):
        diff_runs(store, one, other, "x")
    with pytest.raises(SelectionError, match="no camera left in both runs; both have: hand_camera"):
        diff_runs(store, one, other, NAME, cameras=["left"])
    with pytest.raises(SelectionError, match="phase prefix has no steps"):
        diff_runs(store, one, other, NAME, step=1)
    with pytest.raises(SelectionError, match="no phase 'joint'"):
        diff_runs(store, one, other, NAME, phase="joint")


def test_command_compares_runs(opened: tuple[Store, str, str], tmp_path: Path) -> None:
    store, one, other = opened
    options = ["runs", str(store.paths.root), one, other]
    done = CliRunner().invoke(command, [*options, "--rows", "1"])
    assert done.exit_code == 0, done.exception
    lines = done.stdout.splitlines()
    assert lines[0] == f"{one} against {other}: 1 episodes in both"
    assert lines[4].split()[1:3] == ["L01", "H00"]
    assert lines[-1].startswith("1 of 8 heads and cameras")
    picture = tmp_path / "diff.png"
    done = CliRunner().invoke(
        command,
        [*options, "--episode", NAME, "--phase", "suffix", "--step", "all", "--json",
         "--camera", CAMERAS[1], "--out", str(picture)],
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3 * 2 * 2 * 2
    assert {row["camera"] for row in rows} == {CAMERAS[1]}
    assert cv2.imread(str(picture)) is not None
    csv_rows = CliRunner().invoke(command, [*options, "--csv"]).stdout.splitlines()
    assert csv_rows[0].split(",")[-1] == "divergence"
    assert len(csv_rows) == 1 + 2 * 3 * 2 * 2


def test_command_takes_two_runs_as_arguments(opened: tuple[Store, str, str]) -> None:
    store, one, other = opened
    arguments = ["runs", str(store.paths.root), one, other, "--run", one]
    done = CliRunner().invoke(command, arguments)
    assert isinstance(done.exception, AttnstoreError)
    assert "it takes no --run" in str(done.exception)

"""Drift against plain loops, and what is recomputed against what was stored at ingest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from derived_fixtures import (
    CAMERA,
    HEADS,
    LAYERS,
    STEPS,
    ingested_episode,
    memory_episode,
    random_rows,
    slow_distribution,
    slow_divergence,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from attnstore.query import Episode
from attnstore.query.attention.drift import (
    keyframe_divergence,
    keyframe_drift,
    pairwise_divergence,
    step_divergence,
    step_drift,
)
from attnstore.store.errors import SelectionError

Float = NDArray[np.float64]
ROUNDING = 2e-4
"""Bits by which overview maps, each weight within 0.05 %, change a divergence of 16 patches."""


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    return ingested_episode(tmp_path_factory)


def distribution(
    episode: Episode, phase: str, keyframe: int, layer: int, head: int, step: int | None, query: str
) -> Float:
    weights = episode.values(
        phase, keyframe=keyframe, layer=layer, head=head, step=step, query=query,
        key=f"image:{CAMERA}",
    ).astype(np.float64)  # fmt: skip
    mean = np.array([sum(column) / len(column) for column in weights.T.tolist()])
    return slow_distribution(mean, episode.geometry(CAMERA).coverage())


@pytest.mark.parametrize(("phase", "query"), [("prefix", "task"), ("suffix", "action")])
def test_stored_drift(episode: Episode, phase: str, query: str) -> None:
    found = keyframe_drift(episode, phase, CAMERA)
    steps = ("step",) if phase == "suffix" else ()
    assert found.dims == ("keyframe", *steps, "layer", "head")
    assert bool(found.isel(keyframe=0).isnull().all())
    assert found.attrs["units"] == "bits"
    assert list(found.frame.values) == list(episode.frames)
    for keyframe in range(1, len(episode.frames)):
        for layer in range(LAYERS):
            step = STEPS - 1 if steps else None
            now, before = (
                distribution(episode, phase, k, layer, 2, step, query)
                for k in (keyframe, keyframe - 1)
            )
            at: Any = {"keyframe": keyframe, "layer": layer, "head": 2}
            one = found.isel(at | ({"step": step} if steps else {}))
            assert_allclose(one, slow_divergence(now, before), atol=1e-4)


def test_stored_step_drift(episode: Episode) -> None:
    found = step_drift(episode, "suffix", CAMERA)
    assert found.dims == ("keyframe", "step", "layer", "head")
    assert bool(found.isel(step=0).isnull().all())
    for step in range(1, STEPS):
        now, before = (
            distribution(episode, "suffix", 1, 0, 5, s, "action") for s in (step, step - 1)
        )
        one = found.isel(keyframe=1, step=step, layer=0, head=5)
        assert_allclose(one, slow_divergence(now, before), atol=1e-4)


@pytest.mark.parametrize(
    ("phase", "query"), [("prefix", None), ("suffix", None), ("prefix", "bos")]
)
def test_between_every_two_keyframes(episode: Episode, phase: str, query: str | None) -> None:
    found = keyframe_divergence(episode, phase, CAMERA, query=query)
    count = len(episode.frames)
    assert dict(found.sizes) == {
        "layer": LAYERS, "head": HEADS, "keyframe": count, "other_keyframe": count
    }  # fmt: skip
    group = query or {"prefix": "task", "suffix": "action"}[phase]
    step = None if phase == "prefix" else STEPS - 1
    for layer, head in ((0, 0), (2, 6)):
        one = found.sel(layer=layer, head=head)
        p = [distribution(episode, phase, k, layer, head, step, group) for k in range(count)]
        expected = [[slow_divergence(a, b) for b in p] for a in p]
        assert_allclose(one, expected, atol=1e-6 if query else ROUNDING)
        maps = episode.maps(phase, CAMERA, layer=layer, head=head, reduce="mean", query=query)
        cover = episode.geometry(CAMERA).coverage()
        p = [slow_distribution(m.astype(np.float64), cover) for m in maps]
        assert_allclose(one, [[slow_divergence(a, b) for b in p] for a in p], atol=1e-6)
    assert found.attrs["precision"] == ("float16" if query else "float32")
    assert list(found.other_frame.values) == list(episode.frames)


def test_neighbours_agree_with_what_was_stored(episode: Episode) -> None:
    between = keyframe_divergence(episode, "suffix", CAMERA, step=1)
    stored = keyframe_drift(episode, "suffix", CAMERA).sel(step=1)
    for keyframe in range(1, len(episode.frames)):
        pair = between.sel(keyframe=keyframe, other_keyframe=keyframe - 1)
        assert_allclose(pair, stored.sel(keyframe=keyframe), atol=ROUNDING)
    assert int(between.step) == 1
    steps = step_divergence(episode, "suffix", CAMERA, keyframe=-1)
    stored = step_drift(episode, "suffix", CAMERA).isel(keyframe=-1)
    for step in range(1, STEPS):
        assert_allclose(
            steps.sel(step=step, other_step=step - 1), stored.sel(step=step), atol=ROUNDING
        )
    assert int(steps.keyframe) == len(episode.frames) - 1


def test_chosen_heads_and_keyframes(episode: Episode) -> None:
    whole = keyframe_divergence(episode, "prefix", CAMERA)
    part = keyframe_divergence(episode, "prefix", CAMERA, layer=-1, head=[4, 1], keyframes=[3, 0])
    assert part.dims == ("head", "keyframe", "other_keyframe")
    assert_allclose(
        part, whole.isel(layer=-1, head=[4, 1], keyframe=[3, 0], other_keyframe=[3, 0]), atol=1e-12
    )
    assert int(part.layer) == LAYERS - 1
    steps = step_divergence(episode, "suffix", CAMERA, keyframe=0, layer=1, head=2)
    assert steps.dims == ("step", "other_step")


def test_absent_camera_is_nan() -> None:
    weights = random_rows(np.random.default_rng(0), 3, 1, 2, 4, 4)
    weights[1, ..., :3, :] = weights[1, ..., :3] = np.nan
    found = keyframe_divergence(memory_episode(weights), "prefix", "cam", query="task")
    assert_array_equal(found.isnull().any(("layer", "head")), [[0, 1, 0], [1, 1, 1], [0, 1, 0]])


def test_opposite_patches_are_one_bit_apart() -> None:
    weights = np.zeros((3, 1, 1, 3, 3))
    weights[0, ..., 0], weights[1, ..., 1], weights[2, ..., :2] = 1, 1, 0.5
    found = keyframe_divergence(memory_episode(weights), "prefix", "cam", query="task")
    half = 0.5 * (np.log2(4 / 3) + 0.5 * np.log2(2 / 3) + 0.5 * np.log2(2))
    assert_allclose(found[0, 0], [[0, 1, half], [1, 0, half], [half, half, 0]], atol=1e-12)


shares = st.just(0.0) | st.floats(1e-6, 1)


@given(hnp.arrays(np.float64, st.tuples(*[st.integers(1, 5)] * 3), elements=shares))
def test_pairwise(weights: Float) -> None:
    weights[..., 0] += 0.5
    p = weights / weights.sum(-1, keepdims=True)
    found = pairwise_divergence(p)
    for i in range(len(p)):
        for j in range(len(p)):
            for row in range(p.shape[1]):
                assert_allclose(found[i, j, row], slow_divergence(p[i, row], p[j, row]), atol=1e-12)
    assert found.min() >= 0
    assert found.max() <= 1


def test_errors_name_the_rule(episode: Episode) -> None:
    with pytest.raises(
        SelectionError, match="phase prefix has no steps; phases with steps: suffix"
    ):
        step_drift(episode, "prefix", CAMERA)
    with pytest.raises(SelectionError, match="phase prefix has no steps"):
        step_divergence(episode, "prefix", CAMERA, keyframe=0)
    with pytest.raises(SelectionError, match="no camera 'nose'"):
        keyframe_drift(episode, "prefix", "nose")
    with pytest.raises(SelectionError, match="no camera 'nose'"):
        keyframe_divergence(episode, "prefix", "nose")
    with pytest.raises(SelectionError, match="query group 'state'"):
        keyframe_drift(episode, "suffix", CAMERA, query="state")
    with pytest.raises(SelectionError, match="keyframe 4 is out of range"):
        keyframe_divergence(episode, "prefix", CAMERA, keyframes=[4])
    with pytest.raises(SelectionError, match="keyframe 7 is out of range"):
        step_divergence(episode, "suffix", CAMERA, keyframe=7)

"""Shares of attention against sums over the full attention, weight by weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from derived_fixtures import HEADS, LAYERS, STEPS, ingested_episode
from numpy.testing import assert_allclose
from store_fixtures import write_episode

import attnstore
from attnstore.query import Episode
from attnstore.query.attention.shares import shares
from attnstore.store.errors import SelectionError
from attnstore.store.opening import create_store


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    return ingested_episode(tmp_path_factory)


def slow_shares(
    episode: Episode, phase: str, group: str, keyframe: int, layer: int, head: int, step: int | None
) -> dict[str, float]:
    """Add every weight to its span; a patch is split between image and letterbox."""
    weights = episode.attention(
        phase, keyframe=keyframe, layer=layer, head=head, step=step, query=group
    ).values.astype(np.float64)
    found: dict[str, float] = {}
    for span in episode.phase(phase).key:
        for index in range(span.start, span.stop):
            mean = float(sum(weights[:, index])) / len(weights)
            if span.camera is not None:
                cover = float(episode.geometry(span.camera).coverage().flat[index - span.start])
                parts = {f"camera:{span.camera}": cover, f"letterbox:{span.camera}": 1 - cover}
            else:
                parts = {span.role or span.name: 1.0}
            for name, fraction in parts.items():
                found[name] = found.get(name, 0.0) + mean * fraction
    return found


@pytest.mark.parametrize(("phase", "group"), [("prefix", "task"), ("suffix", "action")])
def test_shares_of_a_real_store(episode: Episode, phase: str, group: str) -> None:
    found = shares(episode, phase)
    stepped = phase == "suffix"
    assert found.dims == ("keyframe", *(["step"] if stepped else []), "layer", "head", "span")
    assert_allclose(found.sum("span"), 1, atol=1e-5)
    for keyframe, layer, head in ((0, 0, 0), (3, 2, 7), (1, 1, 4)):
        step = layer if stepped else None
        expected = slow_shares(episode, phase, group, keyframe, layer, head, step)
        at: Any = {"keyframe": keyframe, "layer": layer, "head": head}
        one = found.sel(at | ({"step": step} if stepped else {}))
        assert list(found.span.values) == list(expected)
        assert_allclose(one, list(expected.values()), atol=1e-4)  # float16 against unrounded
    assert found.attrs["query"] == group
    assert list(found.frame.values) == list(episode.frames)


def test_modalities_and_cameras_add_up(episode: Episode) -> None:
    found = shares(episode, "suffix", heads="mean", step=-1)
    assert found.dims == ("keyframe", "layer", "span")
    modality = found.groupby("modality").sum()
    assert set(modality.modality.values) == {"image", "letterbox", "text", "state", "action"}
    assert_allclose(modality.sum("modality"), 1, atol=1e-5)
    names = [f"camera:{c}" for c in episode.cameras]
    assert_allclose(modality.sel(modality="image"), found.sel(span=names).sum("span"), atol=1e-6)
    per_camera = found.groupby("camera").sum()
    for camera in episode.cameras:
        both = found.sel(span=[f"camera:{camera}", f"letterbox:{camera}"]).sum("span")
        assert_allclose(per_camera.sel(camera=camera), both, atol=1e-6)
    each = shares(episode, "suffix")
    assert_allclose(found, each.isel(step=-1).mean("head"), atol=1e-6)
    assert int(found.step) == STEPS - 1


def test_camera_mass_is_the_same_number(episode: Episode) -> None:
    found = shares(episode, "prefix")
    for camera in episode.cameras:
        mass = episode.stats("prefix", camera, "camera_mass").values
        assert_allclose(found.sel(span=f"camera:{camera}"), mass, atol=1e-6)


def test_chosen_keyframes_and_steps(episode: Episode) -> None:
    whole = shares(episode, "suffix")
    part = shares(episode, "suffix", keyframe=[2, 0], step=slice(1, None))
    assert_allclose(part, whole.isel(keyframe=[2, 0], step=slice(1, None)))
    assert list(part.frame.values) == list(episode.frames[[2, 0]])
    one = shares(episode, "suffix", keyframe=-1, step=0)
    assert dict(one.sizes)["layer"] == LAYERS
    assert dict(one.sizes)["head"] == HEADS
    assert "keyframe" not in one.dims
    assert int(one.frame) == episode.frames[-1]


def test_spans_that_a_keyframe_lacks_are_nan(tmp_path_factory: pytest.TempPathFactory) -> None:
    """This store's mass names each row's own camera and the task, and nothing else."""
    paths = create_store(tmp_path_factory.mktemp("shares") / "store")
    write_episode(paths, "a/b", seed=5)
    found = shares(attnstore.open(paths.root).episode("b"), "prefix")
    assert_allclose(found.sel(span="task"), 0.25)
    assert bool(found.sel(span="state").isnull().all())


def test_errors_name_the_rule(episode: Episode) -> None:
    with pytest.raises(
        SelectionError, match="no statistics of query group 'image' in prefix; there are: task"
    ):
        shares(episode, "prefix", query="image")
    with pytest.raises(SelectionError, match="heads is 'each' or 'mean'; got 'max'"):
        shares(episode, "prefix", heads="max")  # type: ignore[arg-type]
    with pytest.raises(SelectionError, match="phase prefix has no steps; got step 0"):
        shares(episode, "prefix", step=0)
    with pytest.raises(SelectionError, match="suffix step 3 is out of range"):
        shares(episode, "suffix", step=3)
    with pytest.raises(SelectionError, match="no phase 'joint'"):
        shares(episode, "joint")

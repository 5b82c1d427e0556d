"""Distances between heads against plain loops; clusters against means over all pairs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import xarray as xr
from derived_fixtures import (
    CAMERA,
    HEADS,
    LAYERS,
    ingested_episode,
    memory_episode,
    random_rows,
    slow_distribution,
    slow_divergence,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from store_fixtures import write_episode

import attnstore
from attnstore.query import Episode
from attnstore.query.attention.heads import (
    average_linkage,
    cluster_heads,
    head_distance,
    leaf_order,
)
from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.opening import create_store

Float = NDArray[np.float64]


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    return ingested_episode(tmp_path_factory)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    paths = create_store(tmp_path_factory.mktemp("ragged") / "store")
    write_episode(paths, "a/b", seed=5)
    return attnstore.open(paths.root).episode("b")


def slow_cosine(p: Float, q: Float) -> float:
    dot = sum(a * b for a, b in zip(p, q, strict=True))
    return float(1 - dot / (sum(a * a for a in p) ** 0.5 * sum(b * b for b in q) ** 0.5))


def weights_of(
    episode: Episode, phase: str, keyframe: int, group: str, camera: str | None
) -> Float:
    """(layer, head, query, key) of the tokens that the keyframe has."""
    values = episode.values(
        phase, keyframe=keyframe, step=None if phase == "prefix" else -1, query=group,
        key=None if camera is None else f"image:{camera}",
    ).astype(np.float64)  # fmt: skip
    there = ~np.isnan(values[0, 0])
    values = values[:, :, np.flatnonzero(there.any(axis=1))]
    return values[..., np.flatnonzero(there.any(axis=0))]


def slow_distances(
    episode: Episode, phase: str, group: str, camera: str | None, metric: str, tokens: str
) -> Float:
    """Pair by pair, keyframe by keyframe, token by token."""
    cover = None if camera is None else episode.geometry(camera).coverage()
    measure = slow_divergence if metric == "divergence" else slow_cosine
    total: Any = 0.0
    for keyframe in range(len(episode.frames)):
        weights = weights_of(episode, phase, keyframe, group, camera)
        if tokens == "mean":
            weights = weights.mean(2, keepdims=True)
        flat = weights.reshape(-1, *weights.shape[2:])
        units, rows = flat.shape[:2]
        found = np.zeros((units, units))
        for i, j in combinations(range(units), 2):
            for row in range(rows):
                p, q = flat[i, row], flat[j, row]
                if cover is not None:
                    p, q = slow_distribution(p, cover), slow_distribution(q, cover)
                found[i, j] += measure(p / p.sum(), q / q.sum()) / rows
        total = total + found + found.T
    return np.asarray(total / len(episode.frames))


@pytest.mark.parametrize("phase", ["prefix", "suffix"])
@pytest.mark.parametrize("metric", ["divergence", "cosine"])
def test_maps_of_a_real_store(episode: Episode, phase: str, metric: Any) -> None:
    group = {"prefix": "task", "suffix": "action"}[phase]
    found = head_distance(episode, phase, camera=CAMERA, metric=metric)
    expected = slow_distances(episode, phase, group, CAMERA, metric, "mean")
    assert_allclose(found, expected, atol=2e-4)  # overview maps: 0.05 % a weight
    part = head_distance(episode, phase, camera=CAMERA, metric=metric, keyframes=1, layers=[2])
    maps = episode.maps(phase, CAMERA, layer=2, keyframe=1, reduce="mean").astype(np.float64)
    measure = slow_divergence if metric == "divergence" else slow_cosine
    p = [slow_distribution(m, episode.geometry(CAMERA).coverage()) for m in maps]
    assert_allclose(part, [[measure(a, b) for b in p] for a in p], atol=1e-6)
    assert found.shape == (LAYERS * HEADS, LAYERS * HEADS)
    assert list(found.unit.values[[0, 9]]) == ["L00H00", "L01H01"]
    assert int(found.layer.sel(unit="L02H05")) == 2
    assert int(found["head"].sel(unit="L02H05")) == 5
    assert found.attrs["precision"] == "float32"
    assert found.attrs["keyframes"] == len(episode.frames)


@pytest.mark.parametrize("camera", [None, CAMERA])
@pytest.mark.parametrize("tokens", ["mean", "each"])
def test_full_attention_with_absent_tokens(
    ragged: Episode, camera: str | None, tokens: Any
) -> None:
    found = head_distance(ragged, "prefix", camera=camera, query="text", tokens=tokens)
    expected = slow_distances(ragged, "prefix", "text", camera, "divergence", tokens)
    assert_allclose(found, expected, atol=1e-9)
    assert found.attrs["precision"] == "float16"
    assert expected.max() > 0.05


@pytest.mark.parametrize("metric", ["divergence", "cosine"])
def test_all_keys_of_a_suffix(ragged: Episode, metric: Any) -> None:
    found = head_distance(ragged, "suffix", metric=metric, tokens="each")
    expected = slow_distances(ragged, "suffix", "action", None, metric, "each")
    assert_allclose(found, expected, atol=1e-9)


@given(st.integers(0, 99))
def test_it_is_a_bounded_symmetric_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = random_rows(rng, 2, 2, 2, 4, 4)
    weights[:, 1, 1] = weights[:, 0, 0]
    for tokens in ("mean", "each"):
        for metric in ("divergence", "cosine"):
            options: Any = {"tokens": tokens, "metric": metric}
            found = head_distance(memory_episode(weights), "prefix", **options)
            assert_array_equal(found, found.T)
            assert_allclose(np.diag(found), 0, atol=1e-12)
            assert found.min() >= 0
            assert found.max() <= 1
            assert_allclose(found.sel(unit="L00H00", other="L01H01"), 0, atol=1e-12)


def test_two_opposite_heads_by_hand() -> None:
    word, cell = [0.0, 0, 1], [1.0, 0, 0]
    heads = np.array([[[0.0, 0, 1]] * 2 + [word], [[0.0, 0, 1]] * 2 + [cell]])
    found = head_distance(memory_episode(heads[None, None]), "prefix")
    assert_array_equal(found, [[0, 1], [1, 0]])  # one bit apart
    both = head_distance(memory_episode(heads[None, None]), "prefix", query="image", tokens="each")
    assert_array_equal(both, np.zeros((2, 2)))


def test_chosen_layers_and_keyframes(episode: Episode) -> None:
    options: Any = {"camera": CAMERA, "query": "task"}
    whole = head_distance(episode, "prefix", **options, keyframes=[1, 3])
    part = head_distance(episode, "prefix", **options, keyframes=[1, 3], layers=[0, 2])
    assert_allclose(part, whole.sel(unit=part.unit, other=part.other), atol=1e-12)
    assert list(part.unit.values[[0, 8]]) == ["L00H00", "L02H00"]
    one = [head_distance(episode, "prefix", **options, keyframes=k) for k in (1, 3)]
    assert_allclose(whole, (one[0] + one[1]) / 2, atol=1e-12)


def test_a_keyframe_without_the_camera_is_left_out() -> None:
    weights = random_rows(np.random.default_rng(0), 2, 1, 2, 4, 4)
    first = head_distance(memory_episode(weights[:1]), "prefix", camera="cam", query="task")
    weights[1, ..., :3, :] = weights[1, ..., :3] = np.nan
    both = head_distance(memory_episode(weights), "prefix", camera="cam", query="task")
    assert_allclose(both, first)
    assert both.attrs["keyframes"] == 1
    with pytest.raises(SelectionError, match="none of the chosen keyframes has camera cam"):
        head_distance(memory_episode(weights), "prefix", camera="cam", query="task", keyframes=1)


@pytest.mark.parametrize("metric", ["divergence", "cosine"])
@pytest.mark.parametrize("tokens", ["mean", "each"])
def test_a_head_that_gives_the_camera_nothing(metric: Any, tokens: Any) -> None:
    """It has no distribution there: it neither hides the keyframe nor becomes a distance."""
    weights = random_rows(np.random.default_rng(3), 2, 1, 3, 4, 4)
    whole = head_distance(memory_episode(weights), "prefix", camera="cam", query="task",
                          metric=metric, tokens=tokens)  # fmt: skip
    each = [head_distance(memory_episode(weights[k : k + 1]), "prefix", camera="cam", query="task",
                          metric=metric, tokens=tokens) for k in range(2)]  # fmt: skip
    weights[0, 0, 1, 3] = [0, 0, 0, 1]
    found = head_distance(memory_episode(weights), "prefix", camera="cam", query="task",
                          metric=metric, tokens=tokens)  # fmt: skip
    assert found.attrs["keyframes"] == 2
    assert_allclose(found[0, 2], whole[0, 2], atol=1e-12)
    assert_allclose(found[1], each[1][1], atol=1e-12)  # the keyframe where it has one
    weights[1, 0, 1, 3] = [0, 0, 0, 1]
    never = head_distance(memory_episode(weights), "prefix", camera="cam", query="task",
                          metric=metric, tokens=tokens)  # fmt: skip
    assert np.isnan(never[1]).all()
    assert np.isnan(never[:, 1]).all()
    with pytest.raises(UsageError, match=r"without attention to the camera: L00H01\."):
        cluster_heads(never)
    rest = never.drop_sel(unit=["L00H01"], other=["L00H01"])
    assert cluster_heads(rest, clusters=2).sizes["unit"] == 2


def slow_linkage(distance: Float) -> list[tuple[set[int], set[int], float]]:
    """Merge the clusters with the least mean over all pairs of members, computed anew each time."""
    clusters = [{i} for i in range(len(distance))]
    merges = []
    while len(clusters) > 1:

        def mean(pair: tuple[set[int], set[int]]) -> float:
            return float(np.mean([distance[i, j] for i in pair[0] for j in pair[1]]))

        one, other = min(combinations(clusters, 2), key=mean)
        merges.append((one, other, mean((one, other))))
        clusters = [c for c in clusters if c not in (one, other)] + [one | other]
    return merges


def random_distances(seed: int, count: int) -> Float:
    """Distances without ties."""
    values = np.random.default_rng(seed).random((count, count))
    return np.asarray(np.triu(values, 1) + np.triu(values, 1).T)


@given(st.integers(0, 999), st.integers(2, 12))
def test_average_linkage(seed: int, count: int) -> None:
    distance = random_distances(seed, count)
    linkage = average_linkage(distance)
    members = {i: {i} for i in range(count)}
    for merge, (one, other, height) in enumerate(slow_linkage(distance)):
        a, b = members[int(linkage[merge, 0])], members[int(linkage[merge, 1])]
        assert {frozenset(a), frozenset(b)} == {frozenset(one), frozenset(other)}
        members[count + merge] = a | b
        assert_allclose(linkage[merge, 2:], [height, len(a | b)])
    order = leaf_order(linkage)
    assert sorted(order) == list(range(count))
    for items in members.values():  # every cluster is contiguous in the order
        places = sorted(int(np.flatnonzero(order == i)[0]) for i in items)
        assert places[-1] - places[0] == len(items) - 1


@given(st.integers(0, 999), st.integers(1, 12), st.data())
def test_clusters(seed: int, count: int, data: st.DataObject) -> None:
    clusters = data.draw(st.integers(1, count))
    distance = random_distances(seed, count)
    labels = [f"L00H{i:02d}" for i in range(count)]
    labelled = xr.DataArray(distance, dims=("unit", "other"), coords={"unit": labels})
    found = cluster_heads(labelled, clusters=clusters)
    groups = [{i} for i in range(count)]
    for one, other, _ in slow_linkage(distance)[: count - clusters]:
        groups = [g for g in groups if g not in (one, other)] + [one | other]
    expected = {frozenset(g) for g in groups}
    numbers = found.cluster.values
    got = {frozenset(np.flatnonzero(numbers == n).tolist()) for n in range(clusters)}
    assert got == expected
    ordered = found.sortby("rank").cluster.values
    assert_array_equal(ordered, np.sort(ordered))
    assert list(found.unit.values) == labels


def test_clusters_of_a_real_store(episode: Episode) -> None:
    distance = head_distance(episode, "prefix", camera=CAMERA)
    found = cluster_heads(distance, clusters=4)
    assert set(found.cluster.values) == {0, 1, 2, 3}
    assert list(found.coords["layer"].values[[0, -1]]) == [0, LAYERS - 1]
    assert found.linkage.sizes == {"merge": LAYERS * HEADS - 1, "column": 4}
    heights = found.linkage.sel(column="height").values
    assert (np.diff(heights) >= -1e-12).all()
    inside: list[float] = []
    outside: list[float] = []
    for i, j in combinations(range(LAYERS * HEADS), 2):
        same = found.cluster.values[i] == found.cluster.values[j]
        (inside if same else outside).append(float(distance[i, j]))
    assert np.mean(inside) < np.mean(outside)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "euclid"}, "metric is divergence or cosine; got 'euclid'"),
        ({"tokens": "all"}, "tokens is mean or each; got 'all'"),
        ({"camera": "nose"}, "nose"),
        ({"layers": [9]}, "prefix layer 9 is out of range"),
        ({"query": "action"}, "no tokens 'action'"),
    ],
)
def test_errors_name_the_rule(episode: Episode, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        head_distance(episode, "prefix", **options)


def test_what_cannot_be_clustered() -> None:
    lopsided = xr.DataArray([[0.0, 1], [2, 0]], dims=("unit", "other"))
    nothing = xr.DataArray([[0.0, np.nan], [np.nan, 0]], dims=("unit", "other"))
    for distance in (lopsided, nothing):
        with pytest.raises(UsageError, match="symmetric matrix without NaN"):
            cluster_heads(distance, clusters=1)
    with pytest.raises(UsageError, match=r"1\.\.2, the number of heads; got 8"):
        cluster_heads(xr.DataArray(np.zeros((2, 2)), dims=("unit", "other")))

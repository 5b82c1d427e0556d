"""Attention rollout against plain loops, hand-worked cases and closed forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from derived_fixtures import (
    CAMERA,
    LAYERS,
    MemoryPart,
    ingested_episode,
    memory_episode,
    random_rows,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from store_fixtures import write_episode

import attnstore
from attnstore.query import Episode
from attnstore.query.attention.rollout import layer_matrix, rollout, rollout_cost, rollout_map
from attnstore.store.errors import SelectionError, UsageError
from attnstore.store.opening import create_store

Float = NDArray[np.float64]


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    return ingested_episode(tmp_path_factory)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    """Prompts have another number of tokens at every keyframe; stored as log8."""
    paths = create_store(tmp_path_factory.mktemp("ragged") / "store")
    write_episode(paths, "a/b", seed=5, precision="log8", layers=3)
    return attnstore.open(paths.root).episode("b")


def fuse(heads: Float, how: str) -> list[list[float]]:
    """(head, query, key) to (query, key), entry by entry; tokens that are NaN are dropped before."""
    rule: Any = {"max": max, "min": min, "mean": lambda v: sum(v) / len(v)}[how]
    queries, keys = heads.shape[1:]
    return [
        [rule([float(heads[h, q, k]) for h in range(len(heads))]) for k in range(keys)]
        for q in range(queries)
    ]


def with_residual(rows: list[list[float]], own: list[int], residual: float) -> list[list[float]]:
    result = []
    for i, row in enumerate(rows):
        mixed = [(1 - residual) * w + (residual if k == own[i] else 0.0) for k, w in enumerate(row)]
        result.append([w / sum(mixed) for w in mixed])
    return result


def product(one: list[list[float]], other: list[list[float]]) -> list[list[float]]:
    size = len(other)
    return [
        [sum(row[m] * other[m][k] for m in range(size)) for k in range(len(other[0]))]
        for row in one
    ]


def slow_rollout(
    prefix: Float, suffix: Float | None, how: str, residual: float, through_prefix: bool = True
) -> list[list[float]]:
    """From the first layer up, over one square matrix of all tokens; (layer, head, query, key)."""
    total: list[list[float]] | None = None
    for layer in range(len(prefix)):
        count = prefix.shape[-1]
        matrix = with_residual(fuse(prefix[layer], how), list(range(count)), residual)
        if suffix is not None:
            more = suffix.shape[-2]
            if not through_prefix:
                matrix = [[float(i == k) for k in range(count)] for i in range(count)]
            own = list(range(count, count + more))
            below = with_residual(fuse(suffix[layer], how), own, residual)
            matrix = [row + [0.0] * more for row in matrix] + below
        total = matrix if total is None else product(matrix, total)
    assert total is not None
    return total if suffix is None else total[prefix.shape[-1] :]


def compact(values: Any) -> Float:
    """Drop absent tokens: rows and columns that are NaN."""
    one = np.asarray(values, np.float64)
    there = np.asarray(~np.isnan(one.reshape(-1, *one.shape[-2:])[0]))
    rows, cols = np.flatnonzero(there.any(axis=1)), np.flatnonzero(there.any(axis=0))
    return one.take(rows, axis=-2).take(cols, axis=-1)


@pytest.mark.parametrize("how", ["mean", "max", "min"])
@pytest.mark.parametrize("residual", [0.5, 0.2])
def test_prefix_of_a_real_store(episode: Episode, how: Any, residual: float) -> None:
    found = rollout(episode, keyframe=1, head_fusion=how, residual=residual)
    weights = episode.attention("prefix", keyframe=1).values
    assert_allclose(found, slow_rollout(compact(weights), None, how, residual), atol=2e-6)
    assert_allclose(found.sum("key"), 1, atol=1e-5)
    assert found.dims == ("query", "key")
    assert found.dtype == np.float32
    assert found.attrs["precision"] == "float16"
    assert found.attrs["layers"] == list(range(LAYERS))
    assert int(found.frame) == episode.frames[1]
    assert list(found.key_label.values[:2]) == [f"{CAMERA}[0,0]", f"{CAMERA}[0,1]"]


@pytest.mark.parametrize("through_prefix", [True, False])
@pytest.mark.parametrize("step", [0, -1])
def test_suffix_of_a_real_store(episode: Episode, through_prefix: bool, step: int) -> None:
    found = rollout(episode, "suffix", keyframe=2, step=step, through_prefix=through_prefix)
    prefix = episode.attention("prefix", keyframe=2).values
    suffix = episode.attention("suffix", keyframe=2, step=step).values
    expected = slow_rollout(compact(prefix), compact(suffix), "mean", 0.5, through_prefix)
    assert_allclose(found, expected, atol=2e-6)
    assert_allclose(found.sum("key"), 1, atol=1e-5)
    assert int(found.step) == step % 3
    assert found.attrs["through_prefix"] is through_prefix


@pytest.mark.parametrize("phase", ["prefix", "suffix"])
def test_absent_tokens_are_nan_and_take_no_part(ragged: Episode, phase: str) -> None:
    lengths = set()
    for keyframe in range(3):
        found = rollout(ragged, phase, keyframe=keyframe)
        prefix = compact(ragged.attention("prefix", keyframe=keyframe).values)
        step: dict[str, Any] = {} if phase == "prefix" else {"step": -1}
        suffix = (
            compact(ragged.attention("suffix", keyframe=keyframe, **step).values) if step else None
        )
        assert_allclose(compact(found), slow_rollout(prefix, suffix, "mean", 0.5), atol=3e-6)
        stored = ragged.attention(phase, keyframe=keyframe, layer=0, head=0, **step).values
        assert_array_equal(np.isnan(found), np.isnan(stored))
        lengths.add(compact(found).shape[-1])
        assert found.attrs["precision"] == "log8"
    assert len(lengths) > 1, "the fixture's prompts should differ in length"


def test_three_tokens_and_two_layers_by_hand() -> None:
    layers = np.array(
        [
            [[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]],
            [[0.5, 0.5, 0], [0, 1, 0], [0.5, 0, 0.5]],
        ]
    )
    # With half the identity: (1 0 0; 1/4 3/4 0; 0 1/4 3/4), then (3/4 1/4 0; 0 1 0; 1/4 0 3/4)
    expected = [[0.8125, 0.1875, 0], [0.25, 0.75, 0], [0.25, 0.1875, 0.5625]]
    one = memory_episode(layers[None, :, None])
    assert_array_equal(rollout(one, keyframe=0), expected)
    assert_array_equal(rollout(one, keyframe=0, query=2), expected[2])
    assert_array_equal(rollout(one, keyframe=0, query="text", key="image:cam"), [expected[2][:2]])
    assert_array_equal(rollout_map(one, "cam", keyframe=0), [expected[2][:2]])
    assert_array_equal(rollout_map(one, "cam", keyframe=0, query=0), [expected[0][:2]])
    assert_array_equal(rollout_map(one, "cam", keyframe=0, query=[0, 1]), [[0.53125, 0.46875]])


def test_suffix_by_hand() -> None:
    prefix = np.full((1, 2, 1, 2, 2), 0.5)  # with half the identity: (3/4 1/4; 1/4 3/4)
    suffix = np.array([[[[1, 0, 0, 0], [0, 1, 0, 0]], [[1, 0, 0, 0], [0, 0, 1, 0]]]], np.float64)
    one = memory_episode(prefix, suffix[:, None, :, None].reshape(1, 1, 2, 1, 2, 4))
    # state: half to patch 0 in layer 1, which has taken a quarter of the word in layer 0, and half
    # to itself, which has taken half of patch 0; action: half from the state below, half itself
    through = [[0.5 * 0.75 + 0.25, 0.5 * 0.25, 0.25, 0], [0.25, 0.25, 0.25, 0.25]]
    absorbed = [[0.5 + 0.25, 0, 0.25, 0], [0.25, 0.25, 0.25, 0.25]]
    assert_array_equal(rollout(one, "suffix", keyframe=0), through)
    assert_array_equal(rollout(one, "suffix", keyframe=0, through_prefix=False), absorbed)


@given(st.integers(2, 6), st.integers(1, 4), st.floats(0, 1), st.sampled_from(["mean", "max"]))
def test_identity_stays_identity(tokens: int, layers: int, residual: float, how: Any) -> None:
    weights = np.broadcast_to(np.eye(tokens), (1, layers, 2, tokens, tokens))
    found = rollout(memory_episode(weights), keyframe=0, residual=residual, head_fusion=how)
    assert_allclose(found, np.eye(tokens), atol=1e-6)


@given(st.integers(2, 6), st.integers(1, 5), st.floats(0, 1))
def test_uniform_attention(tokens: int, layers: int, residual: float) -> None:
    """U is idempotent: (r I + (1 - r) U)^L = r^L I + (1 - r^L) U."""
    weights = np.full((1, layers, 2, tokens, tokens), 1 / tokens)
    left = residual**layers
    expected = left * np.eye(tokens) + (1 - left) / tokens
    assert_allclose(
        rollout(memory_episode(weights), keyframe=0, residual=residual), expected, atol=1e-6
    )


@given(st.integers(0, 99), st.floats(0, 1), st.sampled_from(["mean", "max", "min"]))
def test_random_attention(seed: int, residual: float, how: Any) -> None:
    rng = np.random.default_rng(seed)
    prefix, suffix = random_rows(rng, 1, 3, 2, 4, 4), random_rows(rng, 1, 2, 3, 2, 3, 7)
    one = memory_episode(prefix, suffix)
    options: Any = {"keyframe": 0, "residual": residual, "head_fusion": how}
    for through in (True, False):
        found = rollout(one, "suffix", through_prefix=through, **options)
        expected = slow_rollout(prefix[0], suffix[0, -1], how, residual, through)
        assert_allclose(found, expected, atol=3e-6)
        assert_allclose(found.sum("key"), 1, atol=1e-5)
    assert_allclose(
        rollout(one, **options), slow_rollout(prefix[0], None, how, residual), atol=3e-6
    )


def test_a_row_without_weight_stays_with_its_token() -> None:
    heads = np.array([[[1.0, 0], [1, 0]], [[0, 1.0], [1, 0]]])  # they agree in row 1 alone
    found = rollout(memory_episode(heads[None, None]), keyframe=0, residual=0, head_fusion="min")
    assert_array_equal(found, [[1, 0], [1, 0]])
    assert_array_equal(layer_matrix(np.zeros((2, 3), np.float32), np.array([1, 2]), 0.0),
                       [[0, 1, 0], [0, 0, 1]])  # fmt: skip


def test_chosen_layers_are_composed_in_their_order(episode: Episode) -> None:
    whole = episode.attention("prefix", keyframe=0).values
    for layers, kept in ((range(2), [0, 1]), (slice(1, None), [1, 2]), ([2, 0], [0, 2]), (-1, [2])):
        found = rollout(episode, keyframe=0, layers=layers)
        assert found.attrs["layers"] == kept
        assert_allclose(found, slow_rollout(compact(whole[kept]), None, "mean", 0.5), atol=2e-6)


def test_selected_tokens_are_rows_and_columns_of_the_whole(episode: Episode) -> None:
    whole = rollout(episode, "suffix", keyframe=0)
    part = rollout(episode, "suffix", keyframe=0, query="action:1:3", key=f"image:{CAMERA}")
    assert_allclose(part, whole.sel(query=part["query"], key=part["key"]), atol=1e-7)
    assert list(part.query_label.values) == ["action[1]", "action[2]"]
    assert set(part.key_span.values) == {f"image:{CAMERA}"}
    mean = rollout_map(episode, CAMERA, "suffix", keyframe=0)
    expected = whole.sel(
        query=whole.query_span == "action", key=whole.key_span == f"image:{CAMERA}"
    )
    assert_allclose(mean, expected.mean("query").values.reshape(mean.shape), atol=1e-7)
    assert mean.attrs["camera"] == CAMERA
    assert_array_equal(mean.coverage, episode.geometry(CAMERA).coverage())


def test_one_layer_is_read_at_a_time() -> None:
    rng = np.random.default_rng(0)
    one = memory_episode(random_rows(rng, 2, 3, 2, 4, 4), random_rows(rng, 2, 2, 3, 2, 3, 7))
    rollout(one, "suffix", keyframe=1, layers=range(2))
    reads = cast(MemoryPart, one.part).reads
    assert sorted(phase for phase, _ in reads) == ["prefix", "prefix", "suffix", "suffix"]
    for phase, index in reads:
        keyframe, *_, layer = index[: 2 if phase == "prefix" else 3]
        assert keyframe == slice(1, 2)
        assert layer in (slice(0, 1), slice(1, 2))


def test_the_cost_is_of_what_is_read(episode: Episode) -> None:
    costs = rollout_cost(episode, "suffix", keyframe=0, layers=range(2))
    assert [c.array for c in costs] == ["suffix/attention"] * 2 + ["prefix/attention"] * 2
    suffix = episode.attention("suffix", keyframe=0, layer=0, step=0).shape
    prefix = episode.attention("prefix", keyframe=0, layer=0).shape
    assert [c.shape for c in costs] == [suffix] * 2 + [prefix] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": 1.5}, r"residual lies in 0\.\.1; got 1.5"),
        ({"residual": float("nan")}, r"residual lies in 0\.\.1; got nan"),
        ({"head_fusion": "median"}, "head_fusion is mean, max or min; got 'median'"),
        ({"keyframe": 9}, "keyframe 9 is out of range: there are 4"),
        ({"layers": 3}, "prefix layer 3 is out of range"),
        ({"layers": []}, "selects none"),
        ({"query": "word:spoon"}, "no word 'spoon' in the instruction"),
        ({"phase": "joint"}, "no phase 'joint'; there are: prefix, suffix"),
        ({"phase": "suffix", "step": 3}, "suffix step 3 is out of range"),
    ],
)
def test_errors_name_the_rule(episode: Episode, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rollout(episode, **({"keyframe": 0} | options))


def test_a_suffix_with_other_layers_than_the_prefix() -> None:
    rng = np.random.default_rng(0)
    one = memory_episode(random_rows(rng, 1, 2, 1, 3, 3), random_rows(rng, 1, 1, 3, 1, 2, 5))
    with pytest.raises(SelectionError, match="do not share layers and keys"):
        rollout(one, "suffix", keyframe=0)
    assert_allclose(
        rollout(one, "suffix", keyframe=0, through_prefix=False).sum("key"), 1, atol=1e-6
    )


def test_a_suffix_behind_layers_between() -> None:
    """As in GR00T: what the suffix attends to went through other layers than the prefix's."""
    rng = np.random.default_rng(0)
    one = memory_episode(random_rows(rng, 1, 2, 1, 3, 3), random_rows(rng, 1, 1, 2, 1, 2, 5))
    rollout(one, "suffix", keyframe=0)
    part = cast(MemoryPart, one.part)
    between = replace(part.spec.phases["prefix"], phase="joint")
    phases = {**part.spec.phases, "joint": between}
    wider = MemoryPart(replace(part.spec, phases=phases), part.arrays)
    with pytest.raises(SelectionError, match="do not share layers and keys"):
        rollout(Episode(cast(Any, wider)), "suffix", keyframe=0)

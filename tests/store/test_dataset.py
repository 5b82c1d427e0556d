"""`Store.dataset`: many episodes as one lazy dataset, against NumPy over the episodes one by one."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from store_fixtures import write_episode

import attnstore
from attnstore.query import Episode, Store
from attnstore.store.errors import NotFoundError, SelectionError, UsageError
from attnstore.store.opening import create_store

CAMERA = "hand_camera"
NAMES = [f"success/2025-01-01/2025-01-01_10-0{i}-00" for i in range(3)]
SHAPES: list[dict[str, Any]] = [
    {"seed": 3, "keyframes": 3, "texts": (2, 3, 1)},
    {"seed": 5, "keyframes": 1, "texts": (5,)},
    {"seed": 8, "keyframes": 2, "texts": (1, 1), "missing": {1: CAMERA}},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Episodes whose prompts, generated texts and lengths differ."""
    paths = create_store(tmp_path_factory.mktemp("dataset") / "lab.attn")
    for name, shape in zip(NAMES, SHAPES, strict=True):
        write_episode(paths, name, precision="log8", **shape)
    return attnstore.open(paths.root)


def on_common_axes(
    episodes: list[Episode], phase: str, spans: dict[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """Put each episode's attention, token by token, where its span's token of that number is."""
    blocks = []
    most = max(e.attention(phase).sizes.get("step", 1) for e in episodes)
    for episode in episodes:
        own = episode.attention(phase)
        values = own.values
        if "step" in own.dims and values.shape[1] < most:
            short = [(0, 0)] * values.ndim
            short[1] = (0, most - values.shape[1])
            values = np.pad(values, short, constant_values=np.nan)
        for axis, dim in ((-2, "query"), (-1, "key")):
            whole = np.full(
                (*values.shape[:axis], len(spans[dim]), *values.shape[axis:][1:]), np.nan
            )
            seen: dict[str, int] = {}
            for i, span in enumerate(own[f"{dim}_span"].values.tolist()):
                j = np.flatnonzero(spans[dim] == span)[seen.get(span, 0)]
                seen[span] = seen.get(span, 0) + 1
                np.moveaxis(whole, axis, 0)[j] = np.moveaxis(values, axis, 0)[i]
            values = whole
        blocks.append(values)
    return np.concatenate(blocks).astype(np.float32)


@pytest.mark.parametrize("phase", ["prefix", "suffix", "decode"])
def test_attention_is_each_episodes_own_on_common_axes(store: Store, phase: str) -> None:
    attention = store.dataset(phase=phase)["attention"]
    episodes = [store.episode(name) for name in NAMES]
    spans = {dim: attention[f"{dim}_span"].values for dim in ("query", "key")}
    for dim, names in spans.items():
        longest = {
            name: max((e.attention(phase)[f"{dim}_span"].values == name).sum() for e in episodes)
            for name in names
        }
        assert {name: (names == name).sum() for name in names} == longest
    expected = on_common_axes(episodes, phase, spans)
    assert np.isnan(expected).any()
    assert_array_equal(attention.values, expected)
    assert attention["episode"].values.tolist() == np.repeat(NAMES, [3, 1, 2]).tolist()
    assert attention["number"].values.tolist() == [0, 1, 2, 0, 0, 1]
    assert attention["frame"].values.tolist() == [0, 8, 16, 0, 0, 8]
    # a chunk is a shard, and a shard a keyframe
    assert attention.chunks is not None
    assert attention.chunks[0] == (1,) * 6
    assert all(len(chunks) == 1 for chunks in attention.chunks[1:])


def test_only_the_tokens_that_are_asked_for(store: Store) -> None:
    whole = store.dataset(phase="suffix")["attention"]
    for query, key in (("action", "image"), ("action:0:2", f"image:{CAMERA}"), (None, "task")):
        some = store.dataset(phase="suffix", query=query, key=key)["attention"]
        expected = whole.isel(query=some["query"].values, key=some["key"].values)
        assert_array_equal(some.values, expected.values)
        assert_array_equal(some["key_label"].values, expected["key_label"].values)
    assert set(store.dataset(phase="suffix", key="image")["attention"]["key_span"].values) == {
        f"image:{CAMERA}",
        "image:varied_camera_1",
    }


def test_a_word_is_not_put_on_another_ones_place(store: Store) -> None:
    """Prompts differ: their words are numbered, and a word of one of them cannot be asked for."""
    attention = store.dataset(phase="prefix")["attention"]
    task = attention["query_label"].values[attention["query_span"].values == "task"]
    assert task.tolist() == [f"task[{i}]" for i in range(len(task))]
    alone = store.dataset(phase="prefix", episodes=NAMES[1:2])["attention"]
    own = store.episode(NAMES[1]).attention("prefix")
    assert_array_equal(alone["query_label"].values, own["query_label"].values)
    with pytest.raises(SelectionError, match="word:task is other tokens in every prompt"):
        store.dataset(phase="prefix", query="word:task")


@pytest.mark.parametrize(
    "asked", [{}, {"reduce": "max"}, {"step": "all"}, {"query": "state"}], ids=str
)
@pytest.mark.parametrize("phase", ["prefix", "suffix"])
def test_maps_are_each_episodes_own(store: Store, phase: str, asked: dict[str, Any]) -> None:
    maps = store.dataset(phase=phase, maps=CAMERA, **asked)["map"]
    own = [store.episode(name).maps(phase, CAMERA, **{"reduce": "mean", **asked}) for name in NAMES]
    assert maps.dims == own[0].dims
    assert_array_equal(maps.values, np.concatenate([m.values for m in own]))
    assert_array_equal(maps["coverage"].values, own[0]["coverage"].values)
    assert np.isnan(maps.values[-1]).all()
    assert maps.chunks is not None
    assert maps.chunks[0] == ((3, 1, 2) if "query" not in asked else (1,) * 6)


def test_a_reduction_of_ones_own(store: Store) -> None:
    maps = store.dataset(phase="suffix", maps=CAMERA)["map"]
    mean = maps.groupby("episode").mean("keyframe").mean(("episode", "head"))
    expected = np.mean(
        [
            np.nanmean(store.episode(name).maps("suffix", CAMERA, reduce="mean").values, 0).mean(1)
            for name in NAMES
        ],
        0,
    )
    np.testing.assert_allclose(mean.values, expected, rtol=1e-5)


def test_the_example_of_the_page(store: Store) -> None:
    """docs/how-to/ask.md, word for word: the mean map of every layer."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "ask.md").read_text()
    (code,) = [
        b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "store.dataset(" in b
    ]
    names: dict[str, Any] = {"store": store}
    exec(code, names)
    own = [store.episode(n).maps("prefix", CAMERA, reduce="mean").values for n in NAMES]
    expected = np.nanmean(np.concatenate(own), (0, 2))
    np.testing.assert_allclose(names["per_layer"].values, expected, rtol=1e-5)
    assert names["per_layer"].dims == ("layer", "row", "col")
    each = np.mean([np.nanmean(m, (0, 2)) for m in own], 0)
    np.testing.assert_allclose(names["episodes_alike"].values, each, rtol=1e-5)
    weights = [
        store.episode(n).attention("suffix", query="action", key="task").values for n in NAMES
    ]
    mass = np.concatenate([np.nansum(w, -1).mean((1, 4)) for w in weights])
    np.testing.assert_allclose(names["on_task"].values, mass, rtol=1e-5)


def test_what_travels_is_small(store: Store) -> None:
    """A task carries the place of a store and ids; the values are read where it is computed."""
    attention = store.dataset(phase="prefix")["attention"]
    again = pickle.loads(pickle.dumps(attention))
    assert len(pickle.dumps(attention)) < 40_000
    assert_array_equal(again.values, attention.values)


def test_a_replaced_episode_is_not_mixed_in(store: Store) -> None:
    lazy = store.dataset(phase="prefix", maps=CAMERA, episodes=NAMES[:1])
    write_episode(store.paths, NAMES[0], precision="log8", replace=True, **SHAPES[0])
    from attnstore.store.reader.dataset import _opened

    _opened.cache_clear()
    with pytest.raises(NotFoundError, match="replaced"):
        lazy.compute()
    write_episode(store.paths, NAMES[0], precision="log8", replace=True, **SHAPES[0])


def test_what_cannot_be_one_dataset_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="no phase 'joint'"):
        store.dataset(phase="joint")
    with pytest.raises(UsageError, match="name a camera with maps="):
        store.dataset(phase="prefix", reduce="max")
    with pytest.raises(UsageError, match="give maps= or key="):
        store.dataset(phase="prefix", maps=CAMERA, key="image")
    with pytest.raises(SelectionError, match=f"{NAMES[0]}: .*no_word"):
        store.dataset(phase="prefix", maps=CAMERA, query="word:no_word")
    paths = create_store(tmp_path / "two.attn")
    write_episode(paths, NAMES[0], seed=1)
    write_episode(paths, NAMES[1], seed=2, heads=3, run_seed=1)
    write_episode(paths, NAMES[2], seed=2, heads=3, run_seed=1, grid=(3, 3))
    two = attnstore.open(paths.root)
    with pytest.raises(
        SelectionError, match=r"prefix has 2 and 3 heads, in runs pi0-.*choose one with run="
    ):
        two.dataset(phase="prefix", maps=CAMERA)
    run = two.episode(NAMES[1]).run
    with pytest.raises(SelectionError, match="3 x 3 and 4 x 4 patches"):
        two.dataset(phase="prefix", maps=CAMERA, run=run)
    with pytest.raises(SelectionError, match="span 'image:hand_camera' changes its grid"):
        two.dataset(phase="prefix", run=run)
    assert two.dataset(phase="prefix", run=run, limit=1).sizes["keyframe"] == 3

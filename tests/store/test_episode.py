"""Slices, maps and statistics of a stored episode against the arrays that were written."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from store_fixtures import RandomEpisode, random_episode, write_episode

import attnstore
from attnstore.query import Episode
from attnstore.store.arrays.groups import MAP_BITS
from attnstore.store.errors import NotFoundError, SelectionError
from attnstore.store.format.geometry import Geometry
from attnstore.store.format.precision import decode, encode
from attnstore.store.format.tokens import AlignedAxis
from attnstore.store.opening import create_store

Stored = tuple[Episode, RandomEpisode, str]
NAME = "success/2025-01-01/2025-01-01_10-00-00"
KEYFRAMES, LAYERS, HEADS, STEPS = 3, 2, 2, 2


@pytest.fixture(scope="module", params=["float16", "log8"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """(episode as read, what was written, precision)."""
    paths = create_store(tmp_path_factory.mktemp("episode") / "store")
    write_episode(paths, NAME, seed=3, precision=request.param)
    written = random_episode(NAME, seed=3, precision=request.param)
    return attnstore.open(paths.root).episode(NAME), written, request.param


def oracle(written: RandomEpisode, precision: str, phase: str) -> NDArray[Any]:
    return decode(encode(written.padded(phase), precision), precision)


selectors = st.one_of(
    st.none(),
    st.integers(-2, 1),
    st.lists(st.integers(0, 1), min_size=1, max_size=3),
    st.builds(slice, st.integers(0, 1), st.just(2)),
)
tokens = st.one_of(
    st.none(),
    st.sampled_from(["text", "task", "image", "image:hand_camera", "text:1:3", "state_text"]),
    st.integers(0, 30),
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
)


def index_of(axis: AlignedAxis, group: Any) -> Any:
    """Positions of a group, written again: by the spans' kinds and names."""
    if group is None or not isinstance(group, str):
        return group if group is not None else slice(None)
    base, _, cut = group.partition(":") if group.count(":") == 2 else (group, "", "")
    at = [i for s in axis for i in range(s.start, s.stop) if base in (s.kind, s.name)]
    if cut:
        low, high = cut.split(":")
        at = at[int(low) : int(high)]
    return at


@settings(max_examples=60)
@given(keyframe=selectors, layer=selectors, head=selectors, query=tokens, key=tokens)
def test_any_selection_of_the_prefix_equals_numpy_indexing(
    stored: Stored, keyframe: Any, layer: Any, head: Any, query: Any, key: Any
) -> None:
    episode, written, precision = stored
    full = oracle(written, precision, "prefix")
    axis = episode.phase("prefix").query
    expected = full
    # From the last dimension on, so that dropped ones do not shift those still to be indexed.
    for dim, wanted in zip(
        (4, 3, 2, 1, 0),
        (index_of(axis, key), index_of(axis, query), head, layer, keyframe),
        strict=True,
    ):
        if wanted is None:
            continue
        if isinstance(wanted, list) and dim >= 3:
            wanted = sorted(set(wanted))
        expected = expected[(slice(None),) * dim + (wanted,)]
    found = episode.attention(
        "prefix", keyframe=keyframe, layer=layer, head=head, query=query, key=key
    ).values
    np.testing.assert_array_equal(found, expected)
    labelled = episode.attention(
        "prefix", keyframe=keyframe, layer=layer, head=head, query=query, key=key
    )
    np.testing.assert_array_equal(labelled.values, expected)


def test_a_step_of_the_suffix(stored: Stored) -> None:
    episode, written, precision = stored
    full = oracle(written, precision, "suffix")
    found = episode.attention(
        "suffix", layer=1, head=0, step=-1, query="action", key="image:hand_camera"
    )
    np.testing.assert_array_equal(found.values, full[:, -1, 1, 0, 1:5, :16])
    assert found.dims == ("keyframe", "query", "key")
    assert int(found["step"]) == STEPS - 1
    assert found["query_label"].values.tolist() == [f"action[{i}]" for i in range(4)]
    assert found["key_label"].values[5] == "hand_camera[1,1]"
    assert found["frame"].values.tolist() == [0, 8, 16]


def test_lazy_arrays_read_what_is_asked(stored: Stored) -> None:
    episode, written, precision = stored
    full = oracle(written, precision, "suffix")
    lazy = episode.attention("suffix", lazy=True)
    np.testing.assert_array_equal(lazy.values, full)
    np.testing.assert_array_equal(lazy[::-1, 0, 1, :, 1:4:2].values, full[::-1, 0, 1, :, 1:4:2])
    np.testing.assert_array_equal(
        lazy.isel(keyframe=[2, 0], query=[3, 1]).values, full[[2, 0]][..., [3, 1], :]
    )
    by_frame = lazy.swap_dims(keyframe="frame").sel(frame=8)
    np.testing.assert_array_equal(by_frame.values, full[1])
    assert lazy[0:0].shape == (0, *full.shape[1:])


def test_lazy_arrays_cross_processes(stored: Stored) -> None:
    episode, written, precision = stored
    copy = pickle.loads(pickle.dumps(episode.attention("prefix", lazy=True)))
    np.testing.assert_array_equal(copy.values, oracle(written, precision, "prefix"))


def test_frames_select_keyframes(stored: Stored) -> None:
    episode, _, _ = stored
    np.testing.assert_array_equal(
        episode.attention("prefix", frame=8).values, episode.attention("prefix", keyframe=1)
    )
    with pytest.raises(SelectionError, match=r"frame 9 is no keyframe; the nearest are \[8, 16\]"):
        episode.attention("prefix", frame=9)
    with pytest.raises(SelectionError, match="give keyframe or frame"):
        episode.attention("prefix", frame=8, keyframe=1)


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_overview_maps_are_reductions_over_the_group(stored: Stored, reduce: Any) -> None:
    episode, written, _ = stored
    how: Any = {"max": np.max, "mean": np.mean}[reduce]
    found = episode.maps("suffix", "varied_camera_1", reduce=reduce, step=0).values
    assert found.shape == (KEYFRAMES, LAYERS, HEADS, 4, 4)
    for (phase, keyframe, layer, step), weights in written.weights.items():
        if phase != "suffix" or step != 0:
            continue
        layout = written.layouts[keyframe]["suffix"]
        (query,), (key,) = layout.query.group("action"), layout.key.group("image:varied_camera_1")
        expected = how(weights[:, query, key], axis=1).reshape(HEADS, 4, 4)
        bits = MAP_BITS[reduce]
        np.testing.assert_allclose(found[keyframe, layer], expected, rtol=2.0**-bits)


def test_a_group_without_maps_is_read_from_the_full_attention(stored: Stored) -> None:
    episode, written, precision = stored
    full = oracle(written, precision, "prefix").astype(np.float32)
    (text,) = [s for s in episode.phase("prefix").query if s.name == "state_text"]
    rows = full[:, 1, 0, text.start : text.stop, 16:32]
    found = episode.maps(
        "prefix", "varied_camera_1", layer=1, head=0, query="state_text", reduce="mean"
    ).values
    # Absent tokens are left out of the mean, not counted as zero.
    np.testing.assert_allclose(found, np.nanmean(rows, axis=1).reshape(-1, 4, 4), rtol=1e-6)


def test_the_active_head_has_the_largest_variance(stored: Stored) -> None:
    episode, _, _ = stored
    variance = episode.stats("prefix", "hand_camera", "variance").values
    for layer in range(LAYERS):
        once = variance.mean(axis=0)[layer].argmax()
        assert episode.active_head("prefix", "hand_camera", layer=layer, reduce="mean") == once
        for keyframe in range(KEYFRAMES):
            head = episode.active_head(
                "prefix", "hand_camera", layer=layer, keyframe=keyframe, reduce="mean"
            )
            assert head == variance[keyframe, layer].argmax()


def test_a_group_without_statistics_is_answered_from_the_full_attention(stored: Stored) -> None:
    """A range over the whole instruction is the instruction, but nothing is stored of it."""
    episode, _, precision = stored
    rtol = 0.03 if precision == "log8" else 2e-3
    for camera, layer in ((c, n) for c in episode.cameras for n in range(LAYERS)):
        where: Any = {"layer": layer, "query": "task:0:99"}
        for image, known in zip(
            episode.mass("prefix", camera, **where),
            episode.mass("prefix", camera, layer=layer),
            strict=True,
        ):
            np.testing.assert_allclose(image, known, rtol=rtol, atol=1e-4)
        variance = np.sort(episode.stats("prefix", camera, "variance", layer=layer).values.mean(0))
        if variance[-1] > variance[-2] * (1 + 4 * rtol):
            assert episode.active_head("prefix", camera, **where) == episode.active_head(
                "prefix", camera, layer=layer
            )
    with pytest.raises(SelectionError, match="no word 'nothing' in the instruction; its words"):
        episode.check_query("prefix", "word:nothing")
    assert not episode.has_query("suffix", "task")


def test_map_carries_its_geometry(stored: Stored) -> None:
    episode, _, _ = stored
    found = episode.maps("prefix", "hand_camera", layer=1, head="active", keyframe=2)
    assert found.dims == ("row", "col")
    assert Geometry.from_json(found.attrs["geometry"]) == episode.geometry("hand_camera")
    np.testing.assert_array_equal(
        found["coverage"].values, episode.geometry("hand_camera").coverage()
    )
    assert int(found["head"]) == episode.active_head("prefix", "hand_camera", layer=1, keyframe=2)


def test_accessor_selects_reduces_and_folds(stored: Stored) -> None:
    episode, written, precision = stored
    full = oracle(written, precision, "prefix").astype(np.float32)
    array = episode.attention("prefix", keyframe=0, layer=0)
    folded = array.attn.span(query="task").attn.reduce("max", "query").attn.on("varied_camera_1")
    (task,) = [s for s in episode.phase("prefix").query if s.name == "task"]
    expected = np.nanmax(full[0, 0, :, task.start : task.stop, 16:32], axis=1).reshape(HEADS, 4, 4)
    np.testing.assert_allclose(folded.values, expected)
    assert folded.dims == ("head", "row", "col")
    with pytest.raises(SelectionError, match="there are: image:hand_camera"):
        array.attn.span(key="nothing")
    with pytest.raises(SelectionError, match="no geometry of camera 'top'"):
        array.attn.on("top")
    with pytest.raises(SelectionError, match="8 of 16 patches"):
        array.isel(key=slice(0, 8)).attn.on("hand_camera")
    with pytest.raises(SelectionError, match="not from attnstore"):
        xr.DataArray(np.zeros(3), dims="key").attn.span(key="task")


def test_explain_counts_what_a_read_touches(stored: Stored) -> None:
    episode, _, _ = stored
    cheap = episode.explain("prefix", camera="hand_camera", layer=1)
    assert (cheap.tier, cheap.chunks, cheap.shards) == ("maps", 1, 1)
    words = episode.explain("prefix", camera="hand_camera", layer=1, query="text")
    # One head is one chunk: 3 keyframes x 2 heads, in one shard per keyframe.
    assert (words.tier, words.chunks, words.shards) == ("full", KEYFRAMES * HEADS, KEYFRAMES)
    assert "full tier, prefix/attention" in str(words)


def test_oversized_reads_are_refused_before_reading(stored: Stored) -> None:
    episode, _, _ = stored
    with pytest.raises(SelectionError, match=r"GB of prefix attention, max_bytes allows 0\.00 GB"):
        episode.attention("prefix", max_bytes=1000)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda e: e.attention("joint"), "no phase 'joint'; there are: prefix, suffix"),
        (
            lambda e: e.attention("prefix", layer=2).values,
            "prefix layer 2 is out of range: there are 2",
        ),
        (lambda e: e.attention("prefix", step=0), "phase prefix has no steps"),
        (lambda e: e.attention("suffix", step=2), "suffix step 2 is out of range"),
        (lambda e: e.maps("prefix", "top"), "no camera 'top'; there are: hand_camera"),
        (
            lambda e: e.maps("prefix", "hand_camera", reduce="sum").values,
            "reduce is 'max' or 'mean'",
        ),
        (lambda e: e.stats("prefix", "hand_camera", "beauty"), "no metric 'beauty'; it has:"),
        (lambda e: e.stats("prefix", "hand_camera", "entropy", query="action"), "there are: task"),
    ],
)
def test_wrong_names_say_the_right_ones(
    stored: Stored, call: Callable[[Episode], Any], says: str
) -> None:
    with pytest.raises(SelectionError) as caught:
        call(stored[0])
    assert says in str(caught.value)


def test_notebook_summary_escapes_what_the_store_says(tmp_path: Path) -> None:
    paths = create_store(tmp_path / "store")
    write_episode(paths, "success/2025-01-01/<script>alert(1)</script>")
    (episode,) = attnstore.open(paths.root).episodes.values()
    html = episode._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert html.count("<svg") == 4  # two phases, two cameras


class TestFindingEpisodes:
    def test_by_name_last_part_and_id(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "store")
        write_episode(paths, NAME)
        store = attnstore.open(paths.root)
        found = store.episode(NAME)
        assert isinstance(found, Episode)
        assert store.episode("2025-01-01_10-00-00").name == NAME
        assert store.episode(found.id).name == NAME

    def test_an_ambiguous_name_lists_the_candidates(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "store")
        write_episode(paths, "success/a/same")
        write_episode(paths, "failure/b/same")
        store = attnstore.open(paths.root)
        with pytest.raises(SelectionError, match=r"failure/b/same in run .*success/a/same"):
            store.episode("same")
        assert store.episode("failure/b/same").name == "failure/b/same"

    def test_two_runs_of_an_episode_need_the_run(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "store")
        one = write_episode(paths, NAME, run_seed=0)
        write_episode(paths, NAME, run_seed=1)
        store = attnstore.open(paths.root)
        with pytest.raises(SelectionError, match="name the run"):
            store.episode(NAME)
        assert store.episode(NAME, run=one.run).run == one.run

    def test_an_unknown_name_lists_some(self, tmp_path: Path) -> None:
        paths = create_store(tmp_path / "store")
        write_episode(paths, NAME)
        with pytest.raises(NotFoundError, match=f"no episode 'nope'; there are: {NAME}"):
            attnstore.open(paths.root).episode("nope")


def test_dask_computes_over_the_full_attention(stored: Stored) -> None:
    episode, written, precision = stored
    full = oracle(written, precision, "suffix").astype(np.float32)
    chunked = episode.attention("suffix", lazy=True).astype(np.float32).chunk(keyframe=1, layer=1)
    # In other processes, as on a cluster: each opens its own arrays.
    found = chunked.max(["query", "key"]).compute(scheduler="processes", num_workers=2)
    np.testing.assert_array_equal(found.values, np.nanmax(full, axis=(-2, -1)))

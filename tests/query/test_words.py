"""Maps of words against tokens that are found by counting characters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from derived_fixtures import CAMERA, INSTRUCTION, ingested_episode, memory_episode, random_rows
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from store_fixtures import write_episode

import attnstore
from attnstore.query import Episode
from attnstore.query.attention.words import _words_of, word_maps, word_shares, words
from attnstore.store.errors import SelectionError
from attnstore.store.format.tokens import AlignedAxis, Span, Token
from attnstore.store.opening import create_store
from attnstore.store.reader.selection import select_tokens

LAYER, KEYFRAME = 1, 2


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    return ingested_episode(tmp_path_factory)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Episode:
    paths = create_store(tmp_path_factory.mktemp("ragged") / "store")
    write_episode(paths, "a/b", seed=5)
    return attnstore.open(paths.root).episode("b")


def tokens_by_counting(axis: AlignedAxis, instruction: str) -> list[list[int]]:
    """Tokens of each word: those with a character of it, spaces apart."""
    owner: list[int] = []  # token of every character of the instruction
    for index in range(axis["task"].start, axis["task"].stop):
        owner += [index] * len(axis["task"].tokens[index - axis["task"].start].text)
    text = "".join(t.text for t in axis["task"].tokens)
    found, position = [], 0
    for word in instruction.split(" "):
        position = text.index(word, position)
        found.append(sorted(set(owner[position : position + len(word)])))
        position += len(word)
    return found


def test_words_of_the_instruction(episode: Episode) -> None:
    listed = words(episode)
    assert " ".join(w.text for w in listed) == INSTRUCTION
    assert [w.label for w in listed] == [
        "place", "the[0]", "greenish", "cube", "into", "the[1]", "purple", "bowls"
    ]  # fmt: skip
    expected = tokens_by_counting(episode.phase("prefix").query, INSTRUCTION)
    assert [list(w.indices) for w in listed] == expected
    assert max(map(len, expected)) > 1, "the sample should have a word of several tokens"
    for word in set(INSTRUCTION.split(" ")):
        indices = sorted(i for w in listed if w.text == word for i in w.indices)
        group = select_tokens(episode.phase("prefix").query, f"word:{word}", where="test")
        assert list(group.indices) == indices
    assert words(episode, "suffix", axis="key") == listed


def axis_of(*tokens: str) -> AlignedAxis:
    listed = tuple(Token(i, text) for i, text in enumerate(tokens))
    bos = Span("bos", "text", 0, 1, 0, role="template", tokens=(Token(0, "<bos>"),))
    task = Span("task", "text", 1, 1 + len(listed), 1, role="task", tokens=listed)
    return AlignedAxis((bos, task))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["put", " it"], {"put": (1,), "it": (2,)}),
        (["pl", "ace", " cu", "be"], {"place": (1, 2), "cube": (3, 4)}),
        (["The", " one", " the"], {"The[0]": (1,), "one": (2,), "the[1]": (3,)}),
        (["go", ",", " don't", "."], {"go": (1,), "don't": (3,)}),
        (["left-", "hand cup"], {"left-hand": (1, 2), "cup": (2,)}),
        ([" ", "é", "toile"], {"étoile": (2, 3)}),
        (["\n"], {}),
    ],
)
def test_how_tokens_make_words(tokens: list[str], expected: dict[str, tuple[int, ...]]) -> None:
    assert {w.label: w.indices for w in _words_of(axis_of(*tokens))} == expected


@given(st.lists(st.sampled_from(["the", "cube", "a", "bowl"]), min_size=1, max_size=8), st.data())
def test_labels_are_unique_however_the_text_is_cut(chosen: list[str], data: st.DataObject) -> None:
    text = " ".join(chosen)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]
    listed = _words_of(axis_of(*pieces))
    assert [w.text for w in listed] == chosen
    assert len({w.label for w in listed}) == len(chosen)
    for word in listed:
        joined = "".join(pieces[i - 1] for i in word.indices)
        assert word.text in joined


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("head", ["mean", 5, "active"])
def test_word_maps(episode: Episode, head: Any, reduce: Any) -> None:
    found = word_maps(episode, CAMERA, layer=LAYER, head=head, keyframe=KEYFRAME, reduce=reduce)
    weights = episode.attention("prefix", keyframe=KEYFRAME, layer=LAYER).values.astype(np.float64)
    if head == "active":
        # of the whole text's map, reduced as the words' are
        cover = episode.geometry(CAMERA).coverage()
        maps = episode.maps("prefix", CAMERA, layer=LAYER, keyframe=KEYFRAME, reduce=reduce).values
        means = np.array([np.average(each, weights=cover) for each in maps])
        squares = np.array([np.average(each**2, weights=cover) for each in maps])
        head = int(np.argmax(squares - means**2))
        assert int(found["head"]) == head
    square = weights.mean(0) if head == "mean" else weights[head]
    start = episode.phase("prefix").key[f"image:{CAMERA}"].start
    rows, cols = episode.geometry(CAMERA).grid
    places = tokens_by_counting(episode.phase("prefix").query, INSTRUCTION)
    expected = np.zeros((len(places), rows, cols))
    for i, tokens in enumerate(places):
        for row in range(rows):
            for col in range(cols):
                values = [float(square[t, start + row * cols + col]) for t in tokens]
                expected[i, row, col] = (
                    max(values) if reduce == "max" else sum(values) / len(values)
                )
    assert_allclose(found, expected, rtol=1e-5)
    assert found.dims == ("word", "row", "col")
    assert found.attrs["geometry"] == episode.geometry(CAMERA).to_json()
    assert found.attrs["precision"] == "float16"
    assert int(found.frame) == episode.frames[KEYFRAME]
    assert list(found.occurrence.values) == [0, 0, 0, 0, 0, 1, 0, 0]


def test_word_maps_of_all_keyframes(episode: Episode) -> None:
    every = word_maps(episode, CAMERA, layer=-1, head=3)
    assert every.dims == ("keyframe", "word", "row", "col")
    assert int(every.layer) == episode.layers("prefix") - 1
    for keyframe in range(len(episode.frames)):
        one = word_maps(episode, CAMERA, layer=-1, head=3, keyframe=keyframe)
        assert_array_equal(every.sel(keyframe=keyframe), one)
    the = episode.attention(
        "prefix", keyframe=1, layer=-1, head=3, query="word:the", key=f"image:{CAMERA}"
    ).values
    both = every.sel(keyframe=1, word=["the[0]", "the[1]"]).values.reshape(2, -1)
    assert_allclose(both.mean(0), the.astype(np.float32).mean(0), rtol=1e-3)


def test_word_shares_of_actions(episode: Episode) -> None:
    found = word_shares(episode, "action", layer=LAYER, keyframe=KEYFRAME, step=0)
    weights = episode.attention("suffix", keyframe=KEYFRAME, layer=LAYER, step=0).values.astype(
        np.float64
    )
    places = tokens_by_counting(episode.phase("suffix").key, INSTRUCTION)
    for q, row in enumerate(range(1, 6)):  # the state is first
        for i, tokens in enumerate(places):
            expected = sum(float(w) for w in weights.mean(0)[row][tokens])
            assert_allclose(found[q, i], expected, rtol=1e-5)
    assert list(found.query_label.values) == [f"action[{i}]" for i in range(5)]
    assert int(found.step) == 0
    every = word_shares(episode, "action", layer=LAYER, step=0)
    assert_array_equal(every.sel(keyframe=KEYFRAME), found)
    one = word_shares(episode, 2, layer=LAYER, keyframe=KEYFRAME, step=0)
    assert_array_equal(one, found[1:2])
    assert (every.sum("word") < 1).all()


def test_absent_words_are_nan(ragged: Episode) -> None:
    for keyframe in range(3):
        raw = ragged.attention("prefix", keyframe=keyframe, layer=0, head=0).values.astype(
            np.float64
        )
        maps = word_maps(ragged, CAMERA, layer=0, head=0, keyframe=keyframe)
        for i, word in enumerate(words(ragged)):
            there = [t for t in word.indices if not np.isnan(raw[t, 0])]
            assert bool(maps[i].isnull().all()) == (not there)
            assert bool(maps[i].isnull().any()) == (not there)
            if there:
                assert_allclose(maps[i].values.reshape(-1), raw[there, :16].mean(0), rtol=1e-5)
    absent = word_maps(ragged, CAMERA, layer=0).isnull().all(("row", "col"))
    assert 0 < int(absent.sum()) < absent.size, "some keyframes should lack words"


def test_one_word_by_hand() -> None:
    weights = random_rows(np.random.default_rng(0), 1, 1, 2, 3, 3)
    weights[0, 0, 0, 2], weights[0, 0, 1, 2] = (0.5, 0.25, 0.25), (0.0, 1.0, 0.0)
    one = memory_episode(weights)
    found = word_maps(one, "cam", layer=0, keyframe=0)
    assert_array_equal(found.sel(word="word"), [[0.25, 0.625]])
    assert_array_equal(word_maps(one, "cam", layer=0, head=1, keyframe=0), [[[0.0, 1.0]]])
    weights[0, 0, :, 0, 2], weights[0, 0, :, 1, 2] = 0.125, (0.5, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "largest"}, "head is an index, 'mean' or 'active'; got 'largest'"),
        ({"head": 8}, "prefix head 8 is out of range"),
        ({"layer": 3}, "prefix layer 3 is out of range"),
        ({"reduce": "sum"}, "reduce is 'max' or 'mean'; got 'sum'"),
        ({"keyframe": 4}, "keyframe 4 is out of range"),
        ({"phase": "suffix"}, "suffix query: there are no words of an instruction"),
    ],
)
def test_errors_name_the_rule(episode: Episode, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        word_maps(episode, CAMERA, **({"layer": 0} | options))


def test_more_errors(episode: Episode) -> None:
    with pytest.raises(SelectionError, match="no_such"):
        word_maps(episode, "no_such", layer=0)
    with pytest.raises(SelectionError, match="head is an index or 'mean'; got 'active'"):
        word_shares(episode, "action", layer=0, head="active")  # type: ignore[arg-type]
    with pytest.raises(SelectionError, match="no tokens 'gripper'"):
        word_shares(episode, "gripper", layer=0)

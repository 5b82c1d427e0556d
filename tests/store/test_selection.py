"""Token groups by name: what each selects, and what a wrong one says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnstore.store.errors import SelectionError
from attnstore.store.format.tokens import AlignedAxis, Span, Token
from attnstore.store.reader.selection import select_tokens, span_labels, token_labels

WORDS = ("<bos>", "put", " the", " red", " cu", "be", " on", " the", " cube", "d", "\n")


def axis() -> AlignedAxis:
    tokens = tuple(Token(i, text) for i, text in enumerate(WORDS))
    return AlignedAxis(
        (
            Span("image:wrist", "image", 0, 6, 0, camera="wrist", grid=(2, 3)),
            Span("image:side", "image", 6, 10, 6, camera="side", grid=(2, 2)),
            Span("bos", "text", 10, 11, 10, role="template", tokens=tokens[:1]),
            Span("task", "text", 11, 20, 11, role="task", tokens=tokens[1:10]),
            Span("newline", "text", 20, 21, 20, role="template", tokens=tokens[10:]),
            Span("action", "action", 21, 26, 30),
        )
    )


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (None, range(26)),
        ("image", range(10)),
        ("image:side", range(6, 10)),
        ("text", range(10, 21)),
        ("task", range(11, 20)),
        ("template", (10, 20)),
        ("action", range(21, 26)),
        ("action:0:2", (21, 22)),
        ("action:-2:", (24, 25)),
        ("text:1:3", (11, 12)),
        ("image:wrist:0:3", (0, 1, 2)),
        ("word:put", (11,)),
        ("word:PUT", (11,)),
        # Two tokens make the word; " cube" + "d" is another word.
        ("word:cube", (14, 15)),
        ("word:cubed", (18, 19)),
        # Both occurrences of a word that stands twice.
        ("word:the", (12, 17)),
        ("word:the RED cube", (12, 13, 14, 15)),
        ("text:word:bos", (10,)),
        ("template:word:bos", (10,)),
        (5, (5,)),
        (-1, (25,)),
        (slice(3, 6), (3, 4, 5)),
        ([7, 3, 3], (3, 7)),
    ],
)
def test_groups(group: Any, expected: Any) -> None:
    assert select_tokens(axis(), group, where="key").indices.tolist() == list(expected)


def test_a_number_drops_the_dimension_and_a_list_does_not() -> None:
    assert select_tokens(axis(), 3, where="key").scalar
    assert not select_tokens(axis(), [3], where="key").scalar


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ("word:dog", "no word 'dog' in the instruction; its words: put, the, red, cube, on, cubed"),
        ("word:bos", "no word 'bos' in the instruction; there is template:word:bos"),
        ("template:word:dog", "no word 'dog' in the template; its words: bos"),
        ("text:cube", "no tokens 'text:cube': a word is called 'word:cube'"),
        ("task:cube", "no tokens 'task:cube': a word is called 'task:word:cube'"),
        ("newline:x", "a word is called 'newline:word:x'"),
        ("text:state", "the role is called 'state', a word is called 'word:state'"),
        ("text:other", "the role is called 'template', a word is called 'word:other'"),
        ("camera", "there are image, text, action, task, template, image:wrist, image:side, bos"),
        ("action:5:9", "'action:5:9' is empty; 'action' has 5 tokens"),
        (26, "out of range: there are 26, 0 to 25"),
        (-27, "out of range"),
        ([1, 99], "99 is out of range"),
        (slice(30, 40), "selects none of the 26 tokens"),
    ],
)
def test_what_matches_nothing_says_what_would(group: Any, says: str) -> None:
    with pytest.raises(SelectionError, match="suffix key") as caught:
        select_tokens(axis(), group, where="suffix key")
    assert says in str(caught.value)


@given(st.integers(-6, 6), st.integers(-6, 6))
def test_a_range_is_python_slicing_of_the_group(start: int, stop: int) -> None:
    expected = list(range(21, 26))[start:stop]
    if expected:
        found = select_tokens(axis(), f"action:{start}:{stop}", where="key")
        assert found.indices.tolist() == expected
    else:
        with pytest.raises(SelectionError):
            select_tokens(axis(), f"action:{start}:{stop}", where="key")


def test_labels_name_every_token() -> None:
    spans = axis().spans
    labels = token_labels(spans, 26)
    assert labels[4] == "wrist[1,1]"
    assert labels[9] == "side[1,1]"
    assert labels[14] == " cu"
    assert labels[22] == "action[1]"
    assert np.count_nonzero(labels == "") == 0
    assert span_labels(spans, 26)[[0, 6, 10, 11, 21]].tolist() == [
        "image:wrist",
        "image:side",
        "bos",
        "task",
        "action",
    ]

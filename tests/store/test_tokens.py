from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnstore.store.format.naming import find_tokens
from attnstore.store.format.tokens import AlignedAxis, Axis, Kind, Span, Token

NAMES = ("image:wrist", "image:side", "task", "joints", "state", "more", "action")
ROLE = {"task": "task", "joints": "state"}
KINDS: dict[str, Kind] = {
    "task": "text",
    "joints": "text",
    "state": "state",
    "more": "other",
    "action": "action",
}


def span(name: str, start: int, length: int, model_start: int) -> Span:
    if name.startswith("image:"):
        camera = name.removeprefix("image:")
        return Span(name, "image", start, start + 4, model_start, camera=camera, grid=(2, 2))
    kind = KINDS[name]
    tokens = tuple(Token(i, f" {name}{i}") for i in range(length)) if kind == "text" else ()
    return Span(name, kind, start, start + length, model_start, role=ROLE.get(name), tokens=tokens)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """Some of the spans, in their common order, of any length and with any padding between."""
    spans: list[Span] = []
    start = model = 0
    for name in NAMES:
        if draw(st.booleans()):
            model += draw(st.integers(0, 3))
            spans.append(span(name, start, draw(st.integers(1, 5)), model))
            start = spans[-1].stop
            model += len(spans[-1])
    return Axis(tuple(spans))


episodes = st.lists(axes(), min_size=1, max_size=5)


def indices(slices: tuple[slice, ...]) -> list[int]:
    return [i for s in slices for i in range(s.start, s.stop)]


def labels(axis: Axis | AlignedAxis) -> list[tuple[str, int]]:
    """The naive view of an axis: (span name, offset in the span) of every token."""
    return [(s.name, i) for s in axis for i in range(len(s))]


@given(axes())
def test_spans_follow_each_other_without_gaps(axis: Axis) -> None:
    assert indices(tuple(slice(s.start, s.stop) for s in axis)) == list(range(len(axis)))
    assert len(labels(axis)) == len(axis)


@given(axes())
def test_groups_by_kind_partition_the_axis(axis: Axis) -> None:
    kinds = ("image", "text", "action", "other")
    states = [i for s in axis if s.kind == "state" for i in range(s.start, s.stop)]
    found = [i for kind in kinds for i in indices(axis.group(kind))]
    assert sorted(found + states) == list(range(len(axis)))
    for s in axis:
        assert s.start in indices(axis.group(s.name))


@given(axes())
def test_model_slices_gather_the_valid_tokens_in_order(axis: Axis) -> None:
    expected = [s.model_start + i for s in axis for i in range(len(s))]
    assert indices(axis.model_slices) == expected
    for before, after in zip(axis.model_slices, axis.model_slices[1:], strict=False):
        assert before.stop != after.start, "neighbours are merged"


@given(axes(), axes(), st.integers(0, 50))
def test_followed_by(first: Axis, second: Axis, offset: int) -> None:
    """The suffix's keys: the prefix's spans, then its own."""
    renamed = Axis(tuple(replace(s, name=f"suffix:{s.name}") for s in second))
    both = first.followed_by(renamed, model_offset=offset)
    assert labels(both) == labels(first) + labels(renamed)
    shifted = [s.model_start + offset for s in second]
    assert [s.model_start for s in both] == [s.model_start for s in first] + shifted
    if {s.name for s in first} & {s.name for s in second}:
        with pytest.raises(ValueError, match="stands twice on one axis"):
            first.followed_by(second, model_offset=offset)


@given(episodes)
def test_an_aligned_span_is_as_long_as_its_longest(keyframes: list[Axis]) -> None:
    aligned = AlignedAxis.over(keyframes)
    lengths: dict[str, int] = {}
    for axis in keyframes:
        for s in axis:
            lengths[s.name] = max(lengths.get(s.name, 0), len(s))
    assert {s.name: len(s) for s in aligned} == lengths
    assert len(aligned) == sum(lengths.values())
    Axis(aligned.spans)  # contiguous from 0, names unique
    for s in aligned:
        assert s.kind != "text" or len(s.tokens) == len(s)


@given(episodes)
def test_any_set_of_keyframes_with_a_common_order_is_aligned(keyframes: list[Axis]) -> None:
    place = {s.name: i for i, s in enumerate(AlignedAxis.over(keyframes))}
    for axis in keyframes:
        order = [place[s.name] for s in axis]
        assert order == sorted(order)


@given(episodes)
def test_place_stores_every_token_once_and_at_the_same_index_in_every_keyframe(
    keyframes: list[Axis],
) -> None:
    aligned = AlignedAxis.over(keyframes)
    stored_label = labels(aligned)
    for axis in keyframes:
        pairs = aligned.place(axis)
        stored = indices(tuple(pair[0] for pair in pairs))
        assert indices(tuple(pair[1] for pair in pairs)) == list(range(len(axis)))
        assert len(set(stored)) == len(stored)
        assert [stored_label[i] for i in stored] == labels(axis)


@given(episodes)
def test_values_through_place_equal_a_dictionary_by_name_and_offset(keyframes: list[Axis]) -> None:
    aligned = AlignedAxis.over(keyframes)
    for axis in keyframes:
        compact = [i * 10 + 1 for i in range(len(axis))]
        stored: list[int | None] = [None] * len(aligned)
        for to, source in aligned.place(axis):
            stored[to] = compact[source]
        by_label = dict(zip(labels(axis), compact, strict=True))
        assert stored == [by_label.get(label) for label in labels(aligned)]


@given(axes())
def test_one_keyframe_is_one_copy(axis: Axis) -> None:
    pairs = AlignedAxis.over([axis]).place(axis)
    assert pairs == (((slice(0, len(axis)),) * 2,) if len(axis) else ())


def test_cameras_that_take_turns_still_have_a_common_order() -> None:
    wrist, side = span("image:wrist", 0, 4, 0), span("image:side", 0, 4, 0)
    both = Axis((wrist, replace(side, start=4, stop=8)))
    aligned = AlignedAxis.over([Axis((wrist,)), Axis((side,)), both])
    assert [s.name for s in aligned] == ["image:wrist", "image:side"]


def test_orders_that_exclude_each_other() -> None:
    one = Axis((span("task", 0, 2, 0), span("action", 2, 2, 2)))
    other = Axis((span("action", 0, 2, 0), span("task", 2, 2, 2)))
    with pytest.raises(ValueError, match=r"change their places between keyframes: .*task.*action"):
        AlignedAxis.over([one, other])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (1, 4)}, r"'image:wrist' changes its grid .*\(2, 2\), then \(1, 4\)"),
        ({"camera": "side"}, "changes its camera between keyframes: 'wrist', then 'side'"),
        ({"kind": "other", "camera": None, "grid": None}, "changes its kind"),
    ],
)
def test_a_span_that_is_something_else_later(change: dict[str, object], message: str) -> None:
    first = span("image:wrist", 0, 4, 0)
    later = replace(first, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        AlignedAxis.over([Axis((first,)), Axis((later,))])


def test_a_span_that_does_not_fit_is_refused_and_does_not_run_into_its_neighbour() -> None:
    aligned = AlignedAxis.over([Axis((span("task", 0, 2, 0), span("action", 2, 2, 2)))])
    with pytest.raises(ValueError, match="'task' has 3 tokens, its place only 2"):
        aligned.place(Axis((span("task", 0, 3, 0),)))
    with pytest.raises(KeyError, match="state"):
        aligned.place(Axis((span("state", 0, 1, 0),)))


def test_no_keyframes() -> None:
    with pytest.raises(ValueError, match="no keyframes"):
        AlignedAxis.over([])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Span("x", "word", 0, 1, 0), "kind is one of image, text"),  # type: ignore[arg-type]
        (lambda: Span("x", "state", 1, 1, 0), r"empty or negative interval \[1, 1\)"),
        (lambda: Span("x", "state", -1, 1, 0), r"empty or negative interval \[-1, 1\)"),
        (lambda: Span("x", "image", 0, 4, 0), "have a camera and a grid"),
        (lambda: Span("x", "state", 0, 4, 0, camera="c", grid=(2, 2)), "and only they"),
        (lambda: Span("x", "image", 0, 5, 0, camera="c", grid=(2, 2)), "has not 5 patches"),
        (lambda: Span("x", "text", 0, 2, 0, role="task"), "0 token strings for 2 tokens"),
        (lambda: Span("x", "text", 0, 2, 0), "text has a role, one of task, repeated, state"),
        (lambda: Span("x", "text", 0, 2, 0, role="cube"), "a role is one of task.*got 'cube'"),
        (lambda: Span("x", "action", 0, 2, 0, role="task"), "got 'task' of kind action"),
        (lambda: Span("text", "other", 0, 2, 0), "'text': this is what all tokens of a kind"),
        (lambda: Span("task", "state", 0, 2, 0), "'task': this is what all tokens of a kind"),
        (lambda: Span("word:x", "state", 0, 2, 0), "word:WORD is how words are called"),
        (lambda: Axis((Span("x", "state", 1, 2, 0),)), "starts at 1, the one before stops at 0"),
        (lambda: Axis((Span("x", "state", 0, 1, 0), Span("x", "state", 1, 2, 1))), "twice"),
    ],
)
def test_what_no_span_or_axis_may_be(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=message):
        build()


def test_mass_names() -> None:
    names = [span(name, 0, 2, 0).mass_name for name in (*NAMES[1:], "more")]
    assert names == ["image:side", "task", "state", "state", "more", "action", "more"]


@given(axes())
def test_a_mass_name_is_a_group_of_just_those_tokens(axis: Axis) -> None:
    """So that a mass in ``head_stats`` and the attention on ``key=NAME`` are one number."""
    own: dict[str, list[int]] = {}
    for s in axis:
        own.setdefault(s.mass_name, []).extend(range(s.start, s.stop))
    for name, expected in own.items():
        assert find_tokens(axis, name).tolist() == expected
    assert sorted(i for tokens in own.values() for i in tokens) == list(range(len(axis)))

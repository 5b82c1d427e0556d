"""The lab's paths, written out, and names that try to leave their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnstore.render.files.lab_folders import EpisodeFolder
from attnstore.render.picture.drawing import Drawing, component
from attnstore.store.errors import UsageError

OUT = Path("out")
NAME = "success/2025-12-10/2025-12-10_09-00-39"
ROOT = "out/success/2025-12-10/2025-12-10_09-00-39"


def folder() -> EpisodeFolder:
    return EpisodeFolder.of(OUT, NAME, "success", "2025-12-10")


def test_the_labs_own_names() -> None:
    f, prefix, suffix = folder(), Drawing("prefix"), Drawing("suffix")
    assert [
        path.as_posix()
        for path in (
            f.summary_image(32, prefix, 5, "jpg"),
            f.summary_image(32, suffix, 10, "jpg"),
            f.head_image(8, prefix, 5, 3, "jpg"),
            f.head_image(8, suffix, 10, 7, "png"),
            f.marker(),
            f.summary_video(prefix, 5, "webm"),
            f.summary_video(suffix, 10, "webm"),
            f.head_video(prefix, 5, 3, "webm"),
            f.head_video(suffix, 10, 7, "mp4"),
            f.instruction,
        )
    ] == [
        f"{ROOT}/00032/prefix_L5_attn_vis_max.jpg",
        f"{ROOT}/00032/suffix_L10_attn_vis_max.jpg",
        f"{ROOT}/00008/L5_prefix_heads/head_03.jpg",
        f"{ROOT}/00008/L10_suffix_heads/head_07.png",
        f"{ROOT}/pi05.md",
        f"{ROOT}/L05_prefix_max.webm",
        f"{ROOT}/L10_suffix_max.webm",
        f"{ROOT}/L5/H03_prefix.webm",
        f"{ROOT}/L10/H07_suffix.mp4",
        f"{ROOT}/instruction.txt",
    ]


def test_different_drawings_have_different_names() -> None:
    drawings = [
        Drawing("suffix", reduce, step, corrected)
        for reduce in ("max", "mean")
        for step in (None, 0, 3)
        for corrected in (False, True)
    ]
    drawings += [Drawing("suffix", query=q) for q in ("text", "word:cube", "word:a/b", "word:a b")]
    f = folder()
    paths = [
        path
        for d in drawings
        for path in (
            f.summary_image(0, d, 1, "jpg"),
            f.head_image(0, d, 1, 0, "jpg"),
            f.summary_video(d, 1, "webm"),
            f.head_video(d, 1, 0, "webm"),
        )
    ]
    assert len(set(paths)) == len(paths) == 64
    assert f.summary_image(0, Drawing("suffix", "mean", 3, True), 1, "jpg").name == (
        "suffix_L1_step03_nosink_attn_vis_mean.jpg"
    )


@pytest.mark.parametrize(
    ("name", "outcome", "date"),
    [
        ("../../etc", "success", None),
        ("success/../../x", "success", None),
        ("/etc/passwd", "success", None),
        ("a//b", "success", None),
        ("..", "success", None),
        ("", "success", None),
        (".", "success", None),
        ("a\\..\\b", "success", None),
        ("a\0b", "success", None),
        ("fine", "..", None),
        ("fine", "a/b", None),
        ("fine", "", None),
        ("fine", "success", "../2025"),
        ("fine", "success", "/"),
    ],
)
def test_traversal_is_refused(name: str, outcome: str, date: str | None) -> None:
    with pytest.raises(UsageError, match="cannot name a folder"):
        EpisodeFolder.of(OUT, name, outcome, date)


@pytest.mark.parametrize("marker", ["../pi05.md", "/pi05.md", "", "a/b"])
def test_the_marker_stays_in_the_folder(marker: str) -> None:
    with pytest.raises(UsageError, match="cannot name a folder"):
        folder().marker(marker)


@given(st.text(max_size=300), st.text(max_size=40), st.one_of(st.none(), st.text(max_size=20)))
def test_any_name_is_refused_or_stays_below(name: str, outcome: str, date: str | None) -> None:
    try:
        path = EpisodeFolder.of(OUT, name, outcome, date).path
    except UsageError:
        return
    assert len(path.parts) == 4
    assert path.parts[0] == "out"
    for part in path.parts[1:]:
        assert part.isascii()
        assert not part.startswith((".", "-"))
        assert not set(part) & set('/\\:*?"<>|\0 \n')
        assert len(part) < 255


def test_names_that_differ_stay_apart() -> None:
    names = ["a b", "a_b", "a:b", "task/episode_3", "task-episode_3", "x" * 300, "x" * 301, ".a"]
    paths = {EpisodeFolder.of(OUT, name, "unknown", None).path for name in names}
    assert len(paths) == len(names)
    assert {p.parts[:3] for p in paths} == {("out", "unknown", "undated")}


def test_safe_names_are_kept() -> None:
    assert component("2025-12-10_09-00-39") == "2025-12-10_09-00-39"
    same = EpisodeFolder.of(OUT, "2025-12-10_09-00-39", "success", "2025-12-10")
    assert same == folder()


def test_drawing_refuses_what_is_no_phase() -> None:
    with pytest.raises(UsageError, match="a phase is one of"):
        Drawing("../x")
    with pytest.raises(UsageError, match="max or mean"):
        Drawing("prefix", "min")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="0 or more"):
        Drawing("suffix", step=-1)

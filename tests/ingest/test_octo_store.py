"""What the small Octo's store answers: words and images in one selection, views, pictures."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from octo_fixture import HEADS, LAYERS, WORDS
from octo_store import octo_store

from attnstore.cli import main
from attnstore.ingest.datasets.droid.dataset import DroidDataset
from attnstore.ingest.views import first_full_window, keyframe_views
from attnstore.query import Episode, Store
from attnstore.query.attention.words import word_maps, words
from attnstore.render.files.episode_images import render_images
from attnstore.render.files.episode_videos import render_videos
from attnstore.render.files.folders import folder_type
from attnstore.store.errors import SelectionError, UsageError

__all__ = ["octo_store"]
SIDE, WRIST = "varied_camera_1", "hand_camera"
NAME = "2025-12-10_09-00-00"


@pytest.fixture(scope="module")
def episode(octo_store: Store) -> Episode:
    return octo_store.episode(NAME)


class TestSelections:
    def test_what_the_words_give_to_an_image(self, episode: Episode) -> None:
        """The repeated instruction sees the images; Octo's task tokens themselves never do."""
        again = episode.maps("joint", SIDE, layer=1, head=0, query="task_repeat", reduce="mean")
        assert again.dims == ("keyframe", "row", "col")
        whole = episode.attention("joint", layer=1, head=0).values
        spec = episode.phase("joint")
        q, k = spec.query["task_repeat"], spec.key[f"image:{SIDE}"]
        wanted = whole[:, q.start : q.stop, k.start : k.stop].mean(1).reshape(3, 4, 4)
        assert (again > 0).all()
        np.testing.assert_allclose(again, wanted, rtol=1e-3)
        task = episode.maps("joint", SIDE, layer=1, head=0, query="task")
        assert not task.any()

    def test_what_an_image_gives_to_the_words(self, episode: Episode) -> None:
        found = episode.attention(
            "joint", layer=1, head=0, keyframe=1, query=f"image:{SIDE}", key="task"
        )
        assert found.shape == (16, 8)
        assert (found > 0).all()
        labels = [str(x) for x in found.key_label.values]
        assert "".join(labels) == "place the green cube into the pink bowl"
        cube = episode.attention(
            "joint", layer=1, head=0, keyframe=1, query=f"image:{SIDE}", key="task:word:cube"
        )
        np.testing.assert_array_equal(cube.values[:, 0], found.values[:, labels.index(" cube")])

    def test_a_word_in_one_span_or_in_all_text(self, episode: Episode) -> None:
        def chosen(group: str) -> list[str]:
            found = episode.attention("joint", layer=0, head=0, keyframe=1, query=group)
            return [str(s) for s in np.atleast_1d(found.query_span.values)]

        assert chosen("task_repeat:word:cube") == ["task_repeat"]
        assert chosen("task_repeat@-1:word:cube") == ["task_repeat@-1"]
        assert chosen("word:cube") == ["task", "task_repeat@-1", "task_repeat"]
        assert set(chosen("image:hand_camera")) == {"image:hand_camera"}
        assert "task_pad" not in chosen("text")
        with pytest.raises(
            SelectionError, match="no word 'plum' in the task_repeat; its words: pl"
        ):
            chosen("task_repeat:word:plum")

    def test_words_are_those_that_see_the_images(self, episode: Episode) -> None:
        found = words(episode, "joint")
        assert " ".join(w.text for w in found) == "place the green cube into the pink bowl"
        assert (word_maps(episode, SIDE, layer=1, phase="joint").values > 0).all()

    def test_an_earlier_view_is_a_camera_of_its_own(self, episode: Episode) -> None:
        assert episode.cameras == (SIDE, WRIST, f"{SIDE}@-1", f"{WRIST}@-1")
        past = episode.maps("joint", f"{SIDE}@-1", layer=0, head=0)
        assert np.isnan(past.values[0]).all()
        assert (past.values[1:] > 0).all()
        mass = episode.stats("joint", f"{SIDE}@-1", "camera_mass")
        assert mass.shape == (3, LAYERS, HEADS)
        assert np.isnan(mass[0]).all()
        assert np.isfinite(mass[1:]).all()
        now, before = (episode.image_bytes(1, view) for view in (SIDE, f"{SIDE}@-1"))
        assert now != before

    def test_masses_sum_to_1_and_none_is_padding(self, episode: Episode) -> None:
        table = episode.part.table("head_stats")
        for row in table.to_pylist():
            mass = dict(row["mass"])
            assert abs(sum(mass.values()) - 1) < 1e-4
            assert row["letterbox_mass"] == 0
            assert {"task", "repeated", "template", "padding", "readout"} <= set(mass)
        assert set(table["query_group"].to_pylist()) == {"readout_action", "task_repeat"}


def test_views_reach_back_over_frames(octo_store: Store) -> None:
    class Window:
        window, sees_goal = 3, True

    root = octo_store.paths.root.parent / "recordings"
    dataset = DroidDataset(root)
    info = dataset.info(dataset.episode_names()[0])
    policy = Window()
    frames = list(keyframe_views(dataset, info, (0, 1, 8), policy))  # type: ignore[arg-type]
    assert [f.index for f in frames] == [0, 1, 8]
    first, second, last = ([c.camera for c in f.cameras] for f in frames)
    goals = [f"{WRIST}@goal", f"{SIDE}@goal"]
    assert first == [WRIST, SIDE, *goals]
    assert second == [WRIST, SIDE, f"{WRIST}@-1", f"{SIDE}@-1", *goals]
    assert last == [
        f"{camera}{at}" for at in ("", "@-1", "@-2") for camera in (WRIST, SIDE)
    ] + goals  # fmt: skip
    alone = {i: next(dataset.frames(info.name, [i])).cameras for i in (6, 7, 8, info.frames - 1)}
    for view, index in (("", 8), ("@-1", 7), ("@-2", 6), ("@goal", info.frames - 1)):
        shown = {c.camera: c.rgb for c in frames[2].cameras}
        for camera in alone[index]:
            np.testing.assert_array_equal(shown[camera.camera + view], camera.rgb)
    assert first_full_window(info, policy) == 2  # type: ignore[arg-type]


class TestPictures:
    def test_octos_names(self, episode: Episode, tmp_path: Path) -> None:
        options = {"layout": "octo", "heads": False}
        pictures = render_images(episode, tmp_path, format="png", marker="octo.md", **options)  # type: ignore[arg-type]
        folder = tmp_path / "success" / "2025-12-10" / NAME
        names = {f"step_{t}_layer_{layer}.png" for t in (0, 8, 16) for layer in range(LAYERS)}
        assert {p.name for p in pictures} == names | {"octo.md"}
        assert {p.parent for p in pictures} == {folder}
        image = cv2.imread(str(folder / "step_8_layer_1.png"))
        assert image is not None
        videos = render_videos(episode, tmp_path, codec="h264", **options)  # type: ignore[arg-type]
        assert {p.name for p in videos} == {
            "attention_video.mp4", "attention_video_layer_0.mp4", "instruction.txt",
        }  # fmt: skip
        with av.open(str(folder / "attention_video.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == 3

    def test_heads_steps_and_other_phases_have_names_of_their_own(self) -> None:
        from attnstore.render.picture.drawing import Drawing

        folder = folder_type("octo")(Path("out"))
        found = {
            folder.head_image(8, Drawing("joint"), 3, 5, "png").name,
            folder.summary_image(8, Drawing("joint", "mean"), 3, "png").name,
            folder.summary_image(8, Drawing("suffix", step=0), 3, "png").name,
            folder.head_video(Drawing("joint"), 3, 5, "mp4").name,
        }
        assert found == {
            "step_8_layer_3_head_5.png", "step_8_layer_3_mean.png",
            "suffix_step_8_layer_3_step00.png", "attention_video_layer_3_head_5.mp4",
        }  # fmt: skip
        with pytest.raises(UsageError, match="a layout is one of lab, octo; got 'tree'"):
            folder_type("tree")

    def test_an_earlier_view_is_drawn_when_it_is_asked_for(
        self, episode: Episode, tmp_path: Path
    ) -> None:
        def size(**options: object) -> tuple[int, ...]:
            out = tmp_path / str(len(options))
            files = render_images(episode, out, layers=[0], heads=False, format="png", **options)  # type: ignore[arg-type]
            return tuple(cv2.imread(str(files[0])).shape)  # type: ignore[union-attr]

        two = size()
        three = size(cameras=[SIDE, WRIST, f"{WRIST}@-1"])
        assert three[0] > two[0]

    def test_the_command(
        self, octo_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        common = [str(octo_store.paths.root), "--out", str(tmp_path), "--heads", "active"]
        for kind in ("images", "videos"):
            with pytest.raises(SystemExit) as stop:
                main(["render", kind, *common, "--layout", "octo", "--layers", "1"])
            assert stop.value.code == 0
        found = {p.name for p in tmp_path.rglob("*") if p.is_file()}
        assert found == {
            *(f"step_{t}_layer_1.png" for t in (0, 8, 16)),
            "octo.md", "attention_video.mp4", "instruction.txt",
        }  # fmt: skip


def test_a_notebook_shows_the_keyframes_cameras(episode: Episode) -> None:
    shown = episode._repr_html_()
    assert f"joint, {SIDE}:" in shown
    assert "@-1" not in shown


def test_the_spans_are_whole(episode: Episode) -> None:
    spec = episode.phase("joint")
    assert sum(len(s) for s in spec.query) == WORDS + 2 * (16 + 4 + WORDS + 1)

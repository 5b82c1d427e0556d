"""LeRobotDataset reader: v2.1 and v3.0 folders with real Parquet and video, broken ones, the hub."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_fixture_datasets import (
    DATA,
    FPS,
    LENGTHS,
    TASKS,
    TOP,
    WRIST,
    Content,
    edit_rows,
    png,
    replaced,
    write_v21,
    write_v30,
    write_video,
)
from PIL import Image

from attnstore.ingest.datasets.lerobot import video as video_module
from attnstore.ingest.datasets.lerobot.dataset import LeRobotDataset
from attnstore.ingest.datasets.outcome import read_outcomes
from attnstore.store.errors import AttnstoreError, EpisodeError, NotFoundError, UsageError

WRITERS: dict[str, Callable[..., Path]] = {"v2.1": write_v21, "v3.0": write_v30}
LOSS = 4  # levels that the video codec may change a flat picture by
TOP_VIDEO = f"videos/{TOP}/chunk-000/file-000.mp4"


@pytest.fixture(scope="module", params=WRITERS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """Datasets by version and by whether the wrist's images lie in the Parquet file."""
    base = tmp_path_factory.mktemp("lerobot")
    return {
        (version, images): write(base / f"{version}-{images}", Content(images=images))
        for version, write in WRITERS.items()
        for images in (False, True)
    }


@pytest.fixture
def copied(roots: dict[tuple[str, bool], Path], tmp_path: Path) -> Path:
    """A v3.0 dataset to break."""
    return Path(shutil.copytree(roots["v3.0", False], tmp_path / "broken"))


class TestReading:
    @pytest.mark.parametrize("images", [False, True])
    def test_every_frame_is_the_one_that_was_written(
        self, roots: dict[tuple[str, bool], Path], version: str, images: bool
    ) -> None:
        content = Content(images=images)
        dataset = pickle.loads(pickle.dumps(LeRobotDataset(roots[version, images])))
        assert dataset.cameras == ("top", "wrist")
        assert dataset.episode_names() == [f"episode_{i:06d}" for i in range(3)]
        for episode, name in enumerate(dataset.episode_names()):
            asked = [0, 1, 2, 7, content.lengths[episode] - 1, 3, 3]
            for index, frame in zip(asked, dataset.frames(name, asked), strict=True):
                assert frame.index == index
                assert frame.timestamp == pytest.approx(index / FPS)
                np.testing.assert_allclose(frame.state, content.state(episode, index), rtol=1e-6)
                np.testing.assert_allclose(frame.action, content.action(episode, index), rtol=1e-6)
                for camera, column in zip(frame.cameras, (TOP, WRIST), strict=True):
                    wanted = content.picture(episode, column, index)
                    still = images and column == WRIST
                    difference = np.abs(camera.rgb.astype(int) - wanted).max()
                    assert difference <= (0 if still else LOSS), (name, index, column)
                    assert camera.media_type == ("image/png" if still else "image/jpeg")
                    if still:
                        assert camera.data == png(wanted)

    def test_a_video_of_many_episodes_is_opened_once(
        self, roots: dict[tuple[str, bool], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a process that reads all of them, backwards and broken off too, to the same pixels."""
        root, opened = roots["v3.0", False], []
        whole = av.open

        def spied(file: str, *arguments: Any, **options: Any) -> Any:
            opened.append(Path(file))
            return whole(file, *arguments, **options)

        alone = {}
        for name in LeRobotDataset(root).episode_names():
            monkeypatch.setattr(video_module, "_videos", video_module._OpenVideos())
            alone[name] = list(LeRobotDataset(root).frames(name, range(5)))
        monkeypatch.setattr(video_module, "_videos", video_module._OpenVideos())
        monkeypatch.setattr(av, "open", spied)
        dataset = LeRobotDataset(root)
        names = list(dataset.episode_names())
        for name in (*names, *reversed(names)):
            dataset.info(name)
            next(iter(dataset.frames(name, range(4))))
            for frame, wanted in zip(dataset.frames(name, range(5)), alone[name], strict=True):
                for camera, same in zip(frame.cameras, wanted.cameras, strict=True):
                    np.testing.assert_array_equal(camera.rgb, same.rgb)
        assert len(opened) == len(set(opened)) == len(dataset.cameras)
        # two readers of one file at once have a container each
        one, other = (iter(dataset.frames(name, range(5))) for name in names[:2])
        for frames, name in ((one, names[0]), (other, names[1]), (one, names[0])):
            index = next(frames)
            wanted = alone[name][index.index]
            np.testing.assert_array_equal(index.cameras[0].rgb, wanted.cameras[0].rgb)
        assert len(opened) == 2 * len(dataset.cameras)

    def test_info(self, roots: dict[tuple[str, bool], Path], version: str) -> None:
        dataset = LeRobotDataset(roots[version, False], outcome_column="next.success")
        infos = [dataset.info(name) for name in dataset.episode_names()]
        assert [i.frames for i in infos] == list(LENGTHS)
        assert [i.outcome for i in infos] == ["success", "failure", "success"]
        assert [i.instruction for i in infos] == [TASKS[0], TASKS[1], TASKS[0]]
        assert {i.rate for i in infos} == {float(FPS)}
        assert infos[1].attributes["episode_index"] == 1
        assert infos[1].attributes["format"] == f"LeRobotDataset {version}"

    def test_depth_maps_are_no_cameras(self, roots: dict[tuple[str, bool], Path]) -> None:
        assert "observation.depth" in Content(images=True).features
        assert LeRobotDataset(roots["v3.0", True]).cameras == ("top", "wrist")

    def test_cameras_are_chosen_and_ordered(self, roots: dict[tuple[str, bool], Path]) -> None:
        dataset = LeRobotDataset(roots["v3.0", False], cameras=["wrist", TOP])
        assert dataset.cameras == ("wrist", "top")
        frame = next(iter(dataset.frames("episode_000001", [4])))
        levels = [c.rgb[:5].mean() for c in frame.cameras]
        assert levels[0] - levels[1] == pytest.approx(40, abs=LOSS)

    def test_columns_are_joined(self, roots: dict[tuple[str, bool], Path]) -> None:
        dataset = LeRobotDataset(
            roots["v2.1", False], state=["action", "observation.state"], action=["frame_index"]
        )
        frame = next(iter(dataset.frames("episode_000000", [5])))
        content = Content()
        np.testing.assert_allclose(
            frame.state, content.action(0, 5) + content.state(0, 5), rtol=1e-6
        )
        assert frame.action.tolist() == [5.0]

    @pytest.mark.parametrize(
        ("filters", "found"),
        [
            ({"episodes": "1"}, [1]),
            ({"episodes": "episode_00000[02]"}, [0, 2]),
            ({"outcome": "success", "limit": 1}, [0]),
            ({"outcome": "failure"}, [1]),
        ],
    )
    def test_filters(
        self, roots: dict[tuple[str, bool], Path], filters: dict[str, Any], found: list[int]
    ) -> None:
        dataset = LeRobotDataset(roots["v3.0", False], outcome_column="next.success", **filters)
        assert dataset.episode_names() == [f"episode_{i:06d}" for i in found]


class TestOutcome:
    def test_from_an_episode_column(self, tmp_path: Path) -> None:
        root = write_v30(tmp_path / "d", extra={"result": ["success", "failure", None]})
        dataset = LeRobotDataset(root, outcome_column="result")
        names = dataset.episode_names()
        assert [dataset.info(n).outcome for n in names] == ["success", "failure", "unknown"]

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("o.csv", "episode_index,outcome\n0,success\n2,failure\n"),
            ("o.csv", "episode,success\nepisode_000000,True\nepisode_000002,0\n"),
            ("o.json", '{"0": true, "2": "failure"}'),
            ("o.json", '[{"episode_index": 0, "success": 1}, {"episode_index": 2, "success": 0}]'),
        ],
    )
    def test_from_a_file(
        self, roots: dict[tuple[str, bool], Path], tmp_path: Path, file: str, text: str
    ) -> None:
        path = tmp_path / file
        path.write_text(text)
        dataset = LeRobotDataset(roots["v3.0", False], outcome_file=path)
        outcomes = [dataset.info(n).outcome for n in dataset.episode_names()]
        assert outcomes == ["success", "unknown", "failure"]

    @pytest.mark.parametrize(
        ("file", "text", "message"),
        [
            ("o.csv", "index,outcome\n0,success\n", "expected CSV with the columns episode_index"),
            ("o.csv", "episode,outcome\n0,maybe\n", "an outcome is one of"),
            ("o.json", '{"0": "success", "episode_000000": "failure"}', "stands twice"),
            ("o.json", "{", "expected CSV"),
        ],
    )
    def test_a_bad_file_is_refused(
        self, tmp_path: Path, file: str, text: str, message: str
    ) -> None:
        (tmp_path / file).write_text(text)
        with pytest.raises(UsageError, match=message):
            read_outcomes(tmp_path / file)

    def test_an_outcome_that_is_none_breaks_the_episode_and_is_not_lost(
        self, roots: dict[tuple[str, bool], Path]
    ) -> None:
        dataset = LeRobotDataset(
            roots["v3.0", False], outcome_column="frame_index", outcome="success"
        )
        assert len(dataset.episode_names()) == 3
        with pytest.raises(EpisodeError, match="column frame_index: an outcome is one of"):
            dataset.info("episode_000000")


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"cameras": ["left"]}, "no camera 'left'; it has top, wrist"),
            ({"cameras": ["top", TOP]}, "a camera is named twice"),
            ({"state": ["observation.pose"]}, "pass --state-column"),
            ({"state": [TOP]}, "state is a column of numbers"),
            ({"limit": 0}, "limit is at least 1"),
            ({"outcome": "good"}, "outcome is one of"),
            ({"tolerance": 0.05}, "below half a frame, 0.05 s"),
            ({"revision": "main"}, "a revision belongs to a hub dataset"),
            ({"outcome_column": "a", "outcome_file": "b"}, "both are given"),
        ],
    )
    def test_bad_options_are_refused(
        self, roots: dict[tuple[str, bool], Path], options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            LeRobotDataset(roots["v3.0", False], **options)

    def test_an_unknown_outcome_column_is_named(self, roots: dict[tuple[str, bool], Path]) -> None:
        dataset = LeRobotDataset(roots["v3.0", False], outcome_column="won", outcome="success")
        with pytest.raises(UsageError, match="no column 'won' for the outcome; there are "):
            dataset.episode_names()

    def test_filters_that_leave_nothing(self, roots: dict[tuple[str, bool], Path]) -> None:
        dataset = LeRobotDataset(roots["v3.0", False], outcome="success")
        with pytest.raises(NotFoundError, match="unknown without --outcome-column"):
            dataset.episode_names()

    def test_no_dataset(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"no meta/info.json in it"):
            LeRobotDataset(tmp_path)
        with pytest.raises(NotFoundError, match="no such folder, and no hub id"):
            LeRobotDataset(tmp_path / "none")


def problem(root: Path, episode: int = 0, **options: Any) -> str:
    """What is said of a broken episode, while another one is fine if `episode` is not 0."""
    dataset = LeRobotDataset(root, **options)
    name = f"episode_{episode:06d}"
    with pytest.raises(EpisodeError) as error:
        info = dataset.info(name)
        list(dataset.frames(name, range(info.frames)))
    assert error.value.episode == name
    assert str(root) not in error.value.reason
    assert "\n" not in error.value.reason
    return error.value.reason


class TestBroken:
    def test_missing_video(self, copied: Path) -> None:
        (copied / TOP_VIDEO).unlink()
        assert problem(copied) == f"{TOP_VIDEO} is missing; copy the file again"

    def test_link_that_was_copied(self, copied: Path) -> None:
        """As the text that it was, or still as a link, to a disk that is elsewhere."""
        (copied / "videos").rename(copied.parent / "elsewhere")
        (copied / "videos").write_text("../big_disk")
        assert "videos is a file that holds '../big_disk', where a folder belongs" in problem(
            copied
        )
        (copied / "videos").unlink()
        (copied / "videos").symlink_to("../big_disk")
        assert "videos leads to '../big_disk', and nothing is there" in problem(copied)

    def test_no_video(self, copied: Path) -> None:
        (copied / TOP_VIDEO).write_bytes(b"nothing")
        assert "(7 bytes) is not a readable video" in problem(copied)

    def test_video_that_ends_too_early(self, copied: Path) -> None:
        content = Content()
        frames = [content.picture(0, TOP, f) for f in range(content.lengths[0])]
        write_video(copied / TOP_VIDEO, frames)
        LeRobotDataset(copied).info("episode_000000")
        assert "ends before the episode: its frame at 1.7000 s is not there" in problem(copied, 1)

    def test_video_with_a_clock_of_its_own(self, copied: Path) -> None:
        edit_rows(copied, lambda t: replaced(t, "timestamp", 8, 0.84))
        reason = problem(copied)
        assert "no frame within 0.0001 s of 0.8400 s" in reason
        assert (
            "at 0.8000 s and 0.9000 s; the clocks of rows and video are 0.04 s apart: pass a"
            in reason
        )
        dataset = LeRobotDataset(copied, tolerance=0.045)
        frame = next(iter(dataset.frames("episode_000000", [8])))
        wanted = Content().picture(0, TOP, 8)
        assert np.abs(frame.cameras[0].rgb.astype(int) - wanted).max() <= LOSS

    def test_damaged_video(self, copied: Path) -> None:
        video = copied / TOP_VIDEO
        data = bytearray(video.read_bytes())
        start = data.index(b"mdat") + 4
        for place in range(start + 900, start + 2200, 7):
            data[place] ^= 0xFF
        video.write_bytes(data)
        reason = problem(copied)
        assert "copy the file again" in reason
        assert "damaged" in reason or "cannot be decoded" in reason

    def test_parquet_cut_short(self, copied: Path) -> None:
        data = (copied / DATA).read_bytes()
        (copied / DATA).write_bytes(data[: len(data) // 2])
        assert f"{DATA} ({len(data) // 2} bytes) is not readable as Parquet" in problem(copied)

    def test_parquet_with_a_column_that_is_no_text(self, copied: Path) -> None:
        data = (copied / DATA).read_bytes()
        (copied / DATA).write_bytes(data.replace(b"timestamp", b"\x80imestamp"))
        assert f"{DATA} ({len(data)} bytes) is not readable as Parquet" in problem(copied)

    def test_missing_rows(self, copied: Path) -> None:
        edit_rows(copied, lambda t: t.slice(1))
        reason = problem(copied)
        assert "has 16 rows of this episode, meta/ says 17, and row 0 is frame 1" in reason
        LeRobotDataset(copied).info("episode_000001")

    @pytest.mark.parametrize(
        ("change", "repair"),
        [
            (lambda v: [f + 1 for f in v], "row 0 is frame 1; subtract 1 from frame_index"),
            (lambda v: [1, 0, *v[2:]], "row 0 is frame 1; sort its rows by frame_index"),
            (lambda v: [0, 0, *v[2:]], "row 1 is frame 0; copy the file again"),
        ],
    )
    def test_frames_in_another_order(
        self, copied: Path, change: Callable[[list[int]], list[int]], repair: str
    ) -> None:
        def edit(table: Any) -> Any:
            place = table.schema.get_field_index("frame_index")
            numbers = change(table["frame_index"].to_pylist())
            return table.set_column(place, "frame_index", pa.array(numbers, pa.int64()))

        edit_rows(copied, edit)
        assert repair in problem(copied)

    @pytest.mark.parametrize("factor", [1e3, 1e9, 1e-3])
    def test_times_in_another_unit(
        self, roots: dict[tuple[str, bool], Path], tmp_path: Path, factor: float
    ) -> None:
        root = Path(shutil.copytree(roots["v3.0", True], tmp_path / "d"))

        def edit(table: Any) -> Any:
            place = table.schema.get_field_index("timestamp")
            times = [t * factor for t in table["timestamp"].to_pylist()]
            return table.set_column(place, "timestamp", pa.array(times, pa.float64()))

        edit_rows(root, edit)
        said = f"step by {factor / FPS:g}, and at fps 10 of meta/info.json frames are 0.1 s apart"
        assert said in problem(root, cameras=["wrist"])

    def test_missing_column(self, copied: Path) -> None:
        edit_rows(copied, lambda t: t.drop_columns(["timestamp"]))
        assert "has no column timestamp; it has observation.state" in problem(copied)

    def test_time_that_goes_back(self, copied: Path) -> None:
        edit_rows(copied, lambda t: replaced(t, "timestamp", 3, 0.1))
        assert "do not go forward" in problem(copied)

    def test_state_that_is_no_number(self, copied: Path) -> None:
        edit_rows(copied, lambda t: replaced(t, "observation.state", 20, [np.nan] * 7))
        reason = problem(copied, 1)
        assert "component 0 of observation.state at frame 3 is nan" in reason

    def test_two_tasks_in_an_episode(self, copied: Path) -> None:
        edit_rows(copied, lambda t: replaced(t, "task_index", 5, 1))
        assert "frame 0 has task 0 ('place the green cube" in problem(copied)

    def test_unknown_and_empty_tasks(self, copied: Path) -> None:
        tasks = copied / "meta" / "tasks.parquet"
        pq.write_table(pa.table({"task_index": [1], "task": [" "]}), tasks)
        assert "task 0 is not in meta/" in problem(copied)
        assert "task 1 is empty" in problem(copied, 1)

    @pytest.mark.parametrize(
        "texts",
        [
            pa.array(TASKS).dictionary_encode(),
            pa.array(TASKS, pa.large_string()),
            pa.array(TASKS, pa.string_view()),
        ],
        ids=["dictionary", "large_string", "string_view"],
    )
    def test_texts_of_tasks_as_others_write_them(self, copied: Path, texts: Any) -> None:
        tasks = copied / "meta" / "tasks.parquet"
        try:
            pq.write_table(pa.table({"task_index": [0, 1], "task": texts}), tasks)
        except pa.ArrowNotImplementedError as refused:  # string_view, by Arrow 17
            pytest.skip(str(refused))
        assert LeRobotDataset(copied).info("episode_000001").instruction == TASKS[1]

    @pytest.mark.parametrize("file", [DATA, "meta/episodes/chunk-000/file-000.parquet"])
    def test_a_clone_without_its_large_files(self, copied: Path, file: str) -> None:
        (copied / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        with pytest.raises(AttnstoreError, match="git lfs pull"):
            LeRobotDataset(copied).info(LeRobotDataset(copied).episode_names()[0])

    def test_a_damaged_image_in_parquet(
        self, roots: dict[tuple[str, bool], Path], tmp_path: Path
    ) -> None:
        root = Path(shutil.copytree(roots["v3.0", True], tmp_path / "d"))
        short = {"bytes": png(Content().picture(0, WRIST, 2))[:60], "path": None}
        edit_rows(root, lambda t: replaced(t, WRIST, 2, short))
        assert f"{WRIST} of frame 2 in {DATA} is not a complete image" in problem(root)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"codebase_version": "v1.6"}, "is of version v1.6; v2.0, v2.1, v3.0 are read"),
            ({"fps": 0}, "fps must be positive"),
            ({"features": None}, "is not LeRobot's"),
        ],
    )
    def test_bad_info(self, copied: Path, change: dict[str, Any], message: str) -> None:
        file = copied / "meta" / "info.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(AttnstoreError, match=message):
            LeRobotDataset(copied)

    def test_bad_tables(self, copied: Path) -> None:
        shutil.rmtree(copied / "meta" / "episodes")
        with pytest.raises(AttnstoreError, match="meta/episodes is not LeRobot's"):
            LeRobotDataset(copied).episode_names()


def edit_meta(
    root: Path, change: Callable[[Any], Any], file: str = "episodes/chunk-000/file-000"
) -> None:
    path = root / "meta" / f"{file}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


class TestOneEpisodesDescription:
    """A v3.0 dataset of three episodes in which one is described badly: the others are read."""

    def others(self, root: Path, bad: int) -> None:
        dataset = LeRobotDataset(root)
        assert list(dataset.episode_names()) == [f"episode_{i:06d}" for i in range(3)]
        for index in {0, 1, 2} - {bad}:
            assert dataset.info(f"episode_{index:06d}").frames == Content().lengths[index]

    def test_two_rows(self, copied: Path) -> None:
        edit_meta(copied, lambda t: pa.concat_tables([t, t.slice(1, 1)]))
        assert "meta/episodes describes it 2 times (row 1 of" in problem(copied, 1)
        self.others(copied, 1)

    def test_no_row(self, copied: Path) -> None:
        edit_meta(copied, lambda t: t.slice(0, 2))
        assert "info.json counts 3 episodes, and meta/episodes does not" in problem(copied, 2)
        self.others(copied, 2)

    def test_a_value_of_a_wrong_type(self, copied: Path) -> None:
        edit_meta(copied, lambda t: replaced(t, "length", 1, None))
        assert "length is a whole number from 0; got None" in problem(copied, 1)
        self.others(copied, 1)

    def test_a_hidden_file_of_macos(self, copied: Path) -> None:
        names = LeRobotDataset(copied).episode_names()
        (copied / "meta/episodes/chunk-000/._file-000.parquet").write_bytes(b"Mac OS X")
        assert LeRobotDataset(copied).episode_names() == names
        self.others(copied, 9)

    def test_a_column_more_in_tasks(self, copied: Path) -> None:
        def more(table: Any) -> Any:
            texts = table["__index_level_0__"]
            return table.append_column("task", texts).set_column(1, "__index_level_0__", [[0, 1]])

        edit_meta(copied, more, "tasks")
        self.others(copied, 9)

    def test_a_task_twice(self, copied: Path) -> None:
        table = pq.read_table(copied / "meta/tasks.parquet")
        edit_meta(copied, lambda t: replaced(t, "task_index", 1, 0), "tasks")
        first, second = table["__index_level_0__"].to_pylist()
        assert f"task 0 stands twice in meta/: {first!r} or {second!r}" in problem(copied, 0)

    @pytest.mark.parametrize("column", ["episode_index", "frame_index", "timestamp", "task_index"])
    def test_a_scalar_in_a_list(self, copied: Path, column: str) -> None:
        def boxed(table: Any) -> Any:
            values = pa.array([[v] for v in table[column].to_pylist()])
            return table.set_column(table.schema.get_field_index(column), column, values)

        edit_rows(copied, boxed)
        self.others(copied, 9)
        assert [f.index for f in LeRobotDataset(copied).frames("episode_000001", [8, 0])] == [8, 0]

    def test_a_video_whose_clock_is_off(self, copied: Path) -> None:
        start = f"videos/{TOP}/from_timestamp"
        edit_meta(copied, lambda t: replaced(t, start, 1, t[start][1].as_py() + 0.003))
        assert "0.003 s apart: pass a larger --tolerance, such as 0.0032" in problem(copied, 1)
        assert LeRobotDataset(copied, tolerance=0.0032).info("episode_000001").frames == 9

    def test_a_hardware_clock(self, copied: Path) -> None:
        def later(table: Any) -> Any:
            values = pa.array([v + 1000.0 for v in table["timestamp"].to_pylist()], pa.float64())
            return table.set_column(table.schema.get_field_index("timestamp"), "timestamp", values)

        edit_rows(copied, later)
        assert "the rows' times start at 1000.0000 s and LeRobot counts from" in problem(copied, 0)


class TestImageCells:
    def cells(self, root: Path, tmp_path: Path, change: Callable[[list[Any]], Any]) -> Path:
        copy = tmp_path / "images"
        shutil.copytree(root, copy)

        def edit(table: Any) -> Any:
            place = table.schema.get_field_index(WRIST)
            return table.set_column(place, WRIST, change(table[WRIST].to_pylist()))

        edit_rows(copy, edit)
        return copy

    def test_plain_bytes(self, roots: Any, tmp_path: Path) -> None:
        root = self.cells(
            roots["v3.0", True], tmp_path, lambda c: pa.array([x["bytes"] for x in c])
        )
        (frame,) = LeRobotDataset(root, cameras=["wrist"]).frames("episode_000001", [4])
        np.testing.assert_array_equal(frame.cameras[0].rgb, Content().picture(1, WRIST, 4))

    def test_no_image(self, roots: Any, tmp_path: Path) -> None:
        root = self.cells(roots["v3.0", True], tmp_path, lambda c: pa.array([*c[:2], None, *c[3:]]))
        dataset = LeRobotDataset(root, cameras=["wrist"])
        with pytest.raises(EpisodeError, match="frame 2 has no image"):
            list(dataset.frames("episode_000000", [2]))
        assert len(list(dataset.frames("episode_000001", [2]))) == 1

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda _: None, f"frame 11 has no image: {WRIST} of frame 11"),
            (lambda cell: {"bytes": None, "path": None}, "frame 11 has no image"),
            (
                lambda cell: {"bytes": cell["bytes"][:-9], "path": None},
                "frame 11 in .* is not a comp",
            ),
            (lambda cell: {"bytes": b"", "path": None}, "frame 11 in .* is not a complete image"),
            (
                lambda cell: {"bytes": png(np.zeros((8, 9, 3), np.uint8)), "path": None},
                "is 9x8 at frame 11, 64x48 before",
            ),
        ],
    )
    def test_a_hole_where_no_keyframe_is(
        self, roots: Any, tmp_path: Path, damage: Callable[[Any], Any], said: str
    ) -> None:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        root = self.cells(
            roots["v3.0", True],
            tmp_path,
            lambda c: pa.array([*c[:11], damage(c[11]), *c[12:]], kind),
        )
        dataset = LeRobotDataset(root)
        with pytest.raises(EpisodeError, match=said):
            dataset.info("episode_000000")
        assert dataset.info("episode_000001").frames == LENGTHS[1]

    def test_a_turned_picture_has_its_turned_size(self, roots: Any, tmp_path: Path) -> None:
        def turned(cells: list[Any]) -> Any:
            rgb = Content().picture(0, WRIST, 11).transpose(1, 0, 2)
            stored = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(rgb).save(stored, "PNG", exif=exif)
            return pa.array(
                [c["bytes"] if i != 11 else stored.getvalue() for i, c in enumerate(cells)]
            )

        root = self.cells(roots["v3.0", True], tmp_path, turned)
        dataset = LeRobotDataset(root, cameras=["wrist"])
        assert dataset.info("episode_000000").frames == LENGTHS[0]
        (frame,) = dataset.frames("episode_000000", [11])
        assert frame.cameras[0].rgb.shape == (48, 64, 3)


@pytest.fixture
def hub(
    roots: dict[tuple[str, bool], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """A hub on this machine that serves one dataset; yields the files that were asked for."""
    root, commit, asked = roots["v3.0", False], "a" * 40, []

    class Hub(SimpleHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            place = unquote(self.path.partition("?")[0])
            prefix, resolve = "/api/datasets/lab/toy", "/datasets/lab/toy/resolve/"
            if place.startswith(prefix):
                files = sorted(p for p in root.rglob("*") if p.is_file())
                names = [{"rfilename": p.relative_to(root).as_posix()} for p in files]
                tree = [
                    {
                        "type": "file",
                        "path": n["rfilename"],
                        "size": p.stat().st_size,
                        "oid": "0" * 40,
                    }
                    for n, p in zip(names, files, strict=True)
                ]
                told = {"id": "lab/toy", "sha": commit, "siblings": names}
                self.reply(json.dumps(tree if "/tree/" in place else told).encode(), body=body)
                return
            path = root / place.removeprefix(resolve).partition("/")[2]
            if not place.startswith(resolve) or not path.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                return
            if body:
                asked.append(path.relative_to(root).as_posix())
            self.reply(path.read_bytes(), body=body, etag=f'"{len(path.read_bytes())}"')

        def reply(self, data: bytes, *, body: bool, etag: str = '"x"') -> None:
            self.send_response(200)
            for key, value in {
                "Content-Length": str(len(data)), "X-Repo-Commit": commit, "ETag": etag,
                "Content-Type": "application/json",
            }.items():  # fmt: skip
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = pytest.importorskip("huggingface_hub.constants")

    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield asked
    server.shutdown()
    server.server_close()


class TestHub:
    def test_of_a_hub_dataset_only_what_is_needed_is_fetched(self, hub: list[str]) -> None:
        dataset = LeRobotDataset("lab/toy", cameras=["top"])
        assert dataset.name == "lab/toy"
        assert hub
        assert all(path.startswith("meta/") for path in hub)
        hub.clear()
        assert dataset.info("episode_000002").frames == LENGTHS[2]
        frame = next(iter(dataset.frames("episode_000002", [3])))
        wanted = Content().picture(2, TOP, 3)
        assert np.abs(frame.cameras[0].rgb.astype(int) - wanted).max() <= LOSS
        assert sorted(hub) == [DATA, TOP_VIDEO]

    def test_no_such_dataset(self, hub: list[str]) -> None:
        with pytest.raises(AttnstoreError, match="neither a folder nor a hub dataset"):
            LeRobotDataset("lab/none")

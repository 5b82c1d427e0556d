"""DroidDataset on real files: images by cv2, trajectories by h5py, videos by PyAV."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import h5py
import numpy as np
import pytest
from droid_sample import sample_path
from numpy.typing import NDArray

from attnstore.ingest.datasets import Dataset, DroidDataset, EpisodeInfo, Frame
from attnstore.ingest.datasets.video import Video
from attnstore.store.errors import EpisodeError, NotFoundError, UsageError
from attnstore.store.image import decode

NAME = "success/2025-12-10/2025-12-10_09-00-39"
CAMERAS = ("hand_camera", "varied_camera_1", "varied_camera_2")
LENGTH = 12
HEIGHT, WIDTH = 48, 64


def picture(index: int, camera: str = "hand_camera") -> NDArray[np.uint8]:
    """An RGB image that differs from every other index's and camera's."""
    rng = np.random.default_rng([index, CAMERAS.index(camera)])
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (WIDTH, HEIGHT)), np.uint8)


def write_stills(episode: Path, camera: str, length: int = LENGTH, suffix: str = ".jpg") -> None:
    directory = episode / "recordings" / "frames" / camera
    directory.mkdir(parents=True)
    for index in range(length):
        bgr = cv2.cvtColor(picture(index, camera), cv2.COLOR_RGB2BGR)
        assert cv2.imwrite(str(directory / f"{index:05d}{suffix}"), bgr)


def write_video(episode: Path, camera: str, length: int = LENGTH, faststart: bool = False) -> Path:
    path = episode / "recordings" / f"{camera}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream("libx264", rate=15, options={"bf": "2", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(length):
            image = av.VideoFrame.from_ndarray(picture(index, camera), "rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


def trajectory(length: int = LENGTH) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(7)
    return {
        "observation/robot_state/joint_positions": rng.normal(size=(length, 7)),
        "observation/robot_state/gripper_position": rng.random(length),
        "action/joint_velocity": rng.normal(size=(length, 7)),
        "action/gripper_position": rng.random(length),
        "observation/timestamp/control/step_start": 1_765_357_656_000 + 50 * np.arange(length),
    }


def write_trajectory(episode: Path, data: dict[str, NDArray[Any]]) -> None:
    with h5py.File(episode / "trajectory.h5", "w") as file:
        for key, values in data.items():
            file[key] = values
        file.attrs["success"] = np.bool_(True)
        file.attrs["uuid"] = b"d7f4"
        file.attrs["gains"] = np.array([1.5, np.nan])


def write_episode(root: Path, name: str = NAME, stills: bool = True) -> Path:
    episode = root / name
    for camera in CAMERAS:
        if stills:
            write_stills(episode, camera)
        else:
            write_video(episode, camera)
    write_trajectory(episode, trajectory())
    (episode / "instruction.txt").write_text("place the green cube\n into the pink bowl\n")
    (episode / "calibration.json").write_text('{"26368109": {}, "14436910": {}}')
    return episode


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    """One good episode with image files; its root is `root_of`."""
    return write_episode(tmp_path / "toy")


@pytest.fixture
def filmed(tmp_path: Path) -> Path:
    """One good episode with videos only."""
    return write_episode(tmp_path / "toy", stills=False)


def root_of(episode: Path) -> Path:
    return episode.parents[2]


def info_of(episode: Path, **options: Any) -> EpisodeInfo:
    return DroidDataset(root_of(episode), **options).info(NAME)


def read(episode: Path, indices: list[int], **options: Any) -> list[Frame]:
    return list(DroidDataset(root_of(episode), **options).frames(NAME, indices))


def reason(episode: Path, **options: Any) -> str:
    """What `info` says of a broken episode."""
    with pytest.raises(EpisodeError) as caught:
        info_of(episode, **options)
    assert caught.value.episode == NAME
    assert str(episode) not in str(caught.value), "a message must not depend on the machine"
    return caught.value.reason


def whole_video(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [
            np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
            for frame in container.decode(video=0)
        ]


class TestReading:
    def test_a_reader_is_a_dataset_and_can_be_sent_to_a_worker(self, episode: Path) -> None:
        dataset: Dataset = DroidDataset(root_of(episode), side="right")
        assert (dataset.kind, dataset.name) == ("droid", "toy")
        assert dataset.cameras == ("hand_camera", "varied_camera_2")
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.info(NAME) == dataset.info(NAME)

    def test_info(self, episode: Path) -> None:
        (episode / "success_pi05_fm_place_the_pink_thing_2025-12-10_09-00-39.mp4").touch()
        info = info_of(episode)
        assert info.rate == pytest.approx(20.0)
        assert replace(info, rate=None) == EpisodeInfo(
            name=NAME,
            outcome="success",
            instruction="place the green cube into the pink bowl",
            frames=LENGTH,
            task="place the pink thing",
            date="2025-12-10",
            attributes={
                "success": True,
                "uuid": "d7f4",
                "gains": [1.5, None],
                "images": {"hand_camera": "frames", "varied_camera_1": "frames"},
                "calibrated_serials": ["14436910", "26368109"],
                "recorded_policy": "pi05_fm",
            },
        )
        json.dumps(info.attributes, allow_nan=False)

    @pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png"])
    def test_images_keep_the_files_own_bytes(self, tmp_path: Path, suffix: str) -> None:
        episode = write_episode(tmp_path / "toy")
        for camera in CAMERAS:
            shutil.rmtree(episode / "recordings" / "frames" / camera)
            write_stills(episode, camera, suffix=suffix)
        frames = read(episode, [7, 0, 7], side="right")
        assert [frame.index for frame in frames] == [7, 0, 7]
        for frame in frames:
            assert [image.camera for image in frame.cameras] == ["hand_camera", "varied_camera_2"]
            for image in frame.cameras:
                directory = episode / "recordings" / "frames" / image.camera
                path = directory / f"{frame.index:05d}{suffix}"
                assert image.data == path.read_bytes()
                assert image.media_type == ("image/png" if suffix == ".png" else "image/jpeg")
                by_opencv = cv2.imread(str(path))
                assert by_opencv is not None
                # two JPEG decoders may round differently
                difference = image.rgb.astype(int) - cv2.cvtColor(by_opencv, cv2.COLOR_BGR2RGB)
                assert np.abs(difference).max() <= (0 if suffix == ".png" else 2)

    def test_state_action_and_time_are_those_of_the_frame(self, episode: Path) -> None:
        data = trajectory()
        for frame in read(episode, [0, 3, 11]):
            i = frame.index
            joints = data["observation/robot_state/joint_positions"][i]
            gripper = data["observation/robot_state/gripper_position"][i]
            assert frame.state.dtype == frame.action.dtype == np.float32
            np.testing.assert_array_equal(frame.state, np.array([*joints, gripper], np.float32))
            command = [*data["action/joint_velocity"][i], data["action/gripper_position"][i]]
            np.testing.assert_array_equal(frame.action, np.array(command, np.float32))
            assert frame.timestamp == pytest.approx(0.05 * i)

    def test_without_recorded_actions_or_clock(self, filmed: Path) -> None:
        write_trajectory(filmed, {k: v for k, v in trajectory().items() if "robot_state" in k})
        (frame,) = read(filmed, [4])
        assert frame.action.shape == (0,)
        assert frame.timestamp is None
        assert info_of(filmed).rate == 15.0  # the video's

    def test_a_clock_that_goes_back_is_not_used(self, episode: Path) -> None:
        data = trajectory()
        data["observation/timestamp/control/step_start"][5] -= 1000
        write_trajectory(episode, data)
        assert info_of(episode).rate is None
        assert read(episode, [5])[0].timestamp is None

    def test_gripper_as_a_column(self, episode: Path) -> None:
        expected = read(episode, [2])[0].state
        data = trajectory()
        key = "observation/robot_state/gripper_position"
        write_trajectory(episode, {**data, key: data[key][:, None]})
        np.testing.assert_array_equal(read(episode, [2])[0].state, expected)

    @pytest.mark.parametrize("indices", [[0, 5, 11], list(range(LENGTH)), [9, 2, 2, 3]])
    def test_video_frames_are_exact_by_index(self, filmed: Path, indices: list[int]) -> None:
        frames = read(filmed, indices)
        assert [frame.index for frame in frames] == indices
        for position, camera in enumerate(("hand_camera", "varied_camera_1")):
            decoded = whole_video(filmed / "recordings" / f"{camera}.mp4")
            assert len(decoded) == LENGTH
            for frame in frames:
                image = frame.cameras[position]
                np.testing.assert_array_equal(image.rgb, decoded[frame.index])
                assert image.media_type == "image/jpeg"
                error = np.abs(decode(image.data).astype(int) - image.rgb)
                assert error.mean() < 2.0

    def test_image_files_are_preferred_to_a_video(self, episode: Path) -> None:
        (episode / "recordings" / "hand_camera.mp4").write_bytes(b"not a video")
        assert info_of(episode).attributes["images"]["hand_camera"] == "frames"

    def test_other_files_beside_the_images_are_ignored(self, episode: Path) -> None:
        for name in ("Thumbs.db", "._00000.jpg", "00012.txt", "cover.jpg"):
            (episode / "recordings/frames/hand_camera" / name).touch()
        assert info_of(episode).frames == LENGTH

    def test_an_empty_frames_directory_falls_back_to_the_video(self, filmed: Path) -> None:
        (filmed / "recordings" / "frames" / "hand_camera").mkdir(parents=True)
        assert info_of(filmed).attributes["images"]["hand_camera"] == "mp4"

    @pytest.mark.parametrize(
        ("stem", "instruction", "policy", "task"),
        [
            ("success_pi05_fm_place_the_cube", "other words", "pi05_fm", "place the cube"),
            # "open" in the policy's name is no verb of the task: the instruction decides
            ("success_open_vla_nudge_the_cube", "Nudge the cube.", "open_vla", "nudge the cube"),
            ("success_pi05_fm", "other words", "pi05_fm", None),
            ("preview_pi05_fm_place_the_cube", "other words", None, None),
        ],
    )
    def test_task_from_the_combined_videos_name(
        self, episode: Path, stem: str, instruction: str, policy: str | None, task: str | None
    ) -> None:
        (episode / f"{stem}_{episode.name}.mp4").touch()
        (episode / "instruction.txt").write_text(instruction)
        info = info_of(episode)
        assert (info.attributes["recorded_policy"], info.task) == (policy, task)


class TestFinding:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for name in (
            NAME,
            "success/2025-12-11/2025-12-11_10-04-31",
            "failure/2025-12-11/2025-12-11_09-44-16",
            "others/2025-12-12/2025-12-12_08-00-00",
        ):
            (tmp_path / "toy" / name).mkdir(parents=True)
        (tmp_path / "toy" / ".cache" / "2025-12-10_09-00-39").mkdir(parents=True)
        return tmp_path / "toy"

    def test_names_are_sorted_relative_paths(self, root: Path) -> None:
        assert DroidDataset(root).episode_names() == [
            "failure/2025-12-11/2025-12-11_09-44-16",
            "others/2025-12-12/2025-12-12_08-00-00",
            NAME,
            "success/2025-12-11/2025-12-11_10-04-31",
        ]

    def test_a_link_to_a_recording_of_the_tree_counts_for_nothing(self, root: Path) -> None:
        names = DroidDataset(root).episode_names()
        (root / "latest").symlink_to(root / "success")
        (root / "success/again").symlink_to(root / NAME)
        (root / "success/round").symlink_to(root)
        assert DroidDataset(root).episode_names() == names

    def test_a_tree_of_links_is_read(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "linked/success").mkdir(parents=True)
        (tmp_path / "linked/success/2025-12-10").symlink_to((root / NAME).parent)
        assert DroidDataset(tmp_path / "linked").episode_names() == [NAME]

    def test_names_are_sorted_whatever_the_file_systems_order(self, tmp_path: Path) -> None:
        days = [f"{day:02d}" for day in (7, 21, 3, 14, 28, 1, 10, 19, 25, 5)]
        for day in days:
            (tmp_path / "toy/success" / f"2025-12-{day}" / f"2025-12-{day}_09-00-00").mkdir(
                parents=True
            )
        names = DroidDataset(tmp_path / "toy").episode_names()
        assert [name[-11:-9] for name in names] == sorted(days)

    @pytest.mark.parametrize("depth", [1, 2, 3])
    def test_a_part_of_a_dataset_keeps_names_and_identity(self, root: Path, depth: int) -> None:
        part = DroidDataset(root.joinpath(*NAME.split("/")[:depth]))
        assert part.name == "toy"
        names = part.episode_names()
        assert names[0] == NAME
        assert len(names) == (2 if depth == 1 else 1)

    def test_one_episode_without_an_outcome(self, tmp_path: Path) -> None:
        episode = tmp_path / "alone"
        shutil.move(write_episode(tmp_path / "toy"), episode)
        dataset = DroidDataset(episode)
        assert dataset.episode_names() == ["alone"]
        info = dataset.info("alone")
        assert (info.outcome, info.date, info.frames) == ("unknown", None, LENGTH)

    @pytest.mark.parametrize(
        ("options", "count"),
        [
            ({"outcome": "success"}, 2),
            ({"outcome": "unknown"}, 1),
            ({"episodes": "2025-12-11_*"}, 2),
            ({"episodes": "failure/*"}, 1),
            ({"episodes": "2025-12-11_*", "outcome": "success"}, 1),
            ({"limit": 3}, 3),
        ],
    )
    def test_filters(self, root: Path, options: dict[str, Any], count: int) -> None:
        assert len(DroidDataset(root, **options).episode_names()) == count

    def test_filters_that_leave_nothing(self, root: Path) -> None:
        dataset = DroidDataset(root, outcome="failure", episodes="2024*")
        with pytest.raises(
            NotFoundError, match=r"none of 4 episodes matches outcome 'failure', episode '2024\*'"
        ):
            dataset.episode_names()

    def test_a_root_without_episodes_says_what_was_expected(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"no episode found; expected \{outcome\}/\{date\}"):
            DroidDataset(tmp_path).episode_names()
        with pytest.raises(NotFoundError, match="no such directory; expected"):
            DroidDataset(tmp_path / "absent").episode_names()

    @pytest.mark.parametrize("name", ["success/2025-12-10/absent", "../toy/" + NAME, "success"])
    def test_unknown_episode(self, root: Path, name: str) -> None:
        with pytest.raises(NotFoundError, match=f"no episode {re.escape(repr(name))}"):
            DroidDataset(root).info(name)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"side": "top"}, "side is one of left, right, ext1, ext2; got 'top'"),
            ({"outcome": "won"}, "outcome is one of success, failure, unknown; got 'won'"),
            ({"frames": "longest"}, "frames is one of strict, shortest; got 'longest'"),
            ({"limit": 0}, "limit is at least 1; got 0"),
        ],
    )
    def test_wrong_options(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=re.escape(message)):
            DroidDataset(tmp_path, **options)


class TestBroken:
    def test_missing_hand_camera(self, episode: Path) -> None:
        shutil.rmtree(episode / "recordings" / "frames" / "hand_camera")
        assert reason(episode) == (
            "no images of hand_camera: neither recordings/frames/hand_camera/00000.jpg nor "
            "recordings/hand_camera.mp4; the episode has varied_camera_1, varied_camera_2; "
            "restore the recording"
        )

    def test_missing_side_camera_names_the_other_side(self, episode: Path) -> None:
        shutil.rmtree(episode / "recordings" / "frames" / "varied_camera_1")
        assert reason(episode).endswith(
            "the episode has hand_camera, varied_camera_2; "
            "pass --side right, or restore the recording"
        )
        assert info_of(episode, side="right").frames == LENGTH

    def test_no_recordings(self, episode: Path) -> None:
        shutil.rmtree(episode / "recordings")
        assert "the episode has no camera; restore" in reason(episode)

    def test_gap_in_the_numbering(self, episode: Path) -> None:
        (episode / "recordings/frames/hand_camera/00003.jpg").unlink()
        assert reason(episode, frames="shortest") == (
            "frames are numbered from 0 without gaps: recordings/frames/hand_camera has 00004.jpg "
            "but not 00003.jpg; restore 00003.jpg"
        )
        write_video(episode, "hand_camera")
        assert reason(episode).endswith(
            "or remove recordings/frames/hand_camera to read recordings/hand_camera.mp4"
        )

    @pytest.mark.parametrize("steps", [LENGTH - 2, LENGTH + 7])
    def test_trajectory_of_another_length(self, episode: Path, steps: int) -> None:
        write_trajectory(episode, trajectory(steps))
        first = min(steps, LENGTH)
        assert reason(episode) == (
            f"hand_camera has 12 frames, trajectory.h5 has {steps} steps; "
            f"pass --frames shortest to use the first {first}"
        )
        assert info_of(episode, frames="shortest").frames == first
        with pytest.raises(UsageError, match=rf"frames 0 to {first - 1}; frame {first} was asked"):
            read(episode, [first], frames="shortest")

    def test_cameras_of_different_lengths(self, episode: Path) -> None:
        (episode / "recordings/frames/varied_camera_1/00011.jpg").unlink()
        assert reason(episode) == (
            "hand_camera has 12 frames, varied_camera_1 has 11 frames, trajectory.h5 has 12 steps; "
            "pass --frames shortest to use the first 11"
        )
        assert info_of(episode, frames="shortest").frames == 11
        assert info_of(episode, side="right").frames == 12

    def test_no_step_at_all(self, episode: Path) -> None:
        write_trajectory(episode, trajectory(0))
        assert reason(episode, frames="shortest").startswith("an episode has frames: hand_camera")

    def test_missing_trajectory(self, episode: Path) -> None:
        (episode / "trajectory.h5").rename(episode / "trajectory.npz")
        assert "trajectory.h5 is missing" in reason(episode)
        assert "trajectory.npz is not used" in reason(episode)

    @pytest.mark.parametrize("content", ["text", "half"])
    def test_unreadable_hdf5(self, episode: Path, content: str) -> None:
        path = episode / "trajectory.h5"
        data = path.read_bytes()
        path.write_bytes(b"not HDF5" if content == "text" else data[: len(data) // 2])
        assert re.match(
            r"trajectory\.h5 \(\d+ bytes\) is not readable as HDF5: .*; copy the file again$",
            reason(episode),
        )

    @pytest.mark.parametrize("key", list(trajectory())[:2])
    def test_missing_state(self, episode: Path, key: str) -> None:
        write_trajectory(episode, {k: v for k, v in trajectory().items() if k != key})
        assert reason(episode).startswith(f"trajectory.h5 has no dataset {key}; export")

    def test_rows_that_do_not_agree(self, episode: Path) -> None:
        key = "action/joint_velocity"
        write_trajectory(episode, {**trajectory(), key: trajectory()[key][:9]})
        assert f"joint_positions has 12, {key} has 9" in reason(episode)

    def test_state_that_is_not_numbers_of_the_right_shape(self, episode: Path) -> None:
        key = "observation/robot_state/joint_positions"
        write_trajectory(episode, {**trajectory(), key: np.zeros(LENGTH)})
        assert "of shape (step, joint); it has shape (12,)" in reason(episode)

    @pytest.mark.parametrize("value", [np.nan, -np.inf])
    def test_non_finite_state(self, episode: Path, value: float) -> None:
        data = trajectory()
        data["observation/robot_state/joint_positions"][10, 3] = value
        write_trajectory(episode, data)
        assert reason(episode) == (
            "states are finite numbers: observation/robot_state/joint_positions[10, 3] in "
            f"trajectory.h5 is {value}; repair the file or leave the episode out"
        )
        # beyond the frames in use it does not matter
        for camera in CAMERAS:
            for index in (10, 11):
                (episode / f"recordings/frames/{camera}/{index:05d}.jpg").unlink()
        assert info_of(episode, frames="shortest").frames == 10

    def test_non_finite_gripper(self, episode: Path) -> None:
        data = trajectory()
        data["observation/robot_state/gripper_position"][2] = np.nan
        write_trajectory(episode, data)
        assert "gripper_position[2] in trajectory.h5 is nan" in reason(episode)

    def test_instruction(self, episode: Path) -> None:
        path = episode / "instruction.txt"
        path.write_text(" \n")
        assert reason(episode).startswith("instruction.txt is empty; write the sentence")
        path.write_bytes(b"place \xff")
        assert reason(episode).startswith("instruction.txt is not UTF-8 at byte 6; write")
        path.unlink()
        assert reason(episode).startswith("instruction.txt is missing; write the sentence")

    def test_frames_of_different_sizes(self, episode: Path) -> None:
        path = episode / "recordings/frames/varied_camera_1/00005.jpg"
        assert cv2.imwrite(str(path), np.zeros((30, 40, 3), np.uint8))
        message = (
            "all frames of a camera have one size: recordings/frames/varied_camera_1/00005.jpg is "
            "40x30, the frames before it are 64x48; re-export the camera's frames at one size"
        )
        assert reason(episode) == message
        with pytest.raises(EpisodeError, match=message):
            read(episode, [4, 5])

    def test_a_file_that_is_no_image(self, episode: Path) -> None:
        (episode / "recordings/frames/hand_camera/00002.jpg").write_bytes(b"")
        assert reason(episode) == (
            "recordings/frames/hand_camera/00002.jpg (0 bytes) is not a complete image: "
            "cannot identify image file; copy the file again"
        )

    @pytest.mark.parametrize("damage", ["cut", "zeros", "progressive"])
    @pytest.mark.filterwarnings("error")
    def test_truncated_jpeg(self, episode: Path, damage: str) -> None:
        path = episode / "recordings/frames/hand_camera/00008.jpg"
        if damage == "progressive":
            image = picture(8)
            assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
        data = path.read_bytes()
        cut = data[: len(data) * 6 // 10]
        # a file system may keep the length and lose the end
        path.write_bytes(cut.ljust(len(data), b"\0") if damage == "zeros" else cut)
        assert cv2.imread(str(path)) is not None, "OpenCV no longer hides this: simplify decode()"
        assert len(read(episode, [7, 9])) == 2
        with pytest.raises(
            EpisodeError,
            match=r"recordings/frames/hand_camera/00008\.jpg \(\d+ bytes\) is not a complete "
            r"image: truncated: no JPEG end-of-image marker; copy the file again",
        ):
            read(episode, [7, 8, 9])

    def test_truncated_jpeg_with_a_thumbnail(self, episode: Path) -> None:
        path = episode / "recordings/frames/hand_camera/00008.jpg"
        data = path.read_bytes()
        # the thumbnail's own end marker must not count
        thumbnail = (b"Exif\0\0" + data)[:60_000]
        segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
        whole = data[:2] + segment + data[2:]
        path.write_bytes(whole)
        assert len(read(episode, [8])) == 1
        path.write_bytes(whole[: len(whole) - len(data) * 4 // 10].ljust(len(whole), b"\0"))
        with pytest.raises(EpisodeError, match=r"00008\.jpg .* is not a complete image"):
            read(episode, [8])

    def test_frames_numbered_from_one(self, episode: Path) -> None:
        folder = episode / "recordings/frames/hand_camera"
        for index in reversed(range(LENGTH)):
            (folder / f"{index:05d}.jpg").rename(folder / f"{index + 1:05d}.jpg")
        told = reason(episode)
        assert "numbering starts at 1: recordings/frames/hand_camera has 00001.jpg to 000" in told
        assert "subtract 1 from every name" in told

    def test_truncated_png(self, tmp_path: Path) -> None:
        episode = write_episode(tmp_path / "toy", stills=False)
        write_stills(episode, "hand_camera", suffix=".png")
        path = episode / "recordings/frames/hand_camera/00001.png"
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(EpisodeError, match=r"00001\.png \(\d+ bytes\) is not a complete image"):
            read(episode, [1])

    def test_unreadable_video(self, filmed: Path) -> None:
        path = filmed / "recordings" / "hand_camera.mp4"
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])  # the index is at the end
        assert re.match(
            r"recordings/hand_camera\.mp4 \(\d+ bytes\) is not a readable video: .+; copy the file",
            reason(filmed),
        )
        path.write_bytes(data[:-600])
        assert "has no readable video stream; copy the file again" in reason(filmed)

    def test_truncated_video_with_its_index_in_front(self, filmed: Path) -> None:
        path = write_video(filmed, "hand_camera", faststart=True)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 7 // 10])
        assert re.search(
            r"is truncated: its header announces 12 frames, \d+ are there; copy", reason(filmed)
        )

    def test_video_of_another_length(self, filmed: Path) -> None:
        write_video(filmed, "varied_camera_1", length=LENGTH - 1)
        assert "varied_camera_1 has 11 frames" in reason(filmed)

    @pytest.mark.parametrize("indices", [[0, 11], [11], [2, 9], [5]])
    def test_damaged_video(self, filmed: Path, indices: list[int]) -> None:
        path = filmed / "recordings" / "hand_camera.mp4"
        with av.open(str(path)) as container:
            packets = [p for p in container.demux(video=0) if p.size]
        shown = sorted((p.pts or 0, p.pos or 0, p.size) for p in packets)
        _, offset, size = shown[7]  # neither first nor asked
        data = bytearray(path.read_bytes())
        data[offset + size // 2 : offset + size] = bytes(size - size // 2)
        path.write_bytes(data)
        assert len(whole_video(path)) == LENGTH, "the decoder conceals the damage"
        assert info_of(filmed).frames == LENGTH
        with pytest.raises(
            EpisodeError, match=r"frame \d+ of recordings/hand_camera\.mp4 is damaged"
        ):
            read(filmed, indices)

    def test_video_that_decodes_to_fewer_frames_than_packets(self, filmed: Path) -> None:
        path = filmed / "recordings" / "hand_camera.mp4"
        video = Video(
            NAME,
            "hand_camera",
            path,
            LENGTH + 1,
            None,
            (WIDTH, HEIGHT),
            "recordings/hand_camera.mp4",
        )
        with pytest.raises(EpisodeError, match="has 13 frames, but decoding ended after 12; copy"):
            list(video.read([3, LENGTH]))

    def test_video_that_cannot_be_decoded(self, filmed: Path) -> None:
        path = filmed / "recordings" / "hand_camera.mp4"
        data = bytearray(path.read_bytes())
        start, stop = data.index(b"mdat") + 4, data.index(b"moov") - 4
        data[start:stop] = bytes(stop - start)
        path.write_bytes(data)
        with pytest.raises(
            EpisodeError, match=r"hand_camera\.mp4 (cannot be decoded after|has 12)"
        ):
            read(filmed, [0, 8])


class TestImports:
    def run(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return done.stdout

    def test_importing_the_readers_loads_no_heavy_module(self) -> None:
        code = (
            "import sys, attnstore.ingest.datasets\n"
            "print(*{'h5py', 'av', 'torch'} & {*sys.modules})"
        )
        assert self.run(code).strip() == ""

    def test_missing_h5py_names_the_command(self, episode: Path) -> None:
        code = (
            "import sys; sys.modules['h5py'] = None\n"
            "from attnstore.ingest.datasets import DroidDataset\n"
            "from attnstore.store.errors import MissingExtraError\n"
            f"try: DroidDataset({str(root_of(episode))!r}).info({NAME!r})\n"
            "except MissingExtraError as error: print(error)\n"
        )
        assert self.run(code).strip() == (
            "reading trajectory.h5 needs h5py: pip install 'attnstore[ingest]'"
        )


class TestSample:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_every_frame_can_be_read(self, side: str) -> None:
        dataset = DroidDataset(sample_path(), side=side)
        found = {}
        for name in dataset.episode_names():
            info = dataset.info(name)
            found[name] = info.frames
            assert info.task == info.instruction == info.attributes["current_task"]
            assert info.attributes["calibrated_serials"] == ["14436910", "25455306", "26368109"]
            assert info.rate == pytest.approx(15, rel=0.01)
            frames = list(dataset.frames(name, range(info.frames)))
            assert [frame.index for frame in frames] == list(range(info.frames))
            for frame in frames:
                assert frame.state.shape == frame.action.shape == (8,)
                assert [image.rgb.shape for image in frame.cameras] == [(360, 640, 3)] * 2
                assert all(image.rgb.std() > 10 for image in frame.cameras)
        assert found == {
            "failure/2025-12-10/2025-12-10_09-07-36": 25,
            "failure/2025-12-11/2025-12-11_09-44-16": 62,
            "success/2025-12-10/2025-12-10_09-00-39": 71,
            "success/2025-12-12/2025-12-12_10-14-19": 25,
        }

    def test_masks_belong_to_frames_that_are_there(self) -> None:
        episode = sample_path() / "failure/2025-12-10/2025-12-10_09-07-36"
        detections = json.loads((episode / "dinox_info.json").read_text())
        assert json.loads((episode / "white_list.json").read_text()) == [0, 24]
        assert list(detections) == ["0", "24"]
        for found in detections.values():
            for detection in found:
                mask = np.load(episode / "masks" / detection["mask_file"])
                x0, y0, x1, y1 = detection["bbox"]
                assert (mask.dtype, mask.shape) == (np.bool_, (360, 640))
                rows, columns = np.nonzero(mask)
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert box == [x0, y0, x1, y1]

    def test_it_stays_small(self) -> None:
        files = [path for path in sample_path().rglob("*") if path.is_file()]
        assert 100 < len(files) < 250
        assert sum(path.stat().st_size for path in files) <= 3e6
        assert not [path for path in files if path.suffix in (".svo2", ".npz")]


UUID = "RAD+5d05c5aa+2023-07-07-09h-42m-23s"
PUBLISHED = "success/2023-07-07/Fri_Jul__7_09:42:23_2023"
SERIALS = dict(zip(CAMERAS, ("13062452", "22008760", "24400334"), strict=True))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """An episode as DROID publishes it, its release's file of instructions two folders above the outcome."""
    episode = tmp_path / "droid_raw" / "RAD" / PUBLISHED
    videos = episode / "recordings/MP4"
    videos.mkdir(parents=True)
    for camera, serial in SERIALS.items():
        write_video(episode, camera).rename(videos / f"{serial}.mp4")
    (videos / "13062452-stereo.mp4").write_bytes(b"two views")
    (episode / "recordings/SVO").mkdir()
    write_trajectory(episode, trajectory())
    edit_metadata(episode, lambda _: None)
    sentences = {
        f"language_instruction{i}": ("", "put it in", "place the cube")[i - 1] for i in (1, 2, 3)
    }
    (tmp_path / "droid_raw/aggregated-annotations-030724.json").write_text(
        json.dumps({UUID: sentences})
    )
    return episode


def edit_metadata(episode: Path, change: Any) -> None:
    path = episode / f"metadata_{UUID}.json"
    keys = ("wrist_cam_serial", "ext1_cam_serial", "ext2_cam_serial")
    values = {
        "uuid": UUID, "lab": "RAD", "success": True, "current_task": "Move object", "scene_id": 7,
        "left_mp4_path": f"{PUBLISHED}/recordings/MP4/24400334.mp4",
        "right_mp4_path": f"{PUBLISHED}/recordings/MP4/22008760.mp4",
        **dict(zip(keys, SERIALS.values(), strict=True)),
    }  # fmt: skip
    change(values)
    path.write_text(json.dumps(values))


class TestPublished:
    @staticmethod
    def of(episode: Path, **options: Any) -> EpisodeInfo:
        return DroidDataset(episode.parents[2], **options).info(PUBLISHED)

    def refused(self, episode: Path, **options: Any) -> str:
        with pytest.raises(EpisodeError) as caught:
            self.of(episode, **options)
        assert str(episode) not in str(caught.value)
        return caught.value.reason

    def test_it_is_read_beside_the_labs(self, published: Path) -> None:
        root = published.parents[2]
        write_episode(root)
        dataset = DroidDataset(root)
        assert dataset.episode_names() == [PUBLISHED, NAME]
        assert dataset.info(NAME).instruction == "place the green cube into the pink bowl"
        info = pickle.loads(pickle.dumps(dataset)).info(PUBLISHED)
        assert (info.outcome, info.date, info.frames) == ("success", "2023-07-07", LENGTH)
        assert (info.instruction, info.task) == ("put it in", None)
        assert info.attributes["instructions"] == ["put it in", "place the cube"]
        assert (info.attributes["left"], info.attributes["right"]) == CAMERAS[:0:-1]
        assert info.attributes["metadata"]["scene_id"] == 7
        json.dumps(info.attributes, allow_nan=False)
        (frame,) = dataset.frames(PUBLISHED, [5])
        for image, camera in zip(frame.cameras, CAMERAS[:2], strict=True):
            expected = whole_video(published / f"recordings/MP4/{SERIALS[camera]}.mp4")[5]
            assert image.camera == camera
            np.testing.assert_array_equal(image.rgb, expected)

    def test_the_other_outer_camera(self, published: Path) -> None:
        dataset = DroidDataset(published.parents[2], side="ext2")
        (frame,) = dataset.frames(PUBLISHED, [5])
        expected = whole_video(published / "recordings/MP4/24400334.mp4")[5]
        assert frame.cameras[1].camera == "varied_camera_2"
        np.testing.assert_array_equal(frame.cameras[1].rgb, expected)
        assert "differs from episode to episode: pass --side ext1 or ext2 instead of right" in (
            self.refused(published, side="right")
        )

    def test_above_the_labs_and_alone(self, published: Path) -> None:
        above = DroidDataset(published.parents[3])
        assert above.episode_names() == [f"RAD/{PUBLISHED}"]
        assert above.info(f"RAD/{PUBLISHED}").instruction == "put it in"
        assert DroidDataset(published).episode_names() == [PUBLISHED]
        shutil.rmtree(published)
        published.mkdir()  # its name tells that it is one
        assert above.episode_names() == [f"RAD/{PUBLISHED}"]

    def test_instructions(self, published: Path) -> None:
        file = published.parents[3] / "aggregated-annotations-030724.json"
        assert (
            self.of(published, instruction="language_instruction3").instruction == "place the cube"
        )
        assert self.of(published, instruction="current_task").instruction == "Move object"
        assert "language_instruction1 is empty; aggregated-" in (
            self.refused(published, instruction="language_instruction1")
        )
        (published / "instruction.txt").write_text("lift it")
        texts = ["lift it", "put it in", "place the cube"]
        assert self.of(published).attributes["instructions"] == texts
        (published / "instruction.txt").unlink()
        moved = file.rename(published.parents[4] / "mine.json")
        told = self.refused(published)
        assert "none is there; no file of instructions is known (RAD+5d05c5aa" in told
        assert "--instruction-column current_task for its task, 'Move object'" in told
        assert self.of(published, annotations=moved).instruction == "put it in"
        moved.write_text("[]")
        with pytest.raises(
            UsageError, match=r"mine\.json is no JSON object of instructions by uuid"
        ):
            DroidDataset(published.parents[2], annotations=moved)
        with pytest.raises(
            UsageError, match="column is one of language_instruction1, .*got 'task'"
        ):
            DroidDataset(published.parents[2], instruction="task")
        for name in ("aggregated-annotations-1.json", "droid_language_annotations.json"):
            (published.parents[2] / name).write_text("{}")
        with pytest.raises(UsageError, match="name one with --annotations"):
            DroidDataset(published.parents[2])
        with pytest.raises(
            EpisodeError, match=r"has instruction\.txt alone; leave --instruction-column"
        ):
            write_episode(published.parents[4] / "lab")
            DroidDataset(published.parents[4] / "lab", instruction="current_task").info(NAME)

    def test_outcomes(self, published: Path) -> None:
        edit_metadata(published, lambda v: v.update(success=False))
        assert "its folder is success, and metadata_RAD" in self.refused(published)
        alone = published.parents[4] / "kept" / published.name
        shutil.move(published, alone)
        dataset = DroidDataset(alone, outcome="failure", instruction="current_task")
        assert [dataset.info(n).outcome for n in dataset.episode_names()] == ["failure"]
        edit_metadata(alone, lambda v: v.update(success=None))
        assert dataset.info(alone.name).outcome == "unknown"
        edit_metadata(alone, lambda v: v.update(success="perhaps"))
        with pytest.raises(EpisodeError, match=r"success in metadata_RAD.*got 'perhaps'"):
            dataset.info(alone.name)

    def test_cameras_that_are_not_there(self, published: Path) -> None:
        videos = published / "recordings/MP4"
        wrist = videos / "13062452.mp4"
        data = wrist.read_bytes()
        wrist.unlink()
        told = self.refused(published)
        assert f"recordings/MP4/13062452.mp4, which metadata_{UUID}.json names, is missing" in told
        assert "a -stereo.mp4 has two views side by side and is no camera by itself" in told
        (videos / "13062452-stereo.mp4").unlink()
        assert "there is 22008760.mp4, 24400334.mp4; copy it too" in self.refused(published)
        wrist.write_bytes(data[: len(data) // 2])
        assert "recordings/MP4/13062452.mp4 (" in self.refused(published)
        with av.open(str(wrist), "w") as container:
            stream = container.add_stream("libx264", rate=15)
            stream.width, stream.height, stream.pix_fmt = 2 * WIDTH, 36, "yuv420p"
            image = av.VideoFrame.from_ndarray(np.zeros((36, 2 * WIDTH, 3), np.uint8), "rgb24")
            container.mux([*stream.encode(image), *stream.encode()])
        assert "13062452.mp4 is 128x36, the two views of a stereo camera" in self.refused(published)

    def test_metadata_that_say_nothing(self, published: Path) -> None:
        edit_metadata(published, lambda v: v.update(ext1_cam_serial="../x"))
        assert "its ext1_cam_serial is '../x'; copy" in self.refused(published)
        edit_metadata(published, lambda v: v.update(ext1_cam_serial="13062452"))
        assert "gives hand_camera and varied_camera_1 the same serial" in self.refused(published)
        path = published / f"metadata_{UUID}.json"
        path.write_text("{")
        assert f"metadata_{UUID}.json cannot be read: " in self.refused(published)
        path.write_text("[]")
        assert "is no JSON object; copy the file again" in self.refused(published)
        (published / "metadata_b.json").write_text("{}")
        assert self.refused(published).endswith("metadata_b.json; leave one")
        path.unlink()
        (published / "metadata_b.json").unlink()
        assert self.refused(published).endswith("there is none; copy it too")

"""Demonstrations of LIBERO and robomimic, and ALOHA's episodes, on files of the structure that their scripts write."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from cli_fixtures import assert_one_line, run
from hdf5_recordings import shots, write_aloha, write_libero, write_robomimic

import attnstore
from attnstore.ingest.datasets import Dataset
from attnstore.ingest.datasets.aloha import AlohaDataset
from attnstore.ingest.datasets.robomimic import RobomimicDataset
from attnstore.ingest.datasets.selection import Selection
from attnstore.store.errors import EpisodeError, NotFoundError, UsageError
from attnstore.store.image import decode


@pytest.fixture
def libero(tmp_path: Path) -> Path:
    """A suite of two tasks: one as LIBERO publishes it, one as OpenVLA regenerated it."""
    write_libero(tmp_path / "libero_goal/open_the_drawer_demo.hdf5", tuple([3] * 11))
    path = tmp_path / "libero_goal/KITCHEN_SCENE10_close_the_drawer_demo.hdf5"
    write_libero(path, attributes=False)
    return tmp_path / "libero_goal"


@pytest.fixture
def can(tmp_path: Path) -> Path:
    return write_robomimic(tmp_path / "can.hdf5")


@pytest.fixture
def aloha(tmp_path: Path) -> Path:
    for number, folder in enumerate(("success", "failure", "failure")):
        write_aloha(tmp_path / f"aloha/{folder}/episode_{(0, 10, 9)[number]}.hdf5", number)
    return tmp_path / "aloha"


def edit(path: Path, change: Callable[[Any], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replaced(key: str, make: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        value = file[key][()]
        del file[key]
        file[key] = make(value)

    return change


def removed(key: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[key]

    return change


def said_of(dataset: Dataset, name: str) -> str:
    with pytest.raises(EpisodeError) as caught:
        list(dataset.frames(name, range(dataset.info(name).frames)))
    assert "\n" not in str(caught.value)
    assert "/tmp" not in str(caught.value)
    return caught.value.reason


def test_libero_is_read(libero: Path) -> None:
    dataset: RobomimicDataset = pickle.loads(pickle.dumps(RobomimicDataset(libero)))
    assert (dataset.name, dataset.cameras) == ("libero_goal", ("agentview_rgb", "eye_in_hand_rgb"))
    assert dataset.upside_down
    names = list(dataset.episode_names())
    assert names[:2] == [f"KITCHEN_SCENE10_close_the_drawer_demo/demo_{i}" for i in (0, 1)]
    assert names[2:] == [f"open_the_drawer_demo/demo_{i}" for i in range(11)]
    assert dataset.file_of(names[2]) == "open_the_drawer_demo.hdf5"
    info = dataset.info("open_the_drawer_demo/demo_1")
    assert (info.instruction, info.outcome, info.rate) == ("open the drawer", "success", 20.0)
    assert info.attributes["env"] == "Libero_Kitchen"
    other = dataset.info(names[1])
    assert (other.instruction, other.rate) == ("close the drawer", None)
    with h5py.File(libero / "open_the_drawer_demo.hdf5", locking=False) as file:
        plain = file["data/demo_1"]
        state = np.concatenate([plain["obs/ee_states"], plain["obs/gripper_states"]], 1)
        for frame in dataset.frames("open_the_drawer_demo/demo_1", [2, 0]):
            np.testing.assert_array_equal(frame.state, state[frame.index].astype(np.float32))
            np.testing.assert_array_equal(
                frame.action, plain["actions"][frame.index].astype(np.float32)
            )
            for image in frame.cameras:
                np.testing.assert_array_equal(image.rgb, plain[f"obs/{image.camera}"][frame.index])
                np.testing.assert_array_equal(decode(image.data), image.rgb)


def test_a_file_alone_and_what_is_asked_of_it(libero: Path) -> None:
    dataset = RobomimicDataset(
        libero / "open_the_drawer_demo.hdf5", cameras=("eye_in_hand_rgb",), action=("dones",),
        state=("obs/joint_states", "states"), instruction=" pull ", outcome_column="dones",
        selection=Selection(("demo_1?",)),
    )  # fmt: skip
    assert dataset.episode_names() == ["open_the_drawer_demo/demo_10"]
    assert dataset.info("open_the_drawer_demo/demo_10").instruction == "pull"
    (frame,) = dataset.frames("open_the_drawer_demo/demo_10", [2])
    assert (frame.state.shape, frame.action.tolist()) == ((26,), [1.0])
    np.testing.assert_array_equal(frame.cameras[0].rgb, shots(101, 3)[2])


def test_outcomes_and_filter_keys_of_robomimic(can: Path) -> None:
    dataset = RobomimicDataset(can, instruction="lift the can")
    assert (dataset.cameras, dataset.upside_down) == (("agentview_image",), False)
    infos = [dataset.info(name) for name in dataset.episode_names()]
    assert [info.outcome for info in infos] == ["success", "failure", "failure"]
    assert [info.attributes["filter_keys"] for info in infos] == [["valid"], ["valid"], []]
    failed = RobomimicDataset(can, selection=Selection(outcome="failure"), filter_key="valid")
    assert failed.episode_names() == ["can/demo_1"]
    # a file in which nothing has a reward says nothing
    silent = RobomimicDataset(
        write_robomimic(can.with_name("real.hdf5"), (False, False)), instruction="lift"
    )
    assert silent.info("real/demo_0").outcome == "unknown"
    edit(can, replaced("data/demo_0/rewards", lambda v: v + 0.5))
    assert RobomimicDataset(can, instruction="lift").info("can/demo_0").outcome == "unknown"
    assert "column rewards: an outcome is one of" in said_of(
        RobomimicDataset(can, instruction="lift", outcome_column="rewards"), "can/demo_0"
    )
    edit(
        can,
        lambda f: f["data/demo_2"].attrs.update(
            ep_meta=json.dumps({"lang": "lift it"}), success=True
        ),
    )
    told = RobomimicDataset(can, outcome_column="success")
    assert (told.info("can/demo_2").instruction, told.info("can/demo_2").outcome) == (
        "lift it",
        "success",
    )
    assert "no column or attribute 'success'" in said_of(
        RobomimicDataset(can, instruction="lift", outcome_column="success"), "can/demo_0"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cameras": ["front"]}, r"no camera 'front'; it has agentview_image"),
        ({"cameras": ["agentview_image"] * 2}, "a camera is named twice"),
        ({"state": ["obs/none"]}, r"'obs/none' is not one of actions, dones, .*--state-column"),
        ({"filter_key": "train"}, r"no filter key 'train'; it has valid"),
        ({"instruction": " "}, "--instruction is empty"),
        ({"selection": Selection(("demo_9",))}, r"none of 3 episodes matches episode 'demo_9'"),
    ],
)
def test_an_option_that_names_nothing(can: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, NotFoundError), match=said):
        RobomimicDataset(can, **options).episode_names()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replaced("data/demo_0/obs/agentview_rgb", lambda v: v[:-1]), "agentview_rgb has 2, /data/demo_0/obs/eye_in"),
        (replaced("data/demo_0/obs/agentview_rgb", lambda v: v / 255), "(step, height, width, 3) of uint8; /data"),
        (replaced("data/demo_0/obs/agentview_rgb", lambda v: v.transpose(0, 3, 1, 2)), "is (3, 3, 24, 32) of uint8"),
        (removed("data/demo_0/obs/agentview_rgb"), "has no obs/agentview_rgb; leave the camera"),
        (removed("data/demo_0/obs/ee_states"), "has no dataset obs/ee_states"),
        (replaced("data/demo_0/actions", lambda v: v[:2]), "actions in open_the_drawer_demo.hdf5 has 2, the first"),
        (replaced("data/demo_0/obs/ee_states", lambda v: v * np.nan), "and obs/gripper_states at step 0 is nan"),
        (replaced("data/demo_0/rewards", lambda v: v.astype("S")), "rewards in open_the_drawer_demo.hdf5 must hold"),
        (lambda f: f["data/demo_0"].attrs.update(num_samples=9), "num_samples has 9"),
        (lambda f: f["data"].attrs.update(problem_info="{"), "attribute problem_info of /data is no JSON"),
    ],
)  # fmt: skip
def test_a_broken_demonstration_is_named(libero: Path, change: Any, said: str) -> None:
    path = libero / "open_the_drawer_demo.hdf5"
    edit(path, change)
    dataset = RobomimicDataset(libero)
    assert len(dataset.episode_names()) == 13
    assert said in said_of(dataset, "open_the_drawer_demo/demo_0")
    dataset.info("KITCHEN_SCENE10_close_the_drawer_demo/demo_0")


def test_a_file_that_cannot_be_read_is_an_episode_that_is_named(libero: Path) -> None:
    path = libero / "KITCHEN_SCENE10_close_the_drawer_demo.hdf5"
    path.write_bytes(path.read_bytes()[:5000])
    (libero / "other.hdf5").write_bytes(b"")
    with h5py.File(libero / "third.hdf5", "w") as file:
        file["data"] = np.zeros(3)
    dataset = RobomimicDataset(libero)
    assert next(iter(dataset.episode_names())) == "KITCHEN_SCENE10_close_the_drawer_demo"
    assert list(dataset.episode_names())[-2:] == ["other", "third"]
    assert "(5000 bytes) is not readable as HDF5" in said_of(dataset, path.stem)
    assert "no group data with demo_0, demo_1" in said_of(dataset, "third")
    assert dataset.cameras == ("agentview_rgb", "eye_in_hand_rgb")
    (libero / "other.h5").write_bytes(b"")
    with pytest.raises(UsageError, match=r"other\.h5 and other\.hdf5 have one name"):
        RobomimicDataset(libero)
    with pytest.raises(NotFoundError, match=r"no \*\.hdf5 in it"):
        (libero / "empty").mkdir()
        RobomimicDataset(libero / "empty")


def test_pictures_without_a_state_that_is_known(can: Path) -> None:
    edit(can, removed("data/demo_0/obs/robot0_eef_pos"))
    with pytest.raises(
        UsageError, match=r"neither obs/ee_states .*--state-column: actions, dones, "
    ):
        RobomimicDataset(can)
    edit(can, removed("data/demo_0/obs/agentview_image"))
    with pytest.raises(
        UsageError, match=r"no pictures in obs: .*dataset_states_to_obs\.py renders"
    ):
        RobomimicDataset(can, state=("states",))


def test_libero_asks_how_the_policy_saw_it(libero: Path, tmp_path: Path, checkpoint: Path) -> None:
    store = tmp_path / "lab.attn"
    arguments = (
        "ingest", "robomimic", store, libero, "--policy", "pi0", "--checkpoint", checkpoint,
        "--episode", "open_the_drawer_demo/demo_1", "--stride", "2",
    )  # fmt: skip
    assert_one_line(
        run(*arguments),
        2,
        "upside down",
        "--env-processor libero for openpi's",
        "--env-processor none",
    )
    done = run(*arguments, "--env-processor", "libero", "--stride", "3")
    assert done.returncode == 0, done.stderr
    with attnstore.open(store) as opened:
        (episode,) = opened.episodes.values()
        kept = decode(episode.image_bytes(0, "agentview_rgb"))
    np.testing.assert_array_equal(kept, shots(10, 3)[0][::-1, ::-1])


def test_aloha_is_read(aloha: Path) -> None:
    dataset: AlohaDataset = pickle.loads(
        pickle.dumps(AlohaDataset(aloha, instruction="move the cube"))
    )
    assert (dataset.name, dataset.cameras) == ("aloha", ("cam_high", "cam_low"))
    assert dataset.episode_names() == [
        "failure/episode_9",
        "failure/episode_10",
        "success/episode_0",
    ]
    info = dataset.info("failure/episode_10")
    assert (info.outcome, info.instruction, info.frames) == ("failure", "move the cube", 3)
    assert (info.attributes["sim"], info.attributes["file"]) == (True, "failure/episode_10.hdf5")
    with h5py.File(aloha / "failure/episode_10.hdf5", locking=False) as file:
        for frame in dataset.frames("failure/episode_10", [2, 0]):
            np.testing.assert_array_equal(frame.state, file["observations/qpos"][frame.index])
            np.testing.assert_array_equal(frame.action, file["action"][frame.index])
            for image in frame.cameras:
                plain = file[f"observations/images/{image.camera}"][frame.index]
                np.testing.assert_array_equal(image.rgb, plain)
                np.testing.assert_array_equal(decode(image.data), plain)
    part = AlohaDataset(aloha / "success", instruction="x", cameras=("cam_low",))
    assert (part.name, part.episode_names()) == ("aloha", ["success/episode_0"])
    alone = AlohaDataset(aloha / "success/episode_0.hdf5", instruction="x")
    assert alone.info("episode_0").outcome == "unknown"


def test_compressed_pictures_of_aloha(tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "aloha/episode_0.hdf5", compress=True)
    with pytest.raises(UsageError, match=r"are compressed, .*--jpeg-colours bgr if ALOHA's"):
        AlohaDataset(path, instruction="x")
    truth = shots(1, 3)[2].astype(int)  # cam_high is the second that was written
    (frame,) = AlohaDataset(path, instruction="x", jpeg_colours="bgr").frames("episode_0", [2])
    assert np.abs(frame.cameras[0].rgb - truth).mean() < 8
    np.testing.assert_array_equal(decode(frame.cameras[0].data), frame.cameras[0].rgb)
    (plain,) = AlohaDataset(path, instruction="x", jpeg_colours="rgb").frames("episode_0", [2])
    np.testing.assert_array_equal(plain.cameras[0].rgb, frame.cameras[0].rgb[..., ::-1])
    with h5py.File(path) as file:
        row = file["observations/images/cam_high"][2]
    by_opencv = cv2.imdecode(row, cv2.IMREAD_COLOR)
    assert by_opencv is not None
    # ALOHA's own reader takes OpenCV's array as it is; two decoders may round differently
    assert np.abs(by_opencv.astype(int) - frame.cameras[0].rgb).max() <= 2
    assert plain.cameras[0].media_type == "image/jpeg"

    def cut(file: Any) -> None:
        file["observations/images/cam_high"][1, 300:] = 0

    edit(path, cut)
    dataset = AlohaDataset(path, instruction="x", jpeg_colours="bgr")
    assert "observations/images/cam_high[1] (300 bytes) is not a complete image: truncated" in (
        said_of(dataset, "episode_0")
    )


def test_other_forms_of_encoded_pictures(tmp_path: Path) -> None:
    path = write_aloha(tmp_path / "aloha/episode_0.hdf5", compress=True)
    expected = AlohaDataset(path, instruction="x", jpeg_colours="rgb").frames(
        "episode_0", [0, 1, 2]
    )
    pixels = [frame.cameras[0].rgb for frame in expected]
    with h5py.File(path, "r+") as file:
        coded = [bytes(row).rstrip(b"\0") for row in file["observations/images/cam_high"]]
        del file["observations/images/cam_high"], file["observations/images/cam_low"]
        file["observations/images/cam_high"] = np.array(coded, "S")
        of_any_length = h5py.vlen_dtype(np.uint8)
        images = file.create_dataset("observations/images/cam_low", (3,), of_any_length)
        for i, data in enumerate(coded):
            images[i] = np.frombuffer(data, np.uint8)
    frames = AlohaDataset(path, instruction="x", jpeg_colours="rgb").frames("episode_0", [0, 1, 2])
    for frame, plain in zip(frames, pixels, strict=True):
        for image in frame.cameras:
            np.testing.assert_array_equal(image.rgb, plain)


def test_outcomes_of_aloha(aloha: Path, tmp_path: Path) -> None:
    file = tmp_path / "outcomes.json"
    file.write_text('{"0": "success", "9": "failure"}')
    dataset = AlohaDataset(
        aloha, instruction="x", outcome_file=file, selection=Selection(("9", "0"))
    )
    assert [dataset.info(n).outcome for n in dataset.episode_names()] == ["failure", "success"]
    file.write_text('{"0": "failure"}')
    told = AlohaDataset(aloha, instruction="x", outcome_file=file)
    assert "its folder is success, and --outcome-file says failure" in said_of(
        told, "success/episode_0"
    )
    file.write_text('{"7": "failure"}')
    with pytest.raises(UsageError, match="there is no episode 7 in"):
        AlohaDataset(aloha, instruction="x", outcome_file=file)
    write_aloha(aloha / "failure/episode_0.hdf5")
    with pytest.raises(UsageError, match="several files are called episode_0"):
        AlohaDataset(aloha, instruction="x", outcome_file=file)
    with pytest.raises(
        NotFoundError, match="outcomes come from folders called success and failure"
    ):
        AlohaDataset(aloha, selection=Selection(outcome="unknown")).episode_names()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replaced("observations/images/cam_low", lambda v: v[:-1]), "cam_high has 3, cam_low has 2"),
        (replaced("observations/images/cam_low", lambda v: v.astype(np.uint16)), "cam_low is (3, 24, 32, 3) of uint16"),
        (removed("observations/images/cam_low"), "no observations/images/cam_low; leave"),
        (removed("observations/images"), "no group observations/images in it; was it recorded by ALOHA?"),
        (removed("observations/qpos"), "has no dataset observations/qpos"),
        (replaced("action", lambda v: v[:1]), "action in episode_0.hdf5 has 1, the first camera 3"),
        (replaced("observations/qpos", lambda v: v / 0.0), "states are finite numbers: number 0 of observations/qpos"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_broken_episode_of_aloha_is_named(aloha: Path, change: Any, said: str) -> None:
    edit(aloha / "success/episode_0.hdf5", change)
    dataset = AlohaDataset(aloha, instruction="x", cameras=("cam_high", "cam_low"))
    assert len(dataset.episode_names()) == 3
    assert said in said_of(dataset, "success/episode_0")
    dataset.info("failure/episode_9")


def test_what_aloha_is_not(tmp_path: Path, aloha: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no episode_0\.hdf5 in it"):
        (tmp_path / "empty").mkdir()
        AlohaDataset(tmp_path / "empty")
    with pytest.raises(
        UsageError, match=r"no camera 'front'; it has cam_high, cam_high_depth, cam_low"
    ):
        AlohaDataset(aloha, cameras=("front",))
    depth = AlohaDataset(aloha, cameras=("cam_high_depth",), instruction="x")
    assert "leave the camera out if it is depth" in said_of(depth, "success/episode_0")
    with pytest.raises(UsageError, match="JPEGs' colours are rgb, bgr; got 'grb'"):
        AlohaDataset(aloha, jpeg_colours="grb")  # type: ignore[arg-type]
    assert "say with --instruction what the robot was told" in said_of(
        AlohaDataset(aloha), "success/episode_0"
    )

    def told(file: Any) -> None:
        file["language_raw"] = [b"fold the shirt"]

    edit(aloha / "success/episode_0.hdf5", told)
    assert AlohaDataset(aloha).info("success/episode_0").instruction == "fold the shirt"


def test_aloha_on_the_command_line(aloha: Path, tmp_path: Path, checkpoint: Path) -> None:
    store = tmp_path / "lab.attn"
    eight = np.zeros((3, 8), np.float32)  # as the tiny policy's processor has it
    edit(
        aloha / "failure/episode_10.hdf5",
        lambda f: f.create_dataset("observations/eight", data=eight),
    )
    done = run(
        "ingest", "aloha", store, aloha, "--policy", "pi0", "--checkpoint", checkpoint, "--stride", "2",
        "--instruction", "move the cube", "--episode", "10", "--camera", "cam_low",
        "--state-column", "observations/eight", "--dry-run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 episodes to do, 2 keyframes; 0 committed already, 0 broken" in done.stderr

"""RLDS read without TensorFlow: a dataset that TensorFlow Datasets wrote, and what is wrong with others."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkout import CHECKOUT
from cli_fixtures import run

import attnstore
from attnstore.ingest.datasets.rlds.dataset import RldsDataset
from attnstore.ingest.datasets.rlds.records import record_places
from attnstore.ingest.datasets.selection import Selection
from attnstore.store.errors import AttnstoreError, EpisodeError, NotFoundError, UsageError

STEPS = 3


@pytest.fixture
def rlds(tmp_path: Path) -> Path:
    """Three episodes in two files of `train`, two in two of `val`."""
    with zipfile.ZipFile(CHECKOUT / "tests/golden/rlds.zip") as archive:
        archive.extractall(tmp_path / "tiny_robot/1.0.0")
    return tmp_path / "tiny_robot/1.0.0"


def written(episode: int) -> dict[str, Any]:
    """What was written of an episode, drawn anew in the order of tests/golden/make_rlds.py."""
    rng = np.random.default_rng(episode)
    columns: dict[str, list[Any]] = {}
    for _ in range(STEPS):
        step = {
            "image_0": rng.integers(0, 255, (16, 24, 3), dtype=np.uint8),
            "wrist_image": np.full((16, 16, 3), rng.integers(0, 255, 3), np.uint8),
            "state": rng.normal(size=7).astype(np.float32),
            "packed": rng.normal(size=3).astype(np.float32),
            "action": rng.normal(size=7).astype(np.float32),
        }
        for name, value in step.items():
            columns.setdefault(name, []).append(value)
    return {name: np.stack(values) for name, values in columns.items()}


def edit(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def step_features(data: dict[str, Any]) -> dict[str, Any]:
    steps = data["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    found: dict[str, Any] = steps["featuresDict"]["features"]
    return found


def test_what_tensorflow_datasets_wrote_is_read(rlds: Path) -> None:
    dataset = RldsDataset(rlds.parent, state=("observation/state", "observation/packed"))
    assert (dataset.name, dataset.cameras) == ("tiny_robot", ("image_0", "wrist_image"))
    names = list(dataset.episode_names())
    assert names == ["train/000000", "train/000001", "train/000002", "val/000000", "val/000001"]
    seen = set()
    for name in names:
        info = dataset.info(name)
        number = info.attributes["metadata"]["episode_metadata/episode_id"]
        expected = written(number)
        frames = list(dataset.frames(name, range(info.frames)))
        state = np.concatenate([expected["state"], expected["packed"]], axis=1)
        np.testing.assert_array_equal([f.state for f in frames], state)
        np.testing.assert_array_equal([f.action for f in frames], expected["action"])
        first, wrist = ([f.cameras[i] for f in frames] for i in (0, 1))
        np.testing.assert_array_equal([f.rgb for f in first], expected["image_0"])
        # of one colour, so that JPEG decoders agree but for rounding between colour spaces
        off = np.array([f.rgb for f in wrist], int) - expected["wrist_image"]
        assert np.abs(off).max() <= 2
        assert info.outcome == ("failure", "success")[number % 2]
        texts = ["try it"] if number == 2 else [f"lift cube {number}", "try it"]
        assert (info.instruction, info.attributes["instructions"]) == (texts[0], texts)
        seen.add((name.split("/")[0], number))
    assert seen == {("train", 0), ("train", 1), ("train", 2), ("val", 3), ("val", 4)}


def test_a_chosen_part_in_a_chosen_order(rlds: Path) -> None:
    dataset = RldsDataset(
        rlds, split="val", cameras=("wrist_image", "image_0"), outcome_column="reward",
        instruction="language_instruction_2", selection=Selection(outcome="success"),
    )  # fmt: skip
    (name,) = pickle.loads(pickle.dumps(dataset)).episode_names()
    info = dataset.info(name)
    assert (info.outcome, info.instruction) == ("success", "try it")
    assert info.attributes["metadata"]["episode_metadata/episode_id"] == 3
    last, first = dataset.frames(name, [2, 0])
    assert [c.camera for c in last.cameras] == ["wrist_image", "image_0"]
    np.testing.assert_array_equal(last.cameras[1].rgb, written(3)["image_0"][2])
    np.testing.assert_array_equal(first.state, written(3)["state"][0])


def test_files_that_are_not_here_are_left_out_and_said(rlds: Path) -> None:
    gone = rlds / "tiny_robot-train.tfrecord-00000-of-00002"
    before = RldsDataset(rlds, split="train")
    kept = [n for n in before.episode_names() if before.file_of(n) != gone.name]
    gone.unlink()
    dataset = RldsDataset(rlds, split="train")
    assert list(dataset.episode_names()) == kept  # by their numbers
    assert dataset.absent_files == (gone.name,)
    for path in rlds.glob("*.tfrecord*"):
        path.unlink()
    with pytest.raises(
        NotFoundError, match=r"none of the files of tiny_robot is here: the first is"
    ):
        RldsDataset(rlds).episode_names()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cameras": ["front"]}, r"no camera 'front'; it has depth, image_0, wrist_image"),
        ({"cameras": ["depth"]}, r"depth is 16x24x1 uint16, not a picture with colour"),
        ({"cameras": ["image_0", "observation/image_0"]}, "a camera is named twice"),
        ({"state": ["observation/image_0"]}, r"is not one of action, is_first, observation/packed"),
        ({"split": "test"}, r"no split 'test'; it has train, val"),
        ({"instruction": "action"}, r"'action' is no column of texts; .*language_instruction"),
        ({"outcome_column": "won"}, r"no column 'won' for the outcome; there are .*reward"),
        ({"selection": Selection(("train/9*",))}, r"none of 5 episodes matches episode 'train/9\*'"),
    ],
)  # fmt: skip
def test_an_option_that_names_nothing(rlds: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, NotFoundError), match=said):
        RldsDataset(rlds, **options).episode_names()


def test_a_folder_that_is_none(rlds: Path) -> None:
    (rlds.parent / "2.0.0").mkdir()
    (rlds.parent / "2.0.0/features.json").write_text("{}")
    with pytest.raises(UsageError, match=r"has the versions 1\.0\.0, 2\.0\.0: name one"):
        RldsDataset(rlds.parent)
    (rlds / "dataset_info.json").unlink()
    with pytest.raises(NotFoundError, match=r"dataset_info\.json is missing"):
        RldsDataset(rlds)
    (rlds / "features.json").unlink()
    with pytest.raises(NotFoundError, match=r"no features\.json.*copy features\.json and"):
        RldsDataset(rlds)


def test_a_description_that_cannot_be_read_here(rlds: Path) -> None:
    edit(rlds / "dataset_info.json", lambda d: d.update(fileFormat="array_record"))
    with pytest.raises(AttnstoreError, match="in the format tfrecord; these are array_record"):
        RldsDataset(rlds)
    edit(rlds / "dataset_info.json", lambda d: d.update(fileFormat="tfrecord"))
    edit(
        rlds / "features.json", lambda d: step_features(d)["observation"]["featuresDict"]["features"].pop("state")
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"neither observation/state nor .*--state-column: "):
        RldsDataset(rlds)
    (rlds / "features.json").write_text('{"type": "FeaturesDict", "content": {}}')
    with pytest.raises(AttnstoreError, match=r"before 4\.6"):
        RldsDataset(rlds)


def test_records_that_do_not_fit_their_description(rlds: Path) -> None:
    def longer(data: dict[str, Any]) -> None:
        step_features(data)["action"]["tensor"]["shape"]["dimensions"] = ["5"]

    edit(rlds / "features.json", longer)
    with pytest.raises(EpisodeError, match="steps/action has 5 numbers a step; 21 are recorded"):
        RldsDataset(rlds).info("val/000000")

    def counted(data: dict[str, Any]) -> None:
        data["splits"][1]["shardLengths"][0] = "2"

    edit(rlds / "dataset_info.json", counted)
    with pytest.raises(EpisodeError, match=r"counts 2 episodes in tiny_robot-val.*, and it has 1"):
        RldsDataset(rlds).info("val/000000")


def test_every_flipped_bit_of_a_record_is_seen(rlds: Path) -> None:
    dataset = RldsDataset(rlds)
    path = rlds / str(dataset.file_of("val/000000"))
    pristine = path.read_bytes()
    ((start, length),) = record_places(path)
    assert (start, len(pristine)) == (12, 12 + length + 4)
    for place in np.random.default_rng(0).integers(0, len(pristine), 200):
        damaged = bytearray(pristine)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(EpisodeError, match="damaged|ends within"):
            RldsDataset(rlds).info("val/000000")


def test_on_the_command_line(rlds: Path, tmp_path: Path, checkpoint: Path) -> None:
    store = tmp_path / "lab.attn"
    (rlds / "tiny_robot-train.tfrecord-00000-of-00002").unlink()
    done = run(
        "ingest", "rlds", store, rlds, "--policy", "pi0", "--checkpoint", checkpoint, "--stride", "2",
        "--split", "train", "--state-column", "observation/state", "--state-column", "reward",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        "1 of its files are not here, the first tiny_robot-train.tfrecord-00000-of" in done.stderr
    )
    with attnstore.open(store) as opened:
        (episode,) = opened.episodes.values()
        assert episode.name.startswith("train/")
        (source,) = opened.sql("SELECT DISTINCT dataset FROM runs").fetchall()
        frame = opened.sql("SELECT DISTINCT camera FROM frames ORDER BY 1").fetchall()
    assert source == ("rlds:tiny_robot",)
    assert frame == [("image_0",), ("wrist_image",)]
